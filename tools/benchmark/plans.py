"""Measurement for fgbg-bench: what it costs to plan an epoch of an index of any size, in time and in memory."""

import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from pipeline.format.manifest import row_type
from pipeline.loading.sampler import Sampler
from pipeline.loading.split import Split

SETS_PER_SHARD, IDS, KEY_LENGTH, BATCH_SIZE = 1000, 100, 24, 512
WRITTEN_ROWS = 4_000_000  # a larger index is a sparse file: it would fill the disk
WHOLE_ROWS, SAMPLE_BATCHES = 10_000_000, 1000  # of more rows only the first, middle and last batches are planned


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
        _plan(index, window)  # the file comes into the page cache, as `load_index` would bring it when it hashes it
        plans = {}
        for name, width in windows.items():
            timed = _plan(index, width)
            tracemalloc.start()
            _plan(index, width)
            peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
            plans[name] = timed | {"peak_mib": peak_mib}
    ids = "random" if rows <= WRITTEN_ROWS else "zeros (sparse file)"
    click.echo(f"{rows:,} rows, ids: {ids}; {SETS_PER_SHARD:,} sets a shard, batches of {BATCH_SIZE}")
    click.echo(f"{'':16}{'count s':>10}{'sets':>14}{'order s':>10}{'+ rows s':>10}{'us a set':>10}{'peak MiB':>10}")
    for name, plan in plans.items():
        click.echo(
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


def _plan(index: NDArray[np.void], window: int | None) -> dict[str, Any]:
    """Count the split and plan an epoch, or three stretches of it."""
    shard_sets = np.diff([*range(0, len(index), SETS_PER_SHARD), len(index)]).tolist()
    start = time.perf_counter()
    split = Split(index, shard_sets, "train")
    count_sec = time.perf_counter() - start
    order = Sampler(split.sizes, BATCH_SIZE, "bench", window=window)
    numbers = list(_numbers(order.batches, len(index)))
    marks = [time.perf_counter()]
    for number in numbers:
        order.batch(0, number)
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


def _numbers(batches: int, rows: int) -> Iterator[int]:
    """The batches to plan."""
    if rows <= WHOLE_ROWS:
        yield from range(batches)
    else:
        for first in (0, (batches - SAMPLE_BATCHES) // 2, batches - SAMPLE_BATCHES):
            yield from range(first, first + SAMPLE_BATCHES)
