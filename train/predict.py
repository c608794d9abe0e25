"""Predictions: masks and depth maps of pictures of any size, as files that people and programs open.

Which background goes with which overlay is found out from file names.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar
from unicodedata import normalize

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.files import open_file
from pipeline.format.images import BadImage, Picture, TooManyPixels, decode_rgb, read_picture
from pipeline.packing.encode_planes import NoPlanes, PlaneRasterizer, batches_of
from pipeline.packing.folders import find_files, no_one
from pipeline.packing.shapes import cropped, same_shape
from pipeline.packing.templates import PICTURE, Template
from pipeline.resume import atomic_file, require_files, resumable
from pipeline.storage import open_location
from pipeline.words import plural
from pipeline.workers import available_cores
from train.checkpoint import Run
from train.config import PAIRS_AT_ONCE
from train.pictures import depth_colours, shrunk, side_by_side

T = TypeVar("T", np.uint8, np.uint16)
DONE = "done"  # the progress record of a stopped run
LISTED = 5  # names in a message
KINDS = "expected a picture, a folder of pictures (JPEG, PNG, ...), or a template as streets/bg_{bg}.jpg"


class Pair(NamedTuple):
    """A background and an overlay on it."""

    name: str
    """The overlay's path below its folder, without extension."""
    background: Path
    overlay: Path


class PredictedPlanes(NamedTuple):
    """The network's prediction for one pair, at the size of the overlay."""

    mask: NDArray[np.uint8]
    """[H, W]: the probability of foreground, 255 is certain."""
    depth: NDArray[np.uint16] | None
    """[H, W], near is bright."""


class Predictor:
    """A run's network for pictures as files hold them, decoded and resized as the CPU loader does it."""

    def __init__(self, run: Run, device: torch.device) -> None:
        """The network is on `device`. Raises `InputError` where DALI is missing."""
        self._run, self._device = run, device
        self._rasterizer = PlaneRasterizer({"bg": None, "fg_bg": None}, run.config.size)

    def __call__(self, sets: Sequence[tuple[Picture, Picture]]) -> list[PredictedPlanes | NoPlanes]:
        """Mask and depth of each of at most `config.MOST_PAIRS_AT_ONCE` pairs (background, overlay), or why not.

        Raises `InputError` where the network predicts no numbers.
        """
        inputs = self._rasterizer.rasterize(sets)
        good = [planes for planes in inputs if not isinstance(planes, NoPlanes)]
        if not good:
            return list(inputs)  # type: ignore[arg-type]
        pictures = torch.from_numpy(np.stack(good)).to(self._device)  # uint8 [N,2,size,size]
        with torch.inference_mode():
            mask_logits, depth = self._run.network(pictures[:, :1].contiguous(), pictures[:, 1:].contiguous())
            both = torch.cat([mask_logits, *([] if depth is None else [depth])])
            if not both.isfinite().all():  # waits for the device
                raise InputError(
                    f"{self._run.checkpoint}: the network predicts values that are no numbers; predict with another"
                )
            planes = [mask_logits.sigmoid()] + ([] if depth is None else [depth])
            found = iter(torch.cat(planes, dim=1).float())
        return [
            planes if isinstance(planes, NoPlanes) else at_size(next(found), overlay.size)
            for planes, (_, overlay) in zip(inputs, sets, strict=True)
        ]


def at_size(planes: torch.Tensor, size: tuple[int, int]) -> PredictedPlanes:
    """Float32 [1 or 2, size, size] in 0..1, mask and depth, brought to another size in float, then rounded."""

    def resized(plane: torch.Tensor, largest: int, kind: type[T]) -> NDArray[T]:
        # One plane at a time, in place: at the size of the largest pictures each copy takes 400 MB.
        large = F.interpolate(plane[None, None], size, mode="bilinear", antialias=True)[0, 0]
        scaled: NDArray[np.float32] = large.clamp_(0, 1).mul_(largest).add_(0.5).cpu().numpy()  # waits for the device
        return scaled.astype(kind)

    mask, *depth = planes
    return PredictedPlanes(resized(mask, 255, np.uint8), resized(depth[0], 65535, np.uint16) if depth else None)


