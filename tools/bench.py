"""fgbg-bench: throughput beside its peers, in one run, after proof that all loaders give the same pictures."""

import functools
import json
import os
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Before torch is loaded: its threads shall sleep, not spin, while they wait for one another, beside DALI's threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click

from pipeline.decode import DEVICES, torch_device
from pipeline.errors import InputError
from pipeline.planes import PLANES
from pipeline.workers import available_cores
from tools.cli import Command, progress_bar
from tools.measure import Reference, first_shards, in_turn, machine, print_table, table_row, timed_pass
from tools.peers import LOADERS, LoadOptions, ours
from tools.writers import bench_composing, bench_packing


@click.command(cls=Command)
@click.option("--shards", type=click.Path(path_type=Path), help="Shards to load.")
@click.option(
    "--loader", "names", default=",".join(LOADERS), show_default=True, help="Loaders to measure, with commas."
)
@click.option("--planes", type=click.Path(path_type=Path), metavar="DIR",
              help="The sets of --shards packed with --codec planes: measure how these load, too.")  # fmt: skip
@click.option("--packing", type=click.Path(path_type=Path), metavar="SOURCE",
              help="Measure fgbg-pack against webdataset.ShardWriter on the image sets of SOURCE.")  # fmt: skip
@click.option("--composing", type=click.Path(path_type=Path), metavar="PHOTOS",
              help="Measure fgbg-compose on PHOTOS/bg and PHOTOS/fg against the original's way.")  # fmt: skip
@click.option("--sets", type=click.IntRange(1), default=10_000, show_default=True,
              help="Sets a pass; of loaders in whole shards.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Timed passes of each, in turn.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Sets a batch.")
@click.option("--size", type=click.IntRange(1), default=128, show_default=True, help="Height and width, pixels.")
@click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True, help="Where DALI decodes.")
@click.option("--workers", type=click.IntRange(1), default=available_cores(), show_default="one a core",
              help="DALI threads, DataLoader or packing processes.")  # fmt: skip
def main(
    shards: Path | None,
    names: str,
    planes: Path | None,
    packing: Path | None,
    composing: Path | None,
    sets: int,
    rounds: int,
    batch_size: int,
    size: int,
    device: str,
    workers: int,
) -> None:
    """Measure loaders on the same shards, or what packs or makes sets; print a table and one JSON line.

    Every loader first has to give each set once and the pictures that Pillow gives. Then they take turns.
    """
    if [shards, packing, composing].count(None) != 2:
        raise click.UsageError("give one of --shards DIR (loaders), --packing SOURCE and --composing PHOTOS")
    if planes and not shards:
        raise click.UsageError("--planes goes with --shards, which has the pictures to compare them with")
    if shards is not None:
        unknown = [name for name in names.split(",") if name not in LOADERS]
        if unknown:
            raise click.UsageError(f"no loader called {', '.join(unknown)}: expected some of {', '.join(LOADERS)}")
        torch_device(device)
        options = LoadOptions(batch_size, size, device, workers)
        report = bench_loaders(shards, planes, names.split(","), sets, rounds, options)
    elif packing is not None:
        report = bench_packing(packing, rounds, workers)
    else:
        assert composing is not None
        report = bench_composing(composing, sets, rounds)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    click.echo(json.dumps({"command": command, "machine": machine(), **report}))


def bench_loaders(
    shards: Path, planes: Path | None, names: list[str], sets: int, rounds: int, options: LoadOptions
) -> dict[str, Any]:
    """Check every loader against the reference, then time them in turn; page cache warm."""
    with ExitStack() as stack:
        folder = stack.enter_context(first_shards(shards, sets))
        loaders = {name: LOADERS[name](folder, options) for name in names}
        if planes:
            loaders["ours-planes"] = ours(stack.enter_context(first_shards(planes, sets, PLANES)), options)
            names = list(loaders)
        bar = stack.enter_context(progress_bar("measuring", len(names) * (rounds + 1)))
        reference = Reference(folder, options.size)
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
    rows = {name: {**table_row(passes, name, base), "difference": differences[name]._asdict()} for name in names}
    shape = f"batch {options.batch_size}, {options.size} x {options.size} on {options.device}"
    click.echo(f"{counted:,} sets a pass, {rounds} passes each in turn, {shape}, {options.workers} threads or workers")
    print_table(rows)
    click.echo("difference: levels of 255 from Pillow's gray decode and antialiased resize, mean / 99.9 % / largest")
    return {"sets": counted, "rounds": rounds, **asdict(options), "loaders": rows}


if __name__ == "__main__":
    sys.exit(main())
