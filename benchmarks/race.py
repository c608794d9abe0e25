"""The contest: loaders prove that they give the same pictures, then take turns under the clock."""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.harness import Contestant
from pipeline.format.manifest import Manifest, load_index
from pipeline.format.planes import PLANES
from pipeline.format.sample import PARTS
from tools.benchmark.reference import first_shards
from tools.benchmark.seat import Judged, Make
from tools.benchmark.table import number, print_rates, print_table
from tools.cli import progress_bar
from tools.measure import Pass, in_turn, row, waits_ms
from tools.peers.loaders import LOADERS, missing_peer
from tools.peers.options import LoadOptions

OURS_PLANES, OURS_RESIDENT = "ours-planes", "ours-resident"
CACHES = ("warm", "cold")
INDEX_BYTES = 16  # two int64 a set cross to the device: the row, and the place of the background


class Contest(NamedTuple):
    """What is asked for."""

    shards: Path
    planes: Path | None
    names: Sequence[str]
    sets: int
    rounds: int
    caches: Sequence[str]
    base: str
    options: LoadOptions


def all_names() -> list[str]:
    """Every loader that can be asked for."""
    ours, *others = LOADERS
    return [ours, OURS_PLANES, *others]


def lacking(planes: Path | None) -> dict[str, str]:
    """The loaders that cannot be measured here: what they lack, with the remedy."""
    reasons = {name: reason for name in LOADERS if (reason := missing_peer(name))}
    return reasons if planes else {OURS_PLANES: "give --planes DIR", **reasons}


def bench_loaders(contest: Contest) -> dict[str, Any]:
    """Compare every loader with the reference, then time them in turn; print tables, return the report."""
    with ExitStack() as stack:
        folder = stack.enter_context(first_shards(contest.shards, contest.sets))
        folders = dict.fromkeys(contest.names, folder)
        if contest.planes and OURS_PLANES in contest.names:
            folders[OURS_PLANES] = stack.enter_context(first_shards(contest.planes, contest.sets, PLANES))
        turns = sum(1 + contest.rounds for cache in contest.caches for _ in _entered(contest, cache))
        bar = stack.enter_context(progress_bar("measuring", len(folders) + turns))
        field = {
            name: stack.enter_context(Contestant(name, _make(name), own, folder, contest.options))
            for name, own in folders.items()
        }
        judged = dict[str, Judged]()
        for name, contestant in field.items():
            judged[name] = contestant.ask("judge")
            bar.update(1)
        loaders = {}
        for cache in contest.caches:
            passes = _rounds(contest, cache, field, judged, lambda: bar.update(1))
            loaders[cache] = _rows(contest, passes, folders, judged)
    _print(contest, loaders)
    data = {"manifest_sha256": Manifest.load(contest.shards).sha256, "sets": next(iter(judged.values())).sets}
    return {"data": data, "rounds": contest.rounds, **contest.options.plain(), "loaders": loaders}


def _make(name: str) -> Make:
    return LOADERS["ours" if name == OURS_PLANES else name]


def _entered(contest: Contest, cache: str) -> list[str]:
    """Who takes part: when a resident loader is timed, it reads nothing any more."""
    return [name for name in contest.names if not (cache == "cold" and name == OURS_RESIDENT)]


def _rounds(
    contest: Contest,
    cache: str,
    field: Mapping[str, Contestant],
    judged: Mapping[str, Judged],
    tick: Callable[[], None],
) -> dict[str, list[Pass]]:
    """The passes of each contestant, after a warm-up: warm on one loader, cold on a new one each."""
    entered = _entered(contest, cache)
    if cache == "cold":
        runs = {name: functools.partial(field[name].ask, "cold") for name in entered}
        in_turn(runs, 1, tick)
        return in_turn(runs, contest.rounds, tick)
    first_sec = {}
    for name in entered:
        first_sec[name] = field[name].ask("open")
        tick()
    sets = judged[entered[0]].sets
    passes = in_turn({name: functools.partial(field[name].ask, "warm", sets) for name in entered}, contest.rounds, tick)
    for name in entered:
        field[name].ask("close")
    return {name: [run._replace(first_batch_sec=first_sec[name]) for run in passes[name]] for name in entered}


