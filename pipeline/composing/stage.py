"""Stage: all backgrounds and foregrounds of a run, decoded and resized once, on disk, for any number of workers.

A `Source` provides them: photographs, or the synthetic renderer. Backgrounds are memory-mapped, so that workers share
one copy of them.
"""

import functools
import json
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from pipeline.composing.overlay import U8, Sprite
from pipeline.errors import InputError, Problem
from pipeline.files import map_array, map_file, read_file, write_file, written_file
from pipeline.format.images import BadImage, encode_rgb
from pipeline.workers import Workers

SPRITE_BYTES = 192 << 20  # of resized foregrounds that a worker caches
RGB, LEVELS = "rgb.raw", "levels.raw"  # uint8 [backgrounds, size, size, 3] and [backgrounds, size, size]
READY = "pictures.json"  # written last


class Backdrop(NamedTuple):
    """A background, ready to be composed."""

    rgb: U8  # [size, size, 3]
    levels: U8 | None = None  # [size, size]: its depth picture, near bright
    metadata: str = ""  # for its source alone, which gets it back in `place`


class Cutout(NamedTuple):
    """A foreground, ready to be composed: its picture with straight alpha, trimmed to what can be seen of it."""

    rgba: U8  # [H, W, 4]
    metadata: str = ""


class Place(NamedTuple):
    """Where a foreground is placed: its rectangle in pixels, which may leave the frame."""

    left: int
    top: int
    width: int
    height: int
    level: int = 0  # its value in the depth picture, if there is one
    light_rgb: tuple[float, float, float] | None = None  # what its colours are multiplied by
    capped: bool = False  # whether a larger height was drawn, at which it does not fit


class Source(Protocol):
    """Provides the pictures of a run. It is small and hashable, as it is sent to workers with every job."""

    def __hash__(self) -> int: ...

    @property
    def size(self) -> int:
        """Height and width of the sets, pixels."""

    @property
    def has_depth(self) -> bool:
        """Whether backgrounds and places have depth."""

    @property
    def backgrounds(self) -> tuple[str, ...]:
        """A name for each background."""

    @property
    def foregrounds(self) -> tuple[str, ...]:
        """A name for each foreground."""

    def background(self, number: int) -> Backdrop:
        """Read or render a background; raise `BadImage` if it cannot be used."""

    def foreground(self, number: int) -> Cutout:
        """Read or draw a foreground; raise `BadImage` if it cannot be used."""

    def place(self, stage: "Stage", bg: int, fg: int, rng: random.Random) -> Place:
        """A random place for a foreground on a background, both given by their ids on the stage."""


class _Job(NamedTuple):
    source: Source
    folder: Path
    quality: int
    kind: str  # "background" or "foreground"
    number: int


def _prepare(job: _Job) -> str | Problem:
    """Store one picture on the stage; return its metadata, or what is wrong with it."""
    source, stage, number = job.source, job.folder, job.number
    try:
        if job.kind == "foreground":
            cutout = source.foreground(number)
            with written_file(_foreground_file(stage, number)) as file:
                np.save(file, cutout.rgba)
            return cutout.metadata
        backdrop = source.background(number)
    except BadImage as error:
        names = source.foregrounds if job.kind == "foreground" else source.backgrounds
        return Problem(names[number], "unusable", str(error))
    _write_row(stage / RGB, number, backdrop.rgb)
    if backdrop.levels is not None:
        _write_row(stage / LEVELS, number, backdrop.levels)
    write_file(_background_file(stage, number), encode_rgb(backdrop.rgb, job.quality))
    return backdrop.metadata


def _write_row(path: Path, number: int, picture: U8) -> None:
    """Write one of many pictures of one size; by a mapping, a full disk would kill the process (SIGBUS)."""
    write_file(path, np.ascontiguousarray(picture).data, number * picture.nbytes)


def _foreground_file(folder: Path, number: int) -> Path:
    return folder / f"fg_{number:06}.npy"


def _background_file(folder: Path, number: int) -> Path:
    return folder / f"bg_{number:06}.jpg"


