"""PNG files: what all decoders read of them, alike; and whether the loader's decoder will.

libpng, which DALI decodes PNGs with, weighs colours by the gamma of a gAMA or sRGB chunk where it makes them gray, and
gives up on faults that Pillow passes over. So the loader shows DALI the chunks alone that hold the pixels, as stored
(`without_ancillary`), and what is checked here is what libpng checks. Source: W3C, "Portable Network Graphics", 3rd
edition, 2025, chapters 5, 7 and 10.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
IHDR, PLTE, TRNS, IDAT, IEND = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column, and steps between rows and columns, of each pass of an interlaced picture."""
LARGEST_SIDE = 1_000_000  # pixels: libpng's limit
INFLATED_AT_ONCE = 1 << 16  # compressed bytes: at most 66 MiB then
SLACK = 1 << 16  # bytes after the last row: some writers leave something there
UP = 2  # the filter that stores of each row what differs from the one above
LEVEL = 6  # of zlib


def is_critical(kind: bytes) -> bool:
    """Whether what a decoder makes of the pixels depends on a kind of chunk: all but the ancillary ones, and tRNS."""
    return not kind[0] & 0x20 or kind == TRNS


def without_ancillary(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A PNG, uint8 [bytes], without its ancillary chunks but tRNS; `data` itself where there are none, or no PNG.

    Nothing is decoded or checked: this takes a microsecond.
    """
    view = data.data
    if view[:8] != SIGNATURE:
        return data
    runs, begun, position = list[NDArray[np.uint8]](), 0, 8
    while position + 12 <= len(view):
        length, kind = struct.unpack_from(">I4s", view, position)
        end = position + 12 + length
        if end > len(view):
            break
        if not is_critical(kind):
            runs.append(data[begun:position])
            begun = end
        position = end
    return np.concatenate([*runs, data[begun:]]) if runs else data


class Png(NamedTuple):
    """A PNG as its chunks tell of it."""

    height: int
    width: int
    bits: int
    """Of a sample: 1, 2, 4, 8 or 16."""
    colour: int
    """Its colour type: GRAY, RGB, PALETTE, GRAY_ALPHA or RGB_ALPHA."""
    interlaced: bool
    palette: bytes
    transparency: bytes
    pixels: list[memoryview]
    """The contents of the IDAT chunks: one zlib stream."""
    fault: str
    """What is wrong with the file and leaves its pixels whole, "" if nothing is: see `repaired`."""

    @classmethod
    def parse(cls, data: bytes, *, checksums: bool = True) -> "Png":
        """Read the chunks; raise `ValueError` for what no decoder should guess at.

        Without `checksums`, those of the pixels are not compared.
        """
        parts, pixels, faults = dict[bytes, bytes](), list[memoryview](), list[str]()
        for kind, content, checksum in _critical_chunks(data):
            name = kind.decode(errors="backslashreplace")
            if (kind == IHDR) != (not parts) or kind in parts or (pixels and kind in (PLTE, TRNS)):
                raise ValueError(f"its chunk {name} is out of place")
            if kind == IEND:
                break
            if kind == IDAT:
                if checksums and not _is_whole(kind, content, checksum):
                    faults.append("the checksum of an IDAT chunk differs")
                pixels.append(content)
            elif kind not in (IHDR, PLTE, TRNS):
                raise ValueError(f"it has a chunk {name}, without which it must not be decoded")
            elif _is_whole(kind, content, checksum):
                parts[kind] = bytes(content)
            else:
                raise ValueError(f"the checksum of its chunk {name} differs")
        else:
            faults.append("its end (IEND) is missing")
        if not pixels:
            raise ValueError("it is cut short: it has no pixels")
        header, palette, transparency = (parts.get(kind, b"") for kind in (IHDR, PLTE, TRNS))
        parsed = cls(*_header(header), palette, transparency, pixels, "; ".join(dict.fromkeys(faults)))
        parsed._check_colours(PLTE in parts, TRNS in parts)
        return parsed

    def _check_colours(self, has_palette: bool, has_transparency: bool) -> None:
        colours = len(self.palette) // 3
        if (has_palette and (len(self.palette) % 3 or not 1 <= colours <= 256)) or (
            self.colour == PALETTE and not has_palette
        ):
            raise ValueError(f"its palette has {len(self.palette)} bytes, expected 3 for each of 1 to 256 colours")
        if has_transparency and len(self.transparency) < {GRAY: 2, RGB: 6}.get(self.colour, 0):
            raise ValueError(f"its tRNS chunk has {len(self.transparency)} bytes")

    def check_pixels(self) -> None:
        """Inflate the pixels; raise `ValueError` unless all are there, and are those that were written."""
        stream, done = zlib.decompressobj(), 0
        filters, total = self._filters()
        try:
            for piece in self._pieces():
                found = stream.decompress(piece)
                here = filters[np.searchsorted(filters, done) : np.searchsorted(filters, done + len(found))] - done
                if (np.frombuffer(found, np.uint8)[here] > 4).any():
                    raise ValueError("a row has no known filter")
                done += len(found)
                if done > total + SLACK:
                    raise ValueError(f"it holds more than its {total:,} bytes of pixels")
                if stream.eof:
                    break
        except zlib.error as error:
            raise ValueError(f"its pixels do not inflate ({error})") from error
        if done < total or not stream.eof:
            raise ValueError(f"its pixels are cut short: {done:,} of {total:,} bytes, or no checksum of them")

    def _pieces(self) -> Iterator[memoryview]:
        for content in self.pixels:
            for start in range(0, len(content), INFLATED_AT_ONCE):
                yield content[start : start + INFLATED_AT_ONCE]

    def _filters(self) -> tuple[NDArray[np.int64], int]:
        """Where among the inflated bytes each row's filter is, int64 [rows], and how many bytes there are."""
        starts, total = list[NDArray[np.int64]](), 0
        for top, left, down, right in ADAM7 if self.interlaced else ((0, 0, 1, 1),):
            rows, columns = -(-(self.height - top) // down), -(-(self.width - left) // right)
            if rows > 0 and columns > 0:
                row_bytes = 1 + -(-columns * self.bits * CHANNELS[self.colour] // 8)
                starts.append(total + row_bytes * np.arange(rows, dtype=np.int64))
                total += rows * row_bytes
        return np.concatenate(starts), total

    def repaired(self) -> bytes:
        """The same pixels in a PNG without fault, and without ancillary chunks but tRNS."""
        return _png(self[:5], self.palette, self.transparency, b"".join(self.pixels))


def _critical_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Kind, content and checksum of each chunk that pixels depend on; none that is cut off."""
    view, position = memoryview(data), len(SIGNATURE)
    while position + 12 <= len(view):
        length, kind = struct.unpack_from(">I4s", view, position)
        content, checksum = view[position + 8 : position + 8 + length], view[position + 8 + length :][:4]
        position += 12 + length
        if position <= len(view) and is_critical(kind):
            yield kind, content, checksum


def _is_whole(kind: bytes, content: memoryview, checksum: memoryview) -> bool:
    return zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big") == checksum


def _header(header: bytes) -> tuple[int, int, int, int, bool]:
    """Height, width, bits, colour type and whether it is interlaced; raises `ValueError` for what there is not."""
    if len(header) != 13:
        raise ValueError(f"its header has {len(header)} bytes, not 13")
    width, height, bits, colour, compression, filters, interlace = struct.unpack(">IIBBBBB", header)
    if bits not in DEPTHS.get(colour, ()) or compression or filters or interlace > 1:
        raise ValueError(f"its header is of no known kind ({bits} bits, colour type {colour})")
    if not 1 <= width <= LARGEST_SIDE or not 1 <= height <= LARGEST_SIDE:
        raise ValueError(f"it has {width} x {height} pixels, expected 1 to {LARGEST_SIDE:,} a side")
    return height, width, bits, colour, bool(interlace)


def encode_png(
    picture: NDArray[np.uint8] | NDArray[np.uint16], palette: bytes = b"", transparency: bytes = b""
) -> bytes:
    """A PNG of [H, W] (gray, or indices of a palette) or [H, W, 2 to 4] (gray with alpha, RGB, RGB with alpha).

    The same bytes wherever zlib gives the same, unlike those of image libraries.
    """
    height, width = picture.shape[:2]
    colour = (
        {2: GRAY_ALPHA, 3: RGB, 4: RGB_ALPHA}[picture.shape[2]] if picture.ndim == 3 else PALETTE if palette else GRAY
    )
    bits = 8 * picture.itemsize
    stored = np.ascontiguousarray(picture, ">u2" if bits == 16 else np.uint8).reshape(height, -1).view(np.uint8)
    rows = np.empty((height, 1 + stored.shape[1]), np.uint8)
    rows[:, 0], rows[:, 1:] = UP, stored
    rows[1:, 1:] -= stored[:-1]
    return _png((height, width, bits, colour, False), palette, transparency, zlib.compress(rows.data, LEVEL))


def _png(header: tuple[int, int, int, int, bool], palette: bytes, transparency: bytes, pixels: bytes) -> bytes:
    height, width, bits, colour, interlaced = header
    chunks = [(IHDR, struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))]
    chunks += [(kind, content) for kind, content in ((PLTE, palette), (TRNS, transparency)) if content]
    chunks += [(IDAT, pixels), (IEND, b"")]
    return SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
