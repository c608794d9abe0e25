"""Arrays of numbers (.npy) from anywhere -> depth values [H, W]; nothing in a file is run, nor believed before memory.

Read here, not by `numpy.load`: that makes room for as many values as a header claims before it looks whether they are
there, and parses headers until Python's stack is full.
"""

import io
import math
import warnings

import numpy as np
from numpy.typing import NDArray

from pipeline.format.images import BadImage

NPY_START, NPZ_START = b"\x93NUMPY", b"PK\x03\x04"
KINDS = "fiu"  # floats, whole numbers, whole numbers from 0 on: of any size, in either order of bytes
EXPECTED = "expected numbers [H, W], beside which other axes may have length 1"


def load_array(content: bytes) -> NDArray[np.generic]:
    """Depth as numbers, [H, W], from the bytes of a .npy file; the result shares their memory, in the file's order.

    Axes of length 1 around the two are left out: [H, W, 1], [1, H, W], and [1, 1, H, W], as monodepth2 has it. Raises
    `BadImage` for any other shape, for what are no numbers (objects, truth values, complex), and for damaged files.
    """
    if content.startswith(NPZ_START):
        raise BadImage("an archive of arrays (.npz): save the one array, numpy.save, as .npy")
    dtype, shape, fortran_order, start = _header(content)
    size = _without_ones(shape)
    if dtype.kind not in KINDS or len(size) != 2 or not math.prod(size):
        raise BadImage(f".npy has shape {_brief(shape)} of {_brief(dtype)}: {EXPECTED}")
    if math.prod(size) * dtype.itemsize > len(content) - start:
        wanted = f"{math.prod(size) * dtype.itemsize:,} bytes of numbers expected, {len(content) - start:,} found"
        raise BadImage(f".npy does not load: it is cut short ({wanted})")
    values = np.frombuffer(content, dtype, math.prod(size), start)
    return values.reshape(size, order="F" if fortran_order else "C")


def _header(content: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...], bool, int]:
    """Type, shape, whether columns come first, and where the numbers begin; raise `BadImage` for no such header."""
    file = io.BytesIO(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise BadImage(f".npy has version {version[0]}.{version[1]}: {EXPECTED}, of version 1.0 or 2.0")
    except BadImage:
        raise
    except Exception as error:  # a header is parsed as Python: what that raises of hostile bytes, no list holds
        raise BadImage(f".npy does not load: {_brief(error) or type(error).__name__}") from error
    if any(isinstance(side, bool) or side < 0 for side in shape):
        raise BadImage(f".npy has shape {_brief(shape)}: {EXPECTED}")
    return dtype, shape, fortran_order, file.tell()


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes of length 1 before and, after these, behind the last two."""
    sides = list(shape)
    while len(sides) > 2 and 1 in (sides[0], sides[-1]):
        del sides[0 if sides[0] == 1 else -1]
    return tuple(sides)


def _brief(value: object) -> str:
    """A value in one line of at most 100 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
