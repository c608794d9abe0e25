"""Measurements for fgbg-bench: are the pictures the same, how fast do they come, on what machine."""

import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import nvidia.dali
import torch
from PIL import Image

from pipeline.depth import depth_table
from pipeline.errors import InputError
from pipeline.images import decode_gray
from pipeline.index import BACKGROUNDS, Manifest, load_index, save_index
from pipeline.parts import PARTS
from pipeline.store import Store
from pipeline.workers import available_cores
from tools.peers import Loaded

try:
    import psutil
except ImportError:
    raise SystemExit("fgbg-bench needs psutil, which is not installed: pip install 'fgbg[bench]'") from None

COMPARED_SETS = 256
SETTLE_SEC = 0.5  # DALI's reader goes on by itself until its queue is full
# Levels of 255, against Pillow's gray decode and antialiased resize. Decoders round differently, and at the border
# DALI's filter repeats the edge where Pillow's leaves the outside out; a wrong picture, a missing antialiasing or a
# resize before the depth table are far outside.
MEAN_TOLERANCE, P999_TOLERANCE = 0.6, 8


class Difference(NamedTuple):
    """How far a loader's pictures are from the reference, in levels of 255."""

    mean: float
    p999: float
    max: float


class Pass(NamedTuple):
    """One timed pass over the data."""

    sets_per_sec: float
    cpu_sec_per_1000_sets: float
    """Of this process and its children."""


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
    index = load_index(shards, manifest)
    totals = np.cumsum([shard.sets for shard in manifest.shards])
    taken = min(int(np.searchsorted(totals, sets)) + 1, len(totals))
    with tempfile.TemporaryDirectory(prefix="fgbg-bench-") as name:
        folder = Path(name)
        kept = manifest.shards[:taken]
        indexes = [Path(shard.name).with_suffix(".idx").name for shard in kept]
        for file in (BACKGROUNDS, *(shard.name for shard in kept), *indexes):
            (folder / file).symlink_to((shards / file).resolve())
        rows = np.array(index[: totals[taken - 1]])
        replace(manifest, sets=len(rows), shards=kept, index_sha256=save_index(folder, len(rows), [rows])).save(folder)
        yield folder


class Reference:
    """The slow, obvious loader: Pillow decodes to gray, looks depth up in the table and resizes."""

    def __init__(self, shards: Path, size: int) -> None:
        self._store = Store.open(shards)
        self._rows = {key.decode(): row for row, key in enumerate(self._store.index["key"].tolist())}
        self._table = depth_table(self._store.manifest.depth_encoding, self._store.manifest.depth_near)
        self._size = size

    @property
    def sets(self) -> int:
        """Sets in an epoch."""
        return len(self._rows)

    def compare(self, batches: Iterable[Loaded]) -> Difference:
        """Check a whole epoch: every key once, and the pictures of the first sets; raise `InputError` if not."""
        keys, differences = list[str](), list[np.ndarray]()
        for loaded in batches:
            batch_keys = loaded.keys()
            for sample, key in enumerate(batch_keys[: max(0, COMPARED_SETS - len(keys))]):
                expected = self._pictures(key)
                for part, pictures in loaded.pictures.items():
                    found = torch.as_tensor(pictures[sample, 0]).cpu().float()
                    found = found * 255 if pictures.dtype == torch.float32 else found
                    differences.append(np.abs(found.numpy() - expected[part]).ravel())
            keys += batch_keys
        if sorted(keys) != sorted(self._rows):
            raise InputError(f"an epoch gave {len(keys):,} sets, {len(set(keys)):,} of them different; the shards hold "
                             f"{len(self._rows):,}")  # fmt: skip
        levels = np.concatenate(differences)
        difference = Difference(float(levels.mean()), float(np.quantile(levels, 0.999)), float(levels.max()))
        if difference.mean > MEAN_TOLERANCE or difference.p999 > P999_TOLERANCE:
            raise InputError(f"the pictures differ by {difference} levels: more than {MEAN_TOLERANCE} in the mean or "
                             f"{P999_TOLERANCE} in 99.9 % of the pixels")  # fmt: skip
        return difference

    def _pictures(self, key: str) -> dict[str, np.ndarray]:
        row = self._rows[key]
        background = self._store.read_background(int(self._store.index["bg"][row]))
        grays = [decode_gray(data.tobytes()) for data in (background, *self._store.read(row))]
        grays[3] = self._table[grays[3]]
        resized = [Image.fromarray(gray).resize((self._size,) * 2, Image.Resampling.BILINEAR) for gray in grays]
        return dict(zip(("bg", *PARTS), (np.asarray(picture, dtype=np.float32) for picture in resized), strict=True))


