"""fgbg-bench: throughput beside its peers, in one run, after proof that all loaders give the same pictures."""

import functools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Before torch is loaded: its threads shall sleep, not spin, while they wait for one another, beside DALI's threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click

from pipeline.decode import DEVICES, torch_device
from pipeline.errors import InputError
from pipeline.index import Manifest
from pipeline.layouts import SEED_DEPTH_RUN
from pipeline.pack import PackOptions
from pipeline.sets import find_sets
from tools.cli import Command, progress_bar
from tools.measure import Pass, Reference, cpu_sec, first_shards, in_turn, machine, spread, timed_pass
from tools.peers import LOADERS, LoadOptions, pack_with_shard_writer


@click.command(cls=Command)
@click.option("--shards", type=click.Path(path_type=Path), help="Shards to load.")
@click.option(
    "--loader", "names", default=",".join(LOADERS), show_default=True, help="Loaders to measure, with commas."
)
@click.option("--packing", type=click.Path(path_type=Path), metavar="SOURCE",
              help="Measure fgbg-pack against webdataset.ShardWriter on the image sets of SOURCE.")  # fmt: skip
@click.option("--sets", type=click.IntRange(1), default=10_000, show_default=True, help="Sets a pass, in whole shards.")
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Timed passes of each, in turn.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Sets a batch.")
@click.option("--size", type=click.IntRange(1), default=128, show_default=True, help="Height and width, pixels.")
@click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True, help="Where DALI decodes.")
@click.option("--workers", type=click.IntRange(1), default=PackOptions().workers, show_default="one a core",
              help="DALI threads, DataLoader or packing processes.")  # fmt: skip
def main(
    shards: Path | None,
    names: str,
    packing: Path | None,
    sets: int,
    rounds: int,
    batch_size: int,
    size: int,
    device: str,
    workers: int,
) -> None:
    """Measure loaders on the same shards, or packing tools on the same files; print a table and one JSON line.

    Every loader first has to give each set once and the pictures that Pillow gives. Then they take turns.
    """
    if (shards is None) == (packing is None):
        raise click.UsageError("give either --shards DIR (loaders) or --packing SOURCE (packing tools)")
    if shards is not None:
        unknown = [name for name in names.split(",") if name not in LOADERS]
        if unknown:
            raise click.UsageError(f"no loader called {', '.join(unknown)}: expected some of {', '.join(LOADERS)}")
        torch_device(device)
        report = bench_loaders(shards, names.split(","), sets, rounds, LoadOptions(batch_size, size, device, workers))
    else:
        assert packing is not None
        report = bench_packing(packing, rounds, workers)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    click.echo(json.dumps({"command": command, "machine": machine(), **report}))


def bench_loaders(shards: Path, names: list[str], sets: int, rounds: int, options: LoadOptions) -> dict[str, Any]:
    """Check every loader against the reference, then time them in turn; page cache warm."""
    with first_shards(shards, sets) as folder, progress_bar("measuring", len(names) * (rounds + 1)) as bar:
        reference = Reference(folder, options.size)
        loaders = {name: LOADERS[name](folder, options) for name in names}
        differences = {}
        for name, loader in loaders.items():  # the warm-up too: workers start, files come into the page cache
            try:
                differences[name] = reference.compare(loader)
            except InputError as error:
                raise InputError(f"loader {name}: {error}") from error
            bar.update(1)
        runs = {name: functools.partial(timed_pass, loader, reference.sets) for name, loader in loaders.items()}
        passes = in_turn(runs, rounds, lambda: bar.update(1))
        counted = reference.sets
    base = "seed" if "seed" in names else names[-1]
    rows = {name: {**_row(passes, name, base), "difference": differences[name]._asdict()} for name in names}
    shape = f"batch {options.batch_size}, {options.size} x {options.size} on {options.device}"
    click.echo(f"{counted:,} sets a pass, {rounds} passes each in turn, {shape}, {options.workers} threads or workers")
    _print_table(rows)
    click.echo("difference: levels of 255 from Pillow's gray decode and antialiased resize, mean / 99.9 % / largest")
    return {"sets": counted, "rounds": rounds, **asdict(options), "loaders": rows}