def predict(
    run: Run,
    pairs: Sequence[Pair],
    out: Path,
    device: torch.device,
    batch_size: int = PAIRS_AT_ONCE,
    fit: str = "refuse",
    done: Callable[[int], None] = lambda more: None,
) -> None:
    """Write into `out`, new or empty, for each pair NAME.mask.png, NAME.side-by-side.png and, of a run with depth,
    NAME.depth.png (gray, 16 bits) and NAME.depth-colour.png.

    A stopped call is continued by the same again. `done` is told how many pairs more there are. Raises `InputError`,
    with `out` as it was, for pictures that are none, are damaged, or differ in shape within a pair (but see
    `fit`, one of `shapes.FITS`: backgrounds are then cropped as at packing, or stretched), where the network predicts
    no numbers, and where DALI is missing.
    """
    arguments = _arguments(run, pairs, fit)
    names = [f"{pair.name}.{kind}" for pair in pairs for kind in _kinds(depth=run.config.depth)]

    def complete() -> str:
        require_files(out, names)
        return plural(len(pairs), "pair")

    with resumable(out, arguments, result=complete) as records, ThreadPoolExecutor(available_cores()) as pool:
        predictor = Predictor(run, device)
        pixels = require_pictures(pairs, fit)
        record = records / DONE
        first = int(record.read_text()) if record.exists() else 0
        done(first)
        for batch in batches_of(range(first, len(pairs)), pixels[first:], batch_size):
            chosen = [pairs[place] for place in batch]
            pictures = [_read_pair(pair, fit) for pair in chosen]
            planes = [_whole(found, pair) for found, pair in zip(predictor(pictures), chosen, strict=True)]
            list(pool.map(write_files, repeat(out), chosen, pictures, planes))
            with atomic_file(record) as file:
                file.write(str(batch[-1] + 1).encode())
            done(len(batch))


def _arguments(run: Run, pairs: Sequence[Pair], fit: str) -> dict[str, object]:
    files = [(str(path.resolve()), path.stat()) for pair in pairs for path in (pair.background, pair.overlay)]
    stamps = [[path, about.st_size, about.st_mtime_ns] for path, about in files]
    path = run.checkpoint
    with open_file(path) if isinstance(path, Path) else open_location(path) as checkpoint:
        weights = hashlib.file_digest(checkpoint, "sha256").hexdigest()
    return {
        "command": "fgbg-predict",
        "checkpoint": run.checkpoint.name,
        "step": run.step,
        **({"tta": True} if run.tta else {}),
        **({"fit": fit} if fit != "refuse" else {}),
        "weights": weights,
        "pictures": hashlib.sha256(json.dumps(stamps).encode()).hexdigest(),
    }


def _kinds(*, depth: bool) -> tuple[str, ...]:
    """The ends of the names of what is written for a pair."""
    return ("mask.png", *(("depth.png", "depth-colour.png") if depth else ()), "side-by-side.png")


def require_pictures(pairs: Sequence[Pair], fit: str = "refuse") -> list[int]:
    """Raise `InputError` unless all files are pictures by their headers, none too large, and of one shape in a pair.

    Another shape is let pass if `fit` is not "refuse".

    Returns how many pixels each pair has.

    The original's own backgrounds have 224 x 224 pixels, its overlays 256 x 256: the network sees both at its size.
    """
    sizes = functools.cache(lambda path: _read(path, "header").size)  # one background may go with all overlays
    pixels = list[int]()
    for pair in pairs:
        background, overlay = sizes(pair.background), sizes(pair.overlay)
        if fit == "refuse" and not same_shape(background, overlay):
            raise InputError(
                f"{pair.background} is {_pixels(background)}, {pair.overlay} is {_pixels(overlay)}: expected two "
                "pictures of one view and size, or of sides in the same ratio; or give --fit crop or --fit stretch"
            )
        pixels.append(background[0] * background[1] + overlay[0] * overlay[1])
    return pixels


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} pixels"


def _read(path: Path, verify: str = "decode") -> Picture:
    try:
        return read_picture(str(path), verify)
    except TooManyPixels as error:
        raise InputError(f"{path}: {error}") from error
    except BadImage as error:
        raise InputError(f"{path}: {error}: expected a whole JPEG or PNG") from error


def _read_pair(pair: Pair, fit: str) -> tuple[Picture, Picture]:
    background, overlay = _read(pair.background), _read(pair.overlay)
    return cropped(background, overlay.size) if fit == "crop" else background, overlay


def _whole(found: PredictedPlanes | NoPlanes, pair: Pair) -> PredictedPlanes:
    if isinstance(found, NoPlanes):
        raise InputError(f"{pair[1 + found.part]}: {found.why}: save it anew as JPEG or PNG")
    return found


def write_files(out: Path, pair: Pair, pictures: tuple[Picture, Picture], planes: PredictedPlanes) -> None:
    """Write the files of one pair, each whole or not at all."""
    (out / pair.name).parent.mkdir(parents=True, exist_ok=True)

    def save(kind: str, picture: Image.Image) -> None:
        with atomic_file(out / f"{pair.name}.{kind}") as file:
            picture.save(file, "PNG")

    # Large pictures are let go one by one.
    shown = {title: shrunk(decode_rgb(one.content)) for title, one in zip(("bg", "fg_bg"), pictures, strict=True)}
    shown["mask"] = shrunk(planes.mask)
    save("mask.png", Image.fromarray(planes.mask))
    if planes.depth is not None:
        save("depth.png", Image.fromarray(planes.depth))
        colours = depth_colours(planes.depth)
        shown["depth (near = bright)"] = shrunk(colours)
        save("depth-colour.png", Image.fromarray(colours))
    save("side-by-side.png", side_by_side(shown))


