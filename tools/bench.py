"""fgbg-bench: how fast our loader is, whether training waits for it; in a checkout, beside its peers in one run."""

import json
import os
import shlex
import sys
from collections import defaultdict
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import tools.before_torch  # noqa: F401 - first

# What is killed leaves its semaphores to Python's resource tracker, which removes them, and would tell the user so.
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")

import click

from pipeline.errors import InputError
from pipeline.storage import Location, Url
from pipeline.workers import available_cores
from tools.cli import Command, LocalPathType, LocationType, echo

if TYPE_CHECKING:
    from tools.bench_loader import LoadOptions

# Written again here, lest --help load torch; a test holds them together with what they repeat.
DEVICES, CACHES, PEERS_CACHE = ("gpu", "cpu"), ("warm", "cold"), Path("~/.cache/fgbg")
AXES = ("threads", "prefetch", "batch-size", "hw-decoder-load")
OURS = ("ours", "ours-planes", "ours-resident")
PEERS = ("dali-reader", "seed", "webdataset", "streaming", "litdata")
ROOT = Path(__file__).parent.parent
NOT_INSTALLED = "run fgbg-bench from a checkout of the repository, whose folder benchmarks is not installed"
DIR = LocalPathType()
SETS = {"loaders": 10_000, "composing": 10_000, "sweep": 2_000}
OTHERS = "All"
SECTIONS = {
    "What to measure": ("shards", "step", "sweep", "packing", "composing", "order_rows"),
    "Loaders (--shards)": ("names", "planes", "cache", "base", "chart", "peers_cache"),
    "Object storage (--shards URL)": ("local",),
    "Stalls (--step)": ("resident", "model", "assert_stall_pct"),
    "Settings (--sweep)": ("grid",),
    "Order (--order)": ("window",),
}
GOES_WITH = {
    "step": "--shards", "sweep": "--shards", "names": "--shards", "planes": "--shards", "cache": "--shards",
    "base": "--shards", "chart": "--shards", "peers_cache": "--shards", "local": "--shards",
    "resident": "--step", "model": "--step",
    "assert_stall_pct": "--step", "grid": "--sweep", "window": "--order",
}  # fmt: skip
NOT_OF_URLS = ("names", "planes", "cache", "base", "chart", "peers_cache")


class SectionedCommand(Command):
    """A command whose options are listed in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of the options."""
        sections = {name: title for title, names in SECTIONS.items() for name in names}
        for title in (*SECTIONS, OTHERS):
            options = [option for option in self.get_params(ctx) if sections.get(option.name or "", OTHERS) == title]
            with formatter.section(title):
                formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])


@click.command(cls=SectionedCommand)
@click.option("--shards", type=LocationType(), metavar="DIR|URL",
              help="Loaders on these shards, unless --step or --sweep is given; ours alone behind a URL.")  # fmt: skip
@click.option("--step", is_flag=True, help="Stalls: the training step on one batch again and again, and on the loader.")
@click.option("--sweep", is_flag=True, help="Our loader under many settings; ends in the ones to use.")
@click.option("--packing", type=DIR, metavar="SOURCE", help="fgbg-pack beside webdataset.ShardWriter on these sets.")
@click.option("--composing", type=DIR, metavar="PHOTOS",
              help="fgbg-compose on PHOTOS/bg and PHOTOS/fg beside the original's way.")  # fmt: skip
@click.option("--order", "order_rows", type=click.IntRange(1), metavar="ROWS",
              help="What it costs to plan an epoch of this many sets.")  # fmt: skip
@click.option("--sets", type=click.IntRange(1), show_default="10000; --sweep 2000; --step all",
              help="Sets a pass; of loaders and --step in whole shards.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Timed passes of each, in turn.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Sets a batch.")
@click.option("--size", type=click.IntRange(1), default=128, show_default=True, help="Height and width, pixels.")
@click.option(
    "--device", type=click.Choice(DEVICES), default="cpu", show_default=True, help="Where batches have to be."
)
@click.option("--workers", "--threads", type=click.IntRange(1), default=available_cores(), show_default="one a core",
              help="DALI threads, DataLoader or packing processes.")  # fmt: skip
@click.option("--prefetch", type=click.IntRange(1), default=4, show_default=True,
              help="Batches that ours and DALI's reader keep under way.")  # fmt: skip
@click.option("--hw-decoder-load", type=click.FloatRange(0, 1), show_default="0 on Hopper GPUs, else 0.65",
              help="Share of the pictures that ours gives to the GPU's JPEG engine.")  # fmt: skip
