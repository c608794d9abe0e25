"""How fast our loader is on shards behind a URL: through a new cache and without one, beside the same in a folder."""

import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.limits import URL_WINDOW
from pipeline.loading.caching.statistics import CacheStatistics
from pipeline.loading.loader import Loader
from pipeline.storage import Url
from pipeline.words import plural
from pipeline.workers import timed
from tools.bench_loader import LoadOptions, drop_pages, our_loader
from tools.cli import echo, progress_bar
from tools.measure import Mark, Pass, print_rates, print_table, reset_peak, summarize, waits_ms

CACHE, RANGES, LOCAL, LANES = "cache", "ranges", "local", "local-lanes"
FIRST, LATER = "first", "later"
LATER_EPOCHS = 2
MOST_RANGES = 20
"""Batches of a pass without a cache, which may be a hundred times slower."""


class Epochs(NamedTuple):
    """The first epoch of a loader, or the later ones together."""

    run: Pass
    cache: CacheStatistics | None
    """Of these epochs; of a folder None."""


def bench_remote(shards: Url, local: Path | None, rounds: int, options: LoadOptions) -> dict[str, Any]:
    """Time our loader on all sets, in turn through a new empty cache, without a cache, and on `local`; print tables.

    Each round has a new loader of each. A first epoch counts from making the loader on, with an empty cache, and in a
    folder with none of its files in the page cache; later epochs go on with the same loader.
    Raises `InputError` where `local` holds other shards.
    """
    manifest = Manifest.load(shards)
    if local is not None and Manifest.load(local).sha256 != manifest.sha256:
        raise InputError(f"{local} does not hold the shards of {shards}: give the same, copied or packed, with --local")
    subjects: dict[str, Callable[[], dict[str, Epochs]]] = {
        CACHE: functools.partial(_cached, shards, options),
        RANGES: functools.partial(_measure, lambda: our_loader(shards, "all", options, cache_size="0"), 0, MOST_RANGES),
    }
    if local is not None:
        subjects[LOCAL] = functools.partial(_local, local, options, None)
        subjects[LANES] = functools.partial(_local, local, options, URL_WINDOW)
    measured: dict[str, dict[str, list[Epochs]]] = {FIRST: {}, LATER: {}}
    with progress_bar("measuring", (1 + rounds) * len(subjects)) as bar:
        for number in range(1 + rounds):
            for name, measure in subjects.items():
                for which, epochs in measure().items():
                    if number:  # the first warms up
                        measured[which].setdefault(name, []).append(epochs)
                bar.update(1)
    base = CACHE if local is None else LOCAL
    rows = {which: {name: _row(of, name, base) for name in of} for which, of in measured.items()}
    _print(rows, manifest.sets, rounds, options)
    data = {"manifest_sha256": manifest.sha256, "sets": manifest.sets}
    return {"data": data, "rounds": rounds, **options.plain(), "epochs": rows}


def _cached(shards: Url, options: LoadOptions) -> dict[str, Epochs]:
    with tempfile.TemporaryDirectory(prefix="fgbg-bench-") as folder:
        return _measure(lambda: our_loader(shards, "all", options, cache=folder), LATER_EPOCHS)


def _local(folder: Path, options: LoadOptions, window: int | None) -> dict[str, Epochs]:
    drop_pages(folder)
    return _measure(lambda: our_loader(folder, "all", options, window=window), LATER_EPOCHS)


