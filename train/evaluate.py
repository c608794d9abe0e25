"""What a trained network is worth on sets of any data, cell by cell, beside baselines that need no network."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from pipeline.loading.sampler import Permutation
from pipeline.loading.split import PEER_SALT, group
from train.ceiling import QUALITIES, jpeg_ceiling
from train.ceiling import SETS as CEILING_SETS
from train.cells import LEAKING, LEAKING_TITLE, Protocol, cells_of, protocol
from train.pictures import grid
from train.run import Run
from train.scoring import NETWORK, Scores, Summary, joined, score_batch, summarise
from train.trivial_baselines import MeanDepth
from train.validation import THRESHOLD_SETS, best_threshold, predict, training_threshold

WORST, MEDIAN = 8, 4  # sets in the picture


class Opened(NamedTuple):
    """The sets to be scored."""

    loader: Loader
    protocol: Protocol
    backgrounds: NDArray[np.int32]
    """Column of the index, as the next."""
    foregrounds: NDArray[np.int32]
    sizes: dict[str, int]
    """Sets in each cell, by its name; the loader yields all of them, or as many as were asked for."""

    def cell_of(self, rows: NDArray[np.int64]) -> NDArray[np.str_]:
        """The name of the cell that each of these rows of the index is in, [N]."""
        return self.protocol.cell_of(self.backgrounds[rows], self.foregrounds[rows])


def open_split(run: Run, split: str, device: torch.device, *, peer: bool = False, most: int | None = None) -> Opened:
    """The sets of `run.config.shards` that train, val, test or all means, see `cells.protocol`.

    With depth where both have it. Of each cell at most `most` sets: which, depends on the shards alone, and those of a
    smaller number are among those of a larger. Raises `InputError` as `Loader` does.
    """
    shards = run.config.shards
    manifest = Manifest.load(shards)
    config = replace(
        run.config, depth=run.config.depth and "depth" in manifest.parts, resident="off", augment=False, window=None
    )
    asked = protocol(split, peer=peer)
    loader = config.loader(device, asked.scored, shuffle=False)
    rows, backgrounds, foregrounds = loader.rows(), np.array(loader.index["bg"]), np.array(loader.index["fg"])
    cell_of = asked.cell_of(backgrounds[rows], foregrounds[rows])
    of_cells = {name: rows[cell_of == name] for name in asked.cells}
    if most is not None:
        picked = np.sort(np.concatenate([draw(of_cell, most) for of_cell in of_cells.values()]))
        loader = loader.sibling(asked.scored, shuffle=False, picked=picked)
    sizes = {name: len(of_cell) for name, of_cell in of_cells.items()}
    return Opened(loader, asked, backgrounds, foregrounds, sizes)


def draw(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of some rows [N], at random, in any order; the same each time."""
    return rows[Permutation(len(rows), "cell")(np.arange(min(most, len(rows))))]


class Cell(NamedTuple):
    """The scores of a network and the baselines on the sets of one cell, by who is scored and the score's name."""

    title: str
    sets: int
    sets_in_cell: int
    """These and those that were not asked for, or are damaged."""
    backgrounds: int
    scores: dict[str, dict[str, Summary]]