def _rows(
    contest: Contest, passes: Mapping[str, list[Pass]], folders: Mapping[str, Path], judged: Mapping[str, Judged]
) -> dict[str, dict[str, Any]]:
    """What is reported of each contestant."""
    rows = {}
    for name, runs in passes.items():
        of_base = row(passes, name, contest.base if contest.base in passes else next(iter(passes)))
        pixels = decoded_pixels(name, judged[name], contest.options.size)
        rows[name] = {
            **of_base,
            "megapixels_per_sec": pixels and of_base["sets_per_sec"]["median"] * pixels / 1e6,
            "peak_mib": max(run.peak_mib or 0 for run in runs),
            "wait_ms": waits_ms(runs),
            "first_batch_sec": statistics.median(run.first_batch_sec or 0 for run in runs),
            "read_bytes_a_set": statistics.median(run.usage.read_bytes / run.sets for run in runs),
            "disk_bytes_a_set": statistics.median(run.usage.disk_bytes / run.sets for run in runs),
            "device_bytes_a_set": device_bytes(name, folders[name], judged[name], contest.options),
            "difference": judged[name].difference._asdict(),
        }
    return rows


def decoded_pixels(name: str, judged: Judged, size: int) -> float | None:
    """Pixels, as stored, that a loader decodes a set in the long run; None for one that decodes nothing any more.

    The backgrounds count for the one loader that decodes them with every set; the others do so once.
    """
    if name == OURS_RESIDENT:
        return None
    if name == OURS_PLANES:
        return float(len(PARTS) * size**2)
    return judged.other_pixels + (judged.background_pixels if name == "seed" else 0)


def device_bytes(name: str, folder: Path, judged: Judged, options: LoadOptions) -> float | None:
    """Bytes a set that cross from the host to the GPU, at least; None on the CPU.

    Of what is decoded there, the encoded pictures are counted. Where nvJPEG does the Huffman decoding on the host, it
    copies coefficients instead, which are more.
    """
    if options.device != "gpu":
        return None
    indices = float(INDEX_BYTES if name.startswith("ours") else 0)
    if name == OURS_RESIDENT:
        return indices
    if name == OURS_PLANES:
        return indices + len(PARTS) * options.size**2
    if name in ("ours", "dali-reader"):
        return indices + float(load_index(folder, Manifest.load(folder))["size"].sum(axis=1).mean())
    return judged.delivered_bytes  # decoded on the host


def _print(contest: Contest, loaders: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    options = contest.options
    shape = f"batch {options.batch_size}, {options.size} x {options.size} on {options.device}"
    for cache, rows in loaders.items():
        passes = f"{contest.rounds} passes each in turn, page cache {cache}"
        click.echo(f"{passes}, {shape}, {options.workers} threads or workers")
        print_rates(rows)
        click.echo()
        print_details(rows)
        click.echo()
    if "cold" in loaders and OURS_RESIDENT in contest.names:
        click.echo(f"{OURS_RESIDENT} reads nothing while it is timed: it has no cold passes")
    click.echo("Mpixel/s: pixels decoded, as they are stored; peak MiB: with children, libraries once a process")
    click.echo("read: by system calls (not through memory maps); disk: fetched from storage")
    click.echo("off: levels of 255 from Pillow's gray decode and antialiased resize, mean / 99.9 % / largest")


def print_details(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what the first table has no room for."""
    titles = ["wait ms p50 / p95 / p99 / max", "first batch s", "KiB/set: read", "disk", "to device", "off"]
    cells = {
        name: [
            " / ".join(f"{wait:.1f}" for wait in row["wait_ms"].values()),
            f"{row['first_batch_sec']:.2f}",
            *(number(kib(row[f"{way}_bytes_a_set"]), ".1f") for way in ("read", "disk", "device")),
            " / ".join(f"{level:.2f}" for level in row["difference"].values()),
        ]
        for name, row in rows.items()
    }
    print_table(titles, cells)


def kib(size: float | None) -> float | None:
    """Bytes in KiB."""
    return None if size is None else size / 1024
