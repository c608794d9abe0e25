"""Measurement: timed passes over a loader, what they used of the machine, statistics of several, tables of these."""

import contextlib
import gc
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.installation import install_hint

try:
    import psutil
except ImportError:
    raise InputError(f"psutil is missing, which fgbg-bench measures with: {install_hint('bench')}") from None

from pipeline.workers import available_cores, timed
from tools.cli import echo

DRAINS = 2  # so many times what a loader may have ready goes by before the clock starts
SETTLE_SEC, QUIET_CPU_SEC, SETTLE_TRIES = 0.1, 0.01, 20
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
PACKAGES = "torch", "numpy", "pillow", "webdataset", "simplejpeg", "zstandard", "mosaicml-streaming", "litdata"
DRIVER = Path("/proc/driver/nvidia/version")


class Usage(NamedTuple):
    """What a process and its children have used so far, or between two moments."""

    cpu_sec: float
    """User and system time, of children that have ended too."""
    read_bytes: int
    """Read by system calls, from the page cache or from storage; reads through a memory map are not counted."""
    disk_bytes: int
    """Fetched from storage, however it was asked for."""

    def since(self, earlier: "Usage") -> "Usage":
        """What was used after `earlier`."""
        return Usage(
            self.cpu_sec - earlier.cpu_sec, self.read_bytes - earlier.read_bytes, self.disk_bytes - earlier.disk_bytes
        )


def used() -> Usage:
    """What this process and its children have used; bytes read by children that have ended are missing."""
    ended = psutil.Process().cpu_times()
    cpu_sec, read_bytes, disk_bytes = ended.children_user + ended.children_system, 0, 0
    for process in process_tree():
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            times, counters = process.cpu_times(), process.io_counters()
            cpu_sec += times.user + times.system
            read_bytes += counters.read_chars
            disk_bytes += counters.read_bytes
    return Usage(cpu_sec, read_bytes, disk_bytes)


def reset_peak() -> None:
    """Let the peak memory of this process and its children begin anew, where the system allows it."""
    for process in process_tree():
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # see proc(5)


def peak_mib(pid: int | None = None) -> float:
    """The largest resident memory of a process (default: this one) and of each of its children, summed, MiB.

    Pages that processes share, such as those of libraries, count once for each of them.
    """
    peak_kib = 0
    for process in process_tree(pid):
        with contextlib.suppress(OSError, IndexError):  # it may end meanwhile
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak_kib += int(status.split("VmHWM:")[1].split()[0])
    return peak_kib / 1024


def process_tree(pid: int | None = None) -> list[psutil.Process]:
    """A process (default: this one) and all that it has started."""
    this = psutil.Process(pid)
    return [this, *this.children(recursive=True)]


def settle() -> None:
    """Wait until this process and its children are at rest, so that every loader starts its turn with full queues."""
    for _ in range(SETTLE_TRIES):
        before_sec = used().cpu_sec
        time.sleep(SETTLE_SEC)
        if used().cpu_sec - before_sec <= QUIET_CPU_SEC:
            return


