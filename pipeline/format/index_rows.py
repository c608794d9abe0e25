"""The rows of index.npy: their type, how the file begins, and what they can say."""

import io
import re
import string

import numpy as np
from numpy.typing import NDArray

from pipeline.format.sample import PARTS, UNKNOWN

MAX_KEY_BYTES = 100  # of a name in a tar
KEY_BYTES = (string.ascii_letters + string.digits + "_-\0").encode()
START_BYTES = 1 << 10  # at the beginning of the file, in which the rows begin
TAR_BLOCK = 512  # bytes; headers and members begin at multiples of it


def row_type(key_length: int) -> np.dtype[np.void]:
    """One set: its key and ids, its shard, and where each of `Manifest.members` lies in it, then zeros."""
    return np.dtype(
        [
            ("key", f"S{key_length}"),
            ("bg", "<i4"),
            ("fg", "<i4"),
            ("shard", "<i4"),
            ("offset", "<i8", (len(PARTS),)),
            ("size", "<i4", (len(PARTS),)),
            ("crc32", "<u4", (len(PARTS),)),
        ]
    )


def index_start(rows_type: np.dtype[np.void], rows: int) -> bytes:
    """How index.npy begins, up to its first row."""
    start = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(rows_type), "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(start, about)
    return start.getvalue()


def is_index(start: bytes, total_bytes: int) -> bool:
    """Whether a file that begins with `start` (START_BYTES of it) is `index_start`, and as many rows as that says."""
    stated = re.search(rb"'\|S(\d{1,3})'.*'shape': \((\d{1,18}),\)", start)
    key_length, rows = (int(number) for number in stated.groups()) if stated else (0, 0)
    if not 1 <= key_length <= MAX_KEY_BYTES:
        return False
    expected = index_start(row_type(key_length), rows)
    return start.startswith(expected) and total_bytes == len(expected) + rows * row_type(key_length).itemsize


def can_lie(rows: NDArray[np.void], shard_bytes: NDArray[np.int64], members: int) -> NDArray[np.bool_]:
    """Whether each set lies within its shard, of so many bytes, one of its members after the other; bool [rows]."""
    offset, size = np.ascontiguousarray(rows["offset"].T), np.ascontiguousarray(rows["size"].T)
    ends = offset + size
    possible: NDArray[np.bool_] = (
        (rows["fg"] >= UNKNOWN) & (offset[0] >= TAR_BLOCK) & (ends[members - 1] <= shard_bytes)
    )
    possible &= offset.max(axis=0) <= shard_bytes  # so that no sum of these has overflowed
    possible &= size.min(axis=0) >= 0
    for column in range(1, members):
        possible &= offset[column] == (ends[column - 1] + 2 * TAR_BLOCK - 1 & -TAR_BLOCK)
    for column in range(members, len(PARTS)):
        possible &= (offset[column] == 0) & (size[column] == 0)
    return possible


def are_plain(keys: NDArray[np.bytes_]) -> bool:
    """Whether every key is letters, digits, "_" and "-", at least one, and zeros only behind them."""
    letters, lengths = keys.tobytes(), np.strings.str_len(keys)
    padding = keys.size * keys.itemsize - int(lengths.sum())
    return not letters.translate(None, KEY_BYTES) and lengths.min(initial=1) > 0 and letters.count(0) == padding
