"""Plausibility: do the parts of sets belong together? Told from |fg_bg - bg| inside and outside the masks of a sample.

Rightly paired, an overlay is its background but where the mask is. Each sampled set is judged by itself; a data set
looks wrong where most of its sets do. Robust against what real data has: exposure (gain and offset are fitted to the
60 % of the pixels that differ least), a camera that moved a little (a pixel may be as any of the 3 x 3 around it in the
background), JPEG and noise (pictures are averaged to 64 x 64, and 8 levels count as no difference), shadows and
foregrounds that look like their background (what counts is where the difference fits the mask best).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.format.depth import LUMA
from pipeline.format.images import BadImage, decode_rgb, image_format

SIDE = 64  # pixels of the pictures that are compared
SOLID = 0.5  # from which on a mask is foreground; below half of it lies background
NOISE = 8.0  # levels up to which pictures are the same
MOST_LEVELS = 64.0  # differences count up to this
NO_DIFFERENCE = 2.0  # levels in the mean, which JPEG makes
TRUSTED_SHARE, FIT_STEPS, MAX_GAIN = 0.6, 4, 2.0  # of the fit of gain and offset
WRONG_SHARE, MANY = 0.15, 0.5  # of the pixels: so many differ inside and outside a mask if the background is another
CLEARLY_LESS, FITS_BETTER = 0.6, 0.3  # of the mean difference from other backgrounds, and from the own one
INVERTED_FIT, CERTAINLY_INVERTED = -0.2, -0.5  # correlation of a mask and the difference
GRAY = 4.0  # levels up to which the channels of a gray picture differ
CLEAR_PEAK = 0.3  # the same where the mask would fit best; below, a set tells nothing
ELSEWHERE, AS_GOOD, MISPLACED_ALIKE = 0.7, 0.85, 0.95  # shares of that correlation
MIN_SHIFT = 2  # pixels of SIDE
FEW_PIXELS, SMALL = 8, 1e-6
MAX_OTHERS = 6  # backgrounds that a set is compared with
MOST, SOME, FEW_SETS = 0.5, 0.2, 2  # sets that look wrong: from which share on the data set does, or is worth a warning

Plane = NDArray[np.float32]

FINE = "fine"
BLANK, NO_FOREGROUND, INVERTED, TURNED_MASK, SHIFTED, MISPLACED, TURNED, BACKGROUND = MEANINGS = {
    "blank": "masks are blank",
    "no foreground": "overlays do not differ from their backgrounds",
    "inverted": "masks look inverted: state --mask-foreground",
    "turned mask": "masks look turned or mirrored against their overlays",
    "shifted": "masks look shifted: the foregrounds are {where} of them",
    "misplaced": "masks look like those of other sets: the foreground is elsewhere",
    "turned": "backgrounds look turned or mirrored against their overlays",
    "background": "overlays lie on another background than theirs",
}


class SampledSet(NamedTuple):
    """A set of the sample, its pictures shrunk to SIDE x SIDE."""

    key: str
    bg: int
    overlay: Plane  # [SIDE, SIDE, 3], 0..255
    background: Plane  # the same
    mask: Plane  # [SIDE, SIDE], 0..1


def shrink(picture: NDArray[np.uint8]) -> Plane:
    """A picture, uint8 [H, W] or [H, W, 3], averaged to SIDE x SIDE; float32 in 0..255."""
    small: Plane = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    return small


def shrink_file(content: bytes) -> Plane:
    """A picture's file as `shrink` gives it, in colour, [SIDE, SIDE, 3]; raise `BadImage` if it does not decode."""
    if image_format(content) != "jpg":
        return shrink(decode_rgb(content))
    try:
        picture: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB", min_height=SIDE, min_width=SIDE)
    except ValueError as error:
        raise BadImage(f"JPEG does not decode: {error}") from error
    return shrink(picture)


def difference(overlay: Plane, background: Plane) -> Plane:
    """|fg_bg - bg| beyond exposure, noise and small movements, [SIDE, SIDE], at most MOST_LEVELS.

    It is of gray values where one of them has no colours.
    """
    if any(np.ptp(plane, axis=2).max() <= GRAY for plane in (overlay, background)):
        overlay, background = ((plane @ LUMA)[..., None].astype(np.float32) for plane in (overlay, background))
    channels = zip(np.moveaxis(overlay, 2, 0), np.moveaxis(background, 2, 0), strict=True)
    low, high = _range_around(np.stack([_exposed(*channel) for channel in channels], axis=2))
    beyond = np.maximum(overlay - high, low - overlay).max(axis=2)
    differs: Plane = np.clip(beyond, 0, MOST_LEVELS).astype(np.float32)
    return differs


