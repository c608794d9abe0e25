"""Holes: pixels of depth maps that were not measured, which depth cameras and scanners leave as 0, NaN or infinity.

NaN and infinity are never depth. Of 0 that has to be told: of distances it is impossible, of nearness (disparity) it is
what lies infinitely far, and of a map that was stretched to its own range it is the one or the other end.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

AUTO, ZERO, NAN, NONE = WORDS = ("auto", "zero", "nan", "none")
BESIDE = 0.05  # of the median of a map's values: so near 0 hardly anything lies that was measured ...
LEAP = 10  # ... that is, 0 has this many times as many pixels, where it is no measurement
LONE = 0.2  # of the range of the other values: so far from them lies what stands for no measurement, as -1 or 65,535
WHOLE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}  # the end of the scale; of floats it is 1

Values = NDArray[np.generic]


class Holes(NamedTuple):
    """What in the depth files of a source is no measurement."""

    stored: bool
    """Whether depth is stored with holes (`depth.WITH_HOLES`); else every pixel was measured."""
    value: float | None
    """The number that stands for them, beside NaN and infinity."""
    watched: bool
    """Whether that is only what a sample shows: a file that differs from it is a problem."""
    zeros_watched: bool
    """Whether that is so of 0, of which the sample has none."""
    why: str
    """In a phrase; empty where there is nothing to say."""


NO_HOLES = Holes(False, None, False, False, "")


def parse_invalid(text: str) -> float | None:
    """The number that `--depth-invalid` states, None for one of WORDS; raise `InputError` for anything else."""
    if text in WORDS:
        return None
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"depth invalid {text!r}: expected {', '.join(WORDS)}, or a number")
    return value


def finite(values: Values) -> NDArray[np.bool_]:
    """Which of some numbers, of any type, are neither NaN nor infinite."""
    found: NDArray[np.bool_] = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    return found


def zeros_are_holes(values: Values) -> bool:
    """Whether 0 looks like no measurement in the numbers of a depth map, [H, W], whose small ones are near.

    It does where LEAP times as many pixels are 0 as lie beside it, up to BESIDE of the median of what is above, unless
    the map was stretched to a whole scale, of which 0 then is the near end, or goes on below 0; and in a map that is 0
    all over.
    """
    measured = values[finite(values)].astype(np.float64)
    zeros, above = np.count_nonzero(measured == 0), measured[measured > 0]
    if not zeros or len(above) + zeros < len(measured):
        return False
    if not len(above):
        return True
    beside = int(np.count_nonzero(above <= BESIDE * np.median(above)))
    return bool(zeros >= LEAP * max(beside, 0.1) and above.max() != WHOLE.get(values.dtype.newbyteorder("="), 1.0))


def lone_end(values: Values) -> float | None:
    """The smallest or largest number of a depth map, [H, W], but for 0, that LEAP pixels share far from all others."""
    measured = values[finite(values)].astype(np.float64)
    for end in (measured.min(), measured.max()) if len(measured) else ():
        rest = measured[measured != end]
        if end and len(rest) and len(measured) - len(rest) >= LEAP and abs(rest - end).min() > LONE * np.ptp(rest):
            return float(end)
    return None


def find_holes(invalid: str, near: str, numbers: Sequence[Values], pictures: Sequence[Values], arrays: bool) -> Holes:
    """What is no measurement, as `invalid` states it (see `parse_invalid`), or "auto" tells it from a sample.

    `numbers` are [H, W] of arrays and of pictures of 16 bits, `pictures` [H, W] of lossless gray ones of 8 bits;
    `arrays`: whether any of the files, sampled or not, is an array. Of 8 bits "auto" takes 0 for what it says.
    """
    if invalid == NONE:
        return NO_HOLES
    if invalid != AUTO:
        value = 0.0 if invalid == ZERO else parse_invalid(invalid)
        what = "nan and infinity" if value is None else f"{value:g}" + arrays * ", nan and infinity"
        stored = arrays or value is not None
        return Holes(stored, value, False, False, f"stated that {what} is no measurement" if stored else "")
    shares = [1 - finite(values).mean() for values in numbers]
    zeros = [float((values == 0).mean()) for values in numbers]
    alike = [zeros_are_holes(values) for values in numbers]
    share = float(np.mean(zeros)) if zeros else 0.0
    # Of the maps that have any 0 most have to look so: in one there may be a thing that is as near as can be.
    look_so = 2 * sum(alike) > np.count_nonzero(zeros)
    why, value = list[str](), None
    if any(shares):
        why.append(f"nan or infinity, {np.mean(shares):.1%} of the pixels sampled, is no measurement")
    if near == "dark" and look_so:
        value = 0.0
        why.append(f"0, {share:.1%} of the pixels sampled, is no measurement: nothing else lies near it")
    elif look_so:
        why.append(
            f"0, {share:.1%} of the pixels sampled, counts as far; if it is no measurement: --depth-invalid zero"
        )
    elif near == "dark" and share:
        goes_on = "other values lie beside it, or the scale is whole; if it is no measurement: --depth-invalid zero"
        why.append(f"0, {share:.1%} of the pixels sampled, counts as near: {goes_on}")
    if near == "dark" and any(zeros_are_holes(values) for values in pictures):
        why.append("0 of 8 bits counts as near; if it is no measurement: --depth-invalid zero")
    lone, count = Counter(map(lone_end, numbers)).most_common(1)[0] if numbers else (None, 0)
    if lone is not None and 2 * count > len(numbers):
        why.append(f"{lone:g} lies far from all other values; if it is no measurement: --depth-invalid {lone:g}")
    stored = value is not None or any(shares) > 0
    return Holes(stored, value, True, near == "dark" and not share, "; ".join(why))
