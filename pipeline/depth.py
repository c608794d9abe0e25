"""Depth encodings: how a stored picture maps to nearness (255 near, 0 far), in one 256-entry table.

The table is applied to the *gray* decode of the picture, before any resizing. For a colour map that means: invert
the map's luma. The luma of magma never decreases with its scalar, and surviving JPEG's chroma subsampling it is more
exact than the nearest colour.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

ENCODINGS = ("gray", "magma")
NEAR = ("bright", "dark")
NO_DEPTH = "none"  # what the manifest says of sets without depth
# Mean distance in RGB (0..255) below which pictures count as colour-mapped: JPEG at quality 75 leaves magma at about 4,
# while other maps and photographs are tens of levels away.
MAX_MAP_DISTANCE = 12.0
MAX_GRAY_CHROMA = 3.0
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, which JPEG and all its gray decoders use


@functools.cache
def colour_map(name: str) -> NDArray[np.float64]:
    """The colours of matplotlib's map `name`, [256, 3] in 0..255."""
    import matplotlib  # takes 0.2 s, and gray depth needs none of it

    return np.asarray(matplotlib.colormaps[name](np.arange(256))[:, :3] * 255.0)


def depth_table(encoding: str, near: str) -> NDArray[np.uint8]:
    """Nearness (255 near) for each of the 256 values of a gray decode; uint8 [256].

    `near` says which end of the *encoded scalar* is near: "bright" (disparity: large is near) or "dark".
    """
    scalar = np.arange(256.0)
    if encoding != "gray":
        scalar = np.interp(np.arange(256), colour_map(encoding) @ LUMA, np.arange(256))
    nearness = scalar if near == "bright" else 255.0 - scalar
    return np.rint(nearness).astype(np.uint8)


def recognise_encoding(pictures: list[tuple[str, NDArray[np.uint8]]]) -> str:
    """Name the encoding of a sample of depth pictures, (name, uint8 [H, W, 3]) each.

    Raises `InputError` if one has colours of no known map, or if they do not agree.
    """
    found = {name: _encoding_of(name, picture) for name, picture in pictures}
    if len(set(found.values())) > 1:
        one = {encoding: name for name, encoding in found.items()}
        examples = ", ".join(f"{name} is {encoding}" for encoding, name in sorted(one.items()))
        raise InputError(f"depth maps are encoded in different ways ({examples}): pack each kind by itself")
    return next(iter(found.values()))


def _encoding_of(name: str, picture: NDArray[np.uint8]) -> str:
    pixels = picture.reshape(-1, 3)[:: max(1, picture.size // 3 // 2000)].astype(np.float64)
    if np.ptp(pixels, axis=1).mean() <= MAX_GRAY_CHROMA:
        return "gray"
    distance = {}
    for encoding in ENCODINGS[1:]:
        to_map = np.linalg.norm(pixels[:, None] - colour_map(encoding)[None], axis=2)
        distance[encoding] = float(to_map.min(axis=1).mean())
    best = min(distance, key=lambda encoding: distance[encoding])
    if distance[best] > MAX_MAP_DISTANCE:
        raise InputError(
            f"depth map {name} is neither gray nor colour-mapped by {best} (mean distance {distance[best]:.0f} of 255, "
            f"at most {MAX_MAP_DISTANCE:.0f} expected): state it with --depth-encoding, or convert it to gray"
        )
    return best