@dataclass(frozen=True)
class PictureFiles:
    """The pictures that the user named: one, a folder of them, or a folder with a template below it."""

    given: Path
    folder: Path
    template: Template | None
    paths: tuple[str, ...]
    """Of the pictures, below the folder; sorted, at least one."""

    @property
    def single(self) -> bool:
        """Whether it is one picture, by its name."""
        return self.template is None and self.given != self.folder


def find_pictures(given: Path, *, follow_links: bool = False, tell: Callable[[str], None] = no_one) -> PictureFiles:
    """Look for pictures; raises `InputError` where there are none, and for a wrong template.

    `follow_links` and `tell` as for `folders.find_files`.
    """
    find = functools.partial(find_files, follow_links=follow_links, tell=tell)
    if given.is_dir():
        paths = find(given, lambda path: bool(re.search(rf"[^/](?i:{PICTURE})\Z", path)), KINDS)
        return PictureFiles(given, given, None, tuple(paths))
    if given.is_file():
        return PictureFiles(given, given.parent, None, (given.name,))
    braces = [place for place, part in enumerate(given.parts) if "{" in part or "}" in part]
    if not braces:
        raise InputError(f"{given}: no such file or folder: {KINDS}")
    folder, template = Path(*given.parts[: braces[0]]), Template.parse("/".join(given.parts[braces[0] :]))
    if not folder.is_dir():
        raise InputError(f"{given}: no such folder: {folder}: {KINDS}")
    expected = f"expected names such as {template.text}.jpg"
    paths = find(folder, lambda path: _numbers(template, path) is not None, expected)
    return PictureFiles(given, folder, template, tuple(paths))


def _numbers(template: Template, path: str) -> dict[str, int] | None:
    """The fields in a path; None where it does not fit, or a field that stands twice contradicts itself."""
    if (texts := template.match(path)) is None:
        return None
    found = list(zip(template.fields, map(int, texts), strict=True))
    numbers = dict(found)
    return numbers if all(numbers[name] == number for name, number in found) else None


def find_pairs(
    background: Path, overlay: Path, *, follow_links: bool = False, tell: Callable[[str], None] = no_one
) -> list[Pair]:
    """Join backgrounds and overlays; pairs by name, at least one.

    Each is a picture, a folder, or a folder with a template below it (`layouts.Template`). One background goes with all
    overlays. Folders are joined by the paths of their files, whatever the extensions; templates by the numbers in the
    background's fields. Backgrounds without an overlay are passed over. `follow_links` and `tell` as for
    `folders.find_files`. Raises `InputError` where one is missing, wrong or empty, an overlay has no background, or two
    files claim one place.
    """
    backgrounds, overlays = (
        find_pictures(given, follow_links=follow_links, tell=tell) for given in (background, overlay)
    )
    named = _unique(overlays, ((_stem(path), path) for path in overlays.paths))
    if backgrounds.single:
        return [Pair(str(name), background, overlays.folder / path) for name, path in sorted(named.items())]
    key = _joined_by(backgrounds, overlays)
    places = _unique(backgrounds, ((key(backgrounds, path), path) for path in backgrounds.paths))
    if alone := [path for path in overlays.paths if key(overlays, path) not in places]:
        names = ", ".join(alone[:LISTED]) + (", ..." if len(alone) > LISTED else "")
        raise InputError(
            f"{len(alone):,} of {len(overlays.paths):,} overlays in {overlays.folder} have no background in "
            f"{background}: {names}: name them alike, give templates with a common field, or take these away"
        )
    return [
        Pair(name, backgrounds.folder / places[key(overlays, path)], overlays.folder / path)
        for name, path in sorted(named.items())
    ]


def _joined_by(backgrounds: PictureFiles, overlays: PictureFiles) -> Callable[[PictureFiles, str], str]:
    """The function from a path to the key by which a background and its overlays are joined."""
    if overlays.single:
        raise InputError(f"{overlays.given} is one overlay, but {backgrounds.given} are many: give its background")
    if (backgrounds.template is None) != (overlays.template is None):
        raise InputError(f"{backgrounds.given} and {overlays.given}: give both as templates, or both as folders")
    fields = dict.fromkeys(backgrounds.template.fields if backgrounds.template else ())
    common = set(overlays.template.fields if overlays.template else ())
    if missing := [name for name in fields if name not in common]:
        raise InputError(
            f"{overlays.given}: no field {{{missing[0]}}}, by which the background is found: {backgrounds.given} has it"
        )

    def key(pictures: PictureFiles, path: str) -> str:
        numbers = _numbers(pictures.template, path) if pictures.template else None
        return normalize("NFC", _stem(path)) if numbers is None else " ".join(str(numbers[name]) for name in fields)

    return key


def _unique(pictures: PictureFiles, keyed: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Paths by key; raises `InputError` where two have the same."""
    paths = dict[str, str]()
    for key, path in keyed:
        if key in paths:
            raise InputError(
                f"{pictures.folder}: {paths[key]} and {path} claim one place: keep one, or give a template that tells "
                "them apart"
            )
        paths[key] = path
    return paths


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))