class Evaluation(NamedTuple):
    """The scores of a run on the sets of a split."""

    run: Run
    split: str
    opened: Opened
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
            keys = (self.opened.loader.key(row) for row in self.rows.tolist())
            return sum(group(PEER_SALT, key) == "train" for key in keys)
        ids = self.opened.backgrounds[self.rows], self.opened.foregrounds[self.rows]
        return int((cells_of(*ids) == "seen_seen").sum())

    def numbers(self) -> dict[str, Any]:
        """Everything as JSON has it, without NaN."""
        worst = self.worst_first()[:WORST]
        return {
            "checkpoint": str(self.run.checkpoint),
            "step": self.run.step,
            "shards": str(self.run.config.shards),
            "manifest": self.opened.loader.manifest.sha256,
            "split": self.split,
            "protocol": LEAKING_TITLE if self.parted_at_random else "split by background and foreground id",
            "run_trained_on": LEAKING_TITLE if self.run.peer_protocol else "split by background and foreground id",
            "leaking": self.leaking,
            "size": self.run.config.size,
            "sets": len(self.rows),
            "sets_in_split": sum(self.opened.sizes.values()),
            "trained_on_these_shards": self.same_shards,
            "sets_trained_on": self.sets_trained_on,
            "sets_damaged": len(self.opened.loader.quarantined),
            "threshold": self.threshold,
            "threshold_from": self.threshold_from,
            "mean_depth_sets": self.mean_depth_sets,
            "headline": self.headline,
            "cells": {name: cell._asdict() for name, cell in self.cells.items()},
            "label_after_jpeg": self.ceiling,
            "worst": [
                {"key": self.opened.loader.key(int(self.rows[place])), "mask_iou": float(self.mask_iou[place])}
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
        key = self.opened.loader.key
        names = [f"{prefix}{kind}: {key(row)}" for kind, rows in (("worst", worst), ("median", median)) for row in rows]
        batch = self.opened.loader.pick(worst + median)
        return grid(batch, predict(self.run.network, batch.bg, batch.fg_bg, self.run.config.precision), names)

    def worst_first(self) -> NDArray[np.int64]:
        """Places in `rows` of the headline's sets, lowest mask IoU first; of all sets where it is empty."""
        order = np.argsort(self.mask_iou, kind="stable")
        of_headline = self.opened.cell_of(self.rows)[order] == self.headline
        return order[of_headline] if of_headline.any() else order


@torch.no_grad()
def evaluate(
    run: Run, split: str, opened: Opened, watch: Callable[[Iterable[Batch]], Iterable[Batch]] = iter
) -> Evaluation:
    """Score every set of `opened`; `watch` may count its batches as they pass.

    Both baselines are fitted to the training sets of the same data. Without such sets the threshold is chosen on the
    scored sets themselves, which is more than a baseline could know, and there is no baseline of the depth.
    Raises `InputError` where too many sets are damaged, and where the network predicts no numbers.
    """
    loader = opened.loader
    mean_depth: MeanDepth | None = None
    try:
        training = loader.sibling(opened.protocol.training, shuffle=False)
    except InputError:
        threshold, threshold_from = best_threshold(loader), "these sets themselves: the best possible on them"
    else:
        threshold = training_threshold(training)
        threshold_from = f"{min(THRESHOLD_SETS, training.sets):,} sets of the split {opened.protocol.training}"
        mean_depth = MeanDepth(loader.sibling(opened.protocol.training), opened.backgrounds)

    scored, ceiling = list[Scores](), list[Scores]()
    for batch in watch(loader):
        if not len(batch.bg):  # every set of it was damaged
            continue
        scored.append(score_batch(run, batch, threshold, mean_depth))
        if sum(len(scores.rows) for scores in ceiling) < CEILING_SETS:
            ceiling.append(Scores(batch.index, {str(quality): jpeg_ceiling(batch, quality) for quality in QUALITIES}))
    if not scored:
        raise InputError("every set to be scored is damaged: copy the shards again")
    rows, values = joined(scored)
    if any(np.isnan(values[NETWORK].get(name, 0)).any() for name in ("mask_iou", "depth_rmse")):
        raise InputError(f"{run.checkpoint}: the network predicts values that are no numbers; evaluate another")
    mask_iou = values[NETWORK]["mask_iou"]
    cell_of = opened.cell_of(rows)
    cells = dict[str, Cell]()
    for name, title in opened.protocol.cells.items():
        inside = cell_of == name
        cells[name] = Cell(
            title, int(inside.sum()), opened.sizes[name], *summarise(values, inside, opened.backgrounds[rows])
        )
    ceiling_rows, of_labels = joined(ceiling)
    _, in_short = summarise(of_labels, np.full(len(ceiling_rows), True), opened.backgrounds[ceiling_rows])
    sets = mean_depth.sets if mean_depth else 0
    same = run.manifest == loader.manifest.sha256
    return Evaluation(run, split, opened, rows, mask_iou, cells, in_short, threshold, threshold_from, sets, same)
