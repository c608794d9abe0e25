"""python -m benchmarks.gpu: the claims of this project on a GPU, right and fast, by one command."""

import re
import shlex
import signal
import sys
import time
from pathlib import Path

import click

from benchmarks.gpu.plan import DATA, JPEG, PARTS, PLANES
from benchmarks.gpu.process import Context, run_parts
from benchmarks.gpu.record import FAILED, Record, failures_of, load_record, save_report
from pipeline.devices import gpu_usable, torch_device
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from tools.cli import Command, echo
from train.config import COMPILE, DEVICES

DIR = click.Path(path_type=Path)
INTERRUPTED = 130
SETS, END_TO_END = {"gpu": 20_000, "cpu": 400}, {"gpu": (400_000, 20), "cpu": (300, 3)}
CASE = rf"[\w-]+,[1-9]\d*,({'|'.join(COMPILE[1:])})"
NAMES = [part.name for part in PARTS]


def _names(_: click.Context, __: click.Parameter, text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in NAMES]:
        raise click.BadParameter(f"no {', '.join(unknown)}: expected some of {', '.join(NAMES)}")
    return names


def _seconds(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, float]:
    found = dict[str, float]()
    for text in texts:
        name, seconds = text.partition("=")[::2]
        if name not in NAMES or not re.fullmatch(r"[1-9]\d*", seconds):
            raise click.BadParameter(f"{text!r}: expected PART=N, whole seconds for one of {', '.join(NAMES)}")
        found[name] = float(seconds)
    return found


def _cases(_: click.Context, __: click.Parameter, text: str) -> list[str]:
    if wrong := [case for case in text.split() if not re.fullmatch(CASE, case)]:
        raise click.BadParameter(f"{wrong[0]!r}: expected MODEL,SETS,COMPILE as unet-s,256,default")
    return text.split()


@click.command(cls=Command)
@click.argument("work", type=DIR)
@click.option("--only", callback=_names, default="", metavar="NAMES", show_default="all",
              help=f"Parts, with commas, of {', '.join(NAMES)}; the data that they need are made, too.")  # fmt: skip
@click.option("--skip", callback=_names, default="", metavar="NAMES", help="Parts to leave out.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True,
              help="For all parts together; those that no longer fit run at the next start.")  # fmt: skip
@click.option("--seconds", callback=_seconds, multiple=True, metavar="PART=N",
              help="What a part takes at most, in place of what it may; again for others.")  # fmt: skip
@click.option("--shards", type=DIR, metavar="DIR", help="JPEG sets with depth.  [default: synthetic ones are made]")
@click.option("--planes", type=DIR, metavar="DIR", help="The same sets packed with --codec planes.")
@click.option("--sets", type=click.IntRange(100), show_default="20000; on a CPU 400", help="Synthetic sets to make.")
@click.option("--cases", callback=_cases, default="", metavar="CASES", show_default="many",
              help="What throughput measures: 'MODEL,SETS,COMPILE ...'.")  # fmt: skip
@click.option("--end-to-end-sets", "--whole-sets", type=click.IntRange(100), show_default="400000; on a CPU 300",
              help="Of the part end_to_end.")  # fmt: skip
@click.option("--end-to-end-epochs", "--whole-epochs", type=click.IntRange(2), show_default="20; on a CPU 3",
              help="Of the part end_to_end.")  # fmt: skip
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True,
              help="auto: the GPU if there is one.")  # fmt: skip
@click.pass_context
def main(
    ctx: click.Context, /, work: Path, only: list[str], skip: list[str], minutes: float, seconds: dict[str, float],
    shards: Path | None, planes: Path | None, sets: int | None, cases: list[str], end_to_end_sets: int | None,
    end_to_end_epochs: int | None, device: str,
) -> None:  # fmt: skip
    """Check and measure everything on the GPU of this machine, part by part, what is worth most first.

    What is found is kept in the folder WORK, row by row. When the command is given again, it leaves out what is done,
    and goes on; what failed runs again, unless --skip names it. At the end WORK/gpu-report.json is written, and a
    report in Markdown printed, which is WORK/gpu-report.md, too. Without a GPU, small forms run on the CPU: they show
    that the code works, and no figure of theirs means anything.
    """
    started_sec = time.perf_counter()
    if (shards is None) != (planes is None):
        raise click.UsageError(
            "--shards and --planes go together: the same sets, packed with and without --codec planes"
        )
    if shards is not None and sets is not None:
        raise click.UsageError("--sets is for synthetic sets: leave it out, or --shards and --planes")
    wanted = [name for name in NAMES if name not in skip and (name in only if only else name not in DATA)]
    if not wanted:
        raise click.UsageError("--only and --skip leave no part")
    if device == "auto":
        device = "gpu" if gpu_usable() else "cpu"
    torch_device(device)
    given = {kind: str(folder) for kind, folder in ((JPEG, shards), (PLANES, planes)) if folder is not None}
    for folder in given.values():
        Manifest.load(Path(folder))
    end_to_end = [end_to_end_sets or END_TO_END[device][0], end_to_end_epochs or END_TO_END[device][1]]
    context = Context(str(work), device, sets or SETS[device], given, cases, end_to_end)
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing that we have started may outlive us
    found, text = dict[str, Record](), ""
    try:
        for record in run_parts(wanted, context, seconds, started_sec + minutes * 60, echo):
            found[record["name"]] = record
    except KeyboardInterrupt:
        echo("", f"stopped; what is done is kept in {work}: the same command goes on", err=True)
        ctx.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, former)
        everything = [of for name in NAMES if (of := found.get(name) or load_record(work, name))]
        if everything:
            text = save_report(work, shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]), everything)
    told = ", ".join(f"{name} {of['status']}, {len(of.get('rows', ()))} rows" for name, of in found.items())
    echo("", *text.split("\n"), "", f"{told}; numbers: {work / 'gpu-report.json'}")
    if failed := {name: failures_of(record) for name, record in found.items() if record["status"] == FAILED}:
        first = "; ".join(f"{name}: {failures[0]}" for name, failures in failed.items())
        raise InputError(f"{len(failed)} of {len(found)} parts failed: {first}")


if __name__ == "__main__":
    main()
