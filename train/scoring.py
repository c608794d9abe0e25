"""The scores of sets, each by itself, of a network and of the baselines beside it; and what they come to together."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.loading.batch import Batch
from train.bootstrap import intervals
from train.depth_metrics import depth_scores
from train.losses import to_float
from train.metrics import difference, mask_scores
from train.run import Run
from train.trivial_baselines import MeanDepth
from train.validation import predict

NETWORK, TRIVIAL = "network", "trivial"

Summary = dict[str, float | int | None]
"""mean, its 95 % interval low and high, p5, median and p95 over sets, and `sets`; None where it is not defined."""


class Scores(NamedTuple):
    """The scores of sets, by who is scored and the score's name, float32 [N]."""

    rows: torch.Tensor
    of: dict[str, dict[str, torch.Tensor]]


def score_batch(run: Run, batch: Batch, threshold: int, mean_depth: MeanDepth | None) -> Scores:
    """The scores of the network and of the baselines on each set of a batch, on its device."""
    prediction = predict(run.network, batch.bg, batch.fg_bg, run.config.precision)
    found = mask_scores(prediction.mask_logits > 0, batch.mask)
    sound = prediction.mask_logits.isfinite().flatten(1).all(1)  # not a number would pass for background
    network = {name: torch.where(sound, of, math.nan) for name, of in found.items()}
    trivial = mask_scores(difference(batch.bg, batch.fg_bg) > threshold, batch.mask)
    if prediction.depth is not None and batch.depth is not None:
        truth = to_float(batch.depth)
        network |= depth_scores(prediction.depth, truth, batch.mask)
        if mean_depth and (mean := mean_depth(batch.index)) is not None:
            trivial |= depth_scores(mean, truth, batch.mask)
    return Scores(batch.index, {NETWORK: network, TRIVIAL: trivial})


def joined(batches: list[Scores]) -> tuple[NDArray[np.int64], dict[str, dict[str, NDArray[np.float64]]]]:
    """Rows [sets] and scores [sets] of all batches, on the CPU. Waits for the device."""
    values = {
        who: {name: torch.cat([scores.of[who][name] for scores in batches]).double().cpu().numpy() for name in named}
        for who, named in batches[0].of.items()
    }
    return torch.cat([scores.rows for scores in batches]).cpu().numpy(), values


def summaries(values: dict[str, NDArray[np.float64]], backgrounds: NDArray[np.int32]) -> dict[str, Summary]:
    """Each score [sets] in short; sets for which it is NaN are left out of it, and out of its count `sets`."""
    low, high = intervals(np.stack(list(values.values()), axis=1), backgrounds)
    found = dict[str, Summary]()
    for place, (name, of_sets) in enumerate(values.items()):
        there = of_sets[~np.isnan(of_sets)]
        p5, median, p95 = np.percentile(there, [5, 50, 95]) if len(there) else [math.nan] * 3
        mean = there.mean() if len(there) else math.nan
        exact = {"mean": mean, "low": low[place], "high": high[place], "p5": p5, "median": median, "p95": p95}
        plain = {what: None if math.isnan(value) else float(value) for what, value in exact.items()}
        found[name] = {**plain, "sets": len(there)}
    return found


def summarise(
    values: dict[str, dict[str, NDArray[np.float64]]], inside: NDArray[np.bool_], backgrounds: NDArray[np.int32]
) -> tuple[int, dict[str, dict[str, Summary]]]:
    """The number of backgrounds of the sets `inside`, and their scores; none of an empty cell."""
    if not inside.any():
        return 0, {}
    under = backgrounds[inside]
    in_short = {
        who: summaries({name: of[inside] for name, of in named.items()}, under) for who, named in values.items()
    }
    return len(np.unique(under)), in_short
