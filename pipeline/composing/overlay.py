"""Overlay: a foreground blended over a background, its contact shadow, and the camera perturbation of `--hard`."""

import functools
import random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
Window = tuple[slice, slice]  # rows, columns
SHADOW_HEIGHT, SHADOW_BLUR = 0.12, 0.035  # of a contact shadow, as shares of its foreground's height
GAIN, OFFSET = 0.12, 10.0  # largest change of contrast, and of brightness in levels
NOISE = (1.0, 7.0)  # range of the noise's standard deviation, levels
SHIFT_PX = 3  # largest movement along each axis
NOISE_PX = 509  # side of the noise tile that is made once; pictures cut theirs out of it


class Sprite(NamedTuple):
    """A foreground of one size, ready to be blended into pictures."""

    alpha: U8  # [H, W]
    premultiplied: U16  # [H, W, 3]: alpha * colour + 127, which rounds the division by 255

    @classmethod
    def of(cls, picture: Image.Image) -> "Sprite":
        """From a picture with straight alpha (RGBA)."""
        rgba = np.asarray(picture)
        alpha = np.ascontiguousarray(rgba[..., 3])
        return cls(alpha, alpha[..., None].astype(np.uint16) * rgba[..., :3] + np.uint16(127))

    def mirrored(self) -> "Sprite":
        """The same, left and right exchanged; a copy, as blending a reversed view is slow."""
        pixels = self.premultiplied.view("V6")[..., 0]  # six bytes each, moved as one
        colour = np.ascontiguousarray(pixels[:, ::-1]).view(np.uint16).reshape(self.premultiplied.shape)
        return Sprite(np.ascontiguousarray(self.alpha[:, ::-1]), colour)

    def relit(self, light_rgb: tuple[float, float, float]) -> "Sprite":
        """The same in another light: its colours multiplied, at most white."""
        white = self.alpha[..., None] * np.float32(255)
        colour = np.minimum((self.premultiplied - np.uint16(127)) * np.asarray(light_rgb, np.float32), white)
        return self._replace(premultiplied=(colour + np.float32(127.5)).astype(np.uint16))

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return sum(plane.nbytes for plane in self)

    def clip(self, left: int, top: int, shape: tuple[int, ...]) -> tuple[Window, Window]:
        """The window of a picture of `shape` [H, W, ...] that the sprite covers at (left, top), and of the sprite."""
        height, width = self.alpha.shape
        rows = slice(min(max(0, -top), height), max(0, min(height, shape[0] - top)))
        columns = slice(min(max(0, -left), width), max(0, min(width, shape[1] - left)))
        covered = (slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop))
        return covered, (rows, columns)

    def visible_share(self, left: int, top: int, size: int) -> float:
        """The share of its alpha that is inside a picture of `size` x `size` pixels."""
        height, width = self.alpha.shape
        if left >= 0 and top >= 0 and left + width <= size and top + height <= size:
            return 1.0
        _, window = self.clip(left, top, (size, size))
        return int(self.alpha[window].sum(dtype=np.int64)) / int(self.alpha.sum(dtype=np.int64))

    def blend_into(self, canvas: U8, left: int, top: int) -> None:
        """Alpha-blend into `canvas` [H, W, 3], in place; what is outside is cut off.

        The result is (a * over + (255 - a) * under) / 255, rounded to the nearest level.
        """
        covered, window = self.clip(left, top, canvas.shape)
        under = canvas[covered]
        # One number a channel: numpy is three times as fast on equal shapes as when it broadcasts.
        rest = np.repeat(255 - self.alpha[window], 3).reshape(under.shape)
        levels: U16 = np.multiply(
            under, rest, dtype=np.uint16
        )  # with the sprite's part at most 255 * 255 + 127: 16 bits
        levels += self.premultiplied[window]
        # floor(levels / 255) without a division; the test compares it for all values that occur.
        levels += np.uint16(1) + (levels >> np.uint16(8))
        under[:] = levels >> np.uint16(8)

    def mask(self, left: int, top: int, size: int) -> U8:
        """Its alpha in a picture of `size` x `size` pixels, uint8 [size, size]."""
        mask = np.zeros((size, size), np.uint8)
        covered, window = self.clip(left, top, mask.shape)
        mask[covered] = self.alpha[window]
        return mask


