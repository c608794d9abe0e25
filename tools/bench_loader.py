"""How fast our loader is: sets a second on JPEG, on planes and resident; time and memory to plan an epoch."""

import functools
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import ReadFile
from pipeline.format.depth import WITH_HOLES
from pipeline.format.index_rows import row_type
from pipeline.format.manifest import BACKGROUNDS, Manifest, load_index, save_index
from pipeline.format.planes import PLANES
from pipeline.loading.loader import Loader
from pipeline.loading.sampler import Sampler
from pipeline.loading.split import Split
from pipeline.regular_files import FOLLOW_LINKS, open_regular
from pipeline.storage import Location
from tools.cli import echo, progress_bar
from tools.measure import Pass, TimedLoader, in_turn, print_rates, print_table, summarize, waits_ms

OURS_PLANES, OURS_RESIDENT = "ours-planes", "ours-resident"
QUEUE_BATCHES = 2  # what a worker of a DataLoader has ready, unless told otherwise
SETS_PER_SHARD, IDS, KEY_LENGTH, BATCH_SIZE = 1000, 100, 24, 512
WRITTEN_ROWS = 4_000_000  # a larger index is a sparse file: it would fill the disk
WHOLE_ROWS, SAMPLE_BATCHES = 10_000_000, 1000  # of more rows only the first, middle and last batches are planned


@dataclass(frozen=True)
class LoadOptions:
    """What all loaders are asked for alike; what only ours has, the others pass over."""

    batch_size: int
    size: int
    """Height and width, pixels."""
    device: str
    """Where the batches have to be: "gpu" or "cpu"."""
    workers: int
    """DALI threads, or DataLoader processes."""
    prefetch: int = 4
    """Batches that loaders with DALI keep under way."""
    resident: str = "off"
    """Where ours keeps decoded sets: see `pipeline.Loader`."""
    hw_decoder_load: float | None = None
    """Share of the pictures that ours and DALI's reader give to the GPU's JPEG engine; None: the device's default."""
    cache: Path = Path("~/.cache/fgbg")
    """Where sets are written for loaders that read a format of their own; ~ is the home directory."""

    def plain(self) -> dict[str, Any]:
        """As JSON takes them."""
        return {**asdict(self), "cache": str(self.cache)}

    @property
    def ahead_sets(self) -> int:
        """Sets that any loader may have ready."""
        return self.batch_size * (self.prefetch + QUEUE_BATCHES * self.workers)


class Comparison(NamedTuple):
    """Which loaders are timed, on what, and how."""

    shards: Path
    planes: Path | None
    names: Sequence[str]
    sets: int
    """Sets of a pass, rounded up to whole shards."""
    rounds: int
    caches: Sequence[str]
    """States of the page cache: "warm", "cold"."""
    base: str
    """The loader that ratios are to."""
    options: LoadOptions

    def entered(self, cache: str) -> list[str]:
        """The loaders that take part: one with resident sets reads nothing any more when it is timed."""
        return [name for name in self.names if not (cache == "cold" and name == OURS_RESIDENT)]

    @property
    def turns(self) -> int:
        """Passes of all loaders, each with one more to warm up."""
        return sum((1 + self.rounds) * len(self.entered(cache)) for cache in self.caches)

    @contextmanager
    def folders(self) -> Iterator[tuple[Path, dict[str, Path]]]:
        """The pictures that are loaded, and for each loader the folder that it reads, as `first_shards` makes them."""
        with ExitStack() as stack:
            pictures = stack.enter_context(first_shards(self.shards, self.sets))
            folders = dict.fromkeys(self.names, pictures)
            if self.planes and OURS_PLANES in self.names:
                folders[OURS_PLANES] = stack.enter_context(first_shards(self.planes, self.sets, PLANES))
            yield pictures, folders


def our_loader(shards: Location, split: str, options: LoadOptions, **settings: Any) -> Loader:
    """`pipeline.Loader` under these options, and other settings of it."""
    return Loader(
        shards, split, batch_size=options.batch_size, size=options.size, device=options.device,
        threads=options.workers, prefetch=options.prefetch, resident=options.resident,
        hw_decoder_load=options.hw_decoder_load, **settings,
    )  # fmt: skip


