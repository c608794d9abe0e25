"""Stalls, measured differentially: the training step on a batch that is there, and on the loader.

Source of the method: DS-Analyzer (Mohan et al., "Analyzing and Mitigating Data Stalls in DNN Training", VLDB 2021).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import click

from pipeline.devices import torch_device
from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from tools.benchmark.table import print_table
from tools.cli import progress_bar
from tools.measure import synchronize
from tools.peers.loaders import our_loader
from tools.peers.options import LoadOptions
from train.config import Config
from train.model import STRIDE
from train.train_step import Learner

EPOCHS = 2
WARM_UP_STEPS = 3
NOWHERE, HALF_WAY = Path(), 0.5  # nothing is written, and the learning rate is of no consequence for the time


class Stall(NamedTuple):
    """One epoch on the loader, between two on the cached batch."""

    steps: int
    sets: int
    compute_before_sec: float
    """The epoch's steps on one cached batch, before it."""
    end_to_end_sec: float
    """The epoch on the loader."""
    compute_after_sec: float
    """As before, after it."""

    @property
    def stall_pct(self) -> float:
        """100 * (1 - compute / end to end); below 0 where noise exceeds the stalls."""
        return 100 * (1 - (self.compute_before_sec + self.compute_after_sec) / 2 / self.end_to_end_sec)

    @property
    def drift_pct(self) -> float:
        """By how much the machine became slower between the two measurements of the compute, in percent."""
        return 100 * (self.compute_after_sec / self.compute_before_sec - 1)


def cached(batch: Batch, sets: int) -> Iterator[Batch]:
    """An epoch of `sets` sets made of one batch again and again, the last one smaller, as a loader's is."""
    size = len(batch.bg)
    tail = batch.head(sets % size)
    for _ in range(sets // size):
        yield batch
    if len(tail.bg):
        yield tail


def measure_stalls(
    epoch: Callable[[], Iterator[Batch]], cache: Callable[[], Iterator[Batch]], step: Callable[[Batch], None]
) -> list[Stall]:
    """Let `step` run on each of EPOCHS epochs, before and after each of them on the cached batch."""
    for batch, _ in zip(cache(), range(WARM_UP_STEPS), strict=False):
        step(batch)
    stalls = []
    before_sec, _, _ = _run(cache(), step)
    for _ in range(EPOCHS):
        end_to_end_sec, steps, sets = _run(epoch(), step)
        after_sec, _, _ = _run(cache(), step)
        stalls.append(Stall(steps, sets, before_sec, end_to_end_sec, after_sec))
        before_sec = after_sec
    return stalls


def _run(batches: Iterator[Batch], step: Callable[[Batch], None]) -> tuple[float, int, int]:
    """Seconds, steps and sets."""
    synchronize()
    started_sec, steps, sets = time.perf_counter(), 0, 0
    for batch in batches:
        step(batch)
        steps, sets = steps + 1, sets + len(batch.bg)
    synchronize()  # the last step is over when the device has done it
    return time.perf_counter() - started_sec, steps, sets


def bench_step(shards: Path, options: LoadOptions, model: str) -> dict[str, Any]:
    """Measure the stalls of epoch 1 and 2 on the training split; print a table, return the report.

    On the CPU decoding and training share the cores, and what they take from each other counts as stall.
    """
    if options.size < 2 * STRIDE or options.size % STRIDE:
        raise InputError(f"--size {options.size}: the network takes a multiple of {STRIDE} of at least {2 * STRIDE}")
    with closing(our_loader(shards, "train", options)) as loader:
        if options.batch_size > loader.sets:
            raise InputError(f"--batch-size {options.batch_size}: the split train of {shards} has {loader.sets:,} sets")
        batch = loader.pick(range(options.batch_size))
        config = Config(shards, NOWHERE, model=model, batch_size=options.batch_size)
        learner = Learner(config, torch_device(options.device))
        if tail := loader.sets % options.batch_size:  # a GPU chooses algorithms for the last batch's shape, too
            learner.train_step(batch.head(tail), HALF_WAY, tail)
        with progress_bar("steps", (2 * EPOCHS + 1) * len(loader) + WARM_UP_STEPS) as bar:

            def counted(batch: Batch) -> None:
                learner.train_step(batch, HALF_WAY, len(batch.bg))
                bar.update(1)

            stalls = measure_stalls(lambda: iter(loader), lambda: cached(batch, loader.sets), counted)
        manifest = loader.manifest.sha256
    shape = f"batch {options.batch_size}, {options.size} x {options.size} on {options.device}"
    click.echo(f"training step, {model}, {shape}, {options.workers} threads, resident {options.resident}")
    print_table(
        ["steps", "compute s before", "after", "drift %", "end to end s", "sets/s", "stall %"],
        {f"epoch {number}": _cells(stall) for number, stall in enumerate(stalls, 1)},
    )
    epochs = [{**stall._asdict(), "stall_pct": stall.stall_pct, "drift_pct": stall.drift_pct} for stall in stalls]
    return {"data": {"manifest_sha256": manifest}, "model": model, **options.plain(), "epochs": epochs}


def refuse_stalls(epochs: Sequence[Mapping[str, float]], allowed_pct: float) -> None:
    """Raise `InputError` for the first epoch of a report that stalls for more than `allowed_pct` of its time."""
    for number, epoch in enumerate(epochs, 1):
        if epoch["stall_pct"] > allowed_pct:
            raise InputError(
                f"epoch {number} stalls {epoch['stall_pct']:.1f} % of its time, allowed are {allowed_pct:g} % (the "
                f"compute alone drifted by {epoch['drift_pct']:.1f} %): --sweep finds settings, or use planes"
            )


def _cells(stall: Stall) -> list[str]:
    numbers = stall.compute_before_sec, stall.compute_after_sec, stall.drift_pct, stall.end_to_end_sec
    before, after, drift, end_to_end = (f"{number:.2f}" for number in numbers)
    rate = f"{stall.sets / stall.end_to_end_sec:,.0f}"
    return [str(stall.steps), before, after, drift, end_to_end, rate, f"{stall.stall_pct:.2f}"]
