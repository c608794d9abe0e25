"""Predictions: masks and depth maps of pictures of any size, as files that people and programs open."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.format.depth import colour_map
from pipeline.format.images import BadImage, Picture, decode_rgb, read_picture
from pipeline.packing.encode_planes import BATCH as ENCODER_BATCH
from pipeline.packing.encode_planes import NoPlanes, PlaneRasterizer
from pipeline.resume import atomic_file, resumable
from pipeline.workers import available_cores
from train.pairs import Pair
from train.run import Run

BATCH, MOST_PAIRS = 16, ENCODER_BATCH  # at a time
DEPTH_COLOURS = "magma"  # which fgbg-pack recognises, and reads back
TILE, GAP, TITLE, FONT = 384, 8, 24, 16  # pixels, of a side-by-side
MOST_PIXELS = 178_000_000  # of a picture; a few more, and Pillow takes it for an attack
DONE = "done"  # the note of a stopped run


class Planes(NamedTuple):
    """What the network says of one pair, at the size of the overlay."""

    mask: NDArray[np.uint8]
    """[H, W]: the probability of foreground, 255 is certain."""
    depth: NDArray[np.uint16] | None
    """[H, W], near is bright."""


class Predictor:
    """A run's network for pictures as files hold them, decoded and resized as the CPU loader does it."""

    def __init__(self, run: Run, device: torch.device) -> None:
        """The network is on `device`. Raises `InputError` where DALI is missing."""
        self._network, self._device = run.network, device
        self._rasterizer = PlaneRasterizer({"bg": None, "fg_bg": None}, run.config.size)

    def __call__(self, sets: Sequence[tuple[Picture, Picture]]) -> list[Planes | NoPlanes]:
        """Planes of each pair of background and overlay, at most `MOST_PAIRS`, or why there are none."""
        inputs = self._rasterizer.rasterize(sets)
        good = [planes for planes in inputs if not isinstance(planes, NoPlanes)]
        if not good:
            return list(inputs)  # type: ignore[arg-type]
        pictures = torch.from_numpy(np.stack(good)).to(self._device)  # uint8 [N,2,size,size]
        with torch.inference_mode():
            mask_logits, depth = self._network(pictures[:, :1].contiguous(), pictures[:, 1:].contiguous())
            planes = [mask_logits.sigmoid()] + ([] if depth is None else [depth])
            found = iter(torch.cat(planes, dim=1).float())
        return [
            planes if isinstance(planes, NoPlanes) else at_size(next(found), overlay.size)
            for planes, (_, overlay) in zip(inputs, sets, strict=True)
        ]


