"""Mask encodings: recognise from a sample how the masks of a source say what is foreground.

A reading of the masks is possible where it gives foreground and background in nearly all of them. Between possible ones
the pictures decide: |fg_bg - bg| is large where the foreground is (see `plausibility.difference`).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.images import BadImage
from pipeline.packing.mask_files import (
    BORDER,
    CHANNELS,
    FULL,
    LEVELS,
    NUMBERS,
    MaskFiles,
    Values,
    is_lossless,
    mask_values,
)
from pipeline.packing.plausibility import correlation, shrink
from pipeline.packing.set_reader import BRIGHT, DARK, inspect_mask

MOST = 0.75  # of the sampled masks, that have to have foreground and background as they are read
MAX_SIDE = 512  # pixels of a mask that is looked at: of larger ones, every second or third
MAX_NUMBERS = 64  # different values in a mask that holds numbers
MAX_COMMON = 16  # of the values that most masks have, each of which could be the foreground
JPEG_ERROR = 8  # levels by which a flat region of a JPEG may be off
FLAT_SHARE = 0.8  # of a JPEG's foreground, that is one level
MAX_EXAMPLES = 4
MIN_CHROMA = 3.0  # mean difference of the channels, levels, from which on a picture has colours
CLEAR_FIT, SAME_FIT = (
    0.3,
    0.05,
)  # correlations with |fg_bg - bg|: from which on it decides, and what makes no difference
CERTAIN_FIT = 0.5  # with which masks may be gray all over, as those of smoke are
MIN_OPPOSITE, HALF = 0.1, 0.5  # of the sampled masks
SAME_SHARE = 0.02  # of the pixels, in which masks may differ that mean the same
CONVERTED = "stored as gray, 255 is foreground"
REMEDY = "state it with --mask-encoding and, where values are numbers, --mask-foreground"


class SampledMask(NamedTuple):
    """A mask of the sample."""

    name: str
    values: dict[str, Values]
    """See `mask_files.mask_values`."""
    lossless: bool
    difference: NDArray[np.float32] | None
    """|fg_bg - bg| of its set (see `plausibility.difference`); None where that tells nothing."""

    @classmethod
    def of(cls, name: str, content: bytes, difference: NDArray[np.float32] | None) -> "SampledMask":
        """From a file; raise `BadImage` if it does not decode."""
        values = mask_values(content)
        step = -(-max(values["gray"].shape) // MAX_SIDE)
        thinned = {plane: found[::step, ::step] for plane, found in values.items()}
        return cls(name, thinned, is_lossless(content), difference)

    @property
    def blank(self) -> bool:
        """Whether it is one value all over, whatever is looked at."""
        return all(values.min() == values.max() for values in self.values.values())


class Reading(NamedTuple):
    """What a sample looks like, read in one of the possible ways."""

    files: MaskFiles
    masks: list[NDArray[np.uint8]]
    """Of each sampled mask, [H, W]."""
    sound: bool
    """Whether most of them are gray only at edges."""
    fits: list[float]
    """Correlation of each with |fg_bg - bg|; NaN where that tells nothing."""

    @property
    def fit(self) -> float:
        """The median of them; 0 where there are none."""
        told = [fit for fit in self.fits if not np.isnan(fit)]
        return float(np.median(told)) if told else 0.0

    def agrees(self, other: "Reading") -> bool:
        """Whether two readings are nearly the same masks."""
        pairs = zip(self.masks, other.masks, strict=True)
        return all(((one >= 128) != (two >= 128)).mean() <= SAME_SHARE for one, two in pairs)


def recognise_mask_files(sample: Sequence[SampledMask], encoding: str, foreground: int | None) -> tuple[MaskFiles, str]:
    """Decide how the masks of a source are read, and say why in a line; "" where they are stored as they came.

    `encoding`: "auto", or one of `mask_files.ENCODINGS`; `foreground`: the value that means foreground, if it is known.
    Raises `InputError` for masks whose encoding cannot be told, or none of which is as stated.
    """
    if encoding != "auto":
        return _stated(sample, MaskFiles(encoding, foreground))
    sample = [mask for mask in sample if not mask.blank]
    if not sample:
        return MaskFiles(foreground=foreground), ""
    readings = list(_readings(sample, foreground))
    if not readings:
        raise _untold(sample, foreground)
    chosen = _choose(readings)
    _require_one_polarity([mask.name for mask in sample], chosen.fits)
    if not chosen.files.converts:
        return chosen.files, ""
    why = f"{len(sample)} sampled masks are {_described(chosen.files, sample)}"
    if chosen.fit >= CLEAR_FIT:
        why += f", which fits |fg_bg - bg| (correlation {chosen.fit:.2f})"
    return chosen.files, f"{why}; {CONVERTED}"


def _require_one_polarity(names: Sequence[str], fits: Sequence[float]) -> None:
    """Raise `InputError` if some masks are clearly inverted, and others clearly not."""
    kinds = [[name for name, fit in zip(names, fits, strict=True) if sign * fit > CERTAIN_FIT] for sign in (1, -1)]
    if min(map(len, kinds)) > MIN_OPPOSITE * len(names):
        raise InputError(
            f"masks are encoded in different ways ({len(kinds[0])} of {len(names)} sampled ones as {kinds[0][0]}, "
            f"{len(kinds[1])} inverted as {kinds[1][0]}): pack each kind by itself"
        )


def _stated(sample: Sequence[SampledMask], files: MaskFiles) -> tuple[MaskFiles, str]:
    unreadable = list[str]()
    for mask in sample:
        try:
            files.levels(mask.values, lossless=mask.lossless)
        except BadImage as error:
            unreadable.append(f"{mask.name}: {error}")
    if sample and len(unreadable) == len(sample):
        raise InputError(f"none of {len(sample)} sampled masks is as stated, {unreadable[0]}")
    return files, f"stated to be {_described(files, ())}; {CONVERTED}" if files.converts else ""


def _readings(sample: Sequence[SampledMask], foreground: int | None) -> Iterator[Reading]:
    """The possible readings of some masks, none of them blank; the likelier ones first."""
    for files in dict.fromkeys(_candidates(sample, foreground)):
        masks = [files.levels(mask.values, lossless=mask.lossless) for mask in sample]
        pairs = zip(masks, (mask.difference for mask in sample), strict=True)
        fits = [np.nan if differs is None else correlation(shrink(mask), differs) for mask, differs in pairs]
        sound = np.mean([not inspect_mask(mask) for mask in masks]) > HALF
        reading = Reading(files, masks, bool(sound), fits)
        both = np.mean([mask.min() < DARK and mask.max() >= BRIGHT for mask in masks])
        if both >= MOST and (sound or reading.fit >= CERTAIN_FIT):
            yield reading


def _candidates(sample: Sequence[SampledMask], foreground: int | None) -> Iterator[MaskFiles]:
    """The ways in which all of some masks could be read, the likelier ones first."""
    planes = set.intersection(*(set(mask.values) for mask in sample))
    levels = [plane for plane in LEVELS if plane in planes and (plane not in CHANNELS[1:] or _are_coloured(sample))]
    numbers, values = _numbers(sample, "palette" if "palette" in planes else "gray")
    if foreground is not None:
        yield from (MaskFiles(name, foreground) for name in (*numbers, *levels))
        return
    flat = _are_of_other_levels(sample)
    if not _hides_numbers(sample) and not flat:
        yield MaskFiles()
    if flat:
        yield from (MaskFiles(name, value) for name in numbers for value in values[::-1])
    yield from map(MaskFiles, levels[1:])
    yield from map(MaskFiles, numbers)
    tops = [_top(mask) for mask in sample]
    if max(tops) - min(tops) <= (0 if sample[0].lossless else JPEG_ERROR):
        yield MaskFiles("gray", max(1, round(float(np.median(tops)))))
    if max(tops) <= 255 and all(mask.values["gray"].dtype == np.uint16 for mask in sample):
        yield MaskFiles("gray", 255)
    yield from (MaskFiles(name, value) for name in numbers for value in values)
    yield from (MaskFiles(name, 0) for name in (*levels, *numbers))
    if flat:
        yield MaskFiles()


def _top(mask: SampledMask) -> int:
    """The largest gray value, of a JPEG the most common one of the upper half, beside which edges overshoot."""
    gray = mask.values["gray"]
    largest = int(gray.max())
    upper = gray[gray >= largest // 2]
    return largest if mask.lossless else int(np.bincount(upper).argmax())


def _are_of_other_levels(sample: Sequence[SampledMask]) -> bool:
    """Whether all masks have two levels without soft edges, of which one is clearly not 0, or not the largest."""
    lows = [_share(mask, mask.values["gray"].min()) for mask in sample]
    tops = [_share(mask, _top(mask)) for mask in sample]
    return all(map(_is_flat, sample)) and (min(lows) > JPEG_ERROR / 255 or max(tops) < 1 - JPEG_ERROR / 255)


def _is_flat(mask: SampledMask) -> bool:
    gray, top = mask.values["gray"], _top(mask)
    if mask.lossless:
        return len(np.unique(gray)) == 2
    return float((abs(gray[gray >= top // 2].astype(np.int32) - top) <= JPEG_ERROR).mean()) >= FLAT_SHARE


def _share(mask: SampledMask, value: float) -> float:
    """A gray value as a share of the largest that it could be."""
    return float(value) / FULL[mask.values["gray"].dtype]


def _are_coloured(sample: Sequence[SampledMask]) -> bool:
    """Whether the channels of any mask differ."""
    stacks = (np.stack([mask.values[name] for name in CHANNELS[1:]]) for mask in sample if "red" in mask.values)
    return any(float(np.ptp(stack.astype(np.int16), axis=0).mean()) > MIN_CHROMA for stack in stacks)


def _hides_numbers(sample: Sequence[SampledMask]) -> bool:
    """Whether several dark colours of palettes mean several things, of which gray would make one."""
    return any(
        len(np.unique(mask.values["palette"][mask.values["gray"] < DARK])) > 1
        for mask in sample
        if "palette" in mask.values
    )


def _numbers(sample: Sequence[SampledMask], plane: str) -> tuple[list[str], list[int]]:
    """The encodings by which a plane could hold numbers; and where they are several, those that most masks have."""
    found = [np.unique(mask.values[plane]).tolist() for mask in sample]
    if not all(mask.lossless for mask in sample) or max(map(len, found)) > MAX_NUMBERS:
        return [], []
    counts = {value: sum(value in values for values in found) for values in found for value in values if value}
    bordered = BORDER in counts and len(counts) > 1
    common = [value for value, count in counts.items() if count >= MOST * len(sample) and value != BORDER]
    several = any(len(set(values) - {0, BORDER}) > 1 for values in found)
    names = ["palette"] if plane == "palette" else ["labels", "binary"] if bordered else ["binary"]
    return names, sorted(common)[:MAX_COMMON] if several else []


def _choose(readings: Sequence[Reading]) -> Reading:
    """The first reading that fits |fg_bg - bg| as well as any; where that tells nothing, the only one."""
    best = max(reading.fit for reading in readings)
    if best >= CLEAR_FIT:
        fitting = [reading for reading in readings if reading.fit >= best - SAME_FIT]
        return next((reading for reading in fitting if reading.sound), fitting[0])
    plain = [reading for reading in readings if reading.files.foreground != 0] or list(readings)
    if other := next((reading for reading in plain if not reading.agrees(plain[0])), None):
        raise InputError(
            f"the masks could be {_described(plain[0].files, ())} or {_described(other.files, ())}, and the "
            f"pictures do not tell: {REMEDY}"
        )
    return plain[0]


def _untold(sample: Sequence[SampledMask], foreground: int | None) -> InputError:
    """What is wrong with masks that no reading fits."""
    ways = dict[str, str]()
    for mask in sample:
        reading = next(_readings([mask], foreground), None)
        ways.setdefault(_described(reading.files, ()) if reading else "of no kind that is known", mask.name)
    examples = ", ".join(f"{name} is {way}" for way, name in sorted(ways.items())[:MAX_EXAMPLES])
    if len(ways) > 1:
        return InputError(f"masks are encoded in different ways ({examples}): pack each kind by itself")
    return InputError(f"the masks cannot be told ({examples}): {REMEDY}")


def _described(files: MaskFiles, sample: Iterable[SampledMask]) -> str:
    """A way to read masks in words, with the values that a sample has."""
    if files.encoding not in NUMBERS:
        name = f"the {files.encoding} channel" if files.encoding in CHANNELS else "gray"
        if files.foreground == 0:
            return f"{name}, inverted (foreground is 0)"
        return name if files.foreground is None else f"{name} up to {files.foreground}"
    plane = "palette" if files.encoding == "palette" else "gray"
    found = sorted({value for mask in sample for value in np.unique(mask.values[plane]).tolist()})
    kind = "indices of a palette" if plane == "palette" else "numbers"
    seen = f" ({', '.join(map(str, found[:8]))}{', ...' if len(found) > 8 else ''})" if found else ""
    foreground = f"{files.foreground}" if files.foreground is not None else "all but 0"
    if files.foreground is None and files.encoding != "binary":
        foreground += f" and {BORDER}, a border"
    return f"{kind}{seen}, foreground is {foreground}"