def synchronize() -> None:
    """Wait until the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Pass(NamedTuple):
    """One timed pass over the data."""

    sets: int
    wall_sec: float
    usage: Usage = Usage(0.0, 0, 0)
    """Of the process and its children, within the time measured."""
    waits_sec: tuple[float, ...] = ()
    """For each batch within the time measured, how long `next()` took."""
    first_batch_sec: float = 0.0
    """From making the loader to its first batch."""
    peak_mib: float = 0.0
    """Memory, at most, since the loader was made; see `peak_mib`."""

    @property
    def sets_per_sec(self) -> float:
        """Sets a second."""
        return self.sets / self.wall_sec


class Mark(NamedTuple):
    """A moment in a pass."""

    seen_sets: int
    sec: float
    usage: Usage

    @classmethod
    def now(cls, seen_sets: int) -> "Mark":
        """This moment, when so many sets have come."""
        synchronize()  # the clock stops when the batch is there, not when it is promised
        return cls(seen_sets, time.perf_counter(), used())

    def until(self, end: "Mark", waits_sec: Sequence[float]) -> Pass:
        """The pass from this moment to a later one."""
        usage = end.usage.since(self.usage)
        return Pass(end.seen_sets - self.seen_sets, end.sec - self.sec, usage, tuple(waits_sec), peak_mib=peak_mib())


def warm_pass(batches: Iterator[int], run_in_sets: float, sets: int) -> Pass:
    """Time `sets` sets of an endless stream of batches, given as their sizes, after `run_in_sets` that are not timed.

    While a loader waits for its turn its queues fill up. The run-in empties them, so that what is timed is made while
    it is timed, and a stretch of an epoch's length pays for exactly one change of epochs.
    """
    seen, waits_sec, stream = 0, list[float](), timed(batches)
    while seen < run_in_sets:
        seen += next(stream)[0]
    start = Mark.now(seen)
    while seen < start.seen_sets + sets:
        size, wait_sec = next(stream)
        seen += size
        waits_sec.append(wait_sec)
    return start.until(Mark.now(seen), waits_sec)


class TimedLoader:
    """A loader that is made, timed and let go; `warm` times an open one, `cold` a new one each time."""

    def __init__(
        self,
        make: Callable[[], Iterable[Any]],
        size_of: Callable[[Any], int],
        ahead_sets: int,
        drop_pages: Callable[[], object],
    ) -> None:
        """`make` makes a loader, an iteration of which is an epoch; `size_of` tells the sets of one of its batches.

        It has up to `ahead_sets` sets ready; `drop_pages` drops its files from the page cache.
        """
        self._make, self._size_of, self._ahead_sets, self._drop_pages = make, size_of, ahead_sets, drop_pages
        self._loader: Iterable[Any] | None = None
        self._sizes: Iterator[int] = iter(())
        self._closing = False

    def open(self) -> float:
        """Make the loader and let it run one epoch; return the seconds to its first batch."""
        reset_peak()
        started_sec, first_batch_sec = time.perf_counter(), 0.0
        loader = self.made()
        for _ in loader:
            if not first_batch_sec:
                synchronize()
                first_batch_sec = time.perf_counter() - started_sec
        self._sizes = self._epochs(loader)
        settle()
        return first_batch_sec

    def _epochs(self, loader: Iterable[Any]) -> Iterator[int]:
        while not self._closing:
            yield from map(self._size_of, loader)

    def warm(self, epoch_sets: int) -> Pass:
        """Time an epoch's length of the open loader, from wherever the last pass has left it."""
        run = warm_pass(self._sizes, max(epoch_sets / 2, DRAINS * self._ahead_sets), epoch_sets)
        settle()
        return run

    def cold(self) -> Pass:
        """Make a loader, time its first epoch from its first batch to its last, and let it go.

        The page cache is emptied of its files before the loader is made, and again when the first batch has come: what
        the system reads beyond what it is asked for has by then warmed small data. What the loader has read ahead at
        that time is not read again. Raises `InputError` for an epoch of one batch.
        """
        reset_peak()
        self._drop_pages()
        started_sec, first_batch_sec = time.perf_counter(), 0.0
        seen, marks, waits_sec = 0, list[Mark](), list[float]()
        for batch, wait_sec in timed(self.made()):
            seen += self._size_of(batch)
            if marks:
                waits_sec.append(wait_sec)
            else:
                synchronize()
                first_batch_sec = time.perf_counter() - started_sec
                self._drop_pages()
                marks.append(Mark.now(seen))
        if not waits_sec:
            raise InputError(f"an epoch of {seen:,} sets is one batch, a cold pass needs two: a smaller --batch-size")
        run = marks[0].until(Mark.now(seen), waits_sec)
        self.close()
        return run._replace(first_batch_sec=first_batch_sec)

    def made(self) -> Iterable[Any]:
        """A new loader, which `close` lets go."""
        self._closing = False
        self._loader = self._make()
        return self._loader

    def close(self) -> None:
        """Let the loader go, with its processes, threads and memory maps."""
        self._closing = True
        for _ in self._sizes:  # a DataLoader that is left in the middle of an epoch may see its workers abort
            pass
        close = getattr(self._loader, "close", None)
        if close:
            close()
        self._loader, self._sizes = None, iter(())
        gc.collect()  # workers end, and files are unmapped, when nobody holds them any more


def in_turn(runs: Mapping[str, Callable[[], Pass]], rounds: int, tick: Callable[[], object]) -> dict[str, list[Pass]]:
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


def summarize(passes: Mapping[str, Sequence[Pass]], name: str, base: str) -> dict[str, Any]:
    """Medians and quartiles of the passes of one name; `ratio` is that of the ratios to `base` within each round."""
    ratios = [one.sets_per_sec / other.sets_per_sec for one, other in zip(passes[name], passes[base], strict=True)]
    return {
        "sets_per_sec": spread([run.sets_per_sec for run in passes[name]]),
        "cpu_sec_per_1000_sets": statistics.median(run.usage.cpu_sec / run.sets * 1000 for run in passes[name]),
        "ratio": spread(ratios),
        "ratio_to": base,
    }


def print_table(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print named rows under the titles of their columns, each column as wide as it has to be."""
    lines = [["", *titles], *([name, *cells] for name, cells in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles) + 1)]
    for name, *cells in lines:
        numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        echo("  ".join((f"{name:{widths[0]}}", *numbers)).rstrip())


def quartiles(values: Mapping[str, float], digits: int = 0) -> str:
    """Median and quartiles, as `spread` gives them, for a table."""
    return f"{values['median']:,.{digits}f} ({values['q1']:,.{digits}f}-{values['q3']:,.{digits}f})"


def print_rates(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print rows of `summarize`: rates, ratios, CPU time, and peak memory and megapixels where they have them."""
    base = next(iter(rows.values()))["ratio_to"]
    more = {"megapixels_per_sec": "Mpixel/s", "peak_mib": "peak MiB"}
    shown = [name for name in more if any(row.get(name) is not None for row in rows.values())]
    titles = ["sets/s (quartiles)", f"x {base} (quartiles)", "CPU s/1000", *(more[name] for name in shown)]
    cells = {
        name: [
            quartiles(row["sets_per_sec"]),
            quartiles(row["ratio"], 2),
            f"{row['cpu_sec_per_1000_sets']:.2f}",
            *("-" if row.get(key) is None else f"{row[key]:,.0f}" for key in shown),
        ]
        for name, row in rows.items()
    }
    print_table(titles, cells)


def machine() -> dict[str, str | int]:
    """What figures were measured on: processor, memory, GPU, and the versions of what is installed."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    found: dict[str, str | int] = {
        "cpu": model[0] if model else platform.processor(),
        "cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if DRIVER.exists() and (number := re.search(r"\d+\.\d+[.\d]*", DRIVER.read_text())):
        found["driver"] = number[0]
    for name in (*DALI, *PACKAGES):
        with contextlib.suppress(PackageNotFoundError):
            found["dali" if name in DALI else name] = version(name)
    return found


def describe_machine(found: Mapping[str, str | int]) -> str:
    """The machine in a few words."""
    gpu = "no GPU" if found["gpu"] == "none" else found["gpu"]
    return f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB, {gpu}"
