"""What the network is worth on sets whose background and foreground it has never seen, beside a trivial baseline."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from train.distributed import SINGLE, Distributed
from train.losses import Criterion, to_float
from train.metrics import dice, difference, iou, rmse
from train.model import Prediction
from train.precision import autocast

THRESHOLDS = (*range(1, 16), *range(16, 64, 4), *range(64, 129, 8))
THRESHOLD_SETS = 512  # training sets on which the baseline's threshold is chosen
EXAMPLES = 6  # rows of the picture grid

Scores = dict[str, float]
"""`sets`, and means over them by the names of `score_batch`."""


class SetScores(NamedTuple):
    """Every set by itself, on the CPU."""

    rows: Tensor
    """int64 [sets], rows of index.npy."""
    values: dict[str, Tensor]
    """float32 [sets], by the names of `score_batch`."""

    def sums(self) -> Scores:
        """The number of sets and the sum of each score."""
        return {"sets": len(self.rows), **{name: each.double().sum().item() for name, each in self.values.items()}}


def mean_scores(sums: Sequence[Scores]) -> Scores:
    """The mean of each score over the sets of all `sums`; raises `InputError` if there is none."""
    sets = sum(of["sets"] for of in sums)
    if not sets:
        raise InputError("every set to be scored is damaged: copy the shards again")
    names = next(list(of) for of in sums if of["sets"])
    means = {name: sum(of.get(name, 0.0) for of in sums) / sets for name in names if name != "sets"}
    return {"sets": sets, **means}


class Validator:
    """The validation sets of a run, the baseline's threshold, and the sets that its pictures show."""

    def __init__(
        self, loader: Loader, training: str, split: str, ranks: Distributed, say: Callable[[str], None]
    ) -> None:
        """Opens `split` of the data of `loader`, which trains on the split `training`.

        Where there is no set in it, says so and shows training sets. Each of the ranks scores its share.
        """
        shown = loader.sibling(training, shuffle=False)  # the one that trains must not lose a batch to this
        self.threshold = training_threshold(shown, ranks)
        self._loader: Loader | None = None
        self._ranks = ranks
        try:
            shown = self._loader = loader.sibling(split, shuffle=False, resident=loader.config.resident)
        except InputError as error:
            say(f"training without validation: {error}")
        start = shown.state_dict()
        rows = chain(*ranks.all_gather(next(iter(shown)).index.tolist()))
        self.examples = loader.pick(list(islice(rows, EXAMPLES)))
        shown.load_state_dict(start)

    def close(self) -> None:
        """End the loader's threads."""
        if self._loader is not None:
            self._loader.close()

    def release(self) -> str | None:
        """See `Loader.release`."""
        return self._loader.release() if self._loader is not None else None

    def scores(self, network: nn.Module, criterion: Criterion, precision: str) -> Scores | None:
        """Scores over all validation sets; None without any. Raises `InputError` where all of them are damaged."""
        if self._loader is None:
            return None
        scored = score_sets(network, criterion, self._loader, self.threshold, precision)
        return mean_scores(self._ranks.all_gather(scored.sums()))


def describe(scores: Scores) -> str:
    """The scores that say most, for a line of text."""
    labels = {"mask_iou": "mask IoU", "depth_ssim": "depth SSIM", "depth_rmse": "RMSE"}
    return ", ".join(f"{label} {scores[name]:.3f}" for name, label in labels.items() if name in scores)


@torch.no_grad()
def predict(network: nn.Module, bg: Tensor, fg_bg: Tensor, precision: str = "auto") -> Prediction:
    """The network's prediction in a number format of `precision.PRECISIONS`; leaves its mode as it was."""
    was_training = network.training
    network.eval()
    with autocast(precision, bg.device):
        prediction: Prediction = network(bg, fg_bg)
    network.train(was_training)
    return prediction


@torch.no_grad()
def score_batch(prediction: Prediction, batch: Batch, criterion: Criterion, threshold: int) -> dict[str, Tensor]:
    """The scores and losses of each set of a batch, float32 [N]; those of the depth only where both have it.

    `mask_iou` and `mask_dice` are those of the mask at 0.5, `baseline_iou` and `baseline_dice` those of
    |fg_bg - bg| > threshold; `depth_ssim` and `depth_rmse` those of depth in 0..1.
    """
    found = iou(prediction.mask_logits > 0, batch.mask)
    baseline = iou(difference(batch.bg, batch.fg_bg) > threshold, batch.mask)
    scores = {"mask_iou": found, "mask_dice": dice(found)}
    if prediction.depth is not None and batch.depth is not None:
        depth = to_float(batch.depth)
        scores |= {
            "depth_ssim": criterion.ssim(prediction.depth, depth),
            "depth_rmse": rmse(prediction.depth, depth),
        }
    losses = criterion.per_sample(prediction, batch.mask, batch.depth)
    return {**scores, **losses.named(), "baseline_iou": baseline, "baseline_dice": dice(baseline)}


def score_sets(
    network: nn.Module, criterion: Criterion, batches: Iterable[Batch], threshold: int, precision: str = "auto"
) -> SetScores:
    """Score `network`, in a number format of `precision.PRECISIONS`, on every set of one epoch of `batches`."""
    rows, scored = list[Tensor](), list[dict[str, Tensor]]()
    for batch in batches:
        if len(batch.bg):  # or every set of it was damaged
            rows.append(batch.index)
            prediction = predict(network, batch.bg, batch.fg_bg, precision)
            scored.append(score_batch(prediction, batch, criterion, threshold))
    if not scored:
        return SetScores(torch.empty(0, dtype=torch.int64), {})
    values = {name: torch.cat([of_batch[name] for of_batch in scored]).cpu() for name in scored[0]}  # waits
    return SetScores(torch.cat(rows).cpu(), values)


def training_threshold(loader: Loader, ranks: Distributed = SINGLE) -> int:
    """The baseline's threshold, chosen on the first THRESHOLD_SETS sets of an epoch of `loader`, of all its ranks."""
    return best_threshold(islice(loader, math.ceil(THRESHOLD_SETS / loader.batch_size)), ranks=ranks)


@torch.no_grad()
def best_threshold(
    batches: Iterable[Batch], thresholds: Iterable[int] = THRESHOLDS, *, ranks: Distributed = SINGLE
) -> int:
    """The t of |fg_bg - bg| > t with the best mean IoU over `batches`, those of all `ranks`."""
    grid = list(thresholds)
    sums = torch.zeros(len(grid), dtype=torch.float64)
    for batch in batches:
        change = difference(batch.bg, batch.fg_bg)
        sums = sums + torch.stack([iou(change > t, batch.mask).sum() for t in grid]).cpu()  # waits: before training
    return grid[int(np.argmax(ranks.sums(sums.tolist())))]