def timed_pass(loader: Iterable[Loaded], epoch_sets: int) -> Pass:
    """Time as many sets as an epoch has, from the middle of one epoch to the middle of the next.

    So every loader starts with what it has read ahead, ends with as much, and pays for one change of epochs. What is
    read ahead at the end is used up, or finished, before the next loader's turn.
    """
    seen, marks = 0, list[tuple[int, float, float]]()
    for loaded in itertools.chain(loader, loader):
        seen += loaded.sets
        if (not marks and seen >= epoch_sets / 2) or (len(marks) == 1 and seen >= marks[0][0] + epoch_sets):
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # the clock stops when the batch is there, not when it is promised
            marks.append((seen, time.perf_counter(), cpu_sec()))
    time.sleep(SETTLE_SEC)
    sets, wall_sec, used_cpu_sec = (last - first for first, last in zip(*marks, strict=True))
    return Pass(sets / wall_sec, used_cpu_sec / sets * 1000)


def cpu_sec() -> float:
    """CPU time of this process and its children, those that have ended included."""
    this = psutil.Process()
    alive = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    ended = alive[0].children_user + alive[0].children_system
    return float(sum(times.user + times.system for times in alive) + ended)


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


def table_row(passes: dict[str, list[Pass]], name: str, base: str) -> dict[str, Any]:
    """Medians and quartiles of one contestant; `ratio` is the median of the ratios to `base` within each round."""
    ratios = [one.sets_per_sec / other.sets_per_sec for one, other in zip(passes[name], passes[base], strict=True)]
    return {
        "sets_per_sec": spread([run.sets_per_sec for run in passes[name]]),
        "cpu_sec_per_1000_sets": statistics.median(run.cpu_sec_per_1000_sets for run in passes[name]),
        "ratio": spread(ratios),
        "ratio_to": base,
    }


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """Print rows of `table_row`; a row may have a "difference" (of pictures) or a "peak_mib" (of memory) too."""
    base = next(iter(rows.values()))["ratio_to"]
    last = {"difference": "difference", "peak_mib": "peak MiB"}
    titles = [title for name, title in last.items() if any(name in row for row in rows.values())]
    click.echo(
        f"{'':24}{'sets/s (quartiles)':>28}{f'x {base} (quartiles)':>44}{'CPU s/1000':>12}  {''.join(titles)}".rstrip()
    )
    for name, row in rows.items():
        rate, ratio = row["sets_per_sec"], row["ratio"]
        rates = f"{rate['median']:,.0f} ({rate['q1']:,.0f}-{rate['q3']:,.0f})"
        ratios = f"{ratio['median']:.2f} ({ratio['q1']:.2f}-{ratio['q3']:.2f})"
        more = " / ".join(f"{level:.2f}" for level in row.get("difference", {}).values())
        more += f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""
        click.echo(f"{name:24}{rates:>28}{ratios:>44}{row['cpu_sec_per_1000_sets']:>12.2f}  {more}".rstrip())


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": model[0] if model else platform.processor(),
        "cores": available_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "pillow", "webdataset", "simplejpeg")},
        "dali": nvidia.dali.__version__,
    }