@click.option("--loader", "names", metavar="NAMES", show_default="all that can be",
              help=f"Loaders to measure, with commas: {', '.join((*OURS, *PEERS))}.")  # fmt: skip
@click.option("--planes", type=DIR, metavar="DIR", help="The sets of --shards packed with --codec planes: ours-planes.")
@click.option("--cache", type=click.Choice((*CACHES, "both")), default="warm", show_default=True,
              help="The page cache: cold drops the files from it before each pass.")  # fmt: skip
@click.option("--local", type=DIR, metavar="DIR",
              help="The shards of the URL in a folder: what ratios are to.")  # fmt: skip
@click.option("--base", metavar="NAME", show_default="seed, or the first", help="The loader that ratios are to.")
@click.option("--chart", type=DIR, metavar="FILE", help="Draw the rates into this PNG.")
@click.option("--peers-cache", type=DIR, default=PEERS_CACHE, show_default=True, metavar="DIR",
              help="Where streaming and litdata keep the sets in their own formats.")  # fmt: skip
@click.option("--resident", type=click.Choice(("off", "auto", "device", "host")), default="off", show_default=True,
              help="Where decoded sets are kept for epoch 2.")  # fmt: skip
@click.option("--model", default="unet-s", show_default=True, help="The network that is trained, see fgbg-train.")
@click.option(
    "--assert-stall-pct", type=float, metavar="X", help="Exit with 1 if an epoch stalls for more of its time."
)
@click.option("--grid", multiple=True, metavar="AXIS=VALUES",
              help=f"Values of an axis, with commas; may be repeated. Axes: {', '.join(AXES)}.")  # fmt: skip
@click.option("--window", type=click.IntRange(1), default=64, show_default=True,
              help="Shards read and mixed at a time; beside it, all of them.")  # fmt: skip
@click.pass_context
def main(
    ctx: click.Context,
    /,
    shards: Location | None,
    packing: Path | None,
    composing: Path | None,
    order_rows: int | None,
    **given: Any,
) -> None:
    """Measure loaders, or what packs or makes sets; print tables and, as the last line, one JSON object.

    In a checkout of the repository our loader can be measured beside others. Then every loader has a process of its
    own, and first has to give each set once and the pictures that Pillow gives; after that they take turns.
    """
    _check_usage(ctx, [shards, packing, composing, order_rows].count(None) == 3, isinstance(shards, Url))
    from tools.bench_loader import LoadOptions, bench_order
    from tools.measure import machine

    options = LoadOptions(
        given["batch_size"], given["size"], given["device"], given["workers"], given["prefetch"], given["resident"],
        given["hw_decoder_load"], given["peers_cache"],
    )  # fmt: skip
    report: dict[str, Any]
    if packing is not None:
        report = _benchmarks("writers", "--packing").bench_packing(packing, given["rounds"], options.workers)
    elif composing is not None:
        sets = given["sets"] or SETS["composing"]
        report = _benchmarks("writers", "--composing").bench_composing(composing, sets, given["rounds"])
    elif order_rows is not None:
        report = bench_order(order_rows, given["window"])
    else:
        assert shards is not None
        report = _bench_shards(shards, options, **given)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    echo(json.dumps({"command": command, "machine": machine(), **report}))
    if given["assert_stall_pct"] is not None:
        from tools.bench_stalls import refuse_stalls

        refuse_stalls(report["epochs"], given["assert_stall_pct"])


def _in_checkout() -> bool:
    return (ROOT / "benchmarks" / "race.py").is_file()


def _benchmarks(module: str, asked: str) -> ModuleType:
    """A module of benchmarks; raise `InputError` for what was asked for where it is not there.

    This is the one import upwards in this project. It happens at run time: benchmarks is not installed, and is found
    beside this package in a checkout.
    """
    if not _in_checkout():
        raise InputError(f"{asked} is not measured here: {NOT_INSTALLED}")
    if str(ROOT) not in sys.path:  # of an installed command it is not
        sys.path.insert(0, str(ROOT))
    return import_module(f"benchmarks.{module}")


