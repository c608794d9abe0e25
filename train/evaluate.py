"""Evaluation: the scores of a trained network on sets of any data, in cells, beside baselines that need no network.

Cells part the sets by whether the network could have seen their background and their foreground in training. Labels are
stored as JPEG, so that no network can be told from a perfect one above about the score that the labels themselves have
after one more JPEG round trip: their ceiling.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.errors import InputError
from pipeline.format.images import decode_jpeg_gray, encode_gray
from pipeline.format.manifest import Manifest
from pipeline.format.sample import UNKNOWN
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from pipeline.loading.sampler import Permutation
from pipeline.loading.split import BACKGROUND_SALT, FOREGROUND_SALT, PEER_SALT, group
from pipeline.words import plural
from train.checkpoint import Run
from train.losses import to_float
from train.metrics import depth_scores, mask_scores
from train.pictures import grid
from train.reliability import count_known, reliability
from train.runtime import open_loader
from train.scoring import NETWORK, SetScores, Summary, joined, predict, score_batch, summarise
from train.trivial_baselines import THRESHOLD_SETS, MeanDepth, best_threshold, training_threshold

CELLS = {  # the headline first
    "new_new": "new background, new foreground",
    "new_seen": "new background, seen foreground",
    "seen_new": "seen background, new foreground",
    "seen_seen": "seen background, seen foreground",
}
HEADLINE = "new_new"
LEAKING = "leaking"
LEAKING_TITLE = "LEAKING: random split by set"
WORST, MEDIAN = 8, 4  # sets in the picture
QUALITIES = (75, 90)  # of JPEG, for the ceiling
CEILING_SETS = 1024  # sets that the ceiling is computed on


class EvaluationProtocol(NamedTuple):
    """Which sets are scored, and into which cells they go."""

    scored: str
    """The split that the loader yields."""
    training: str
    """The split that baselines may learn from."""
    cells: dict[str, str]
    """Titles of the cells, the headline first, by their names in JSON."""

    def cell_of(self, backgrounds: NDArray[np.int32], foregrounds: NDArray[np.int32]) -> NDArray[np.str_]:
        """The name of the cell that each set is in, by its ids [N]."""
        return np.full(len(backgrounds), LEAKING) if LEAKING in self.cells else cells_of(backgrounds, foregrounds)


def protocol(split: str, *, peer: bool) -> EvaluationProtocol:
    """Which sets "train", "val", "test" or "all" means: with `peer`, those of a random split by set.

    val and test bring the training sets along, and those of which one id is of train, for the other three cells.
    """
    if peer:
        scored = split if split == "all" else f"peer-{split}"
        return EvaluationProtocol(scored, "peer-train", {LEAKING: LEAKING_TITLE})
    return EvaluationProtocol(f"{split}-cells" if split in ("val", "test") else split, "train", CELLS)


def cells_of(backgrounds: NDArray[np.int32], foregrounds: NDArray[np.int32]) -> NDArray[np.str_]:
    """The name in CELLS of each set, by its ids [N]: an id is seen if it is of the group train, and else new.

    A foreground that is not known counts as seen: it may be in training sets as well.
    """
    names: NDArray[np.str_] = np.array(["seen_seen", "seen_new", "new_seen", "new_new"])
    found: NDArray[np.str_] = names[2 * _new(backgrounds, BACKGROUND_SALT) + _new(foregrounds, FOREGROUND_SALT)]
    return found


def _new(ids: NDArray[np.int32], salt: str) -> NDArray[np.bool_]:
    distinct, inverse = np.unique(ids, return_inverse=True)
    new = [number != UNKNOWN and group(salt, number) != "train" for number in distinct.tolist()]
    return np.array(new, np.bool_)[inverse]


class EvaluationData(NamedTuple):
    """The sets to be scored, as `open_split` opened them."""

    loader: Loader
    protocol: EvaluationProtocol
    backgrounds: NDArray[np.int32]
    """Background id of each row of the index."""
    foregrounds: NDArray[np.int32]
    """Foreground id of each row of the index."""
    sizes: dict[str, int]
    """Sets in each cell, by its name; the loader yields all of them, or as many as were asked for."""

    def cell_of(self, rows: NDArray[np.int64]) -> NDArray[np.str_]:
        """The name of the cell that each of these rows of the index is in, [N]."""
        return self.protocol.cell_of(self.backgrounds[rows], self.foregrounds[rows])


def open_split(
    run: Run, split: str, device: torch.device, *, peer: bool = False, most: int | None = None
) -> EvaluationData:
    """The sets of `run.config.shards` that train, val, test or all means, see `protocol`.

    With depth where both have it. Of each cell at most `most` sets: which, depends on the shards alone, and those of a
    smaller number are among those of a larger. Raises `InputError` as `Loader` does.
    """
    manifest = Manifest.load(run.config.shards)
    config = replace(run.config, depth=run.config.depth and "depth" in manifest.parts, resident="off", window=None)
    asked = protocol(split, peer=peer)
    loader = open_loader(config, device, asked.scored, shuffle=False)
    rows, backgrounds, foregrounds = loader.rows(), np.array(loader.index["bg"]), np.array(loader.index["fg"])
    cell_of = asked.cell_of(backgrounds[rows], foregrounds[rows])
    of_cells = {name: rows[cell_of == name] for name in asked.cells}
    if most is not None:
        picked = np.sort(np.concatenate([draw(of_cell, most) for of_cell in of_cells.values()]))
        loader = loader.sibling(asked.scored, shuffle=False, picked=picked)
    sizes = {name: len(of_cell) for name, of_cell in of_cells.items()}
    return EvaluationData(loader, asked, backgrounds, foregrounds, sizes)


def draw(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of `rows` [N], drawn at random, the same in every call; in any order."""
    return rows[Permutation(len(rows), "cell")(np.arange(min(most, len(rows))))]


