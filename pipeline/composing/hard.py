"""Hard: what tells an overlay from its background beside the foreground, as between two shots of a real camera.

Exposure and noise differ, and the camera has moved a little. A network that is to work on real pairs has to look past
that; thresholding |fg_bg - bg| cannot.
"""

import functools
import random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
GAIN, OFFSET = 0.12, 10.0  # largest change of contrast, and of brightness in levels
NOISE = (1.0, 7.0)  # standard deviation, levels
SHIFT_PX = 3  # largest movement along each axis
TILE = 509  # side of the noise that is made once; pictures cut theirs out of it


class Disturbance(NamedTuple):
    """How one overlay differs from its background; `shift` is (right, down) in pixels."""

    gain: float
    offset: float
    noise: float
    shift: tuple[int, int]
    noise_at: tuple[int, int]


def draw(rng: random.Random, room: tuple[int, int, int, int]) -> Disturbance:
    """Draw a disturbance; `room` is how far (left, up, right, down) the picture may move, beyond `SHIFT_PX` no more."""
    left, up, right, down = (min(SHIFT_PX, max(0, free)) for free in room)
    return Disturbance(
        gain=1 + rng.uniform(-GAIN, GAIN),
        offset=rng.uniform(-OFFSET, OFFSET),
        noise=rng.uniform(*NOISE),
        shift=(rng.randint(-left, right), rng.randint(-up, down)),
        noise_at=(rng.randrange(TILE), rng.randrange(TILE)),
    )


def move(picture: U8, shift: tuple[int, int]) -> U8:
    """Move a picture [H, W, ...] by (right, down) pixels; its border is repeated."""
    right, down = shift
    rows = np.clip(np.arange(picture.shape[0]) - down, 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(picture.shape[1]) - right, 0, picture.shape[1] - 1)
    return picture[rows[:, None], columns]


def expose(picture: U8, by: Disturbance, noise: NDArray[np.int8]) -> U8:
    """Change contrast around mid-gray and brightness, add noise (of deviation 32, [>= TILE, >= TILE, 3]); [H, W, 3]."""
    levels = np.rint(np.clip((np.arange(256) - 127.5) * by.gain + 127.5 + by.offset, 0, 255)).astype(np.int16)
    row, column = by.noise_at
    grain = noise[row : row + picture.shape[0], column : column + picture.shape[1]]
    scale = np.round(np.arange(-128, 128) * (by.noise / 32)).astype(np.int16)
    disturbed: NDArray[np.int16] = levels[picture] + scale[grain.astype(np.int16) + 128]
    return np.clip(disturbed, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def make_noise(size: int, seed: int) -> NDArray[np.int8]:
    """Normal noise of deviation 32 for pictures of up to `size` pixels, int8 [size + TILE, size + TILE, 3]."""
    rng = np.random.default_rng((seed, 6))
    normal = rng.normal(0, 32, (TILE, TILE, 3))
    tile = np.clip(np.rint(normal), -127, 127).astype(np.int8)
    return np.pad(tile, ((0, size), (0, size), (0, 0)), mode="wrap")
