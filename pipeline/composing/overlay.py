"""Overlay: a foreground of one size, laid over a picture by straight alpha."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
SHADOW_HEIGHT, SHADOW_BLUR = 0.12, 0.035  # of a contact shadow, as shares of its foreground's height


class Sprite(NamedTuple):
    """A foreground of one size, ready to be laid over pictures."""

    alpha: U8  # [H, W]
    share: U16  # [H, W, 3]: alpha * colour + 127

    @classmethod
    def of(cls, picture: Image.Image) -> "Sprite":
        """From a picture with straight alpha (RGBA)."""
        rgba = np.asarray(picture)
        alpha = np.ascontiguousarray(rgba[..., 3])
        return cls(alpha, alpha[..., None].astype(np.uint16) * rgba[..., :3] + np.uint16(127))

    def mirrored(self) -> "Sprite":
        """The same, left and right exchanged; in memory too, for blending would crawl through a view."""
        pixels = self.share.view("V6")[..., 0]  # six bytes each, moved as one
        share = np.ascontiguousarray(pixels[:, ::-1]).view(np.uint16).reshape(self.share.shape)
        return Sprite(np.ascontiguousarray(self.alpha[:, ::-1]), share)

    def lit(self, light_rgb: tuple[float, float, float]) -> "Sprite":
        """The same in another light: its colours multiplied, at most white."""
        full = self.alpha[..., None] * np.float32(255)
        share = np.minimum((self.share - np.uint16(127)) * np.asarray(light_rgb, np.float32), full)
        return self._replace(share=(share + np.float32(127.5)).astype(np.uint16))

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(plane.nbytes for plane in self)

    def inside(self, left: int, top: int, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where a picture of `shape` [H, W, ...] is covered if the sprite lies at (left, top), and by what of it."""
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
        _, by = self.inside(left, top, (size, size))
        return int(self.alpha[by].sum(dtype=np.int64)) / int(self.alpha.sum(dtype=np.int64))

    def lay_over(self, canvas: U8, left: int, top: int) -> None:
        """Blend into `canvas` [H, W, 3], in place; what is outside is cut off.

        The result is (a * over + (255 - a) * under) / 255, rounded to the nearest level.
        """
        covered, by = self.inside(left, top, canvas.shape)
        window = canvas[covered]
        # One number a channel: numpy is three times as fast on equal shapes as where it has to stretch one.
        rest = np.repeat(255 - self.alpha[by], 3).reshape(window.shape)
        levels: U16 = np.multiply(window, rest, dtype=np.uint16)  # at most 255 * 255: with the share, still 16 bits
        levels += self.share[by]
        # floor(levels / 255) without a division; the test compares it for all values that occur.
        levels += np.uint16(1) + (levels >> np.uint16(8))
        window[:] = levels >> np.uint16(8)

    def mask(self, left: int, top: int, size: int) -> U8:
        """Its alpha where it lies, uint8 [size, size]."""
        mask = np.zeros((size, size), np.uint8)
        covered, by = self.inside(left, top, mask.shape)
        mask[covered] = self.alpha[by]
        return mask


def contact_shadow(alpha: U8, strength: float) -> tuple[Sprite, int, int]:
    """The soft dark patch where a foreground meets the ground, and where it lies from the foreground's left top.

    It is the foreground's outline, flattened and blurred, around its lowest row, `strength` (0..1) dark in its middle.
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
