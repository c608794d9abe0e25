"""Ours beside LitData and MosaicML Streaming on the same sets in object storage, each in its own format.

    python -m benchmarks.remote --shards shards --url s3://bucket/race --sets 4000

Formats that are not there yet are put below the URL first. Each pass is the first epoch of a new loader through a new
cache. A loader that fails is named with its error, and the others go on.
"""

import functools
import json
import shlex
import shutil
import statistics
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import Loaded, Worker
from benchmarks.peers import Ours, from_package
from benchmarks.peers_pillow import litdata_format, litdata_remote, streaming_format, streaming_remote
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.storage import Url, storage_of
from tools.bench_loader import OURS_PLANES, Comparison, LoadOptions, loader_row, loaders_report, print_loaders
from tools.cli import Command, LocationType, echo
from tools.measure import Pass, machine

NAMES = ("ours", "streaming", "litdata")
DONE = "complete"
"""An object that is put last."""


def ours_remote(url: str, shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """Our loader through a cache that is new."""
    cache = tempfile.mkdtemp(prefix="fgbg-ours-")
    loader = Ours(Url(url), options, cache=cache)
    weakref.finalize(loader, shutil.rmtree, cache, ignore_errors=True)
    return loader


def _same(shards: Path, _: Path) -> Path:
    return shards


MAKE: dict[str, Callable[[str, Path, LoadOptions], Iterable[Loaded]]] = {
    "ours": ours_remote, OURS_PLANES: ours_remote, "streaming": streaming_remote, "litdata": litdata_remote
}  # fmt: skip
FORMATS = {"ours": _same, OURS_PLANES: _same, "streaming": streaming_format, "litdata": litdata_format}


def make_remote(name: str, url: str, shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """A loader of the sets at a URL; `shards` has their backgrounds, and the same sets to compare with."""
    return from_package(name, functools.partial(MAKE[name], url), shards, options)


def put(folder: Path, url: Url) -> None:
    """Copy the files of a folder below a URL, unless they are there."""
    storage = storage_of(url)
    try:
        storage.stat(DONE)
    except FileNotFoundError:
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
            storage.put(str(file.relative_to(folder)), file.resolve())
        storage.put(DONE, b"")


def _row(comparison: Comparison, passes: Mapping[str, list[Pass]], name: str) -> dict[str, Any]:
    epoch_sec = statistics.median(run.first_batch_sec + run.wall_sec for run in passes[name])
    return {**loader_row(comparison, passes, name), "epoch_sec": epoch_sec}


@click.command(cls=Command)
@click.option("--shards", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Sets, as pictures.")
@click.option("--url", type=LocationType(), required=True, help="Where their formats lie, or are put.")
@click.option(
    "--planes", type=click.Path(path_type=Path), metavar="DIR", help="The same packed as planes: ours-planes."
)
@click.option(
    "--loader",
    "names",
    default=",".join(NAMES),
    show_default=True,
    help="Which, with commas; ours-planes with --planes.",
)
@click.option("--sets", type=click.IntRange(1), default=4000, show_default=True, help="Of a pass, in whole shards.")
@click.option("--rounds", type=click.IntRange(2), default=3, show_default=True, help="Timed passes of each, in turn.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads, or processes.")
def main(shards: Path, url: Url, planes: Path | None, names: str, sets: int, rounds: int, workers: int) -> None:
    """Time first epochs of loaders from object storage, in turn; print tables and, at last, one JSON object."""
    options = LoadOptions(256, 128, "cpu", workers)
    chosen = [*names.split(","), *([OURS_PLANES] if planes else [])]
    comparison = Comparison(shards, planes, chosen, sets, rounds, ["cold"], chosen[0], options)
    failed, passes = dict[str, str](), dict[str, list[Pass]]()
    with ExitStack() as stack:
        pictures, folders = stack.enter_context(comparison.folders())
        loaders = {}
        for name in chosen:
            put(FORMATS[name](folders[name], options.cache), url / name)
            make = functools.partial(make_remote, name, str(url / name))
            loaders[name] = stack.enter_context(Worker(name, make, folders[name], pictures, options))
        for number in range(1 + rounds):
            for name in (name for name in chosen if name not in failed):
                try:
                    run = loaders[name].cold() if number else loaders[name].verify()
                except InputError as error:
                    failed[name] = str(error)
                    passes.pop(name, None)
                    echo(f"failed in pass {number}: {error}")
                else:
                    if isinstance(run, Pass):
                        passes.setdefault(name, []).append(run)
        if not passes:
            raise InputError("; ".join(failed.values()))
        rows = {"cold": {name: _row(comparison, passes, name) for name in passes}}
        print_loaders(comparison, rows, [("epoch s", lambda row: f"{row['epoch_sec']:.1f}")])
        echo("sets/s: from the first batch on; epoch s: from opening, with the start of worker processes")
        report: dict[str, Any] = loaders_report(comparison, rows, Manifest.load(pictures).sets)
    command = shlex.join(["python", "-m", "benchmarks.remote", *sys.argv[1:]])
    echo(json.dumps({"command": command, "machine": machine(), **report, "failed": failed}))


if __name__ == "__main__":
    main()