def our_options(name: str, options: LoadOptions) -> LoadOptions:
    """The options of one of our loaders, by its name."""
    return replace(options, resident="device") if name == OURS_RESIDENT else options


@contextmanager
def first_shards(shards: Path, sets: int, codec: str = "jpeg") -> Iterator[Path]:
    """A temporary shard directory of links to the first shards, as many as it takes to hold `sets` sets.

    Raises `InputError` for shards of another codec, or without depth.
    """
    manifest = Manifest.load(shards)
    if manifest.codec != codec:
        raise InputError(f"{shards} holds {manifest.codec}: give pictures with --shards, planes of them with --planes")
    if "depth" not in manifest.parts:
        raise InputError(f"the sets of {shards} have no depth: loaders are compared on sets with it, see fgbg-depth")
    if manifest.depth_encoding == WITH_HOLES:
        raise InputError(
            f"the depth of {shards} has holes, which other loaders mix into it: compare on sets without them"
        )
    index = load_index(shards, manifest)
    totals = np.cumsum([shard.sets for shard in manifest.shards])
    taken = min(int(np.searchsorted(totals, sets)) + 1, len(totals))
    with tempfile.TemporaryDirectory(prefix="fgbg-bench-") as name:
        folder = Path(name)
        kept = manifest.shards[:taken]
        indexes = [Path(shard.name).with_suffix(".idx").name for shard in kept]
        for file in (BACKGROUNDS, *(shard.name for shard in kept), *indexes):
            ReadFile(shards / file, open_regular)  # its link below is followed unasked
            (folder / file).symlink_to((shards / file).resolve())
        rows = np.array(index[: totals[taken - 1]])
        digest = save_index(folder, len(rows), [rows])
        msgspec.structs.replace(manifest, sets=len(rows), shards=kept, index_sha256=digest).save(folder)
        before, os.environ[FOLLOW_LINKS] = os.environ.get(FOLLOW_LINKS, ""), "1"
        try:
            yield folder
        finally:
            os.environ[FOLLOW_LINKS] = before


def drop_pages(*folders: Path) -> int:
    """Drop the files below some folders from the page cache, links followed; return how many files that were.

    What another process has mapped into memory stays, and so does everything on a file system that lives in memory.
    """
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)  # a page that is yet to be written is not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return len(files)


def bench_throughput(comparison: Comparison) -> dict[str, Any]:
    """Time our loaders in turn, all in this process; print tables, return the report."""
    options = comparison.options
    with comparison.folders() as (pictures, folders), progress_bar("measuring", comparison.turns) as bar:
        loaders = {
            name: TimedLoader(
                functools.partial(our_loader, folder, "all", our_options(name, options)),
                lambda batch: len(batch.index),
                options.ahead_sets,
                functools.partial(drop_pages, folder),
            )
            for name, folder in folders.items()
        }
        sets, rows = Manifest.load(pictures).sets, {}
        for cache in comparison.caches:
            passes = time_in_turn(comparison, cache, loaders, sets, lambda: bar.update(1))
            rows[cache] = {name: loader_row(comparison, passes, name) for name in passes}
    if len(loaders) > 1:  # the memory of this process is that of all of them
        for row in (row for of_cache in rows.values() for row in of_cache.values()):
            row["peak_mib"] = None
    print_loaders(comparison, rows)
    echo("our own loaders alone, in one process; their pictures are not compared with Pillow's")
    return loaders_report(comparison, rows, sets)


class Timed(Protocol):
    """A `TimedLoader`, here or in another process."""

    def open(self) -> float:
        """Seconds to the first batch."""

    def warm(self, epoch_sets: int) -> Pass:
        """A pass of an open loader."""

    def cold(self) -> Pass:
        """The first epoch of a new loader."""

    def close(self) -> None:
        """Let the loader go."""


