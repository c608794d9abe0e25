"""Pictures of predictions: beside the truth, one row a set; beside their inputs; depth in colours."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.format.depth import colour_holes, colour_map
from pipeline.loading.batch import Batch
from pipeline.packing.finalize import contact_sheet
from pipeline.resume import atomic_file
from train.metrics import iou
from train.model import Prediction

LEAST_TILE = 128  # pixels, of a grid; smaller pictures are enlarged, so that the titles fit
TILE, GAP, TITLE, FONT = 384, 8, 24, 16  # pixels, of a side-by-side
DEPTH_COLOURS = "magma"  # which fgbg-pack recognises, and reads back


def columns(batch: Batch, prediction: Prediction) -> dict[str, NDArray[np.uint8]]:
    """The pictures of each set by their title, inputs and truth beside predictions. Waits for the device.

    uint8 [N,H,W], or [N,H,W,3] of depth with holes, which are `depth.HOLE_COLOUR`.
    """
    found = {
        "bg": batch.bg,
        "fg_bg": batch.fg_bg,
        "mask": batch.mask,
        "predicted mask": eight_bits(prediction.mask_logits.sigmoid()),
        "depth": batch.depth,
        "predicted depth": prediction.depth if prediction.depth is None else eight_bits(prediction.depth),
    }
    shown = {title: pictures[:, 0].cpu().numpy() for title, pictures in found.items() if pictures is not None}
    if batch.depth_valid is not None:
        shown["depth"] = colour_holes(shown["depth"])
    return shown


def grid(batch: Batch, prediction: Prediction, names: Sequence[str] = ()) -> Image.Image:
    """One row a set, labelled with its name and mask IoU; one column a picture. Waits for the device."""
    scale = -(-LEAST_TILE // batch.bg.shape[-1])
    enlarged = {
        title: pictures.repeat(scale, axis=1).repeat(scale, axis=2)
        for title, pictures in columns(batch, prediction).items()
    }
    scores = iou(prediction.mask_logits > 0, batch.mask).tolist()
    labels = [f"mask IoU {score:.3f}" for score in scores]
    if names:
        labels = [f"{name}: {label}" for name, label in zip(names, labels, strict=True)]
    rows = list(zip(labels, zip(*enlarged.values(), strict=True), strict=True))
    return contact_sheet(list(enlarged), rows, tile=batch.bg.shape[-1] * scale)


def eight_bits(plane: Tensor) -> Tensor:
    """Float 0..1 -> uint8 0..255."""
    return (plane.float() * 255).round().clamp(0, 255).byte()


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(png(picture))


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def depth_colours(depth: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Nearness, uint16 [H, W], by `DEPTH_COLOURS`; uint8 [H, W, 3]."""
    colours = np.rint(colour_map(DEPTH_COLOURS)).astype(np.uint8)[(np.arange(1 << 16) + 128) // 257]
    picture = np.empty((*depth.shape, 3), np.uint8)
    for row, levels in zip(picture, depth, strict=True):  # of all rows at once, the indices would take the most memory
        row[:] = colours[levels]
    return picture


def shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture, uint8 [H, W] or [H, W, 3], as `side_by_side` shows it: uint8 [h, w, 3], longer edge `TILE` pixels."""
    height, width = picture.shape[:2]
    scale = TILE / max(height, width)
    tile = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(picture).convert("RGB").resize(tile))


def side_by_side(pictures: Mapping[str, NDArray[np.uint8]]) -> Image.Image:
    """Pictures of one size, uint8 [H, W] or [H, W, 3], in a row under their titles, longer edge `TILE` pixels."""
    tiles = {title: Image.fromarray(shrunk(picture)) for title, picture in pictures.items()}
    tile = next(iter(tiles.values())).size
    step = max(tile[0], TILE // 2) + GAP  # titles need room, too
    sheet = Image.new("RGB", (GAP + len(pictures) * step, TITLE + tile[1] + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for column, (title, picture) in enumerate(tiles.items()):
        left = GAP + column * step
        draw.text((left, 2), title, fill="black", font=font)
        sheet.paste(picture, (left, TITLE))
    return sheet
