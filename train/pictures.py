"""What a person looks at: the grid of predictions and the curves of both losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.loader import Batch
from train.log import Line
from train.model import Prediction

Picture = np.ndarray[Any, np.dtype[np.uint8]]

TITLES = ("bg", "fg_bg", "mask", "predicted mask", "depth", "predicted depth")
GAP_PIXELS = 6
TITLE_PIXELS = 26


def grid(batch: Batch, prediction: Prediction) -> Picture:
    """One row a set, one column a title: uint8 [height,width,3]. Waits for the device."""
    columns = [
        batch.bg,
        batch.fg_bg,
        batch.mask,
        eight_bits(prediction.mask_logits.sigmoid()),
        batch.depth,
        eight_bits(prediction.depth),
    ]
    rows = len(batch.bg)
    scale = -(-128 // batch.bg.shape[-1])  # small pictures are enlarged, so that the titles fit
    cell = batch.bg.shape[-1] * scale
    canvas = Image.new(
        "RGB",
        (len(columns) * (cell + GAP_PIXELS) + GAP_PIXELS, TITLE_PIXELS + rows * (cell + GAP_PIXELS)),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    for column, (title, pictures) in enumerate(zip(TITLES, columns, strict=True)):
        left = GAP_PIXELS + column * (cell + GAP_PIXELS)
        draw.text((left + cell / 2, TITLE_PIXELS / 2), title, fill="black", font=font, anchor="mm")
        for row, picture in enumerate(pictures[:, 0].cpu().numpy()):
            enlarged = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            canvas.paste(Image.fromarray(enlarged), (left, TITLE_PIXELS + row * (cell + GAP_PIXELS)))
    return np.array(canvas)


def eight_bits(plane: Tensor) -> Tensor:
    """Float 0..1 -> uint8 0..255."""
    return (plane.float() * 255).round().clamp(0, 255).byte()


def save_picture(picture: Picture, path: Path) -> None:
    """Write uint8 [H,W,3] as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def draw_curves(lines: Sequence[Line], path: Path) -> None:
    """Both losses over the steps, in training and in validation, from the lines of metrics.jsonl."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name, title in zip(
        figure.subplots(1, 2),
        ("mask_loss", "depth_loss"),
        ("mask loss: binary cross-entropy", "depth loss: 1 - SSIM"),
        strict=True,
    ):
        for kind, label, style in (("train", "training", "-"), ("val", "validation", "o-")):
            points = [(line["step"], line[name]) for line in lines if line["kind"] == kind]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
                axes.legend()
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_yscale("log")
        axes.grid(which="both", alpha=0.3)
    figure.savefig(path, dpi=120)