def _exposed(overlay: Plane, background: Plane) -> Plane:
    """A channel of a background with the gain and offset by which it then differs least from the overlay's."""
    gain, offset = 1.0, float(np.median(overlay - background))
    for _ in range(FIT_STEPS):
        error = np.abs(overlay - gain * background - offset)
        trusted = error <= np.quantile(error, TRUSTED_SHARE)
        x, y = background[trusted], overlay[trusted]
        # A flat background tells nothing of the gain, which is then drawn to 1.
        slope = (float(((x - x.mean()) * (y - y.mean())).mean()) + NOISE**2) / (float(x.var()) + NOISE**2)
        gain = float(np.clip(slope, 1 / MAX_GAIN, MAX_GAIN))
        offset = float((y - gain * x).mean())
    return gain * background + offset


def _range_around(picture: Plane) -> tuple[Plane, Plane]:
    """The least and the largest value of the 3 x 3 pixels around each, of [SIDE, SIDE, channels]."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    around = np.stack([padded[y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)])
    return around.min(axis=0), around.max(axis=0)


def correlation(mask: Plane, differs: Plane) -> float:
    """Pearson's, of a mask and a difference, [SIDE, SIDE] each; 0 where one of them is flat."""
    one, other = mask - mask.mean(), differs - differs.mean()
    scale = float(np.sqrt((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / scale if scale > SMALL else 0.0


class Judgement(NamedTuple):
    """How one set looks."""

    look: str
    shift: tuple[int, int] = (0, 0)
    """Down and right, pixels of SIDE: where the difference fits the mask best."""
    certain: bool = False
    """Whether this set alone is worth a warning."""


def judge_set(sampled: SampledSet, others: Sequence[Plane]) -> Judgement | None:
    """Say how a set looks; None if its pictures tell nothing. `others`: some of the other backgrounds."""
    mask = sampled.mask
    if mask.max() < SOLID or mask.min() >= SOLID:
        return Judgement(BLANK)
    differs = difference(sampled.overlay, sampled.background)
    inside, outside = changed_shares(mask, differs)
    if min(inside, outside) > WRONG_SHARE and (found := _judge_background(sampled, outside, others)):
        return found
    if differs.max() <= NOISE:
        plain = np.abs(sampled.overlay - sampled.background)[mask >= SOLID].mean()
        return Judgement(NO_FOREGROUND) if plain < NO_DIFFERENCE and (mask >= SOLID).sum() >= FEW_PIXELS else None
    fit = correlation(mask, differs)
    if fit < INVERTED_FIT and inside < outside:
        return Judgement(INVERTED, certain=fit < CERTAINLY_INVERTED)
    peak, shift = best_place(mask, differs)
    if max(fit, peak) < CLEAR_PEAK:
        return None
    turned = max(correlation(other, differs) for other in _turned(mask))
    if turned >= MISPLACED_ALIKE * peak and fit < AS_GOOD * turned:
        return Judgement(TURNED_MASK)
    moved = max(map(abs, shift)) >= MIN_SHIFT and fit < MISPLACED_ALIKE * peak
    return Judgement(MISPLACED if moved and fit < ELSEWHERE * peak else FINE, shift if moved else (0, 0))


def changed_shares(mask: Plane, differs: Plane) -> tuple[float, float]:
    """What share of the pixels differs inside a mask, and outside it."""
    changed, inside = differs > NOISE, mask >= SOLID
    return float(changed[inside].mean()), float(changed[mask < SOLID / 2].mean()) if (mask < SOLID / 2).any() else 0.0


def _judge_background(sampled: SampledSet, outside: float, others: Sequence[Plane]) -> Judgement | None:
    """What is wrong with the background of a set that differs on either side of its mask; None if nothing is."""

    def left(background: Plane) -> float:
        return float(difference(sampled.overlay, background)[sampled.mask < SOLID].mean())

    by_own, by_others = left(sampled.background), [left(other) for other in others]
    if min(map(left, _turned(sampled.background))) < FITS_BETTER * by_own:
        return Judgement(TURNED, certain=True)
    if not by_others:
        return Judgement(BACKGROUND) if outside > MANY else None
    alike = by_own > CLEARLY_LESS * np.median(by_others) or min(by_others) < FITS_BETTER * by_own
    return Judgement(BACKGROUND) if alike else None


def _turned(plane: Plane) -> Iterator[Plane]:
    """A square plane in the seven other orientations, turned and mirrored."""
    for mirrored in (plane, plane[:, ::-1]):
        for quarters in range(4):
            if quarters or mirrored is not plane:
                yield np.rot90(mirrored, quarters)


def best_place(mask: Plane, differs: Plane) -> tuple[float, tuple[int, int]]:
    """Where a mask fits a difference best: their correlation, and how far off that is (down, right), pixels of SIDE."""
    one, other = mask - mask.mean(), differs - differs.mean()
    size = (2 * SIDE, 2 * SIDE)  # padded: what leaves the picture does not come back on the other side
    products = np.fft.irfft2(np.fft.rfft2(other, size) * np.conj(np.fft.rfft2(one, size)), size)
    down, right = np.unravel_index(int(products.argmax()), size)
    scale = float(np.sqrt((one * one).sum() * (other * other).sum())) + SMALL
    shift = ((int(down) + SIDE) % (2 * SIDE) - SIDE, (int(right) + SIDE) % (2 * SIDE) - SIDE)
    return float(products.max()) / scale, shift


class Verdict(NamedTuple):
    """What a sample of sets says of a data set."""

    text: str
    """What looks wrong, in a line; "" if nothing does."""
    refused: bool
    """Whether most sets look wrong."""


def judge(sample: Sequence[SampledSet]) -> Verdict:
    """Judge a data set by a sample of its sets: it looks wrong if more than half of those do that tell anything."""
    backgrounds = {sampled.bg: sampled.background for sampled in sample}
    judged = [
        (sampled.key, judgement)
        for sampled in sample
        if (judgement := judge_set(sampled, _some_others(backgrounds, sampled.bg)))
    ]
    looks = {key: judgement.look for key, judgement in judged if judgement.look != FINE}
    moved = {key: judgement.shift for key, judgement in judged if judgement.shift != (0, 0)}
    common = tuple(int(middle) for middle in np.median(list(moved.values()), axis=0)) if moved else (0, 0)
    alike = [key for key, shift in moved.items() if max(abs(shift[0] - common[0]), abs(shift[1] - common[1])) <= 1]
    if len(alike) > MOST * len(judged):
        looks |= dict.fromkeys(alike, SHIFTED)
    most = len(looks) > MOST * len(judged)
    remarkable = [key for key, look in looks.items() if look != BLANK]  # blank masks are told one by one
    if not most and len(remarkable) < max(FEW_SETS, SOME * len(judged)):
        certain = {key for key, judgement in judged if judgement.certain} | _on_wrong_backgrounds(sample, looks)
        looks = {key: look for key, look in looks.items() if key in certain}
        if not looks:
            return Verdict("", refused=False)
    parts = []
    for look, count in Counter(looks.values()).most_common():
        first = next(key for key, found in looks.items() if found == look)
        parts.append(f"{count} {MEANINGS[look].format(where=_direction(common))} (the first is {first})")
    text = f"{len(looks)} of {len(judged)} sampled sets look wrong: {'; '.join(parts)}"
    return Verdict(text, refused=most)


def _on_wrong_backgrounds(sample: Sequence[SampledSet], looks: Mapping[str, str]) -> set[str]:
    """The sets on backgrounds of which every sampled set, of several, looks as if it lay on another one."""
    on = dict[int, list[str]]()
    for one in sample:
        on.setdefault(one.bg, []).append(one.key)
    wrong = [keys for keys in on.values() if all(looks.get(key) == BACKGROUND for key in keys)]
    return {key for keys in wrong if len(keys) >= FEW_SETS for key in keys}


def _direction(shift: tuple[int, ...]) -> str:
    """A shift (down, right) in pixels of SIDE, in words."""
    ways = zip(shift, (("up", "down"), ("left", "right")), strict=True)
    return " and ".join(f"{100 * abs(pixels) / SIDE:.0f} % {words[pixels > 0]}" for pixels, words in ways if pixels)


def _some_others(backgrounds: dict[int, Plane], own: int) -> list[Plane]:
    others = [background for bg, background in backgrounds.items() if bg != own]
    return others[:: max(1, len(others) // MAX_OTHERS)][:MAX_OTHERS]