def bench_packing(source: Path, rounds: int, workers: int) -> dict[str, Any]:
    """Time fgbg-pack, with both ways of verifying, and `webdataset.ShardWriter` in turn on the same files."""

    def timed(write: Callable[[Path], int]) -> Pass:
        with tempfile.TemporaryDirectory(prefix="fgbg-bench-") as name:
            cpu_before, start = cpu_sec(), time.perf_counter()
            sets = write(Path(name))
            wall_sec = time.perf_counter() - start
            return Pass(sets / wall_sec, (cpu_sec() - cpu_before) / sets * 1000)

    def with_pack(verify: str, folder: Path) -> int:
        # The command, start-up and all: its workers would import this program, were they started from here.
        command = [sys.executable, "-m", "tools.pack", str(source), "--shards", str(folder), "--verify", verify]
        subprocess.run([*command, "--workers", str(workers)], check=True, stdout=subprocess.DEVNULL)
        return Manifest.load(folder).sets

    def with_shard_writer(folder: Path) -> int:
        sets = find_sets(source, SEED_DEPTH_RUN)
        pack_with_shard_writer(source, folder, sets)
        return len(sets)

    find_sets(source, SEED_DEPTH_RUN)  # a wrong source ends here, in one line
    writers: dict[str, Callable[[Path], int]] = {
        "ours (verify header)": functools.partial(with_pack, "header"),
        "ours (verify decode)": functools.partial(with_pack, "decode"),
        "webdataset.ShardWriter": with_shard_writer,
    }
    with progress_bar("measuring", len(writers) * (rounds + 1)) as bar:
        runs = {name: functools.partial(timed, write) for name, write in writers.items()}
        in_turn(runs, 1, lambda: bar.update(1))  # the warm-up: files come into the page cache
        passes = in_turn(runs, rounds, lambda: bar.update(1))
    rows = {name: _row(passes, name, "webdataset.ShardWriter") for name in writers}
    click.echo(f"packing {source}, {rounds} rounds each in turn, {workers} workers for ours, page cache warm")
    _print_table(rows)
    return {"rounds": rounds, "workers": workers, "packing": rows}


def _row(passes: dict[str, list[Pass]], name: str, base: str) -> dict[str, Any]:
    """Medians and quartiles of one contestant; `ratio` is the median of the ratios to `base` within each round."""
    ratios = [one.sets_per_sec / other.sets_per_sec for one, other in zip(passes[name], passes[base], strict=True)]
    return {
        "sets_per_sec": spread([run.sets_per_sec for run in passes[name]]),
        "cpu_sec_per_1000_sets": statistics.median(run.cpu_sec_per_1000_sets for run in passes[name]),
        "ratio": spread(ratios),
        "ratio_to": base,
    }


def _print_table(rows: dict[str, dict[str, Any]]) -> None:
    base = next(iter(rows.values()))["ratio_to"]
    click.echo(f"{'':24}{'sets/s (quartiles)':>28}{f'x {base} (quartiles)':>36}{'CPU s/1000':>12}  difference")
    for name, row in rows.items():
        rate, ratio = row["sets_per_sec"], row["ratio"]
        rates = f"{rate['median']:,.0f} ({rate['q1']:,.0f}-{rate['q3']:,.0f})"
        ratios = f"{ratio['median']:.2f} ({ratio['q1']:.2f}-{ratio['q3']:.2f})"
        difference = " / ".join(f"{level:.2f}" for level in row.get("difference", {}).values())
        click.echo(f"{name:24}{rates:>28}{ratios:>36}{row['cpu_sec_per_1000_sets']:>12.2f}  {difference}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
