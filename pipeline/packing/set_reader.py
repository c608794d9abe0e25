"""Set reader: the files of a set -> pictures that can be stored, and what is wrong with them.

A mask is 0 where the background is, 255 where the foreground is, and gray only at edges. One that looks wrong is
worth a remark, but no error: the set is kept, and a person is told.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Problem
from pipeline.format.images import (
    BadImage,
    Picture,
    as_stored,
    check_stored,
    decode_gray,
    decode_jpeg_gray,
    image_format,
    jpeg_size,
)
from pipeline.format.sample import PARTS
from pipeline.packing.depth_files import DepthFiles
from pipeline.packing.join import SetFiles
from pipeline.packing.mask_files import MaskFiles
from pipeline.packing.metadata import Metadata
from pipeline.packing.shapes import Size, cropped, same_shape, shape_problem
from pipeline.packing.sources import FileReader

DEPTH = PARTS.index("depth")
BLANK, NOT_BINARY = "blank", "not binary"
MASK_REMARKS = (BLANK, NOT_BINARY)
REPAIRED = "repaired"
DARK, BRIGHT = 64, 192  # below DARK lies background, from BRIGHT on foreground, between them gray
EDGE = 4  # pixels: how far an edge may reach from what is dark and from what is bright
EDGE_STEPS = (1, 1, 2)  # the same in steps of a dilation, which add up to it
MAX_GRAY_SHARE = 0.1  # of what is not dark
# Gray blocks of 8 x 8 pixels that may be the edge of a shape: a disc has 4 times the root of its bright blocks.
EDGE_BLOCKS, MORE_BLOCKS = 5.0, 6.0


class ReadSet(NamedTuple):
    """A set that was read; it can be stored if it has no problems."""

    pictures: list[Picture]
    """In the order of PARTS; or one file with all of them (see `encode_planes.PlanesReader`)."""
    metadata: Metadata
    """What its json shall say of its depth."""
    problems: list[Problem]
    """For which it is left out."""
    remarks: list[Problem]
    """With which it is kept: of the kinds MASK_REMARKS, or REPAIRED."""


class SetRules(NamedTuple):
    """What holds for the sets of a data set, beside their depth."""

    masks: MaskFiles = MaskFiles()
    """How mask files are read."""
    fit: str = "refuse"
    """What to do with parts of another shape: one of `shapes.FITS`."""
    backgrounds: Mapping[int, Size] = MappingProxyType({})
    """Height and width of backgrounds by id, pixels, as far as they are to be compared with their overlays."""

    def limited_to(self, ids: Collection[int]) -> "SetRules":
        """The same with some of the backgrounds alone, which is less to hand to a worker."""
        return self._replace(backgrounds={bg: self.backgrounds[bg] for bg in ids})


class SetReader:
    """Reads and checks sets, each of its files once."""

    def __init__(
        self, reader: FileReader, verify: str, depth: DepthFiles | None, rules: SetRules | None = None
    ) -> None:
        """`verify` as in `images.check_image`; masks are looked at if it is "decode". `depth` if the sets have any."""
        self._reader, self._verify, self._rules = reader, verify, rules or SetRules()
        self._depth = depth if depth and depth.looks_at_each else None  # else it is a picture like others
        self.decode_sec = 0.0
        """Seconds spent so far on checking and converting, without reading."""

    def read_all(self, sets: Iterable[SetFiles]) -> Iterator[ReadSet]:
        """Read one set after the other."""
        return map(self.read, sets)

    def read(self, files: SetFiles) -> ReadSet:
        """Read a set; whatever is wrong with it is returned, not raised."""
        read = pictures, metadata, problems, remarks = ReadSet([], {}, [], [])
        for part, path, place in zip(PARTS, files.paths, files.places, strict=False):
            try:
                content = self._reader.read(path, place)
                start = time.perf_counter()
                content, repair = as_stored(content, self._verify)
                if repair:
                    remarks.append(Problem(path, REPAIRED, repair))
                if part == "mask" and self._rules.masks.converts:
                    picture, levels = self._rules.masks.read(content, self._verify)
                    if self._verify == "decode" and (remark := inspect_mask(levels)):
                        remarks.append(Problem(path, *remark))
                elif part == "mask" and self._verify == "decode":
                    picture, remark = check_mask(content)
                    if remark:
                        remarks.append(Problem(path, *remark))
                elif part == "depth" and self._depth:
                    picture, scale = self._depth.read(content, self._verify)
                    metadata.update(scale)
                else:
                    picture = check_stored(content, self._verify)
                if part == "depth" and self._rules.fit == "crop":
                    picture = cropped(picture, pictures[0].size)
                pictures.append(picture)
                self.decode_sec += time.perf_counter() - start
            except BadImage as error:
                problems.append(Problem(path, error.kind, str(error)))
        if not problems and pictures[0].size != pictures[1].size:
            overlay, mask = (f"{width} x {height}" for height, width in (pictures[0].size, pictures[1].size))
            why = f"mask is {mask}, its overlay {overlay} pixels: make them of one size"
            problems.append(Problem(files.paths[1], "mismatch", why))
        elif not problems and self._rules.fit != "stretch":
            problems += self._of_other_shape(files, pictures)
        return read

    def _of_other_shape(self, files: SetFiles, pictures: list[Picture]) -> list[Problem]:
        """The problem of a set whose background or depth is of another shape than its overlay, if it is."""
        overlay, background = pictures[0].size, self._rules.backgrounds.get(files.bg)
        if background and not same_shape(background, overlay):
            why = shape_problem(f"background {files.bg}", background, overlay)
            return [Problem(files.paths[0], "mismatch", why)]
        if len(pictures) > DEPTH and not same_shape(pictures[DEPTH].size, overlay):
            why = shape_problem("depth", pictures[DEPTH].size, overlay, pictures[DEPTH].content)
            return [Problem(files.paths[DEPTH], "mismatch", why)]
        return []


class MaskRemark(NamedTuple):
    """What looks wrong with a mask."""

    kind: str  # one of MASK_REMARKS
    why: str


def check_mask(content: bytes) -> tuple[Picture, MaskRemark | None]:
    """Decode a mask and look at it; raise `BadImage` if it does not decode.

    A JPEG is decoded at an eighth of its size, and in full only where that is not `is_plausible`.
    """
    if image_format(content) == "jpg":
        height, width = jpeg_size(content)
        likely = is_plausible(decode_jpeg_gray(content, eighth=True))
        return Picture("jpg", content, (height, width)), None if likely else inspect_mask(decode_jpeg_gray(content))
    mask = decode_gray(content)
    height, width = mask.shape
    return Picture("png", content, (height, width)), inspect_mask(mask)


def is_plausible(eighth: NDArray[np.uint8]) -> bool:
    """Tell from the means of blocks of 8 x 8 pixels, uint8 [h, w], whether a mask needs no closer look.

    It has foreground and background, and about as few gray blocks as the edge of a compact shape makes.
    """
    bright = np.count_nonzero(eighth >= 224)
    gray = np.count_nonzero((eighth - np.uint8(32)) < 192)  # 32..223, since uint8 wraps round
    return bool(bright > 0 and eighth.min() < DARK and gray <= EDGE_BLOCKS * bright**0.5 + MORE_BLOCKS)


def inspect_mask(mask: NDArray[np.uint8]) -> MaskRemark | None:
    """Say what looks wrong with a mask, uint8 [H, W].

    It is "blank" if no pixel reaches 64 or all reach 192; "not binary" if more than a tenth of the pixels from 64 on
    are gray (64..191) and have no bright (192..255) or no dark (0..63) pixel in the square of 9 x 9 around them.
    """
    bright, lit = mask >= BRIGHT, mask >= DARK
    foreground, certain = np.count_nonzero(lit), np.count_nonzero(bright)
    if not foreground:
        return MaskRemark(BLANK, f"the mask has no foreground: its largest value is {mask.max()} of 255")
    if certain == mask.size:
        return MaskRemark(BLANK, f"the mask is foreground all over: its smallest value is {mask.min()} of 255")
    if foreground - certain > MAX_GRAY_SHARE * foreground:
        crop = _crop_around(lit)
        bright, lit = bright[crop], lit[crop]
        at_edge = _widen(bright) & _widen(~lit)
        share = np.count_nonzero(lit & ~bright & ~at_edge) / foreground
        if share > MAX_GRAY_SHARE:
            return MaskRemark(
                NOT_BINARY,
                f"{share:.0%} of the mask's foreground is gray ({DARK} to {BRIGHT - 1}) and not at an edge, "
                f"at most {MAX_GRAY_SHARE:.0%} expected",
            )
    return None


def _crop_around(region: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The part of the picture that holds `region` and EDGE pixels around it."""
    rows = np.flatnonzero(region.any(axis=1))
    columns = np.flatnonzero(region[rows[0] : rows[-1] + 1].any(axis=0))
    return slice(max(0, rows[0] - EDGE), rows[-1] + EDGE + 1), slice(max(0, columns[0] - EDGE), columns[-1] + EDGE + 1)


def _widen(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that have one of `region` within EDGE pixels in both directions."""
    wider = region.copy()
    for view in (wider, wider.T):
        for step in EDGE_STEPS:
            view[step:] |= view[:-step]
            view[:-step] |= view[step:]
    return wider