def prepare(
    folder: Path,
    source: Source,
    quality: int,
    workers: Workers,
    *,
    skip_bad: bool = False,
    progress: Callable[[int], None] = lambda more: None,
) -> list[Problem]:
    """Store all pictures of `source` in `folder`, unless they are there; return those skipped as unusable.

    Raises `InputError` for the first of them if they are not to be skipped, and if no background or no foreground is
    left.
    """
    pictures = [("background", number) for number in range(len(source.backgrounds))]
    pictures += [("foreground", number) for number in range(len(source.foregrounds))]
    if not (folder / READY).exists():
        folder.mkdir(exist_ok=True)
        pixels = len(source.backgrounds) * source.size**2
        for name, channels in ((RGB, 3), (LEVELS, 1))[: 1 + source.has_depth]:
            with written_file(folder / name) as file:
                file.truncate(pixels * channels)  # a hole, which takes no room yet
        jobs = (_Job(source, folder, quality, kind, number) for kind, number in pictures)
        good: dict[str, list[tuple[int, str]]] = {"background": [], "foreground": []}
        problems = list[Problem]()
        for (kind, number), result in zip(pictures, workers.map(_prepare, jobs), strict=True):
            if isinstance(result, str):
                good[kind].append((number, result))
            elif skip_bad:
                problems.append(result)
            else:
                raise InputError(f"{kind} {result.path}: {result.why}; repair or remove it, or pass --skip-bad")
            progress(1)
        for kind, found in good.items():
            if not found:
                raise InputError(f"no usable {kind}; the first problem is {problems[0].path}: {problems[0].why}")
        temporary = folder / "ready.partial"
        write_file(temporary, json.dumps([good, problems]).encode())
        temporary.rename(folder / READY)
    else:
        progress(len(pictures))
    return [Problem(*problem) for problem in json.loads(read_file(folder / READY))[1]]


class Stage:
    """The pictures of a folder that `prepare` filled; ids number the usable ones without gaps."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.source = source
        good, _ = json.loads(read_file(folder / READY))
        self._folder = folder
        self._cutouts: Sequence[U8] = ()
        self._backgrounds, self._foregrounds = good["background"], good["foreground"]
        shape = (len(source.backgrounds), source.size, source.size)
        self._rgb = np.frombuffer(map_file(folder / RGB), np.uint8).reshape(*shape, 3)
        self._levels = np.frombuffer(map_file(folder / LEVELS), np.uint8).reshape(shape) if source.has_depth else None
        self._prepare_caches()

    def _prepare_caches(self) -> None:
        self._sprites = OrderedDict[tuple[int, int, int], Sprite]()
        self._sprite_bytes = 0
        self.cutout = functools.lru_cache(maxsize=256)(self._load_cutout)
        """A foreground by its id, in full size: a picture in RGBA."""

    def __getstate__(self) -> dict[str, Any]:
        """All of it, for a machine that does not see the folder; there it has no `encoded` backgrounds."""
        state = {name: value for name, value in vars(self).items() if name not in ("cutout", "_sprites")}
        return state | {"_cutouts": [self._read_cutout(fg) for fg in range(self.foregrounds)]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare_caches()

    @property
    def backgrounds(self) -> int:
        """How many there are."""
        return len(self._backgrounds)

    @property
    def foregrounds(self) -> int:
        """How many there are."""
        return len(self._foregrounds)

    def names(self) -> Iterator[tuple[str, int, str]]:
        """The origin of each picture: (bg or fg, id, name)."""
        for kind, found, names in (
            ("bg", self._backgrounds, self.source.backgrounds),
            ("fg", self._foregrounds, self.source.foregrounds),
        ):
            for new, (number, _) in enumerate(found):
                yield kind, new, names[number]

    def rgb(self, bg: int) -> U8:
        """A background, uint8 [size, size, 3]; not to be written to."""
        picture: U8 = self._rgb[self._backgrounds[bg][0]]
        return picture

    def levels(self, bg: int) -> U8:
        """A background's depth picture, uint8 [size, size]; not to be written to."""
        assert self._levels is not None, "ask source.has_depth first"
        picture: U8 = self._levels[self._backgrounds[bg][0]]
        return picture

    def encoded(self, bg: int) -> bytes:
        """A background as JPEG."""
        return read_file(_background_file(self._folder, self._backgrounds[bg][0]))

    def metadata(self, bg: int, fg: int) -> tuple[str, str]:
        """What the source has stored with a background and with a foreground."""
        return self._backgrounds[bg][1], self._foregrounds[fg][1]

    def _load_cutout(self, fg: int) -> Image.Image:
        return Image.fromarray(self._cutouts[fg] if self._cutouts else self._read_cutout(fg))

    def _read_cutout(self, fg: int) -> U8:
        return map_array(_foreground_file(self._folder, self._foregrounds[fg][0]))

    def sprite(self, fg: int, width: int, height: int, mirrored: bool) -> Sprite:
        """A foreground resized. The latest are cached: there are far fewer sizes than sets."""
        key = fg, width, height
        sprite = self._sprites.pop(key, None)
        if sprite is None:
            # Pillow premultiplies RGBA while it resizes: no dark or bright fringe.
            sprite = Sprite.of(self.cutout(fg).resize((width, height), Image.Resampling.HAMMING))
            self._sprite_bytes += sprite.bytes
            while self._sprite_bytes > SPRITE_BYTES:
                self._sprite_bytes -= self._sprites.popitem(last=False)[1].bytes
        self._sprites[key] = sprite
        return sprite.mirrored() if mirrored else sprite
