"""What a packing reads of its sources before it writes shards: backgrounds, and samples of overlays and depth."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, Problem
from pipeline.format.images import BadImage, Picture, as_stored, check_picture, check_stored
from pipeline.format.sample import PARTS
from pipeline.packing.depth_files import DepthFiles, recognise_depth_files
from pipeline.packing.depth_holes import Values
from pipeline.packing.join import Sets
from pipeline.packing.npy import load_array
from pipeline.packing.options import PackOptions
from pipeline.packing.set_reader import REPAIRED
from pipeline.packing.shapes import Size, cropped
from pipeline.packing.sources import FileReader

if TYPE_CHECKING:
    from pipeline.packing.encode_planes import BackgroundEncoder

DEPTH_SAMPLE, HASHED_SAMPLE = 16, 16  # sets; of pictures of depth, and as many of arrays
DEPTH = PARTS.index("depth")


def sample_hash(sets: Sets) -> str:
    """A hash of a few overlays in folders: others of the same names and sizes are no longer the same source."""
    digest, reader = hashlib.sha256(), FileReader(sets.listing.sources)
    for position in np.unique(np.linspace(0, len(sets) - 1, HASHED_SAMPLE).astype(np.int64)):
        files = sets[position]
        if isinstance(files.places[0], int):  # members of archives have CRCs or times of their own
            with suppress(BadImage):
                digest.update(reader.read(files.paths[0], files.places[0]))
    return digest.hexdigest()


def readable_backgrounds(
    reader: FileReader, sets: Sets, encoder: "BackgroundEncoder | None", fit: str, sizes: dict[int, Size]
) -> Iterator[tuple[int, Picture]]:
    """The backgrounds by id, whose sizes before any encoding are noted in `sizes`.

    One that is no picture is dropped from `sets`, with every set on it. With `fit` "crop" each gets the shape of the
    first overlay on it.
    """
    for bg, path in list(sets.backgrounds.items()):
        try:
            content, repair = as_stored(reader.read(path, sets.background_place(bg)))
            if repair:
                sets.problems.append(Problem(path, REPAIRED, repair))
            picture = check_stored(content)
            if fit == "crop" and (shape := _shape_of_overlays(reader, sets, bg)):
                picture = cropped(picture, shape)
            sizes[bg] = picture.size
            yield bg, encoder.encode(picture) if encoder else picture
        except BadImage as error:
            sets.drop_background(bg, "undecodable", str(error))


def _shape_of_overlays(reader: FileReader, sets: Sets, bg: int) -> Size | None:
    """The size of the first overlay on a background that has one."""
    for position in np.flatnonzero(sets.ids[:, 0] == bg):
        files = sets[int(position)]
        with suppress(BadImage):
            return check_picture(reader.read(files.paths[0], files.places[0]), "header").size
    return None


def recognised_depth(reader: FileReader, sets: Sets, options: PackOptions) -> tuple[DepthFiles, str]:
    """How the depth files are read, and why: from a sample of the pictures among them."""
    arrays, sample, numbers = sets.ending(DEPTH, ".npy"), list[tuple[str, bytes]](), list[Values]()
    pictures, unreadable = _spread(np.flatnonzero(~arrays)), ""
    for position in _spread(np.flatnonzero(arrays)):
        files = sets[position]
        with suppress(BadImage):  # it is a problem when it is packed
            numbers.append(load_array(reader.read(files.paths[DEPTH], files.places[DEPTH])))
    for position in pictures:
        files = sets[position]
        path = files.paths[DEPTH]
        try:
            sample.append((path, check_picture(reader.read(path, files.places[DEPTH])).content))
        except BadImage as error:
            unreadable = f"{path}: {error}"
    if len(pictures) and not sample:
        raise InputError(f"none of {len(pictures)} sampled depth maps can be used: {unreadable}")
    return recognise_depth_files(
        sample,
        int(arrays.sum()),
        options.depth_encoding,
        options.depth_near,
        options.depth_per_image,
        options.depth_range,
        percentiles=options.depth_percentiles,
        invalid=options.depth_invalid,
        numbers=numbers,
    )


def _spread(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most DEPTH_SAMPLE of some positions, evenly spread."""
    if not len(positions):
        return positions
    return positions[np.unique(np.linspace(0, len(positions) - 1, DEPTH_SAMPLE).astype(np.int64))]
