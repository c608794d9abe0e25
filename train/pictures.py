"""What a person looks at: the grid of predictions and the curves of both losses."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

from pipeline.loading.batch import Batch
from pipeline.packing.preview import contact_sheet
from pipeline.resume import atomic_file
from train.logging import Line
from train.metrics import iou
from train.model import Prediction

LEAST_TILE = 128  # pixels; smaller pictures are enlarged, so that the titles fit
CURVES = {"mask_loss": "mask loss", "depth_loss": "depth loss"}


def grid(batch: Batch, prediction: Prediction, names: Sequence[str] = ()) -> Image.Image:
    """One row a set, labelled with its name and mask IoU; one column a picture. Waits for the device."""
    found = {
        "bg": batch.bg,
        "fg_bg": batch.fg_bg,
        "mask": batch.mask,
        "predicted mask": eight_bits(prediction.mask_logits.sigmoid()),
        "depth": batch.depth,
        "predicted depth": prediction.depth if prediction.depth is None else eight_bits(prediction.depth),
    }
    scale = -(-LEAST_TILE // batch.bg.shape[-1])
    columns = {
        title: pictures[:, 0].cpu().numpy().repeat(scale, axis=1).repeat(scale, axis=2)
        for title, pictures in found.items()
        if pictures is not None
    }
    scores = iou(prediction.mask_logits > 0, batch.mask).tolist()
    labels = [f"mask IoU {score:.3f}" for score in scores]
    if names:
        labels = [f"{name}: {label}" for name, label in zip(names, labels, strict=True)]
    rows = list(zip(labels, zip(*columns.values(), strict=True), strict=True))
    return contact_sheet(list(columns), rows, tile=batch.bg.shape[-1] * scale)


def eight_bits(plane: Tensor) -> Tensor:
    """Float 0..1 -> uint8 0..255."""
    return (plane.float() * 255).round().clamp(0, 255).byte()


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        picture.save(file, "PNG")


def draw_curves(lines: Sequence[Line], path: Path) -> None:
    """The losses over the steps, in training and in validation, from the lines of metrics.jsonl."""
    drawn = [name for name in CURVES if any(name in line for line in lines)]
    figure = Figure(figsize=(5 * len(drawn), 4))
    figure.subplots_adjust(0.12 / len(drawn), 0.12, 0.98, 0.92)
    for axes, name in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        for kind, label, style in (("train", "training", "-"), ("val", "validation", "o-")):
            points = [(line["step"], line[name]) for line in lines if line["kind"] == kind]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
                axes.legend()
        axes.set_title(CURVES[name])
        axes.set_xlabel("step")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")  # plain numbers: formulas, and a layout found by itself, take 0.3 s
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(which="both", alpha=0.3)
    figure.savefig(path, dpi=120)
