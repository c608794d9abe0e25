"""Depth encodings: how the values of a stored picture map to nearness (255 near, 0 far).

Of a colour map whose luma never decreases, gray decoding leaves the scalar: one 256-entry table on the *gray* decode,
before any resizing, gives it back. Surviving JPEG's chroma subsampling, that is more exact than the nearest colour. The
luma of turbo and jet rises and falls: their pictures are looked up by colour once, at packing, and stored as gray.

Tolerance, of 255 levels, through JPEG with 4:2:0 chroma, on street depth of 224 x 224 pixels: by the table RMSE 2 and
99.8 % of the pixels within 16 at quality 75 (1.2 and 99.9 % at 95); by colour 6 and 99 % (3.5 and 99 %) where all edges
are as sharp as a pixel, beside which chroma is a mixture, and as by the table where they are not.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

ENCODINGS = ("gray", "magma", "plasma", "viridis", "inferno")  # of pictures, any pixel of which was measured
# Of gray pictures stored without loss: 0 where nothing was measured, else nearness, 1 (far) to 255 (near).
WITH_HOLES = "gray-holes"
HOLES_KEY = "depth_holes"  # of a set's json: the share of its pixels; there in all sets of such a data set
HOLE_COLOUR = (150, 40, 150)  # purple, in pictures for people
STORED = (*ENCODINGS, WITH_HOLES)  # what a manifest may say, beside "none"
CONVERTED = ("turbo", "jet")  # what becomes gray at packing
MAPS = (*ENCODINGS[1:], *CONVERTED)
NEAR = ("bright", "dark")
NO_DEPTH = "none"  # what the manifest says of sets without depth
# Mean distance in RGB (0..255) below which pictures count as colour-mapped: JPEG at quality 75 leaves a map's own
# pictures at 1 to 4, while other maps and photographs are tens of levels away.
MAX_MAP_DISTANCE = 12.0
MAX_GRAY_CHROMA = 3.0
# Pictures that use only the dark end of a map can lie near another one: magma and inferno begin alike.
CLEARLY_NEARER = 2.0
SAMPLED_PIXELS = 2000  # of each picture, to recognise its map
COMPARED_PIXELS = 200  # of each picture that is not of the sample
FEW = 8  # one picture in so many may be of another encoding than the others of a sample
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, which JPEG and all its gray decoders use
# Y, Cb, Cr of BT.601 in thousandths, chroma at half its weight (of 1/4, 1/2, 1, 3/2 the best): it is what JPEG spoils.
COLOUR_AXES = np.array([[299, 587, 114], [-84, -166, 250], [250, -209, -41]], np.float64)
COLOUR_BITS = 6  # of each of R, G, B in the table of colours: a quarter of a megabyte


@functools.cache
def colour_map(name: str) -> NDArray[np.float64]:
    """The colours of matplotlib's map `name`, [256, 3] in 0..255."""
    from pipeline.plotting import mpl  # takes 0.2 s, and gray depth needs none of it

    return np.asarray(mpl.colormaps[name](np.arange(256))[:, :3] * 255.0)


def depth_table(encoding: str, near: str) -> NDArray[np.uint8]:
    """Nearness (255 near) for each of the 256 values of a gray decode; uint8 [256].

    `encoding` is one of STORED; `near` says which end of the *encoded scalar* is near: "bright" (disparity: large is
    near) or "dark". Of WITH_HOLES, 0 stays what it is.
    """
    assert encoding in STORED, "this map has no table on gray"
    scalar = np.arange(256.0)
    if encoding not in ("gray", WITH_HOLES):
        scalar = np.interp(np.arange(256), colour_map(encoding) @ LUMA, np.arange(256))
    nearness = scalar if near == "bright" else 255.0 - scalar
    return np.rint(nearness).astype(np.uint8)


