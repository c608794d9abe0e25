"""What a process does before its first batch, by the number of sets: manifest, index and split, without pictures.

`python -m benchmarks.opening --sets 10000000` writes an index and a manifest of so many sets, and prints what it takes
to open them in a folder, and as behind a URL: through a new cache, and through one that has the index already.
"""

import hashlib
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from pipeline.format.index_rows import row_type
from pipeline.format.manifest import INDEX, MANIFEST, Background, Manifest, ShardInfo, load_index, save_index
from pipeline.format.sample import PARTS
from pipeline.loading.caching.shard_cache import ShardCache
from pipeline.loading.split import Split
from pipeline.storage import Folder
from tools.cli import Command, echo

SHARD_SETS = 1000
BLOCK_SHARDS = 100
SET_BYTES = (10_000, 2_000, 5_000)
"""Of each of PARTS."""
SLOT_BYTES = 20_480
KEY = "fg_00000_bg_00000_{:07}"
CACHE_BYTES = 1 << 40


def write_sets(folder: Path, sets: int, backgrounds: int) -> None:
    """Write index.npy and manifest.json of sets without any shard, with backgrounds and foregrounds at random."""
    shards = [(f"sets-{number:06}.tar", min(SHARD_SETS, sets - first)) for number, first in _firsts(sets)]
    sha256 = save_index(folder, sets, _rows(sets, backgrounds))
    Manifest(
        sets=sets,
        foregrounds=backgrounds,
        depth_encoding="gray",
        depth_near="bright",
        sizes={part: {"min": [224, 224], "max": [224, 224]} for part in ("bg", *PARTS)},
        shards=[
            ShardInfo(name, count, count * SLOT_BYTES + 1024, hashlib.sha256(name.encode()).hexdigest())
            for name, count in shards
        ],
        backgrounds=[Background(number, 512 + number * SLOT_BYTES, 14_000, number) for number in range(backgrounds)],
        backgrounds_sha256="0" * 64,
        index_sha256=sha256,
    ).save(folder)


def _firsts(sets: int) -> Iterator[tuple[int, int]]:
    """Each shard's number, and its first row."""
    return enumerate(range(0, sets, SHARD_SETS))


def _rows(sets: int, backgrounds: int) -> Iterator[NDArray[np.void]]:
    """The index in blocks of BLOCK_SHARDS shards."""
    random, length = np.random.default_rng(0), len(KEY.format(0))
    for first in range(0, sets, BLOCK_SHARDS * SHARD_SETS):
        numbers = np.arange(first, min(sets, first + BLOCK_SHARDS * SHARD_SETS))
        rows = np.zeros(len(numbers), row_type(length))
        rows["key"] = [KEY.format(number) for number in numbers.tolist()]
        rows["bg"], rows["fg"] = random.integers(0, backgrounds, (2, len(numbers)))
        rows["shard"] = numbers // SHARD_SETS
        rows["size"] = SET_BYTES
        offsets = numbers % SHARD_SETS * SLOT_BYTES + 512
        for part, part_bytes in enumerate(SET_BYTES):
            rows["offset"][:, part] = offsets
            offsets = offsets + part_bytes + 1023 & -512
        yield rows


class Opening(NamedTuple):
    """What one process takes to open a data set, seconds and CPU seconds, and MiB."""

    manifest_sec: float
    index_sec: float
    split_sec: float
    """Counting the split train."""
    cpu_sec: float
    """Of all three, in all threads."""
    peak_mib: float
    """Memory of its own at most: the index is mapped, and in the page cache."""


def opened(folder: Path, cache: Path | None = None) -> Opening:
    """Open what `write_sets` has written; with `cache`, through a cache of that folder, as if it were behind a URL."""
    started_cpu_sec, times = time.process_time(), [time.perf_counter()]
    source = Folder(folder)
    manifest = Manifest.load(source)
    times.append(time.perf_counter())
    storage = ShardCache(source, manifest, cache, CACHE_BYTES) if cache else source
    index = load_index(storage, manifest).view(np.ndarray)
    times.append(time.perf_counter())
    Split(index, [shard.sets for shard in manifest.shards], "train")
    times.append(time.perf_counter())
    cpu_sec = time.process_time() - started_cpu_sec
    storage.close()
    return Opening._make([*np.diff(times).tolist(), cpu_sec, 0.0])


def measured(folder: Path, cache: Path | None = None) -> Opening:
    """The same, done once more for its memory, where it does not change what is there."""
    timed = opened(folder, cache)
    tracemalloc.start()
    opened(folder, cache)
    peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return timed._replace(peak_mib=peak_mib)


@click.command(cls=Command)
@click.option("--sets", type=click.IntRange(1), default=1_000_000, show_default=True, help="Sets of the data.")
@click.option("--backgrounds", type=click.IntRange(1), default=10_000, show_default=True,
              help="Different backgrounds, and as many foregrounds.")  # fmt: skip
def main(sets: int, backgrounds: int) -> None:
    """Print what a process does before its first batch: seconds for manifest, index and split; memory.

    The files are made where the variable TMPDIR says: 84 bytes a set, twice. They are in the page cache.
    """
    with tempfile.TemporaryDirectory(prefix="fgbg-opening-") as directory:
        folder, cache = Path(directory, "shards"), Path(directory, "cache")
        folder.mkdir()
        write_sets(folder, sets, backgrounds)
        found = {
            "a folder": measured(folder),
            "through a new cache": measured(folder, cache),
            "... that has the index": measured(folder, cache),
        }
        sizes = [(folder / name).stat().st_size / 1e6 for name in (INDEX, MANIFEST)]
    echo(f"{sets:,} sets: {INDEX} {sizes[0]:,.1f} MB, {MANIFEST} {sizes[1]:,.1f} MB", "")
    echo("| | manifest s | index s | split s | CPU s | peak MiB |", "|---|---|---|---|---|---|")
    for name, opening in found.items():
        echo(f"| {name} | " + " | ".join(f"{value:,.2f}" for value in opening) + " |")


if __name__ == "__main__":
    main()
