"""Mask files: the masks of a source, however they say what is foreground -> the pictures that are stored.

A stored mask is gray: 0 background, 255 foreground, between them only at edges. What is so already is stored as it
came. Everything else is converted once, at packing, to a gray PNG: numbers (0/1, classes, palettes), a channel (alpha,
red, green, blue), another scale (16 bits that end at 255), and masks whose foreground is black.
"""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.format.images import BadImage, Picture, check_picture

CHANNELS = ("alpha", "red", "green", "blue")
LEVELS = ("gray", *CHANNELS)  # encodings whose values are levels, with soft edges
NUMBERS = ("binary", "labels", "palette")  # encodings whose values are numbers, of which some mean foreground
ENCODINGS = LEVELS + NUMBERS
BORDER = 255  # the label of what is neither, as Pascal VOC has it
MAX_BORDER = 16  # pixels that are given to the foreground beside them; what else a border covers is background
MAX_VALUE = 65535
FULL = {np.dtype(np.uint8): 255, np.dtype(np.uint16): MAX_VALUE}

Values = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class MaskFiles:
    """How the mask files of one source are read."""

    encoding: str = "gray"
    """One of ENCODINGS; "palette" reads the indices of a palette, "binary" and "labels" gray values as numbers."""
    foreground: int | None = None
    """The value that means foreground. None: the largest that a level can have; of numbers, all but 0, and of "labels"
    and "palette" but 255, a border, which goes to whichever of foreground and background is nearer."""

    @property
    def converts(self) -> bool:
        """Whether masks are not stored as they came."""
        return self != MaskFiles()

    def read(self, content: bytes, verify: str = "decode") -> tuple[Picture, NDArray[np.uint8]]:
        """Convert a file; return it with its levels, uint8 [H, W]. Raises `BadImage` for what is no such mask."""
        content = check_picture(content, verify).content
        levels = self.levels(mask_values(content), lossless=is_lossless(content))
        buffer = io.BytesIO()
        Image.fromarray(levels).save(buffer, "PNG")
        height, width = levels.shape
        return Picture("png", buffer.getvalue(), (height, width)), levels

    def levels(self, values: dict[str, Values], *, lossless: bool = True) -> NDArray[np.uint8]:
        """The mask of a file's `mask_values`, uint8 [H, W]; numbers of a JPEG are taken for the nearer one."""
        plane = "gray" if self.encoding in ("binary", "labels") else self.encoding
        if plane not in values:
            raise BadImage(f"the mask has no {plane}, as the others have: it has {', '.join(values)}")
        if self.encoding in NUMBERS:
            return self._of_numbers(values[plane], lossless)
        levels, full = values[plane].astype(np.float64), FULL[values[plane].dtype]
        if self.foreground == 0:
            levels = full - levels
        scaled = levels * (255 / (self.foreground or full))
        return np.rint(np.minimum(scaled, 255)).astype(np.uint8)

    def _of_numbers(self, numbers: Values, lossless: bool) -> NDArray[np.uint8]:
        border = np.zeros(numbers.shape, bool)
        if not lossless:
            middle = (self.foreground or 255) / 2
            inside = numbers >= middle if self.foreground != 0 else numbers < middle
        elif self.foreground is not None:
            inside = numbers == self.foreground
        else:
            inside = numbers != 0
        if lossless and self.encoding != "binary" and self.foreground != BORDER:
            border = numbers == BORDER
            inside &= ~border
        if border.any():
            inside = share_border(inside, border)
        return np.where(inside, np.uint8(255), np.uint8(0))


def share_border(inside: NDArray[np.bool_], border: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Give the pixels of `border`, bool [H, W], to `inside` where that is nearer than the rest; return what is in."""
    outside = ~inside & ~border
    for _ in range(MAX_BORDER):
        inside, outside = inside | (_grown(inside) & ~_grown(outside)), outside | (_grown(outside) & ~inside)
    return inside


def _grown(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A region and the pixels that touch it by a side, bool [H, W]."""
    grown = region.copy()
    for grows, view in ((grown, region), (grown.T, region.T)):
        grows[1:] |= view[:-1]
        grows[:-1] |= view[1:]
    return grown


def mask_values(content: bytes) -> dict[str, Values]:
    """All that could be the mask in a file, [H, W] by name: "gray", and what it has of "palette" and CHANNELS.

    Gray is uint16 of 16 bits, else uint8, where fewer bits are scaled to 8. Raises `BadImage` for what does not decode.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            return _values(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"mask does not decode: {error}") from error


def _values(picture: Image.Image) -> dict[str, Values]:
    if picture.mode.startswith("I"):
        return {"gray": np.asarray(picture).astype(np.uint16)}
    values: dict[str, Values] = {"gray": np.asarray(picture.convert("RGB").convert("L"))}
    if picture.mode == "P":
        values["palette"] = np.asarray(picture)
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        values["alpha"] = np.asarray(picture.convert("RGBA"))[..., 3]
    if picture.mode in ("RGB", "RGBA"):
        rgb = np.asarray(picture.convert("RGB"))
        values |= {name: rgb[..., place] for place, name in enumerate(CHANNELS[1:])}
    return values


def is_lossless(content: bytes) -> bool:
    """Whether a picture's values are those that were written: it is no JPEG."""
    return not content.startswith(b"\xff\xd8\xff")