def colour_holes(depth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Depth with holes of 0, uint8 [..., H, W], as a person is shown it, uint8 [..., H, W, 3]: holes in HOLE_COLOUR."""
    return np.where(depth[..., None] > 0, depth[..., None], np.array(HOLE_COLOUR, np.uint8))


def scalar_of_colours(picture: NDArray[np.uint8], encoding: str) -> NDArray[np.uint8]:
    """The scalar of a colour-mapped picture, uint8 [H, W, 3] -> [H, W], by the nearest colour of its map."""
    red, green, blue = np.moveaxis(picture >> (8 - COLOUR_BITS), 2, 0)
    scalar: NDArray[np.uint8] = _nearest_colours(encoding)[red, green, blue]
    return scalar


@functools.cache
def _nearest_colours(encoding: str) -> NDArray[np.uint8]:
    """For each colour, in steps of 2^(8 - COLOUR_BITS), the number of the nearest colour of a map; uint8 [r, g, b]."""
    side, step = 1 << COLOUR_BITS, 256 >> COLOUR_BITS
    # In half levels, all numbers are integers below 2^53: every machine gets the same sums, and so the same table.
    middles = np.arange(side) * 2.0 * step + step - 1
    targets = np.rint(2 * colour_map(encoding)) @ COLOUR_AXES.T
    nearest = np.empty((side, side * side), np.uint8)
    for row, red in zip(nearest, middles, strict=True):
        colours = np.stack([np.full(side * side, red), np.repeat(middles, side), np.tile(middles, side)], axis=1)
        # |c - t|^2 without |c|^2, which is the same for all t
        row[:] = ((targets**2).sum(axis=1) - 2 * (colours @ COLOUR_AXES.T) @ targets.T).argmin(axis=1)
    return nearest.reshape(side, side, side)


class Recognised(NamedTuple):
    """What a sample of depth pictures looks like."""

    encoding: str
    pictures: int
    distance: float
    """Mean distance of their pixels to the map in RGB, 0..255; for gray, mean difference of the channels."""
    runner_up: str = ""
    runner_up_distance: float = 0.0

    def __str__(self) -> str:
        sample = f"{self.pictures} sampled depth maps are {self.encoding}"
        if not self.runner_up:
            return f"{sample} (channels differ by {self.distance:.1f} of 255)"
        runner_up = f"the next nearest map is {self.runner_up}, {self.runner_up_distance:.1f}"
        return f"{sample} (mean distance {self.distance:.1f} of 255; {runner_up})"


def recognise_encoding(pictures: list[tuple[str, NDArray[np.uint8]]]) -> Recognised:
    """Recognise the encoding of a sample of depth pictures, (name, uint8 [H, W, 3]) each: gray, or the nearest map.

    Raises `InputError` if they have colours of no known map, do not agree but for one in FEW, or could be of either of
    two maps.
    """
    samples = {name: _some_pixels(picture, SAMPLED_PIXELS) for name, picture in pictures}
    chroma = {name: float(np.ptp(pixels, axis=1).mean()) for name, pixels in samples.items()}
    coloured = {name: pixels for name, pixels in samples.items() if chroma[name] > MAX_GRAY_CHROMA}
    few = len(samples) // FEW  # so many others are not asked: each file is compared with what the sample tells
    if len(coloured) <= few:
        gray = [differences for name, differences in chroma.items() if name not in coloured]
        return Recognised("gray", len(gray), float(np.mean(gray)))
    maps = MAPS
    distances = {name: [_map_distance(pixels, encoding) for encoding in maps] for name, pixels in samples.items()}
    common = int(np.argmin(np.median([distances[name] for name in coloured], axis=0)))
    others = [name for name, of_picture in distances.items() if of_picture[common] > MAX_MAP_DISTANCE]
    if len(others) <= few:
        for name in others:
            del distances[name]
            coloured.pop(name, None)
    means = np.mean([distances[name] for name in coloured], axis=0)
    best, next_best = np.argsort(means)[:2].tolist()
    if any(distance[best] > MAX_MAP_DISTANCE for distance in distances.values()):
        _refuse(maps, distances, coloured)
    if means[next_best] < CLEARLY_NEARER * means[best] + 1:
        raise InputError(
            f"the sampled depth maps could be {maps[best]} (mean distance {means[best]:.1f} of 255) or "
            f"{maps[next_best]} ({means[next_best]:.1f}): state which with --depth-encoding"
        )
    return Recognised(maps[best], len(distances), float(means[best]), maps[next_best], float(means[next_best]))


def other_encoding(colours: NDArray[np.uint8] | None, encoding: str) -> str | None:
    """What else a picture is than `encoding`, of ENCODINGS or CONVERTED; None if it may well be of that.

    `colours` are uint8 [H, W, 3], of its pixels or of blocks of them, None of a picture of one channel. Some
    multiple of the tolerance of `recognise_encoding`, since sharp edges may be all that there is in one picture.
    """
    if colours is None:
        return None if encoding == "gray" else "gray"
    pixels = _some_pixels(colours, COMPARED_PIXELS)
    is_gray = float(np.ptp(pixels, axis=1).mean()) <= 2 * MAX_GRAY_CHROMA
    if encoding == "gray" and is_gray:
        return None
    distance = np.inf if encoding == "gray" else _map_distance(pixels, encoding)
    if distance <= MAX_MAP_DISTANCE / 2:
        return None
    if is_gray:
        return "gray"
    nearest, least = min(((name, _map_distance(pixels, name)) for name in MAPS), key=lambda found: found[1])
    if distance <= (4 if nearest == encoding else 2) * MAX_MAP_DISTANCE and distance <= CLEARLY_NEARER * least + 1:
        return None
    if nearest == encoding or least > 2 * MAX_MAP_DISTANCE:
        return "in colours of no map that is known"
    return nearest


def _some_pixels(picture: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """About `most` of the pixels of uint8 [H, W, 3], evenly spread: uint8 [N, 3]."""
    return picture.reshape(-1, 3)[:: max(1, picture.size // 3 // most)]


def _map_distance(pixels: NDArray[np.uint8], encoding: str) -> float:
    """Mean distance of pixels, uint8 [N, 3], to the nearest colour of a map."""
    colours, targets = pixels.astype(np.float64), colour_map(encoding)
    squares = (colours**2).sum(axis=1)[:, None] - 2 * colours @ targets.T + (targets**2).sum(axis=1)
    return float(np.sqrt(np.maximum(squares.min(axis=1), 0)).mean())


def _refuse(maps: tuple[str, ...], distances: dict[str, list[float]], coloured: dict[str, NDArray[np.uint8]]) -> None:
    """Say which pictures do not go together, or which one is of no map that we know."""
    first = dict[str, str]()
    for name, of_picture in distances.items():
        nearest = int(np.argmin(of_picture))
        if name in coloured and of_picture[nearest] > MAX_MAP_DISTANCE:
            raise InputError(
                f"depth map {name} is neither gray nor coloured by {', '.join(maps)} (the nearest is {maps[nearest]}, "
                f"mean distance {of_picture[nearest]:.0f} of 255, at most {MAX_MAP_DISTANCE:.0f} expected): "
                f"state its map with --depth-encoding, or convert it to gray"
            )
        first.setdefault(maps[nearest] if name in coloured else "gray", name)
    examples = ", ".join(f"{name} is {encoding}" for encoding, name in sorted(first.items()))
    raise InputError(f"depth maps are encoded in different ways ({examples}): pack each kind by itself")
