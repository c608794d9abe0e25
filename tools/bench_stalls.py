"""Stalls: how long the training step waits for our loader, and which of its settings make it fast enough.

They are measured differentially: the step on one batch that is there, and on the loader. Source of the method:
DS-Analyzer (Mohan et al., "Analyzing and Mitigating Data Stalls in DNN Training", VLDB 2021).
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.devices import torch_device
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.loading.batch import Batch
from pipeline.storage import Location
from pipeline.words import plural
from pipeline.workers import available_cores
from tools.bench_loader import LoadOptions, our_loader
from tools.cli import echo, progress_bar
from tools.measure import DRAINS, Pass, in_turn, print_table, quartiles, spread, synchronize, waits_ms, warm_pass
from train.config import Config
from train.model import STRIDE
from train.train_step import Learner

EPOCHS = 2
WARM_UP_STEPS = 3
AXES = ("threads", "prefetch", "batch-size", "hw-decoder-load")
RUN_IN_BATCHES = 2  # before the clock of a sweep starts, beyond what may be ready
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


def bench_step(shards: Location, options: LoadOptions, model: str) -> dict[str, Any]:
    """Measure the stalls of epoch 1 and 2 on the training split; print a table, return the report.

    On the CPU decoding and training share the cores, and what they take from each other counts as stall.
    """
    if options.size < 2 * STRIDE or options.size % STRIDE:
        raise InputError(f"--size {options.size}: the network takes a multiple of {STRIDE} of at least {2 * STRIDE}")
    with closing(our_loader(shards, "train", options)) as loader:
        if options.batch_size > loader.sets:
            there = plural(loader.sets, "set")
            raise InputError(f"--batch-size {options.batch_size}: the split train of {shards} has {there}")
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
    echo(f"training step, {model}, {shape}, {options.workers} threads, resident {options.resident}")
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


class SweepSetting(NamedTuple):
    """One point of the grid of settings."""

    threads: int
    prefetch: int
    batch_size: int
    hw_decoder_load: float

    def flags(self, device: str) -> str:
        """As fgbg-bench takes it."""
        host = f"--threads {self.threads} --prefetch {self.prefetch} --batch-size {self.batch_size}"
        return f"{host} --hw-decoder-load {self.hw_decoder_load:g}" if device == "gpu" else host

    def of(self, options: LoadOptions) -> LoadOptions:
        """The other options with this setting."""
        return replace(options, workers=self.threads, prefetch=self.prefetch, batch_size=self.batch_size,
                       hw_decoder_load=self.hw_decoder_load)  # fmt: skip

    @property
    def cost(self) -> tuple[float, ...]:
        """What it takes: threads, sets in memory, sets a batch."""
        return self.threads, self.prefetch * self.batch_size, self.batch_size, self.hw_decoder_load


def parse_grid(texts: Sequence[str], device: str) -> list[SweepSetting]:
    """The settings of `AXIS=VALUE,VALUE` texts, with defaults for the axes that are not named.

    Raises `ValueError`, one line, for an unknown axis and for what is no number.
    """
    cores = available_cores()
    axes: dict[str, list[str]] = {
        "threads": [str(threads) for threads in sorted({1, max(1, cores // 2), cores})],
        "prefetch": ["1", "2", "4"],
        "batch-size": ["64", "256", "512"],
        "hw-decoder-load": ["0.5", "0.65", "0.8"] if device == "gpu" else ["0.65"],
    }
    for text in texts:
        axis, _, values = text.partition("=")
        if axis not in axes:
            raise ValueError(f"no axis called {axis!r}: expected some of {', '.join(AXES)}, as in threads=1,2")
        axes[axis] = values.split(",")
    try:
        settings = [SweepSetting(int(t), int(p), int(b), float(h)) for t, p, b, h in itertools.product(*axes.values())]
    except ValueError as error:
        raise ValueError(f"{' '.join(texts)}: expected numbers with commas, as in threads=1,2 ({error})") from None
    if min(min(setting[:3]) for setting in settings) < 1:
        raise ValueError(f"{' '.join(texts)}: threads, prefetch and batch size are 1 or more")
    if not all(0 <= setting.hw_decoder_load <= 1 for setting in settings):
        raise ValueError(f"{' '.join(texts)}: hw-decoder-load is from 0 to 1")
    return settings


def bench_sweep(
    shards: Location, options: LoadOptions, settings: Sequence[SweepSetting], sets: int, rounds: int
) -> dict[str, Any]:
    """Time our loader under each setting, in turn; print a table and what to use; return the report."""
    manifest = Manifest.load(shards)
    if (largest := max(setting.batch_size for setting in settings)) > manifest.sets:
        raise InputError(f"batch size {largest}: {shards} has {manifest.sets:,} sets; see --grid")
    with progress_bar("measuring", len(settings) * (rounds + 1)) as bar:
        names = {setting: setting.flags(options.device) for setting in settings}
        runs = {name: functools.partial(_sweep_pass, shards, s, options, sets) for s, name in names.items()}
        in_turn(runs, 1, lambda: bar.update(1))
        passes = in_turn(runs, rounds, lambda: bar.update(1))
    rates = {s: spread([run.sets_per_sec for run in passes[name]]) for s, name in names.items()}
    waits = {s: waits_ms(passes[name]) for s, name in names.items()}
    asked = f"{rounds} passes of {plural(sets, 'set')}"
    echo(f"{asked} under each setting, in turn, {options.size} px on {options.device}")
    print_table(
        ["sets/s (quartiles)", "wait ms p50 / p99"],
        {names[s]: [quartiles(rates[s]), f"{waits[s]['p50']:.1f} / {waits[s]['p99']:.1f}"] for s in settings},
    )
    chosen = recommended(rates)
    echo(f"recommended, the cheapest of the fastest within their spread: {names[chosen]}")
    rows = [{**s._asdict(), "sets_per_sec": rates[s], "wait_ms": waits[s]} for s in settings]
    data = {"manifest_sha256": manifest.sha256, "sets": sets}
    return {"data": data, "rounds": rounds, **options.plain(), "sweep": rows, "recommended": chosen._asdict()}


def recommended(rates: Mapping[SweepSetting, Mapping[str, float]]) -> SweepSetting:
    """The cheapest setting whose median is within the spread of the fastest: not below its lower quartile."""
    fastest = max(rates.values(), key=lambda rate: rate["median"])
    return min((s for s, rate in rates.items() if rate["median"] >= fastest["q1"]), key=lambda s: s.cost)


def _sweep_pass(shards: Location, setting: SweepSetting, options: LoadOptions, sets: int) -> Pass:
    """Time `sets` sets of a new loader, when it has read ahead; it goes through as many epochs as that takes."""
    with closing(our_loader(shards, "all", setting.of(options))) as loader:
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        sizes = (len(batch.index) for batch in batches)
        return warm_pass(sizes, setting.batch_size * (DRAINS * setting.prefetch + RUN_IN_BATCHES), sets)
