"""PNG files of every kind, in the manner of PngSuite, and damaged ones; written chunk by chunk."""

import struct
import zlib
from collections.abc import Mapping

import numpy as np

from pipeline.format.png import ADAM7, CHANNELS, DEPTHS, PALETTE, SIGNATURE

SIDE = 16  # pixels
Chunks = list[tuple[bytes, bytes]]

COLOUR_CHUNKS: Mapping[str, tuple[bytes, bytes]] = {
    "gAMA": (b"gAMA", struct.pack(">I", 45455)),
    "linear gAMA": (b"gAMA", struct.pack(">I", 100_000)),
    "sRGB": (b"sRGB", b"\0"),
    "cHRM": (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    "cICP": (b"cICP", bytes([9, 16, 0, 1])),
    "iCCP": (b"iCCP", b"x\0\0" + zlib.compress(b"no profile")),
    "eXIf": (b"eXIf", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    "tEXt": (b"tEXt", b"Comment\0x"),
    "no gAMA": (b"gAMA", b"x"),
    "a bomb": (b"zTXt", b"x\0\0" + zlib.compress(bytes(2_000_000))),
    "an animation": (b"acTL", struct.pack(">II", 0, 0)),
}
"""Ancillary chunks that decoders heed, or choke on."""


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(chunks: Chunks) -> bytes:
    return SIGNATURE + b"".join(chunk(kind, content) for kind, content in chunks)


def chunks_of(
    colour: int, bits: int, *, interlaced: bool = False, seed: int = 0, before: Chunks | None = None
) -> Chunks:
    """The chunks of a picture of SIDE x SIDE random pixels, `before` after its header."""
    rng, rows = np.random.default_rng((seed, colour, bits)), list[bytes]()
    for top, left, down, right in ADAM7 if interlaced else ((0, 0, 1, 1),):
        width = len(range(left, SIDE, right))
        row_bytes = -(-width * bits * CHANNELS[colour] // 8)
        rows += [bytes([int(rng.integers(5))]) + rng.bytes(row_bytes) for _ in range(top, SIDE, down) if width]
    header = struct.pack(">IIBBBBB", SIDE, SIDE, bits, colour, 0, 0, interlaced)
    palette = [(b"PLTE", rng.bytes(3 * 2**bits))] if colour == PALETTE else []
    return [(b"IHDR", header), *(before or []), *palette, (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]


def kinds() -> dict[str, bytes]:
    """Good PNG files by what is special about them: every colour type and depth, and COLOUR_CHUNKS."""
    files = {}
    for colour, depths in DEPTHS.items():
        for bits in depths:
            for interlaced in (False, True):
                name = f"type {colour}, {bits} bits{', interlaced' * interlaced}"
                files[name] = write_png(chunks_of(colour, bits, interlaced=interlaced))
        for name, extra in COLOUR_CHUNKS.items():
            files[f"type {colour} with {name}"] = write_png(chunks_of(colour, 8, before=[extra]))
        head, *rest = chunks_of(colour, 8)
        transparency = (b"tRNS", {0: b"\0\1", 2: b"\0\1\0\2\0\3", 3: bytes(range(200))}.get(colour, b""))
        if transparency[1]:
            files[f"type {colour} with tRNS"] = write_png([head, *rest[:-2], transparency, *rest[-2:]])
    header, pixels, end = chunks_of(2, 8)
    data = pixels[1]
    parts = [(b"IDAT", data[:100]), (b"IDAT", b""), (b"IDAT", data[100:])]
    files["several IDATs"] = write_png([header, *parts, end])
    files["text between IDATs"] = write_png([header, parts[0], (b"tEXt", b"a\0b"), parts[2], end])
    files["text before the header"] = write_png([(b"tEXt", b"a\0b"), header, pixels, end])
    files["a suggested palette"] = write_png([header, (b"PLTE", bytes(range(30))), pixels, end])
    files["frames of an animation"] = write_png([header, pixels, (b"fcTL", bytes(26)), (b"fdAT", bytes(4) + data), end])
    files["bytes after the end"] = write_png([header, pixels, end]) + bytes(1000)
    files["bytes after the pixels"] = write_png([header, (b"IDAT", data + b"more"), end])
    files["a wrong checksum of a text"] = with_wrong_checksum(
        write_png([header, (b"tEXt", b"a\0b"), pixels, end]), b"tEXt"
    )
    files["a wrong checksum of a gamma"] = with_wrong_checksum(
        write_png([header, COLOUR_CHUNKS["gAMA"], pixels, end]), b"gAMA"
    )
    return files


def with_wrong_checksum(data: bytes, kind: bytes) -> bytes:
    place = data.index(kind)
    length = int.from_bytes(data[place - 4 : place], "big")
    at = place + 4 + length
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def repairable() -> dict[str, bytes]:
    """PNG files that DALI refuses although all their pixels are there, by what is wrong with them."""
    header, pixels, end = chunks_of(2, 8)
    whole = write_png([header, pixels, end])
    return {
        "the checksum of an IDAT chunk differs": with_wrong_checksum(whole, b"IDAT"),
        "its end (IEND) is missing": whole[:-12],
        "the checksum of an IDAT chunk differs; its end (IEND) is missing": with_wrong_checksum(whole, b"IDAT")[:-5],
    }


def damaged() -> dict[str, bytes]:
    """PNG files that cannot be trusted, by what is said of them."""
    header, pixels, end = chunks_of(2, 8)
    data, inflated = pixels[1], zlib.decompress(pixels[1])

    def with_pixels(content: bytes) -> bytes:
        return write_png([header, (b"IDAT", content), end])

    def with_header(*fields: int) -> bytes:
        return write_png([(b"IHDR", struct.pack(">IIBBBBB", *fields)), pixels, end])

    indexed = chunks_of(PALETTE, 8)
    whole = write_png([header, pixels, end])
    return {
        "the checksum of its chunk IHDR differs": with_wrong_checksum(whole, b"IHDR"),
        "the checksum of its chunk PLTE differs": with_wrong_checksum(write_png(indexed), b"PLTE"),
        "its pixels do not inflate": with_pixels(data[:50] + bytes([data[50] ^ 1]) + data[51:]),
        "incorrect data check": with_pixels(data[:-4] + b"1234"),
        "its pixels are cut short: 784 of 784 bytes": with_pixels(data[:-1]),
        "its pixels are cut short: 7": with_pixels(data[:-20]),
        "its pixels are cut short: 783 of 784 bytes": with_pixels(zlib.compress(inflated[:-1])),
        "it holds more than its 784 bytes of pixels": with_pixels(zlib.compress(inflated + bytes(100_000))),
        "a row has no known filter": with_pixels(zlib.compress(b"\x09" + inflated[1:])),
        "it is cut short: it has no pixels": write_png([header, end]),
        "its palette has 0 bytes": write_png([indexed[0], *indexed[2:]]),
        "its palette has 771 bytes": write_png([indexed[0], (b"PLTE", bytes(771)), *indexed[2:]]),
        "its palette has 7 bytes": write_png([header, (b"PLTE", bytes(7)), pixels, end]),
        "its chunk PLTE is out of place": write_png([indexed[0], *indexed[2:-1], indexed[1], end]),
        "its chunk IHDR is out of place": write_png([header, header, pixels, end]),
        "its header has 14 bytes": write_png([(b"IHDR", header[1] + b"x"), pixels, end]),
        "its tRNS chunk has 1 bytes": write_png([header, (b"tRNS", b"\1"), pixels, end]),
        "it has a chunk ABCD": write_png([header, (b"ABCD", b""), pixels, end]),
        "its chunk CgBI is out of place": write_png([(b"CgBI", bytes(4)), header, pixels, end]),
        "its header is of no known kind (3 bits": with_header(SIDE, SIDE, 3, 0, 0, 0, 0),
        "its header is of no known kind (4 bits, colour type 2)": with_header(SIDE, SIDE, 4, 2, 0, 0, 0),
        "its header is of no known kind (8 bits, colour type 1)": with_header(SIDE, SIDE, 8, 1, 0, 0, 0),
        "it has 0 x 16 pixels": with_header(0, SIDE, 8, 2, 0, 0, 0),
        "it has 1000001 x 1 pixels": with_header(1_000_001, 1, 8, 0, 0, 0, 0),
        "100000 x 100000 pixels, at most 100 million: make it smaller": with_header(100_000, 100_000, 8, 2, 0, 0, 0),
    }  # fmt: skip
