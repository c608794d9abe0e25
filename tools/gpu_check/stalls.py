"""Part `stalls`: what of its time the training step waits for data, and how busy that leaves the GPU.

fgbg-bench --step measures the same differences; here the device's own clock is read beside them.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from pipeline.workers import available_cores
from tools.benchmark.step import HALF_WAY, NOWHERE, WARM_UP_STEPS, Stall, cached
from tools.gpu_check.clock import synchronize
from tools.gpu_check.context import Context, Result
from tools.peers.loaders import our_loader
from tools.peers.options import LoadOptions
from train.config import Config
from train.train_step import Learner

MODELS, BATCH = {"gpu": ("unet-m", "unet-s"), "cpu": ("unet-4",)}, {"gpu": 256, "cpu": 16}
MOST_STALL_PCT = {"JPEG": 10.0, "planes": 1.0, "resident": 1.0}
"""The goals from epoch 2 on."""
LEAST_BUSY_PCT = 97.0
GOALS_OF = "unet-m"
LATEST_SHARE = 0.6  # of the time: after it no other network is begun
PREFETCH = 4
EPOCH_SETS = {"gpu": 20_000, "cpu": 16}  # at most: more data take longer, and tell no more
# In the later epochs, at least: what a loader has ready when the clock starts shall be a small part of it.
LATER_SETS = {"gpu": 60_000, "cpu": 32}


class Source(NamedTuple):
    """Where sets come from."""

    name: str
    shards: Path
    resident: str


class Measured(NamedTuple):
    """One network on one source."""

    stalls: list[Stall]
    """Of the first epoch, and of the later ones together."""
    busy_pct: list[float | None]
    """Of each; None on a CPU."""


def measure(context: Context) -> Result:
    """Each network on each source, epoch after epoch."""
    sources = (
        Source("JPEG", context.shards, "off"),
        Source("planes", context.planes, "off"),
        Source("resident", context.shards, "device" if context.on_gpu else "host"),
    )
    figures, rows, notes = dict[str, Any](), dict[str, list[str]](), list[str]()
    started_sec = time.perf_counter()
    for model in MODELS[context.flag]:
        if time.perf_counter() - started_sec > LATEST_SHARE * context.seconds:
            notes.append(f"{model}: there was no time for it")
            continue
        learner = Learner(Config(context.shards, NOWHERE, model=model, size=context.size), context.device)
        for source in sources:
            found = measure_source(context, source, learner)
            context.say(f"{model}, {source.name}: {found}")
            for which, stall, busy in zip(("epoch 1", "from epoch 2"), found.stalls, found.busy_pct, strict=True):
                name = f"{model}, {source.name}, {which}"
                figures[name] = {"stall_pct": stall.stall_pct, "drift_pct": stall.drift_pct, "busy_pct": busy}
                figures[name] |= stall._asdict()
                rows[name] = _cells(stall, busy)
            if model == GOALS_OF:
                notes += goals(source.name, found)
    notes.append(
        "stall: share of the time beyond that of as many steps on one cached batch; drift: by how much these became "
        "slower meanwhile; GPU busy: share of the time that lies within steps, by CUDA events"
    )
    if not context.on_gpu:
        notes.append(f"goals of {GOALS_OF}, GPU busy: skipped: no GPU")
    return Result(figures, ["sets/s", "stall %", "drift %", "GPU busy %"], rows, notes)


def _cells(stall: Stall, busy_pct: float | None) -> list[str]:
    rate, busy = stall.sets / stall.end_to_end_sec, "-" if busy_pct is None else f"{busy_pct:.1f}"
    return [f"{rate:,.0f}", f"{stall.stall_pct:.1f}", f"{stall.drift_pct:+.1f}", busy]


def goals(source: str, found: Measured) -> list[str]:
    """Whether all from epoch 2 on is as it shall be, a sentence each."""
    stall_pct, busy_pct, most = found.stalls[1].stall_pct, found.busy_pct[1], MOST_STALL_PCT[source]
    said = [f"{source}: stalls {stall_pct:.1f} % from epoch 2 on, the goal of {most:g} % is {_met(stall_pct <= most)}"]
    if busy_pct is not None:
        said.append(f"{source}: GPU busy {busy_pct:.1f} % from epoch 2 on, the goal of {LEAST_BUSY_PCT:g} % is "
                    f"{_met(busy_pct >= LEAST_BUSY_PCT)}")  # fmt: skip
    return said


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def measure_source(context: Context, source: Source, learner: Learner) -> Measured:
    """The first epoch of a loader, and its later ones until enough sets have gone by."""
    size, clock = BATCH[context.flag], Clock(context.on_gpu)

    def step(batch: Batch) -> None:
        with clock.step():
            learner.learn(batch, HALF_WAY, len(batch.bg))

    options = LoadOptions(size, context.size, context.flag, available_cores(), PREFETCH)
    whole = our_loader(source.shards, "all", options)
    # Whole batches: of a smaller one at the end, a compiled step would be compiled a second time.
    picked = whole.rows()[: min(whole.sets, EPOCH_SETS[context.flag]) // size * size]
    if not len(picked):
        raise InputError(f"{source.shards} has {whole.sets:,} sets: at least {size} are needed")
    with closing(whole.sibling("all", picked=picked, resident=source.resident)) as loader:
        batch = loader.pick(picked[:size].tolist())
        for _ in range(WARM_UP_STEPS):
            step(batch)
        stalls = []
        for epochs in (1, -(-LATER_SETS[context.flag] // loader.sets)):
            sets = epochs * loader.sets
            before_sec = timed(context, cached(batch, sets), step)
            end_to_end_sec = timed(context, clock.running(chain.from_iterable(repeat(loader, epochs))), step)
            after_sec = timed(context, cached(batch, sets), step)
            stalls.append(Stall(sets // size, sets, before_sec, end_to_end_sec, after_sec))
    return Measured(stalls, clock.busy_pct())


def timed(context: Context, batches: Iterable[Batch], step: Callable[[Batch], None]) -> float:
    """Seconds, until the device has done the last step."""
    synchronize(context.device)
    started_sec = time.perf_counter()
    for batch in batches:
        step(batch)
    synchronize(context.device)
    return time.perf_counter() - started_sec


class Clock:
    """The device's own times of the steps within stretches of time, read when all is done; of a CPU there are none."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._stretches = list[list[torch.cuda.Event]]()
        """Of each its begin, and the begin and the end of each of its steps."""
        self._within = False

    def running(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, as one stretch of time, with the clock running."""
        self._stretches.append([])
        self._mark()
        self._within = True
        yield from batches
        self._within = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step; only those within a stretch count. Its batch is there when the device comes to its begin."""
        if self._within:
            self._mark()
        yield
        if self._within:
            self._mark()

    def _mark(self) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._stretches[-1].append(event)

    def busy_pct(self) -> list[float | None]:
        """Of each stretch the share that lies within steps, percent. Waits for the device."""
        if not self._on_gpu:
            return [None] * len(self._stretches)
        torch.cuda.synchronize()
        shares = list[float | None]()
        for begin, *marks in self._stretches:
            steps = zip(marks[::2], marks[1::2], strict=True)
            shares.append(100 * sum(start.elapsed_time(end) for start, end in steps) / begin.elapsed_time(marks[-1]))
        return shares
