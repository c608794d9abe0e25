"""Sample: some sets of a source, read before all others, tell how its masks are read, and whether it looks right."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.errors import InputError
from pipeline.format.images import BadImage, Picture, as_stored, check_stored
from pipeline.packing.archives import MemberPlace
from pipeline.packing.depth_files import DepthFiles
from pipeline.packing.join import Sets
from pipeline.packing.mask_encoding import SampledMask, recognise_mask_files
from pipeline.packing.mask_files import MaskFiles
from pipeline.packing.plausibility import MOST, NOISE, Plane, SampledSet, difference, judge, shrink_file
from pipeline.packing.plausibility import shrink as shrink_levels
from pipeline.packing.shapes import cropped, orientation, same_shape, shape_problem
from pipeline.packing.sources import FileReader

SAMPLE = 32  # sets, spread evenly over all of them


class SampledFiles(NamedTuple):
    """The files of a sampled set that decode."""

    key: str
    bg: int
    overlay: bytes
    background: bytes
    mask: SampledMask
    small: tuple[Plane, Plane]
    """Overlay and background, shrunk."""
    shape_problem: str
    """What is of another shape than the overlay; "" if nothing is."""


class Inspection(NamedTuple):
    """What a sample tells."""

    masks: MaskFiles
    """How mask files are read."""
    why_masks: str
    """Why; "" where they are stored as they came."""
    warnings: list[str]
    """What looks wrong, a line each, where that is accepted or is of few sets."""


def inspect_sample(
    sample: Sequence[SampledFiles], encoding: str, foreground: int | None, *, accept: bool
) -> Inspection:
    """Recognise the masks, and judge whether parts belong together; `encoding` and `foreground` as for `PackOptions`.

    Raises `InputError` where masks cannot be told, or most sets look wrong, unless that is to be accepted.
    """
    masks, why, warnings = MaskFiles(), "", list[str]()
    unlike = [files.shape_problem for files in sample if files.shape_problem]
    try:
        if len(unlike) > MOST * len(sample):
            raise InputError(f"{len(unlike)} of {len(sample)} sampled sets have parts of different shape: {unlike[0]}")
        masks, why = recognise_mask_files([files.mask for files in sample], encoding, foreground)
    except InputError as error:
        if not accept:
            raise
        warnings.append(str(error))
    verdict = judge([one for files in sample if not files.shape_problem for one in _judged(files, masks)])
    if verdict.text:
        warnings.append(verdict.text + _exif(sample))
    if verdict.refused and not accept:
        raise InputError(
            f"{warnings[-1]}: look at them, mend or state what is meant, or pack all the same with --accept-suspicious"
        )
    return Inspection(masks, why, warnings)


def _judged(files: SampledFiles, masks: MaskFiles) -> Iterator[SampledSet]:
    try:
        levels = masks.levels(files.mask.values, lossless=files.mask.lossless)
    except BadImage:  # it will be left out
        return
    yield SampledSet(files.key, files.bg, *files.small, shrink_levels(levels) / np.float32(255))


def _exif(sample: Sequence[SampledFiles]) -> str:
    for files in sample:
        turned = [orientation(content) for content in (files.overlay, files.background)]
        if turned[0] != turned[1]:
            return (
                f" (in {files.key} the EXIF orientation of the overlay is {turned[0]}, of the background {turned[1]}; "
                f"pictures are taken as stored)"
            )
    return ""


def read_sample(reader: FileReader, sets: Sets, depth: DepthFiles | None, fit: str) -> list[SampledFiles]:
    """Read the sample; sets with a picture that does not decode, or a mask of another size, are passed over."""
    positions = np.unique(np.linspace(0, len(sets) - 1, SAMPLE).astype(np.int64))
    found = (_read(reader, sets, int(position), depth, fit) for position in positions)
    return [files for files in found if files]


def _read(reader: FileReader, sets: Sets, position: int, depth: DepthFiles | None, fit: str) -> SampledFiles | None:
    files = sets[position]
    background_path = sets.backgrounds[files.bg]
    try:
        background = _picture(reader, background_path, sets.background_place(files.bg))
        overlay, mask = (_picture(reader, files.paths[part], files.places[part]) for part in (0, 1))
        if mask.size != overlay.size:
            return None
        problem = ""
        if fit == "crop":
            background = cropped(background, overlay.size)
        if fit != "stretch" and not same_shape(background.size, overlay.size):
            problem = shape_problem(background_path, background.size, overlay.size, background.content)
        elif depth and fit == "refuse":
            content, _ = as_stored(reader.read(files.paths[2], files.places[2]))
            near, _ = depth.read(content, "header")
            if not same_shape(near.size, overlay.size):
                problem = shape_problem(files.paths[2], near.size, overlay.size, near.content)
        small = shrink_file(overlay.content), shrink_file(background.content)
        differs = difference(*small)
        telling = not problem and differs.max() > NOISE
        sampled = SampledMask.of(files.paths[1], mask.content, differs if telling else None)
    except BadImage:
        return None
    pictures = overlay.content, background.content
    return SampledFiles(files.key, files.bg, *pictures, sampled, small, problem)


def _picture(reader: FileReader, path: str, place: MemberPlace | int) -> Picture:
    """A picture as it would be stored; raise `BadImage` if its header is none."""
    content, _ = as_stored(reader.read(path, place))
    return check_stored(content, "header")
