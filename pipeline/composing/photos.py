"""Photographs as a source of pictures: backgrounds of any size and foregrounds with alpha."""

import hashlib
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.composing.stage import Backdrop, Cutout, Place, Stage
from pipeline.errors import InputError
from pipeline.files import open_file, read_file
from pipeline.format.images import EXTENSIONS, BadImage, open_picture, unreadable_as_bad_image
from pipeline.packing.folders import find_files, no_one

MIN_ALPHA = 8  # what is less opaque than this (of 255) is no content: erasers leave such dust
MAX_FILE_BYTES = 1 << 30  # of a picture: more is a sparse file, or none
ATTEMPTS = 100  # at a random position where enough of the foreground is visible


def find_pictures(
    folder: Path,
    *,
    follow_links: bool = False,
    output: Path | None = None,
    tell: Callable[[str], None] = no_one,
) -> tuple[str, ...]:
    """The picture files below a folder, by extension, in natural order (2 before 10), as paths relative to it.

    The other arguments as for `folders.find_files`. Raises `InputError` if there is none.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}: give one that holds pictures")
    found = find_files(
        folder,
        lambda path: path.lower().endswith(tuple(EXTENSIONS)),
        f"expected files such as *{', *'.join(EXTENSIONS)}",
        follow_links=follow_links,
        output=output,
        tell=tell,
    )
    return tuple(sorted(found, key=lambda path: [(int(n or 0), text) for n, text in re.findall(r"(\d+)|(\D+)", path)]))


def hash_pictures(folder: Path, names: tuple[str, ...]) -> str:
    """A hash of the names and the bytes of pictures."""
    digest = hashlib.sha256()
    for name in names:
        with open_file(folder / name) as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_FILE_BYTES:
                found = f"{folder / name} has {size:,} bytes, at most {MAX_FILE_BYTES:,} expected of a picture"
                raise InputError(f"{found}: take it away")
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode(errors="replace"))
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture, opened as by `images.open_picture`; raises `BadImage` if that fails."""
    with unreadable_as_bad_image():
        content = read_file(path)
    with open_picture(content) as image:
        yield image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring pictures of 16 or 32 bits a channel to 8: Pillow would clip them."""
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image, np.float64)
        top = 65535 if levels.max() > 255 else 255
        return Image.fromarray(np.clip(np.rint(levels * (255 / top)), 0, 255).astype(np.uint8))
    return image


def read_background(
    path: Path, size: int, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> NDArray[np.uint8]:
    """A picture cropped around its middle and resized, turned as its EXIF says: uint8 [size, size, 3].

    Raises `BadImage` if it does not decode, has several frames or more than `images.MAX_PIXELS`.
    """
    with _opened(path) as image:
        image.draft("RGB", (2 * size, 2 * size))  # JPEGs decode to about what is needed
        upright = _eight_bits(ImageOps.exif_transpose(image))
        return np.array(ImageOps.fit(upright.convert("RGB"), (size, size), resampling))


def read_foreground(path: Path, max_height: int) -> NDArray[np.uint8]:
    """A picture with alpha, turned as its EXIF says and trimmed to its content: uint8 [H, W, 4].

    It is brought down to `max_height` if it is higher. Raises `BadImage` if it does not decode, has no transparent or
    no opaque pixel.
    """
    with _opened(path) as image:
        if not image.has_transparency_data:
            raise BadImage(f"no alpha channel ({image.mode}): expected a cut-out, such as a PNG with transparency")
        upright = ImageOps.exif_transpose(image).convert("RGBA")
    alpha = upright.getchannel("A")
    if alpha.getextrema()[0] == 255:
        raise BadImage("no transparent pixel in its alpha channel: expected a cut-out")
    box = alpha.point([0] * MIN_ALPHA + [255] * (256 - MIN_ALPHA)).getbbox()
    if box is None:
        raise BadImage("wholly transparent")
    upright = upright.crop(box)
    if upright.height > max_height:
        width = max(1, round(upright.width * max_height / upright.height))
        upright = upright.resize((width, max_height), Image.Resampling.BOX)
    return np.array(upright)


@dataclass(frozen=True)
class Photographs:
    """Photographs of a folder of backgrounds and one of foregrounds (a `stage.Source`)."""

    background_folder: Path
    foreground_folder: Path
    backgrounds: tuple[str, ...]
    foregrounds: tuple[str, ...]
    size: int = 224
    """Height and width of the sets, pixels."""
    scale: tuple[float, float] = (0.15, 0.35)
    """Smallest and largest height of a foreground, as a share of the background's."""
    min_visible: float = 1.0
    """Share of a foreground that has to be inside the frame."""
    depth_folder: Path | None = None
    """Depth pictures of the backgrounds, near bright, called like them but for the extension."""
    foreground_level: int | None = None
    """A foreground's value in the depth picture; None: that of the background where the foreground's foot is."""

    @property
    def has_depth(self) -> bool:
        """Whether the backgrounds have depth."""
        return self.depth_folder is not None

    def background(self, number: int) -> Backdrop:
        """A background, and its depth if there is a folder for it."""
        name = self.backgrounds[number]
        rgb = read_background(self.background_folder / name, self.size)
        if self.depth_folder is None:
            return Backdrop(rgb)
        stem = self.depth_folder / Path(name).with_suffix("")
        stems = dict.fromkeys([str(stem), normalize("NFC", str(stem)), normalize("NFD", str(stem))])
        paths = (Path(f"{spelling}{end}") for spelling in stems for end in EXTENSIONS)
        found = next(filter(Path.exists, paths), None)
        if found is None:
            raise BadImage(f"no depth picture: expected {stem}.png or another extension")
        # Cropped as its background is, but by a filter that cannot overshoot. Any channel: they are equal.
        levels = read_background(found, self.size, Image.Resampling.BILINEAR)[..., 1]
        return Backdrop(rgb, np.ascontiguousarray(levels))

    def foreground(self, number: int) -> Cutout:
        """A foreground; `BadImage` if at no height it fits into the frame."""
        rgba = read_foreground(self.foreground_folder / self.foregrounds[number], 2 * self.largest)
        height, width = rgba.shape[:2]
        if self.most_height(width, height) < 2:
            raise BadImage(f"{width} x {height} pixels: too wide for a background of {self.size} x {self.size}")
        return Cutout(rgba, f"{width} {height}")

    @property
    def largest(self) -> int:
        """The largest height of a foreground that is drawn, pixels, if it fits."""
        return max(2, round(self.scale[1] * self.size))

    def most_height(self, width: int, height: int) -> int:
        """The largest height up to `largest` at which a foreground of this shape fits, pixels; less than 2 if none."""
        most = self.largest
        if round(most * width / height) * self.min_visible > self.size:
            most = int(self.size / self.min_visible * height / width)
            while round(most * width / height) * self.min_visible > self.size:
                most -= 1
        return most

    def place(self, stage: Stage, bg: int, fg: int, rng: random.Random) -> Place:
        """Anywhere in the frame, at a height drawn evenly from `scale`, or the largest that fits if that is less."""
        full_width, full_height = map(int, stage.metadata(bg, fg)[1].split())
        drawn = max(2, round(rng.uniform(*self.scale) * self.size))
        height = min(drawn, self.most_height(full_width, full_height))
        width = max(2, round(height * full_width / full_height))
        left, top = self._position(stage, fg, width, height, rng)
        level = self._level(stage, bg, (left, top, width, height))
        return Place(left, top, width, height, level, capped=height < drawn)

    def _position(self, stage: Stage, fg: int, width: int, height: int, rng: random.Random) -> tuple[int, int]:
        """Random left and top at which enough is visible of the foreground and of its mirrored twin."""
        twins = [stage.sprite(fg, width, height, mirrored) for mirrored in (False, True) if self.min_visible < 1]
        room_x, room_y = self.size - width, self.size - height
        for attempt in range(ATTEMPTS):
            hidden = 1 - self.min_visible if attempt < ATTEMPTS - 1 else 0.0
            margin_x, margin_y = int(hidden * width), int(hidden * height)
            left = rng.randint(min(0, room_x) - margin_x, max(0, room_x) + margin_x)
            top = rng.randint(-margin_y, room_y + margin_y)
            if all(twin.visible_share(left, top, self.size) >= self.min_visible for twin in twins):
                break
        return left, top

    def _level(self, stage: Stage, bg: int, box: tuple[int, int, int, int]) -> int:
        if self.depth_folder is None or self.foreground_level is not None:
            return self.foreground_level or 0
        left, top, width, height = box
        foot = min(top + height, self.size) - 1
        return int(np.median(stage.levels(bg)[foot, max(left, 0) : left + width]))


def capped_foregrounds(stage: Stage) -> int:
    """How many foregrounds do not fit into the frame at the largest height, and are drawn at less."""
    source = stage.source
    if not isinstance(source, Photographs):
        return 0
    shapes = (map(int, stage.metadata(0, fg)[1].split()) for fg in range(stage.foregrounds))
    return sum(source.most_height(*shape) < source.largest for shape in shapes)