def _check_usage(ctx: click.Context, one_subject: bool, is_url: bool) -> None:
    """Raise `click.UsageError` where options do not go together."""
    if not one_subject:
        raise click.UsageError(
            "give one of --shards DIR (loaders), --packing SOURCE, --composing PHOTOS and --order ROWS"
        )
    flags = {option.name: option.opts[0] for option in ctx.command.params}
    given = {
        name for name in flags if name and ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    for name in flags:
        needed = GOES_WITH.get(name or "")
        if name in given and needed and needed not in {flags[other] for other in given}:
            raise click.UsageError(f"{flags[name]} goes with {needed}")
    if {"step", "sweep"} <= given:
        raise click.UsageError("give --step or --sweep, one at a time")
    for name in ("names", "planes", "cache", "base", "chart"):
        if name in given and given & {"step", "sweep"}:
            raise click.UsageError(f"{flags[name]} compares loaders: it does not go with --step or --sweep")
    if is_url:
        for name in (*NOT_OF_URLS, *(() if "sweep" in given else ("sets",))):
            if name in given:
                raise click.UsageError(f"{flags[name]} goes with shards in a folder, not with a URL")
    if "local" in given and (not is_url or given & {"step", "sweep"}):
        raise click.UsageError("--local is measured beside loaders of a URL: give --shards URL, no --step or --sweep")


def _bench_shards(shards: Location, options: "LoadOptions", **given: Any) -> dict[str, Any]:
    """What --shards asks for."""
    from pipeline.devices import torch_device
    from pipeline.format.manifest import Manifest
    from tools.bench_loader import OURS_RESIDENT, Comparison, bench_throughput, first_shards

    if given["step"]:
        from tools.bench_stalls import bench_step

        torch_device(options.device)
        codec = Manifest.load(shards).codec
        some = first_shards(shards, given["sets"], codec) if isinstance(shards, Path) and given["sets"] else None
        with some or nullcontext(shards) as folder:
            return {"sets": given["sets"], **bench_step(folder, options, given["model"])}
    if given["sweep"]:
        from tools.bench_stalls import bench_sweep, parse_grid

        try:
            settings = parse_grid(given["grid"], options.device)
        except ValueError as error:
            raise click.UsageError(f"--grid: {error}") from None
        torch_device(options.device)
        return bench_sweep(shards, options, settings, given["sets"] or SETS["sweep"], given["rounds"])
    if isinstance(shards, Url):
        from tools.bench_remote import bench_remote

        torch_device(options.device)
        return bench_remote(shards, given["local"], given["rounds"], options)
    names, chart = _names(given["names"], given["planes"]), given["chart"]
    if given["base"] and given["base"] not in names:
        raise click.UsageError(f"--base {given['base']} is not measured: expected one of {', '.join(names)}")
    if chart and not chart.parent.is_dir():
        raise InputError(f"no such folder: {chart.parent}")  # before the work, not after it
    if given["cache"] != "warm" and names == [OURS_RESIDENT]:
        raise click.UsageError(f"{OURS_RESIDENT} reads nothing while it is timed: it has no --cache {given['cache']}")
    torch_device(options.device)
    caches = CACHES if given["cache"] == "both" else (given["cache"],)
    base = given["base"] or ("seed" if "seed" in names else names[0])
    sets = given["sets"] or SETS["loaders"]
    comparison = Comparison(shards, given["planes"], names, sets, given["rounds"], caches, base, options)
    if chart or set(names) & set(PEERS):
        report: dict[str, Any] = _benchmarks("race", "--chart").race(comparison, chart)
        return report
    return bench_throughput(comparison)


def _names(text: str | None, planes: Path | None) -> list[str]:
    """The loaders to measure; raise `click.UsageError` for one that is not known, or lacks its data or package."""
    known, missing = (*OURS, *PEERS), {} if planes else {"ours-planes": "give --planes DIR"}
    names = [*known] if text is None else text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"no loader called {', '.join(unknown)}: expected some of {', '.join(known)}")
    if len(set(names)) < len(names):
        raise click.UsageError(f"--loader {text} names a loader twice")
    if not _in_checkout():
        missing |= dict.fromkeys(PEERS, NOT_INSTALLED)
    elif set(names) & set(PEERS):
        missing |= _benchmarks("race", "--loader").missing_peers()
    if text is None:
        reasons = defaultdict(list)
        for name, reason in missing.items():
            reasons[reason].append(name)
        if reasons:
            told = (f"{', '.join(of)} ({reason})" for reason, of in reasons.items())
            echo(f"not measured: {'; '.join(told)}")
        return [name for name in names if name not in missing]
    if unable := [name for name in names if name in missing]:
        raise click.UsageError("; ".join(f"loader {name}: {missing[name]}" for name in unable))
    return names if planes is None or "ours-planes" in names else [*names, "ours-planes"]


if __name__ == "__main__":
    sys.exit(main())
