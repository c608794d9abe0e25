"""The scores of sets, each by itself: of a network and of the trivial baselines beside it; and their means.

Validation, evaluation and the report take theirs from `score_batch`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from train.distributed import Distributed
from train.losses import Criterion, to_float
from train.metrics import depth_scores, difference, mask_scores
from train.model import Prediction
from train.reliability import count_known, reliability
from train.runtime import autocast
from train.trivial_baselines import MeanDepth, training_threshold

NETWORK, TRIVIAL = "network", "trivial"  # what is scored
EXAMPLES = 6  # rows of the picture grid
RESAMPLES = 1000  # of the bootstrap
LOW, HIGH = 2.5, 97.5  # percent
COUNTS_IN_MEMORY = 1 << 22
LACKING = " lacking"  # behind a score's name: the sets that do not have it
DEPTH_SCORES = ("depth_ssim", "depth_rmse")  # of validation: sets without any measurement of depth lack them

ValuesByName = dict[str, dict[str, NDArray[np.float64]]]
"""Scores [sets] by NETWORK or TRIVIAL and the score's name."""
MeanScores = dict[str, float]
"""`sets`, and sums or means over them of the scores and losses, by the names under which they are logged."""
Summary = dict[str, float | int | None]
"""mean, its 95 % interval low and high, p5, median and p95 over sets, and `sets`; None where it is not defined."""


@torch.no_grad()
def predict(network: nn.Module, bg: Tensor, fg_bg: Tensor, precision: str = "auto") -> Prediction:
    """The network's prediction in a number format of `config.PRECISIONS`; leaves its mode as it was."""
    was_training = network.training
    network.eval()
    with autocast(precision, bg.device):
        prediction: Prediction = network(bg, fg_bg)
    network.train(was_training)
    return prediction


