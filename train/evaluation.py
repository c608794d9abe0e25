"""What a trained network is worth on sets of any data, beside the trivial baseline |fg_bg - bg| > t."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline.batch import Batch
from pipeline.errors import InputError
from pipeline.index import Manifest
from pipeline.loader import Loader
from train.losses import Criterion
from train.pictures import grid
from train.run import Run
from train.validation import THRESHOLD_SETS, SetScores, best_threshold, predict, score_sets, training_threshold

WORST, MEDIAN = 8, 4  # sets in the picture
HIGH_IS_BAD = ("depth_rmse",)
TABLE: dict[str, tuple[str, ...]] = {  # title: the network's score, the baseline's where it has one
    "mask IoU": ("mask_iou", "baseline_iou"),
    "mask Dice": ("mask_dice", "baseline_dice"),
    "depth SSIM": ("depth_ssim",),
    "depth RMSE": ("depth_rmse",),
}


def open_split(run: Run, split: str, device: torch.device) -> Loader:
    """A loader of one split of `run.config.shards`, with depth where both have it; raises `InputError` as `Loader`."""
    has_depth = "depth" in Manifest.load(run.config.shards).parts
    config = replace(run.config, depth=run.config.depth and has_depth, resident="off", augment=False)
    return config.loader(device, split, shuffle=False)


class Evaluation(NamedTuple):
    """The scores of a run on the sets of a split."""

    run: Run
    split: str
    loader: Loader
    scores: SetScores
    threshold: int
    """The baseline's, a difference in 0..255."""
    threshold_from: str
    """On which sets it was chosen."""

    def numbers(self) -> dict[str, Any]:
        """Everything as JSON has it; percentiles are over sets."""
        order = self._worst_first()[:WORST].tolist()
        rows, iou = self.scores.rows.tolist(), self.scores.values["mask_iou"].tolist()
        return {
            "checkpoint": str(self.run.checkpoint),
            "step": self.run.step,
            "shards": str(self.run.config.shards),
            "manifest": self.loader.manifest.sha256,
            "split": self.split,
            "size": self.run.config.size,
            "sets": len(rows),
            "sets_damaged": len(self.loader.quarantined),
            "threshold": self.threshold,
            "threshold_from": self.threshold_from,
            "scores": {name: summary(values) for name, values in self.scores.values.items()},
            "worst": [{"key": self.loader.key(rows[place]), "mask_iou": iou[place]} for place in order],
        }

    def table(self) -> str:
        """The means and the worst 5 % of the sets, for a terminal."""
        size = self.run.config.size
        where = f"{self.run.config.shards}, split {self.split}: {len(self.scores.rows):,} sets at {size} x {size}"
        lines = [
            f"{self.run.checkpoint} (step {self.run.step:,}) on {where}",
            f"{'':10}{'network':>20}{f'|fg_bg - bg| > {self.threshold}':>24}",
            f"{'':10}" + f"{'mean':>9}{'worst 5 %':>11}  " * 2,
        ]
        for title, names in TABLE.items():
            found = [(name, summary(self.scores.values[name])) for name in names if name in self.scores.values]
            cells = [f"{of['mean']:9.3f}{of['p95' if name in HIGH_IS_BAD else 'p5']:11.3f}  " for name, of in found]
            lines += [f"{title:10}{''.join(cells)}"] if cells else []
        lines.append(f"threshold {self.threshold}: chosen on {self.threshold_from}")
        if "depth_ssim" not in self.scores.values:
            lines.append(f"depth: not scored, the {'sets have' if self.run.config.depth else 'network has'} none")
        if damaged := self.loader.quarantined:
            lines.append(f"sets left out as damaged: {len(damaged)}, such as {damaged[0]}")
        return "\n".join(line.rstrip() for line in lines)

    def picture(self) -> Image.Image:
        """The sets with the lowest mask IoU, then some around the median, with what the network made of them."""
        order = self._worst_first()
        middle = max(WORST, (len(order) - MEDIAN) // 2)
        worst, median = (
            self.scores.rows[places].tolist() for places in (order[:WORST], order[middle : middle + MEDIAN])
        )
        names = [
            f"{kind}: {self.loader.key(row)}" for kind, rows in (("worst", worst), ("median", median)) for row in rows
        ]
        batch = self.loader.pick(worst + median)
        return grid(batch, predict(self.run.network, batch.bg, batch.fg_bg), names)

    def _worst_first(self) -> Tensor:
        return self.scores.values["mask_iou"].argsort(stable=True)


def summary(values: Tensor) -> dict[str, float]:
    """Mean and percentiles of float [sets]."""
    exact = values.double()
    percentiles = {name: exact.quantile(share).item() for name, share in (("p5", 0.05), ("median", 0.5), ("p95", 0.95))}
    return {"mean": exact.mean().item(), **percentiles}


def evaluate(
    run: Run, split: str, loader: Loader, watch: Callable[[Iterable[Batch]], Iterable[Batch]] = iter
) -> Evaluation:
    """Score every set of `loader`; `watch` may count its batches as they pass.

    The baseline's threshold is chosen on the training split of the same data; without one, on the sets themselves,
    which is more than a baseline could know. Raises `InputError` where too many sets are damaged.
    """
    try:
        training = loader.sibling("train", shuffle=False)
    except InputError:
        threshold, threshold_from = best_threshold(loader), "these sets themselves: the best possible on them"
    else:
        threshold = training_threshold(training)
        threshold_from = f"{min(THRESHOLD_SETS, training.sets):,} sets of the split train"
    criterion = Criterion().to(next(run.network.parameters()).device)
    scores = score_sets(run.network, criterion, watch(loader), threshold)
    return Evaluation(run, split, loader, scores, threshold, threshold_from)
