"""python -m tools.gpu_check: the claims of this project on a GPU, right and fast, by one command."""

import os
import shlex
import signal
import sys
import time
from pathlib import Path

# Before torch is loaded, and for all parts: threads shall sleep, not spin, while they wait for one another.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click

from pipeline.devices import DEVICES, gpu_usable, torch_device
from pipeline.errors import InputError
from tools.cli import Command
from tools.gpu_check.check import Check
from tools.gpu_check.data import compose
from tools.gpu_check.parts import PARTS
from tools.gpu_check.report import FAILED, load_record, markdown, save_report

DIR = click.Path(path_type=Path)
REPORT = "gpu-report.json"
INTERRUPTED = 130
SETS = {"gpu": 20_000, "cpu": 400}


def _names(_: click.Context, option: click.Parameter, text: str) -> list[str]:
    known = [part.name for part in PARTS]
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"no {', '.join(unknown)}: expected some of {', '.join(known)}")
    return names


@click.command(cls=Command)
@click.argument("work", type=DIR)
@click.option("--only", callback=_names, default="", metavar="NAMES", show_default="all",
              help=f"Parts, with commas, of {', '.join(part.name for part in PARTS)}.")  # fmt: skip
@click.option("--skip", callback=_names, default="", metavar="NAMES", help="Parts to leave out.")
@click.option("--shards", type=DIR, metavar="DIR", help="JPEG sets with depth.  [default: synthetic ones are made]")
@click.option("--planes", type=DIR, metavar="DIR", help="The same sets packed with --codec planes.")
@click.option("--sets", type=click.IntRange(100), show_default="20000; on a CPU 400", help="Synthetic sets to make.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True,
              help="For all parts together; those that no longer fit run at the next start.")  # fmt: skip
@click.option("--device", type=click.Choice(("auto", *DEVICES)), default="auto", show_default=True,
              help="auto: the GPU if there is one.")  # fmt: skip
@click.pass_context
def main(
    ctx: click.Context, /, work: Path, only: list[str], skip: list[str], shards: Path | None, planes: Path | None,
    sets: int | None, minutes: float, device: str,
) -> None:  # fmt: skip
    """Check and measure everything on the GPU of this machine, part by part.

    What is found is kept in the folder WORK. When the command is given again, it leaves out the parts that are done,
    and goes on; those that failed run again, unless --skip names them. At the end WORK/gpu-report.json is written, and
    a report in Markdown printed. Without a GPU, small forms run on the CPU: they show that the code works, and no
    figure of theirs means anything.
    """
    if (shards is None) != (planes is None):
        raise click.UsageError(
            "--shards and --planes go together: the same sets, packed with and without --codec planes"
        )
    if shards is not None and sets is not None:
        raise click.UsageError("--sets is for synthetic sets: leave it out, or --shards and --planes")
    chosen = [part for part in PARTS if part.name not in skip and (not only or part.name in only)]
    if not chosen:
        raise click.UsageError("--only and --skip leave no part")
    if device == "auto":
        device = "gpu" if gpu_usable() else "cpu"
    torch_device(device)
    started_sec = time.perf_counter()
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing that we have started may outlive us
    try:
        if shards is None or planes is None:
            shards, planes = compose(work / "data", sets or SETS[device], device, click.echo)
        check = Check(work, shards, planes, device, click.echo)
        records = check.run(chosen, started_sec + minutes * 60)
    except KeyboardInterrupt:
        click.echo(f"\nstopped; what is done is kept in {work}: the same command goes on", err=True)
        ctx.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, former)
    found = {record["name"]: record for record in records}
    everything = [record for part in PARTS if (record := found.get(part.name) or load_record(work, part.name))]
    save_report(work / REPORT, shlex.join(["python", "-m", "tools.gpu_check", *sys.argv[1:]]), everything)
    click.echo(f"\n{markdown(everything)}\n\nnumbers: {work / REPORT}")
    if failed := [record["name"] for record in records if record["status"] == FAILED]:
        raise InputError(f"{len(failed)} of {len(records)} parts failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