class Cell(NamedTuple):
    """The scores of a network and of the baselines on the sets of one cell."""

    title: str
    sets: int
    sets_in_cell: int
    """All sets of the cell: those scored, those not asked for and the damaged ones."""
    backgrounds: int
    foregrounds: int
    """Different ones that are known."""
    scores: dict[str, dict[str, Summary]]
    """By NETWORK or TRIVIAL, and the score's name."""

    @property
    def reliability(self) -> str:
        """How far the scores can be trusted; there is a set at least."""
        return reliability(self.sets, self.backgrounds, self.foregrounds)


class Evaluation(NamedTuple):
    """The scores of a run on the sets of a split."""

    run: Run
    split: str
    data: EvaluationData
    rows: NDArray[np.int64]
    """Rows of index.npy, [sets]."""
    mask_iou: NDArray[np.float64]
    """The network's, [sets]."""
    cells: dict[str, Cell]
    ceiling: dict[str, dict[str, Summary]]
    """Of the labels after a JPEG round trip, by the quality: "75", "90"."""
    threshold: int
    """The baseline's, a difference in 0..255."""
    threshold_from: str
    """On which sets it was chosen."""
    mean_depth_sets: int
    """Training sets whose depth the baseline knows; 0: there is no such baseline."""
    same_shards: bool
    """Whether the run was trained on these very shards, so that "seen" means seen by it."""

    @property
    def headline(self) -> str:
        """The cell that counts, by name; it may be empty."""
        return next(iter(self.cells))

    @property
    def parted_at_random(self) -> bool:
        """Whether the scored sets were parted from training sets at random, set by set."""
        return LEAKING in self.cells

    @property
    def leaking(self) -> bool:
        """Whether backgrounds and foregrounds of all cells are in training: of the protocol, or of this run."""
        return self.parted_at_random or (self.same_shards and self.run.peer_protocol)

    @property
    def sets_trained_on(self) -> int | None:
        """Scored sets that are of the split that the run was trained on; None of other shards than its own."""
        if not self.same_shards:
            return None
        if self.run.peer_protocol:
            keys = (self.data.loader.key(row) for row in self.rows.tolist())
            return sum(group(PEER_SALT, key) == "train" for key in keys)
        ids = self.data.backgrounds[self.rows], self.data.foregrounds[self.rows]
        return int((cells_of(*ids) == "seen_seen").sum())

    def numbers(self) -> dict[str, Any]:
        """Everything as JSON has it, without NaN."""
        worst = self.worst_first()[:WORST]
        return {
            "checkpoint": str(self.run.checkpoint),
            "step": self.run.step,
            "tta": self.run.tta,
            "shards": str(self.run.config.shards),
            "manifest": self.data.loader.manifest.sha256,
            "split": self.split,
            "protocol": LEAKING_TITLE if self.parted_at_random else "split by background and foreground id",
            "run_trained_on": LEAKING_TITLE if self.run.peer_protocol else "split by background and foreground id",
            "leaking": self.leaking,
            "size": self.run.config.size,
            "sets": len(self.rows),
            "sets_in_split": sum(self.data.sizes.values()),
            "trained_on_these_shards": self.same_shards,
            "sets_trained_on": self.sets_trained_on,
            "sets_damaged": len(self.data.loader.quarantined),
            "threshold": self.threshold,
            "threshold_from": self.threshold_from,
            "mean_depth_sets": self.mean_depth_sets,
            "headline": self.headline,
            "cells": {name: cell._asdict() for name, cell in self.cells.items()},
            "label_after_jpeg": self.ceiling,
            "worst": [
                {"key": self.data.loader.key(int(self.rows[place])), "mask_iou": float(self.mask_iou[place])}
                for place in worst
            ],
        }

    def picture(self) -> Image.Image:
        """The sets with the lowest mask IoU, then some around the median, with what the network made of them.

        Of the headline cell, or of all sets where it is empty.
        """
        order = self.worst_first()
        middle = max(WORST, (len(order) - MEDIAN) // 2)
        worst, median = self.rows[order[:WORST]].tolist(), self.rows[order[middle : middle + MEDIAN]].tolist()
        prefix = "LEAKING, " if self.leaking else ""
        key = self.data.loader.key
        names = [f"{prefix}{kind}: {key(row)}" for kind, rows in (("worst", worst), ("median", median)) for row in rows]
        batch = self.data.loader.pick(worst + median)
        return grid(batch, predict(self.run.network, batch.bg, batch.fg_bg, self.run.config.precision), names)

    def worst_first(self) -> NDArray[np.int64]:
        """Places in `rows` of the headline's sets, lowest mask IoU first; of all sets where it is empty."""
        order = np.argsort(self.mask_iou, kind="stable")
        of_headline = self.data.cell_of(self.rows)[order] == self.headline
        return order[of_headline] if of_headline.any() else order


@torch.no_grad()
def evaluate(
    run: Run, split: str, data: EvaluationData, watch: Callable[[Iterable[Batch]], Iterable[Batch]] = iter
) -> Evaluation:
    """Score every set of `data`; `watch` may count its batches as they pass.

    Both baselines are fitted to the training sets of the same data. Without such sets the threshold is chosen on the
    scored sets themselves, which is more than a baseline could know, and there is no baseline of the depth.
    Raises `InputError` where too many sets are damaged, and where the network predicts no numbers.
    """
    loader = data.loader
    mean_depth: MeanDepth | None = None
    try:
        training = loader.sibling(data.protocol.training, shuffle=False)
    except InputError:
        threshold, threshold_from = best_threshold(loader), "these sets themselves: the best possible on them"
    else:
        threshold = training_threshold(training)
        threshold_from = f"{plural(min(THRESHOLD_SETS, training.sets), 'set')} of the split {data.protocol.training}"
        mean_depth = MeanDepth(loader.sibling(data.protocol.training), data.backgrounds)

    scored, ceiling, sound = list[SetScores](), list[SetScores](), list[Tensor]()
    for batch in watch(loader):
        if not len(batch.bg):  # every set of it was damaged
            continue
        prediction = predict(run.network, batch.bg, batch.fg_bg, run.config.precision)
        scores = score_batch(prediction, batch, threshold, mean_depth=mean_depth, detailed=True)
        scored.append(SetScores(batch.index, scores))
        if prediction.depth is not None:
            sound.append(prediction.depth.isfinite().all())
        if sum(len(labels.rows) for labels in ceiling) < CEILING_SETS:
            of_labels = {str(quality): jpeg_ceiling(batch, quality) for quality in QUALITIES}
            ceiling.append(SetScores(batch.index, of_labels))
    if not scored:
        raise InputError("every set to be scored is damaged: copy the shards again")
    rows, values = joined(scored)
    if np.isnan(values[NETWORK]["mask_iou"]).any() or not all(torch.stack(sound).tolist() if sound else []):
        raise InputError(f"{run.checkpoint}: the network predicts values that are no numbers; evaluate another")
    mask_iou = values[NETWORK]["mask_iou"]
    cell_of = data.cell_of(rows)
    cells = dict[str, Cell]()
    for name, title in data.protocol.cells.items():
        inside = cell_of == name
        ids = data.backgrounds[rows], data.foregrounds[rows]
        backgrounds, foregrounds = (count_known(of[inside]) for of in ids)
        of_cell = summarise(values, inside, ids[0])
        cells[name] = Cell(title, int(inside.sum()), data.sizes[name], backgrounds, foregrounds, of_cell)
    ceiling_rows, ceiling_values = joined(ceiling)
    in_short = summarise(ceiling_values, np.full(len(ceiling_rows), True), data.backgrounds[ceiling_rows])
    sets = mean_depth.sets if mean_depth else 0
    same = run.manifest == loader.manifest.sha256
    return Evaluation(run, split, data, rows, mask_iou, cells, in_short, threshold, threshold_from, sets, same)


def round_trip(pictures: Tensor, quality: int) -> Tensor:
    """uint8 [N,1,H,W] -> the same as gray JPEGs of a quality, decoded; on the device it came from. On the CPU."""
    planes = np.ascontiguousarray(pictures[:, 0].cpu().numpy())  # waits for the device
    decoded = np.stack([decode_jpeg_gray(encode_gray(plane, quality)) for plane in planes])
    return torch.from_numpy(decoded)[:, None].to(pictures.device)


def jpeg_ceiling(batch: Batch, quality: int) -> dict[str, Tensor]:
    """The scores of the labels of a batch after the round trip, as if they were predictions, float32 [N]."""
    scores = mask_scores(round_trip(batch.mask, quality) >= 128, batch.mask)
    if batch.depth is not None:
        found, truth = to_float(round_trip(batch.depth, quality)), to_float(batch.depth)
        scores |= depth_scores(found, truth, batch.mask, batch.depth_valid)
    return scores