def time_in_turn(
    comparison: Comparison, cache: str, loaders: Mapping[str, Timed], sets: int, tick: Callable[[], object]
) -> dict[str, list[Pass]]:
    """The passes of each loader, after a warm-up: warm on one loader, cold on a new one each."""
    entered = {name: loaders[name] for name in comparison.entered(cache)}
    if cache == "cold":
        cold = {name: loader.cold for name, loader in entered.items()}
        in_turn(cold, 1, tick)
        return in_turn(cold, comparison.rounds, tick)
    first_batch_sec = {}
    for name, loader in entered.items():
        first_batch_sec[name] = loader.open()
        tick()
    warm = {name: functools.partial(loader.warm, sets) for name, loader in entered.items()}
    passes = in_turn(warm, comparison.rounds, tick)
    for loader in entered.values():
        loader.close()
    return {name: [run._replace(first_batch_sec=first_batch_sec[name]) for run in passes[name]] for name in entered}


def loader_row(comparison: Comparison, passes: Mapping[str, list[Pass]], name: str) -> dict[str, Any]:
    """What is reported of the passes of one loader."""
    runs = passes[name]
    return {
        **summarize(passes, name, comparison.base if comparison.base in passes else next(iter(passes))),
        "peak_mib": max(run.peak_mib for run in runs),
        "wait_ms": waits_ms(runs),
        "first_batch_sec": statistics.median(run.first_batch_sec for run in runs),
        "read_bytes_a_set": statistics.median(run.usage.read_bytes / run.sets for run in runs),
        "disk_bytes_a_set": statistics.median(run.usage.disk_bytes / run.sets for run in runs),
    }


Rows = Mapping[str, Mapping[str, Any]]
Column = tuple[str, Callable[[Mapping[str, Any]], str]]
"""A title, and what is told of a row."""
DETAILS: tuple[Column, ...] = (
    ("wait ms p50 / p95 / p99 / max", lambda row: " / ".join(f"{wait:.1f}" for wait in row["wait_ms"].values())),
    ("first batch s", lambda row: f"{row['first_batch_sec']:.2f}"),
    ("KiB/set: read", lambda row: f"{row['read_bytes_a_set'] / 1024:.1f}"),
    ("disk", lambda row: f"{row['disk_bytes_a_set'] / 1024:.1f}"),
)


def print_loaders(comparison: Comparison, loaders: Mapping[str, Rows], more: Sequence[Column] = ()) -> None:
    """Print two tables for each state of the page cache: the rates, and details with `more` columns."""
    options, columns = comparison.options, (*DETAILS, *more)
    shape = f"batch {options.batch_size}, {options.size} x {options.size} on {options.device}"
    for cache, rows in loaders.items():
        passes = f"{comparison.rounds} passes each in turn, page cache {cache}"
        echo(f"{passes}, {shape}, {options.workers} threads or workers")
        print_rates(rows)
        echo("")
        cells = {name: [cell(row) for _, cell in columns] for name, row in rows.items()}
        print_table([title for title, _ in columns], cells)
        echo("")
    if "cold" in loaders and OURS_RESIDENT in comparison.names:
        echo(f"{OURS_RESIDENT} reads nothing while it is timed: it has no cold passes")
    echo("read: by system calls (not through memory maps); disk: fetched from storage")


def loaders_report(comparison: Comparison, loaders: Mapping[str, Rows], sets: int) -> dict[str, Any]:
    """All rows, and what they were measured on."""
    data = {"manifest_sha256": Manifest.load(comparison.shards).sha256, "sets": sets}
    return {"data": data, "rounds": comparison.rounds, **comparison.options.plain(), "loaders": loaders}


