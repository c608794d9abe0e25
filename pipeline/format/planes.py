"""Planes: the pictures of a set as gray planes of one size, all in one zstd frame, and back.

What is stored of a set is uint8 [P, S, S]: the overlay minus its background, the mask, the depth with each row minus
the row above (all modulo 256; without depth P is 2). An overlay is its background but for the foreground, so that what
is left compresses tenfold; depth changes little from row to row. A background is stored as it is, uint8 [S, S].
"""

from collections.abc import Iterable, Iterator

import numpy as np
import zstandard
from numpy.typing import NDArray

PLANES = "planes"  # the codec, and the file that a set's planes are in
EXTENSION = "zst"
# Of what was tried (on 2,000 composed sets): level 19 saves a tenth of the bytes for 200 times the time, a trained
# dictionary a fiftieth; rows of the mask, or of what is left of the overlay, minus the row above save next to nothing.
LEVEL = 1
OVERLAY, DEPTH = 0, 2  # positions in PARTS


class BadFrame(Exception):  # noqa: N818 - a finding about the data, not a fault of the program
    """Bytes that are no zstd frame of the planes expected; the message is zstd's."""


def compress_frame(content: NDArray[np.uint8]) -> bytes:
    """One zstd frame of an array's bytes, with their number in its header."""
    return zstandard.ZstdCompressor(level=LEVEL).compress(np.ascontiguousarray(content).data)


def encode_set(planes: NDArray[np.uint8], background: NDArray[np.uint8]) -> bytes:
    """The frame of a set: `planes` uint8 [P, S, S] in the order of PARTS, `background` uint8 [S, S]."""
    content = planes.copy()
    content[OVERLAY] -= background
    if len(planes) > DEPTH:
        content[DEPTH, 1:] -= planes[DEPTH, :-1]
    return compress_frame(content)


def decode_set(frame: bytes | memoryview, background: NDArray[np.uint8], parts: int) -> NDArray[np.uint8]:
    """The planes of a set, uint8 [parts, S, S], from its frame and its background's plane, uint8 [S, S].

    Raises `BadFrame`.
    """
    planes = np.empty((parts, 1, *background.shape), np.uint8)
    decode_sets([frame], planes, parts)
    undo_rows(planes[DEPTH:])
    planes[OVERLAY] += background
    return planes[:, 0]


def undo_rows(planes: NDArray[np.uint8]) -> None:
    """Add to each row of uint8 [..., S, S] all rows above it, in place and modulo 256."""
    for row in range(1, planes.shape[-2]):
        planes[..., row, :] += planes[..., row - 1, :]


def decode_sets(frames: Iterable[bytes | memoryview], out: NDArray[np.uint8], parts: int) -> None:
    """Fill `out`, uint8 [P, N, S, S], with the first P of the `parts` planes of N frames, as they are stored.

    The differences are left to be undone where that is cheap. Raises `BadFrame`.
    """
    size = out.shape[-1]
    for position, content in enumerate(decompress_frames(frames, parts * size * size)):
        out[:, position] = content.reshape(parts, size, size)[: len(out)]


def decompress_frames(frames: Iterable[bytes | memoryview], length: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the contents of zstd frames, uint8 [length], `length` being what each of them has to hold.

    One at a time: a call of zstandard for many of them is slower by the page faults of its results. Raises `BadFrame`.
    """
    decompressor = zstandard.ZstdDecompressor()
    for frame in frames:
        try:
            if (found := zstandard.frame_content_size(frame)) != length:  # before memory is made ready for it
                raise BadFrame(f"a frame of {found} bytes where {length} were expected")
            yield np.frombuffer(decompressor.decompress(frame), np.uint8)
        except zstandard.ZstdError as error:
            raise BadFrame(str(error)) from error