@torch.no_grad()
def score_batch(
    prediction: Prediction,
    batch: Batch,
    threshold: int,
    *,
    criterion: Criterion | None = None,
    mean_depth: MeanDepth | None = None,
    detailed: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """The scores of each set of a batch, float32 [N] on its device, by NETWORK or TRIVIAL and the score's name.

    IoU and Dice of the network's mask at 0.5 and of |fg_bg - bg| > `threshold`; SSIM and RMSE of the depth, where both
    the network and the batch have it, and of `mean_depth`; with `criterion`, the network's losses. `detailed`: all that
    `mask_scores` and `depth_scores` have. NaN for the mask of a prediction that is not finite: it would pass for
    background; and for the depth of a set of which nothing was measured.
    """
    sound = prediction.mask_logits.isfinite().flatten(1).all(1)
    found = mask_scores(prediction.mask_logits > 0, batch.mask, boundaries=detailed)
    network = {name: torch.where(sound, score, math.nan) for name, score in found.items()}
    trivial = mask_scores(difference(batch.bg, batch.fg_bg) > threshold, batch.mask, boundaries=detailed)
    if prediction.depth is not None and batch.depth is not None:
        truth = to_float(batch.depth)
        network |= depth_scores(prediction.depth, truth, batch.mask, batch.depth_valid, detailed=detailed)
        if mean_depth and (mean := mean_depth(batch.index)) is not None:
            trivial |= depth_scores(mean, truth, batch.mask, batch.depth_valid, detailed=detailed)
    if criterion:
        network |= criterion.per_sample(prediction, batch.mask, batch.depth, batch.depth_valid).named()
    return {NETWORK: network, TRIVIAL: trivial}


class SetScores(NamedTuple):
    """The scores of some sets, each by itself."""

    rows: Tensor
    """int64 [N], rows of index.npy."""
    values: dict[str, dict[str, Tensor]]
    """float32 [N], by NETWORK or TRIVIAL and the score's name."""


def joined(batches: Sequence[SetScores]) -> tuple[NDArray[np.int64], ValuesByName]:
    """Rows [sets] and scores [sets] of all `batches`, at least one, on the CPU. Waits for the device."""
    values = {
        who: {
            name: torch.cat([scores.values[who][name] for scores in batches]).double().cpu().numpy() for name in named
        }
        for who, named in batches[0].values.items()
    }
    return torch.cat([scores.rows for scores in batches]).cpu().numpy(), values


def score_sets(
    network: nn.Module, criterion: Criterion, batches: Iterable[Batch], threshold: int, precision: str = "auto"
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Rows and scores [sets] of every set of one epoch of `batches`, in a number format of `config.PRECISIONS`.

    A mask that is not finite scores 0. The scores are those of `score_batch` and the losses, by the names under which
    validation logs them:
    `baseline_iou` and `baseline_dice` are those of |fg_bg - bg| > threshold.
    """
    scored = list[SetScores]()
    for batch in batches:
        if len(batch.bg):  # or every set of it was damaged
            prediction = predict(network, batch.bg, batch.fg_bg, precision)
            scored.append(SetScores(batch.index, score_batch(prediction, batch, threshold, criterion=criterion)))
    if not scored:
        return np.empty(0, np.int64), {}
    rows, values = joined(scored)
    for name in ("mask_iou", "mask_dice"):  # one prediction that is no number must not make the mean of all none
        values[NETWORK][name] = np.nan_to_num(values[NETWORK][name], nan=0.0)
    return rows, values[NETWORK] | {name.replace("mask", "baseline"): of for name, of in values[TRIVIAL].items()}


def sum_scores(rows: NDArray[np.int64], values: dict[str, NDArray[np.float64]]) -> MeanScores:
    """The number of sets and the sum of each score, and how many sets lack it, under the score's name and LACKING.

    A score of depth lacks where there are no pixels that it could be of, in depth with holes: it is NaN, and the loss
    of depth is not.
    """
    sums: MeanScores = {"sets": len(rows)}
    for name, of_sets in values.items():
        lacking = np.isnan(of_sets) & ~np.isnan(values["depth_loss"] if name in DEPTH_SCORES else of_sets)
        sums[name] = float(of_sets[~lacking].sum())
        if lacking.any():
            sums[name + LACKING] = int(lacking.sum())
    return sums


def mean_scores(sums: Sequence[MeanScores]) -> MeanScores:
    """The mean of each score over the sets of all `sums` that have it; raises `InputError` if there is no set."""
    sets = sum(of["sets"] for of in sums)
    if not sets:
        raise InputError("every set to be scored is damaged: copy the shards again")
    names = dict.fromkeys(name for of in sums if of["sets"] for name in of if not name.endswith(LACKING))
    counts = {name: sets - sum(of.get(name + LACKING, 0) for of in sums) for name in names if name != "sets"}
    means = {name: sum(of.get(name, 0.0) for of in sums) / count for name, count in counts.items() if count}
    return {"sets": sets, **means}


def describe(scores: MeanScores) -> str:
    """The scores that say most, for a line of text."""
    labels = {"mask_iou": "mask IoU", "depth_ssim": "depth SSIM", "depth_rmse": "RMSE"}
    return ", ".join(f"{label} {scores[name]:.3f}" for name, label in labels.items() if name in scores)


class Validator:
    """The validation sets of a run, the baseline's threshold, and the sets that its pictures show."""

    def __init__(
        self, loader: Loader, training: str, split: str, ranks: Distributed, say: Callable[[str], None]
    ) -> None:
        """Open `split` of the data of `loader`, which trains on the split `training`.

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
        else:
            rows_scored = self._loader.rows()
            index = self._loader.index
            backgrounds, foregrounds = (count_known(index[part][rows_scored]) for part in ("bg", "fg"))
            say(f"validation: {reliability(len(rows_scored), backgrounds, foregrounds)}")
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

    def scores(self, network: nn.Module, criterion: Criterion, precision: str) -> MeanScores | None:
        """Scores over all validation sets; None without any. Raises `InputError` where all of them are damaged."""
        if self._loader is None:
            return None
        rows, values = score_sets(network, criterion, self._loader, self.threshold, precision)
        return mean_scores(self._ranks.all_gather(sum_scores(rows, values)))


def summaries(values: dict[str, NDArray[np.float64]], backgrounds: NDArray[np.int32]) -> dict[str, Summary]:
    """The summary of each score [sets]; sets for which it is NaN are left out of it, and out of its count `sets`."""
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
    values: ValuesByName, inside: NDArray[np.bool_], backgrounds: NDArray[np.int32]
) -> dict[str, dict[str, Summary]]:
    """The scores of the sets `inside`; none of an empty cell."""
    if not inside.any():
        return {}
    under = backgrounds[inside]
    return {who: summaries({name: of[inside] for name, of in named.items()}, under) for who, named in values.items()}


def intervals(values: NDArray[np.float64], backgrounds: NDArray[np.int32], seed: int = 0) -> NDArray[np.float64]:
    """95 % intervals of the means of `values` [sets, scores], on the background ids [sets]: float64 [2, scores].

    How far a mean would move with other backgrounds: sets on one background resemble each other, so that backgrounds
    are drawn, not sets (the cluster bootstrap, Davison and Hinkley 1997, section 3.8), with percentile intervals. NaN
    among the values is left out. NaN is returned where fewer than two backgrounds have a value.
    """
    distinct, inverse = np.unique(backgrounds, return_inverse=True)
    there = ~np.isnan(values)
    sums, counts = np.zeros((2, len(distinct), values.shape[1]))
    np.add.at(sums, inverse, np.where(there, values, 0))
    np.add.at(counts, inverse, there)
    rng = np.random.default_rng(seed)
    size = max(1, COUNTS_IN_MEMORY // max(1, len(distinct)))
    means = list[NDArray[np.float64]]()
    for first in range(0, RESAMPLES, size):
        drawn = rng.multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), min(size, RESAMPLES - first))
        total, weight = drawn @ sums, drawn @ counts
        means.append(np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0))
    found = np.full((2, values.shape[1]), np.nan)
    enough = (counts > 0).sum(0) > 1
    if enough.any():
        found[:, enough] = np.nanpercentile(np.concatenate(means)[:, enough], [LOW, HIGH], axis=0)
    return found
