"""Masks: is it one? A mask is 0 where the background is, 255 where the foreground is, and gray only at edges.

What looks wrong is a finding, not an error: the set is kept, and a person is told.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.format.images import Picture, decode_gray, decode_jpeg_gray, image_format, jpeg_size

BLANK, NOT_BINARY = "blank", "not binary"
FINDINGS = (BLANK, NOT_BINARY)
DARK, BRIGHT = 64, 192  # below the one lies background, from the other on foreground, between them gray
EDGE = 4  # pixels: how far an edge may reach from what is dark and from what is bright
EDGE_STEPS = (1, 1, 2)  # which add up to it
MAX_GRAY_SHARE = 0.1  # of what is not dark
# Gray blocks of 8 x 8 pixels that a glance takes for the edge of a shape: a disc has 4 by the root of its bright ones.
EDGE_BLOCKS, MORE_BLOCKS = 5.0, 6.0


class Finding(NamedTuple):
    """What looks wrong with a mask."""

    kind: str  # one of FINDINGS
    why: str


def check_mask(content: bytes) -> tuple[Picture, Finding | None]:
    """Decode a mask and look at it; raise `BadImage` if it does not decode.

    A JPEG is decoded at an eighth of its size, and in full only if `plausible` has doubts.
    """
    if image_format(content) == "jpg":
        height, width = jpeg_size(content)
        likely = plausible(decode_jpeg_gray(content, eighth=True))
        return Picture("jpg", content, (height, width)), None if likely else judge(decode_jpeg_gray(content))
    mask = decode_gray(content)
    height, width = mask.shape
    return Picture("png", content, (height, width)), judge(mask)


def plausible(eighth: NDArray[np.uint8]) -> bool:
    """Tell from the means of blocks of 8 x 8 pixels, uint8 [h, w], whether a mask needs no closer look.

    It has foreground and background, and about as few gray blocks as the edge of a compact shape makes.
    """
    bright = np.count_nonzero(eighth >= 224)
    gray = np.count_nonzero((eighth - np.uint8(32)) < 192)  # 32..223, since uint8 wraps round
    return bool(bright > 0 and eighth.min() < DARK and gray <= EDGE_BLOCKS * bright**0.5 + MORE_BLOCKS)


def judge(mask: NDArray[np.uint8]) -> Finding | None:
    """Say what looks wrong with a mask, uint8 [H, W].

    It is "blank" if no pixel reaches 64 or all reach 192; "not binary" if more than a tenth of the pixels from 64 on
    are gray (64..191) and have no bright (192..255) or no dark (0..63) pixel in the square of 9 x 9 around them.
    """
    bright, lit = mask >= BRIGHT, mask >= DARK
    foreground, certain = np.count_nonzero(lit), np.count_nonzero(bright)
    if not foreground:
        return Finding(BLANK, f"the mask has no foreground: its largest value is {mask.max()} of 255")
    if certain == mask.size:
        return Finding(BLANK, f"the mask is foreground all over: its smallest value is {mask.min()} of 255")
    if foreground - certain > MAX_GRAY_SHARE * foreground:
        around = _around(lit)
        bright, lit = bright[around], lit[around]
        at_edge = _widened(bright) & _widened(~lit)
        share = np.count_nonzero(lit & ~bright & ~at_edge) / foreground
        if share > MAX_GRAY_SHARE:
            return Finding(
                NOT_BINARY,
                f"{share:.0%} of the mask's foreground is gray ({DARK} to {BRIGHT - 1}) and not at an edge, "
                f"at most {MAX_GRAY_SHARE:.0%} expected",
            )
    return None


def _around(region: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The part of the picture that holds `region` and EDGE pixels around it."""
    rows = np.flatnonzero(region.any(axis=1))
    columns = np.flatnonzero(region[rows[0] : rows[-1] + 1].any(axis=0))
    return slice(max(0, rows[0] - EDGE), rows[-1] + EDGE + 1), slice(max(0, columns[0] - EDGE), columns[-1] + EDGE + 1)


def _widened(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that have one of `region` within EDGE pixels in both directions."""
    wider = region.copy()
    for along in (wider, wider.T):
        for step in EDGE_STEPS:
            along[step:] |= along[:-step]
            along[:-step] |= along[step:]
    return wider
