"""Timing: passes over the data, in turn, and what is made of them."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from pipeline.errors import InputError
from tools.benchmark.usage import NOTHING, Usage, peak_mib, used
from tools.peers.options import Loaded

Item = TypeVar("Item")
DRAINS = 2  # so many times what a loader may have ready goes by before the clock starts


class Pass(NamedTuple):
    """One timed pass over the data."""

    sets: int
    wall_sec: float
    usage: Usage = NOTHING
    """Of the process and its children, within the time measured."""
    waits_sec: tuple[float, ...] = ()
    """For each batch within the time measured, how long `next()` took."""
    first_batch_sec: float | None = None
    """From making the loader to its first batch, where it was made for this pass."""
    peak_mib: float | None = None
    """Memory, at most, since the loader was made; see `usage.peak_mib`."""

    @property
    def sets_per_sec(self) -> float:
        """Sets a second."""
        return self.sets / self.wall_sec


class Mark(NamedTuple):
    """A moment in a pass."""

    seen: int
    sec: float
    usage: Usage


def awaited(items: Iterable[Item]) -> Iterator[tuple[Item, float]]:
    """Each item, and the seconds that `next()` took for it."""
    source = iter(items)
    while True:
        asked_sec = time.perf_counter()
        try:
            item = next(source)
        except StopIteration:
            return
        yield item, time.perf_counter() - asked_sec


def warm_pass(batches: Iterator[Loaded], run_in_sets: float, sets: int) -> Pass:
    """Time `sets` sets of a stream without end, after `run_in_sets` that are not timed.

    While a loader waits for its turn its queues fill up. The run-in empties them, so that what is timed is made while
    it is timed, and a stretch of an epoch's length pays for exactly one change of epochs.
    """
    seen, waits, stream = 0, list[float](), awaited(batches)
    while seen < run_in_sets:
        loaded, _ = next(stream)
        seen += loaded.sets
    start = mark(seen)
    while seen < start.seen + sets:
        loaded, wait_sec = next(stream)
        seen += loaded.sets
        waits.append(wait_sec)
    return between(start, mark(seen), waits)


def cold_pass(make: Callable[[], Iterable[Loaded]], drop: Callable[[], object]) -> Pass:
    """Make a loader and time its first epoch, from its first batch to its last; `drop` empties the page cache.

    It does so before the loader is made and when the first batch has come: what the system reads beyond what it is
    asked for has by then warmed small data. What the loader has read ahead at that time is not read again.
    Raises `InputError` for an epoch of one batch.
    """
    drop()
    started_sec, first_batch_sec = time.perf_counter(), 0.0
    seen, marks, waits = 0, list[Mark](), list[float]()
    for loaded, wait_sec in awaited(make()):
        seen += loaded.sets
        if marks:
            waits.append(wait_sec)
        else:
            synchronize()
            first_batch_sec = time.perf_counter() - started_sec
            drop()
            marks.append(mark(seen))
    if not waits:
        raise InputError(f"an epoch of {seen:,} sets is one batch, a cold pass needs two: a smaller --batch-size")
    return between(marks[0], mark(seen), waits)._replace(first_batch_sec=first_batch_sec)


def mark(seen: int) -> Mark:
    """This moment, when `seen` sets have come."""
    synchronize()  # the clock stops when the batch is there, not when it is promised
    return Mark(seen, time.perf_counter(), used())


def between(first: Mark, last: Mark, waits_sec: Sequence[float]) -> Pass:
    """What lies between two moments."""
    sets, wall_sec, usage = last.seen - first.seen, last.sec - first.sec, last.usage.since(first.usage)
    return Pass(sets, wall_sec, usage, tuple(waits_sec), peak_mib=peak_mib())


def synchronize() -> None:
    """Wait until the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turn(runs: Mapping[str, Callable[[], Pass]], rounds: int, tick: Callable[[], None]) -> dict[str, list[Pass]]:
    """Call each of `runs` `rounds` times, one after the other, so that drift of the machine hits all alike."""
    results: dict[str, list[Pass]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            results[name].append(run())
            tick()
    return results


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high}


def waits_ms(passes: Sequence[Pass]) -> dict[str, float]:
    """Percentiles of the waits of all batches of some passes, milliseconds."""
    waits = np.concatenate([run.waits_sec for run in passes]) * 1000
    levels = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: float(np.percentile(waits, level)) for name, level in levels.items()}


def row(passes: Mapping[str, Sequence[Pass]], name: str, base: str) -> dict[str, Any]:
    """Medians and quartiles of one contestant; `ratio` is that of the ratios to `base` within each round."""
    ratios = [one.sets_per_sec / other.sets_per_sec for one, other in zip(passes[name], passes[base], strict=True)]
    return {
        "sets_per_sec": spread([run.sets_per_sec for run in passes[name]]),
        "cpu_sec_per_1000_sets": statistics.median(run.usage.cpu_sec / run.sets * 1000 for run in passes[name]),
        "ratio": spread(ratios),
        "ratio_to": base,
    }