def at_size(planes: torch.Tensor, size: tuple[int, int]) -> Planes:
    """Float32 [1 or 2, size, size] in 0..1, mask and depth, brought to another size in float, then rounded."""
    resized = F.interpolate(planes[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    mask, *depth = resized.cpu().numpy()  # waits for the device
    return Planes((mask * 255 + 0.5).astype(np.uint8), (depth[0] * 65535 + 0.5).astype(np.uint16) if depth else None)


def predict(
    run: Run,
    pairs: Sequence[Pair],
    out: Path,
    device: torch.device,
    batch_size: int = BATCH,
    done: Callable[[int], None] = lambda more: None,
) -> None:
    """Write into `out`, new or empty, for each pair NAME.mask.png, NAME.side-by-side.png and, of a run with depth,
    NAME.depth.png (gray, 16 bits) and NAME.depth-colour.png.

    A stopped call is continued by the same again. `done` is told how many pairs more there are. Raises `InputError`,
    with `out` as it was, for pictures that are none, are damaged, or differ in shape within a pair, and where DALI is
    missing.
    """
    arguments = _arguments(run, pairs)
    predictor = Predictor(run, device)
    with resumable(out, arguments) as notes, ThreadPoolExecutor(available_cores()) as pool:
        require_pictures(pairs)
        note = notes / DONE
        first = int(note.read_text()) if note.exists() else 0
        done(first)
        for start in range(first, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            pictures = [(_read(pair.background), _read(pair.overlay)) for pair in batch]
            planes = [_whole(found, pair) for found, pair in zip(predictor(pictures), batch, strict=True)]
            list(pool.map(write_files, repeat(out), batch, pictures, planes))
            with atomic_file(note) as file:
                file.write(str(start + len(batch)).encode())
            done(len(batch))


def _arguments(run: Run, pairs: Sequence[Pair]) -> dict[str, object]:
    files = [(str(path), path.stat()) for pair in pairs for path in (pair.background, pair.overlay)]
    stamps = [[path, about.st_size, about.st_mtime_ns] for path, about in files]
    return {
        "command": "fgbg-predict",
        "checkpoint": str(run.checkpoint),
        "step": run.step,
        "pictures": hashlib.sha256(json.dumps(stamps).encode()).hexdigest(),
    }


def require_pictures(pairs: Sequence[Pair]) -> None:
    """Raise `InputError` unless all files are pictures by their headers, none too large, sides of a pair in one ratio.

    The original's own backgrounds have 224 x 224 pixels, its overlays 256 x 256: the network sees both at its size.
    """
    sizes = functools.cache(lambda path: _read(path, "header").size)  # one background may go with all overlays
    for pair in pairs:
        background, overlay = sizes(pair.background), sizes(pair.overlay)
        if background[0] * overlay[1] != background[1] * overlay[0]:
            raise InputError(
                f"{pair.background} is {_pixels(background)}, {pair.overlay} is {_pixels(overlay)}: expected two "
                "pictures of one view and size, or of sides in the same ratio"
            )
        for path, size in ((pair.background, background), (pair.overlay, overlay)):
            if size[0] * size[1] > MOST_PIXELS:
                raise InputError(f"{path} is {_pixels(size)}: expected at most {MOST_PIXELS:,} in all; make it smaller")


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} pixels"


def _read(path: Path, verify: str = "decode") -> Picture:
    try:
        return read_picture(str(path), verify)
    except BadImage as error:
        raise InputError(f"{path}: {error}: expected a whole JPEG or PNG") from error


def _whole(found: Planes | NoPlanes, pair: Pair) -> Planes:
    if isinstance(found, NoPlanes):
        raise InputError(f"{pair[1 + found.part]}: {found.why}: save it anew as JPEG or PNG")
    return found


def write_files(out: Path, pair: Pair, pictures: tuple[Picture, Picture], planes: Planes) -> None:
    """Write the files of one pair, each whole or not at all."""
    (out / pair.name).parent.mkdir(parents=True, exist_ok=True)
    shown = {"bg": decode_rgb(pictures[0].content), "fg_bg": decode_rgb(pictures[1].content), "mask": planes.mask}
    files = {"mask.png": Image.fromarray(planes.mask)}
    if planes.depth is not None:
        files["depth.png"] = Image.fromarray(planes.depth)
        shown["depth (near = bright)"] = depth_colours(planes.depth)
        files["depth-colour.png"] = Image.fromarray(shown["depth (near = bright)"])
    files["side-by-side.png"] = side_by_side(shown)
    for kind, picture in files.items():
        with atomic_file(out / f"{pair.name}.{kind}") as file:
            picture.save(file, "PNG")


def depth_colours(depth: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Nearness, uint16 [H, W], by `DEPTH_COLOURS`; uint8 [H, W, 3]."""
    colours = np.rint(colour_map(DEPTH_COLOURS)).astype(np.uint8)
    return colours[(depth.astype(np.uint32) + 128) // 257]


def side_by_side(pictures: Mapping[str, NDArray[np.uint8]]) -> Image.Image:
    """Pictures of one size, uint8 [H, W] or [H, W, 3], in a row under their titles, longer edge `TILE` pixels."""
    height, width = next(iter(pictures.values())).shape[:2]
    scale = TILE / max(height, width)
    tile = max(1, round(width * scale)), max(1, round(height * scale))
    step = max(tile[0], TILE // 2) + GAP  # titles need room, too
    sheet = Image.new("RGB", (GAP + len(pictures) * step, TITLE + tile[1] + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for column, (title, picture) in enumerate(pictures.items()):
        left = GAP + column * step
        draw.text((left, 2), title, fill="black", font=font)
        sheet.paste(Image.fromarray(picture).convert("RGB").resize(tile), (left, TITLE))
    return sheet