def contact_shadow(alpha: U8, strength: float) -> tuple[Sprite, int, int]:
    """The shadow of a foreground with `alpha` [H, W] on the ground, and its offset (right, down) from the foreground.

    It is a soft dark patch, the foreground's outline flattened and blurred around its lowest row, `strength` (0..1)
    dark in its middle.
    """
    height, width = alpha.shape
    flat, blur = max(2, round(SHADOW_HEIGHT * height)), max(1.0, SHADOW_BLUR * height)
    margin = round(3 * blur)
    patch = Image.new("L", (width + 2 * margin, flat + 2 * margin))
    patch.paste(Image.fromarray(alpha).resize((width, flat), Image.Resampling.BOX), (margin, margin))
    dark = patch.filter(ImageFilter.GaussianBlur(blur)).point([round(strength * level) for level in range(256)])
    shadow = Image.new("RGBA", patch.size)
    shadow.putalpha(dark)
    return Sprite.of(shadow), -margin, height - flat // 2 - margin


class CameraPerturbation(NamedTuple):
    """How the shot of one overlay differs from that of its background, beside the foreground.

    As between two shots of a real camera, exposure and noise differ, and the camera has moved a little. A network that
    is to work on real pairs has to look past that; thresholding |fg_bg - bg| cannot.
    """

    gain: float  # of contrast, around mid-gray
    offset: float  # of brightness, levels
    noise: float  # standard deviation, levels
    shift: tuple[int, int]  # right, down in pixels
    noise_origin: tuple[int, int]  # row and column of the noise tile at the picture's left top


def random_perturbation(rng: random.Random, room: tuple[int, int, int, int]) -> CameraPerturbation:
    """A random perturbation; `room` limits the shift in pixels (left, up, right, down), as does `SHIFT_PX`."""
    left, up, right, down = (min(SHIFT_PX, max(0, free)) for free in room)
    return CameraPerturbation(
        gain=1 + rng.uniform(-GAIN, GAIN),
        offset=rng.uniform(-OFFSET, OFFSET),
        noise=rng.uniform(*NOISE),
        shift=(rng.randint(-left, right), rng.randint(-up, down)),
        noise_origin=(rng.randrange(NOISE_PX), rng.randrange(NOISE_PX)),
    )


def shift_picture(picture: U8, shift: tuple[int, int]) -> U8:
    """Move a picture [H, W, ...] by (right, down) pixels; its border is repeated."""
    right, down = shift
    rows = np.clip(np.arange(picture.shape[0]) - down, 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(picture.shape[1]) - right, 0, picture.shape[1] - 1)
    return picture[rows[:, None], columns]


def perturb_exposure(picture: U8, perturbation: CameraPerturbation, noise: NDArray[np.int8]) -> U8:
    """Change contrast and brightness of a picture [H, W, 3] and add noise, from a tile by `make_noise`."""
    gain, offset, deviation, _, (row, column) = perturbation
    levels = np.rint(np.clip((np.arange(256) - 127.5) * gain + 127.5 + offset, 0, 255)).astype(np.int16)
    grain = noise[row : row + picture.shape[0], column : column + picture.shape[1]]
    scale = np.round(np.arange(-128, 128) * (deviation / 32)).astype(np.int16)
    perturbed: NDArray[np.int16] = levels[picture] + scale[grain.astype(np.int16) + 128]
    return np.clip(perturbed, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def make_noise(size: int, seed: int) -> NDArray[np.int8]:
    """Normal noise of deviation 32 for pictures of up to `size` pixels, int8 [size + NOISE_PX, size + NOISE_PX, 3]."""
    rng = np.random.default_rng((seed, 6))
    normal = rng.normal(0, 32, (NOISE_PX, NOISE_PX, 3))
    tile = np.clip(np.rint(normal), -127, 127).astype(np.int8)
    return np.pad(tile, ((0, size), (0, size), (0, 0)), mode="wrap")
