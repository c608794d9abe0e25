"""Predictions beside the truth, as one picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.loading.batch import Batch
from pipeline.packing.finalize import contact_sheet
from pipeline.resume import atomic_file
from train.metrics import iou
from train.model import Prediction

LEAST_TILE = 128  # pixels; smaller pictures are enlarged, so that the titles fit


def columns(batch: Batch, prediction: Prediction) -> dict[str, NDArray[np.uint8]]:
    """The pictures of each set by their title, inputs and truth beside predictions, [N,H,W]. Waits for the device."""
    found = {
        "bg": batch.bg,
        "fg_bg": batch.fg_bg,
        "mask": batch.mask,
        "predicted mask": eight_bits(prediction.mask_logits.sigmoid()),
        "depth": batch.depth,
        "predicted depth": prediction.depth if prediction.depth is None else eight_bits(prediction.depth),
    }
    return {title: pictures[:, 0].cpu().numpy() for title, pictures in found.items() if pictures is not None}


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
        picture.save(file, "PNG")