def _measure(make: Callable[[], Loader], later_epochs: int, most_batches: int | None = None) -> dict[str, Epochs]:
    """Time the first epoch of a new loader, or its first batches, and some later ones, with no pause between them."""
    reset_peak()
    start = Mark.now(0)
    with closing(make()) as loader:
        waits_sec, first_batch_sec = list[float](), 0.0
        for _, wait_sec in timed(itertools.islice(loader, most_batches)):
            first_batch_sec = first_batch_sec or time.perf_counter() - start.sec
            waits_sec.append(wait_sec)
        sets = min(loader.sets, len(waits_sec) * loader.batch_size)
        middle, before = Mark.now(sets), loader.cache_statistics
        run = start.until(middle, waits_sec[1:] or waits_sec)._replace(first_batch_sec=first_batch_sec)
        measured = {FIRST: Epochs(run, before)}
        if later_epochs:
            waits_sec = [wait_sec for _ in range(later_epochs) for _, wait_sec in timed(loader)]
            end, after = Mark.now(loader.sets * (1 + later_epochs)), loader.cache_statistics
            did = _since(after, before) if after and before else None
            measured[LATER] = Epochs(middle.until(end, waits_sec), did)
    return measured


def _since(after: CacheStatistics, before: CacheStatistics) -> CacheStatistics:
    """What was counted in between; the waits are those of the last reads."""
    counts = [late - early for late, early in zip(after[:-2], before[:-2], strict=True)]
    return CacheStatistics._make([*counts, *after[-2:]])


def _row(measured: Mapping[str, Sequence[Epochs]], name: str, base: str) -> dict[str, Any]:
    """What is reported of the epochs of one name."""
    passes = {each: [epochs.run for epochs in of] for each, of in measured.items()}
    caches = [epochs.cache for epochs in measured[name] if epochs.cache is not None]

    def median(of: Callable[[CacheStatistics, int], float]) -> float | None:
        pairs = zip(caches, passes[name], strict=False)
        return statistics.median(of(cache, run.sets) for cache, run in pairs) if caches else None

    return {
        **summarize(passes, name, base),
        "wait_ms": waits_ms(passes[name]),
        "first_batch_sec": statistics.median(run.first_batch_sec for run in passes[name]) or None,
        "requests_a_set": median(lambda cache, sets: cache.requests / sets),
        "source_bytes_a_set": median(lambda cache, sets: cache.source_bytes / sets),
        "hit_share": median(lambda cache, _: cache.hit_share),
        "read_wait_p50_ms": median(lambda cache, _: cache.wait_p50_sec * 1000),
        "read_wait_p99_ms": median(lambda cache, _: cache.wait_p99_sec * 1000),
    }


def _print(rows: Mapping[str, Mapping[str, Any]], sets: int, rounds: int, options: LoadOptions) -> None:
    shape = f"batch {options.batch_size}, {options.size} x {options.size} on {options.device}"
    echo(f"{plural(sets, 'set')}, {plural(rounds, 'round')} in turn, {shape}, {options.workers} threads")
    titles = (
        "batch waits ms p50 / p95 / p99 / max",
        "first batch s",
        "requests/set",
        "KiB/set",
        "hits %",
        "read ms p50 / p99",
    )
    for which, of in rows.items():
        echo("", f"{which} epoch" if which == FIRST else f"{which} epochs, {LATER_EPOCHS} a round")
        print_rates(of)
        echo("")
        print_table(titles, {name: _cells(row) for name, row in of.items()})
    echo("", f"{CACHE}: a new one each round; {RANGES}: no cache; {LOCAL}: a folder, not in the page cache at first")
    echo(f"{LANES}: the same in the order of a URL, {URL_WINDOW} shards at a time")
    echo(f"a first epoch counts from opening; {RANGES}: its first {MOST_RANGES} batches, unless it has fewer")
    echo("requests, KiB: of the URL; reads: the last 4,096")


def _cells(row: Mapping[str, Any]) -> list[str]:
    def number(key: str, digits: int, scale: float = 1.0) -> str:
        return "-" if row[key] is None else f"{row[key] * scale:,.{digits}f}"

    return [
        " / ".join(f"{wait:.1f}" for wait in row["wait_ms"].values()),
        number("first_batch_sec", 2),
        number("requests_a_set", 4),
        number("source_bytes_a_set", 1, 1 / 1024),
        number("hit_share", 1, 100),
        f"{number('read_wait_p50_ms', 2)} / {number('read_wait_p99_ms', 2)}",
    ]
