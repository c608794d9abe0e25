"""What the network is worth on sets whose background and foreground it has never seen, beside a trivial baseline."""

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.loader import Batch, Loader
from train.config import Config
from train.losses import Criterion, unit
from train.metrics import difference, iou, rmse
from train.model import Prediction

THRESHOLDS = (*range(1, 16), *range(16, 64, 4), *range(64, 129, 8))
THRESHOLD_SETS = 512  # training sets on which the baseline's threshold is chosen
EXAMPLES = 6  # rows of the picture grid


class Scores(NamedTuple):
    """Means over `sets` sets."""

    sets: int
    mask_iou: float
    """Intersection over union of the mask at 0.5."""
    depth_ssim: float
    """Structural similarity of the depth."""
    depth_rmse: float
    """Root of the mean squared difference of the depth, which is in 0..1."""
    mask_loss: float
    depth_loss: float
    loss: float
    baseline_iou: float
    """What |fg_bg - bg| > threshold reaches on the same sets."""

    def __str__(self) -> str:
        return f"mask IoU {self.mask_iou:.3f}, depth SSIM {self.depth_ssim:.3f}, RMSE {self.depth_rmse:.3f}"


class Validator:
    """The validation sets of a run, the baseline's threshold, and the sets that its pictures show."""

    def __init__(self, config: Config, device: torch.device, say: Callable[[str], None]) -> None:
        """Opens the split `val`; where it is empty, says so and shows training sets in the pictures."""
        shown = config.loader(
            "train", device, shuffle=False
        )  # a loader of its own: the one that trains must not lose a batch to this
        batches = math.ceil(THRESHOLD_SETS / config.batch_size)
        self.threshold = best_threshold(islice(shown, batches))
        self._loader: Loader | None = None
        try:
            shown = self._loader = config.loader("val", device, shuffle=False)
        except InputError as error:
            say(f"training without validation: {error}")
        start = shown.state_dict()
        first = next(iter(shown))
        parts = (first.bg, first.fg_bg, first.mask, first.depth, first.index)
        self.examples = Batch(*(part[:EXAMPLES].clone() for part in parts))
        shown.load_state_dict(start)

    def scores(self, network: nn.Module, criterion: Criterion) -> Scores | None:
        """Scores over all validation sets; None without any."""
        return validate(network, criterion, self._loader, self.threshold) if self._loader else None


@torch.no_grad()
def predict(network: nn.Module, bg: Tensor, fg_bg: Tensor) -> Prediction:
    """The network's prediction in the number format that it is trained in; leaves its mode as it was."""
    was_training = network.training
    network.eval()
    with torch.autocast("cuda", torch.bfloat16, enabled=bg.is_cuda):
        prediction: Prediction = network(bg, fg_bg)
    network.train(was_training)
    return prediction


@torch.no_grad()
def validate(network: nn.Module, criterion: Criterion, batches: Iterable[Batch], threshold: int) -> Scores:
    """Scores of `network` over one epoch of `batches`, which must hold at least one set."""
    sums = torch.zeros(0)
    sets = 0
    for batch in batches:
        count = len(batch.bg)
        if not count:  # every set of it was damaged
            continue
        prediction = predict(network, batch.bg, batch.fg_bg)
        losses = criterion(prediction, batch.mask, batch.depth)
        depth = unit(batch.depth)
        of_batch = torch.stack(
            [
                iou(prediction.mask_logits > 0, batch.mask).sum(),
                criterion.ssim(prediction.depth, depth) * count,
                rmse(prediction.depth, depth).sum(),
                losses.mask * count,
                losses.depth * count,
                losses.total * count,
                iou(difference(batch.bg, batch.fg_bg) > threshold, batch.mask).sum(),
            ]
        )
        sums = sums + of_batch if sets else of_batch
        sets += count
    means: list[float] = (sums / sets).tolist()  # waits for the device, once
    return Scores(sets, *means)


@torch.no_grad()
def best_threshold(batches: Iterable[Batch], thresholds: Iterable[int] = THRESHOLDS) -> int:
    """The t of |fg_bg - bg| > t with the best mean IoU over `batches`."""
    grid = list(thresholds)
    sums = torch.zeros(len(grid))
    for batch in batches:
        change = difference(batch.bg, batch.fg_bg)
        sums = sums + torch.stack([iou(change > t, batch.mask).sum() for t in grid]).cpu()  # waits: before training
    return grid[int(sums.argmax())]