def bench_order(rows: int, window: int) -> dict[str, Any]:
    """Print and return what it costs to count the split "train" of an index of `rows` sets and to plan an epoch of it.

    1,000 sets a shard, batches of 512, once in windows of `window` shards and once without, whose rows are found and
    kept for all the split. Up to 4 million rows the index has ids of 100 backgrounds and 100 foregrounds at random. A
    larger one is a sparse file, all of whose ids are 0: its pages are read like others, but all of it is in the split.
    Of more than 10 million rows the first, middle and last 1,000 batches are planned. All is done a second time for its
    memory: the most that Python and NumPy had allocated, without the pages of the mapped file, in MiB.
    The file is made where the variable TMPDIR says, and should lie on a disk.
    """
    windows = {"whole set": None, f"window of {window}": window}
    with tempfile.TemporaryDirectory(prefix="fgbg-bench-") as folder:
        index = _make_index(Path(folder) / "index.npy", rows)
        _planned(index, window)  # the file comes into the page cache, as `load_index` would bring it when it hashes it
        plans = {}
        for name, width in windows.items():
            timed = _planned(index, width)
            tracemalloc.start()
            _planned(index, width)
            peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
            plans[name] = timed | {"peak_mib": peak_mib}
    ids = "random" if rows <= WRITTEN_ROWS else "zeros (sparse file)"
    echo(f"{rows:,} rows, ids: {ids}; {SETS_PER_SHARD:,} sets a shard, batches of {BATCH_SIZE}")
    echo(f"{'':16}{'count s':>10}{'sets':>14}{'order s':>10}{'+ rows s':>10}{'us a set':>10}{'peak MiB':>10}")
    for name, plan in plans.items():
        echo(
            f"{name:16}{plan['count_sec']:>10.3f}{plan['sets']:>14,}{plan['order_sec']:>10.3f}{plan['plan_sec']:>10.3f}"
            f"{plan['us_per_set']:>10.3f}{plan['peak_mib']:>10.1f}"
        )
    return {"rows": rows, "ids": ids, "sets_per_shard": SETS_PER_SHARD, "batch_size": BATCH_SIZE, "plans": plans}


def _make_index(path: Path, rows: int) -> NDArray[np.void]:
    """Write an index, or lay it out as a sparse file, and map it."""
    dtype = row_type(KEY_LENGTH)
    with path.open("wb") as file:
        about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows,)}
        np.lib.format.write_array_header_1_0(file, about)
        file.truncate(file.tell() + rows * dtype.itemsize)
    if rows <= WRITTEN_ROWS:
        index: NDArray[np.void] = np.load(path, mmap_mode="r+")
        index["bg"], index["fg"] = np.random.default_rng(0).integers(0, IDS, (2, rows))
        index["shard"] = np.arange(rows) // SETS_PER_SHARD
    return np.asarray(np.load(path, mmap_mode="r"))


def _planned(index: NDArray[np.void], window: int | None) -> dict[str, Any]:
    """Count the split and plan an epoch, or three stretches of it."""
    shard_sets = np.diff([*range(0, len(index), SETS_PER_SHARD), len(index)]).tolist()
    start = time.perf_counter()
    split = Split(index, shard_sets, "train")
    count_sec = time.perf_counter() - start
    sampler = Sampler(split.sizes, BATCH_SIZE, "bench", window=window)
    numbers = list(_batch_numbers(sampler.batches, len(index)))
    marks = [time.perf_counter()]
    for number in numbers:
        sampler.batch(0, number)
    marks.append(time.perf_counter())
    again = Sampler(split.sizes, BATCH_SIZE, "bench", window=window)
    planned = sum(len(split.rows(again.batch(0, number))) for number in numbers)
    marks.append(time.perf_counter())
    order_sec, plan_sec = (after - before for before, after in pairwise(marks))
    return {
        "count_sec": count_sec,
        "sets": split.count,
        "planned_sets": planned,
        "order_sec": order_sec,
        "plan_sec": plan_sec,
        "us_per_set": plan_sec / planned * 1e6,
    }


def _batch_numbers(batches: int, rows: int) -> Iterator[int]:
    """The batches to plan."""
    if rows <= WHOLE_ROWS:
        yield from range(batches)
    else:
        for first in (0, (batches - SAMPLE_BATCHES) // 2, batches - SAMPLE_BATCHES):
            yield from range(first, first + SAMPLE_BATCHES)
