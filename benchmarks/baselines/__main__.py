"""python -m benchmarks.baselines: every network with every loss, on the same data, with the same budgets."""

import os
import shlex
import signal
import sys
from pathlib import Path

# Before torch is loaded, here and in what is started from here: see tools/train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click

from benchmarks.baselines.chart import draw_chart
from benchmarks.baselines.plan import BUDGETS, DATA, NETWORKS_IN_TURN, WITHOUT_DEPTH, baselines
from benchmarks.baselines.results import save_results
from benchmarks.baselines.study import Settings, Study
from benchmarks.baselines.table import tables
from pipeline.errors import InputError
from tools.benchmark.machine import describe, machine
from tools.cli import Command
from train.config import DEVICES, PRECISIONS, require_network
from train.losses import RECIPES

DEFAULT = Settings()
SAME = f"{WITHOUT_DEPTH}: without depth, net is convgen and bce+ssim is bce; each is trained once"
INTERRUPTED = 130  # what a shell makes of Ctrl-C


def _names(ctx: click.Context, option: click.Parameter, text: str) -> list[str]:
    """A list with commas, of names that there are."""
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if option.name == "networks":
            try:
                require_network(name)
            except InputError as error:
                raise click.BadParameter(str(error)) from error
        elif name not in (choices := DATA if option.name == "data" else tuple(RECIPES)):
            raise click.BadParameter(f"{name!r}: expected some of {', '.join(choices)}")
    return names


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--photos", type=click.Path(path_type=Path), metavar="DIR",
              help="DIR/bg and DIR/fg hold backgrounds, and foregrounds with alpha, for the data photos.")  # fmt: skip
@click.option("--sets", type=click.IntRange(1), default=1280, help="Budget of training: sets seen.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=1.0,
              help="Budget of training, of other runs: minutes. Let the machine do nothing else.")  # fmt: skip
@click.option("--budget", type=click.Choice([*BUDGETS, "both"]), default="both", help="Which runs are wanted.")
@click.option("--data", callback=_names, default=",".join(DATA), help="Data sets.")
@click.option("--networks", callback=_names, default=",".join(NETWORKS_IN_TURN), help="Or unet-W, as unet-16.")
@click.option("--losses", callback=_names, default=",".join(RECIPES), help="Loss recipes.")
@click.option("--compose-sets", type=click.IntRange(1), default=DEFAULT.compose_sets, help="Sets in each data set.")
@click.option("--test-sets", type=click.IntRange(1), default=DEFAULT.test_sets, help="Sets scored, at most.")
@click.option("--batch-size", type=click.IntRange(1), default=DEFAULT.batch_size, help="Sets a step.")
@click.option("--size", type=click.IntRange(32), default=DEFAULT.size, help="Height and width, pixels; 16, 32, ...")
@click.option("--seed", type=click.IntRange(0), default=DEFAULT.seed, help="Of data, first weights and order.")
@click.option("--device", type=click.Choice(DEVICES), default=DEFAULT.device, help="auto: the GPU if there is one.")
@click.option("--precision", type=click.Choice(PRECISIONS), default=DEFAULT.precision, help="Of all networks.")
@click.pass_context
def main(
    ctx: click.Context, /, work: Path, photos: Path | None, sets: int, minutes: float, budget: str,
    data: list[str], networks: list[str], losses: list[str], **settings: int | str,
) -> None:  # fmt: skip
    """Train every network with every loss on every data set, and score it on sets that it has never seen.

    Shards, runs and logs are kept in the folder WORK. When the command is given again, it leaves out what is done and
    goes on; runs of some minutes start anew. At the end WORK/baselines.json and baselines.png are written, and tables
    are printed in Markdown.
    """
    if not photos and WITHOUT_DEPTH in data:
        data = [name for name in data if name != WITHOUT_DEPTH]
        if not data:
            raise click.UsageError("--data photos needs --photos DIR")
        click.echo("photos: left out, there is no --photos DIR")
    amounts = {"sets": float(sets), "minutes": minutes}
    budgets = [(name, amounts[name]) for name in BUDGETS if budget in (name, "both")]
    plan = baselines(data, networks, losses, budgets)
    study = Study(work, Settings(**settings), photos, click.echo)  # type: ignore[arg-type]
    if len(plan) < len(data) * len(networks) * len(losses) * len(budgets):
        click.echo(SAME)
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing that we have started may outlive us
    try:
        outcome = study.run(plan)
    except KeyboardInterrupt:
        click.echo(f"\nstopped; what is done is kept in {work}: the same command goes on", err=True)
        ctx.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, former)
    if outcome.rows:
        found = machine()
        about = {"machine": found, "command": shlex.join(["python", "-m", "benchmarks.baselines", *sys.argv[1:]]),
                 "settings": settings, "failed": outcome.failed}  # fmt: skip
        save_results(work / "baselines.json", outcome.rows, about)
        draw_chart(outcome.rows, describe(found), work / "baselines.png")
        click.echo(f"\n{tables(outcome.rows)}\n")
        click.echo(f"numbers: {work / 'baselines.json'}, chart: {work / 'baselines.png'}")
    if outcome.failed:
        raise InputError(f"{len(outcome.failed)} of {len(plan)} runs failed: {', '.join(outcome.failed)}")


if __name__ == "__main__":
    main()
