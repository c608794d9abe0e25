"""python -m benchmarks.baselines: every network with every loss, on the same data, with the same budgets."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import click

from benchmarks.baseline_results import (
    BUDGETS,
    DATA,
    SPLIT,
    BaselineResult,
    draw_chart,
    gmac,
    network_shapes,
    save_results,
    tables,
    training_time,
)
from benchmarks.processes import CommandError, run, seconds_taken, stoppable
from pipeline.composing.photos import find_pictures
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, load_index
from pipeline.loading.split import Split
from tools.cli import Command, echo
from tools.measure import describe_machine, machine
from train.checkpoint import has_checkpoint
from train.config import DEVICES, PRECISIONS, Config, require_network
from train.evaluate import HEADLINE
from train.logging import read_lines
from train.losses import RECIPES
from train.networks import ORIGINALS, UNETS

WITHOUT_DEPTH = "photos"
NETWORKS = (*sorted(ORIGINALS), *UNETS)  # convgen first: without depth net is the same
RATES = {"original": 1e-3, "unet": 3e-3}
"""Highest learning rates of AdamW, for batches of 32; that of the U-Nets is `make demo`'s."""
CHECKPOINT_EVERY = 25  # steps; one of `net` takes most of a minute on two cores
SAME = f"{WITHOUT_DEPTH}: without depth, net is convgen and bce+ssim is bce; each is trained once"


@dataclass(frozen=True)
class Baseline:
    """One network, trained with one loss on one data set until its budget is spent."""

    data: str
    network: str
    loss: str
    budget: str
    """What `amount` counts: "sets" seen, or "minutes"."""
    amount: float

    @property
    def name(self) -> str:
        """Its folder's."""
        return f"{self.data}-{self.network}-{self.loss}-{self.spent}-{self.budget}"

    @property
    def spent(self) -> str:
        """The amount as text, a million without an exponent."""
        return f"{self.amount:.12g}"

    @property
    def depth(self) -> bool:
        """Whether depth is trained and scored, or the mask alone."""
        return self.data != WITHOUT_DEPTH

    @property
    def lr(self) -> float:
        """Highest learning rate."""
        return RATES["original" if self.network in ORIGINALS else "unet"]


def baselines(
    data: Iterable[str], networks: Sequence[str], losses: Sequence[str], budgets: Sequence[tuple[str, float]]
) -> Iterator[Baseline]:
    """Every combination, in the order in which they are trained; `budgets` are pairs of budget and amount.

    Without depth some networks and some losses are the same: the first of each is taken.
    """
    for name in data:
        depth = name != WITHOUT_DEPTH
        distinct_networks = {network_shapes(network, depth): network for network in reversed(networks)}.values()
        distinct_losses = {
            frozenset(part for part in RECIPES[loss].items() if depth or part[0].startswith("mask_")): loss
            for loss in reversed(losses)
        }.values()
        for (budget, amount), network, loss in product(budgets, networks, losses):
            if network in distinct_networks and loss in distinct_losses:
                yield Baseline(name, network, loss, budget, amount)


def read_result(baseline: Baseline, size: int, folder: Path) -> BaselineResult:
    """The result of a run from its metrics.jsonl and test/evaluation.json; `size` in pixels."""
    evaluation = json.loads((folder / "test" / "evaluation.json").read_text())
    cell = evaluation["cells"][HEADLINE]
    sets, seconds, waited_sec = training_time(read_lines(folder / "metrics.jsonl"))
    return BaselineResult(
        **asdict(baseline),
        lr=baseline.lr,
        depth=baseline.depth,
        parameters=sum(shape.numel() for shape in network_shapes(baseline.network, baseline.depth)),
        gmac=gmac(baseline.network, baseline.depth, size),
        sets_seen=sets,
        minutes=seconds / 60,
        sets_per_sec=sets / seconds if seconds else 0.0,
        stall_share=waited_sec / seconds if seconds else 0.0,
        test_sets=cell["sets"],
        test_backgrounds=cell["backgrounds"],
        threshold=evaluation["threshold"],
        scores=cell["scores"],
    )


class Study:
    """All runs in one folder: shards in WORK/data/NAME, a run and its scores in WORK/runs/NAME, output in WORK/logs."""

    def __init__(
        self, work: Path, photos: Path | None, *, compose_sets: int, test_sets: int, batch_size: int, size: int,
        seed: int, device: str, precision: str,
    ) -> None:  # fmt: skip
        """`photos` holds bg/ and fg/, for the data set of that name; all else as the command's options.

        Raises `InputError` where there is no picture in them, where `work` is a file, and for settings of no run.
        """
        Config(work, work, batch_size=batch_size, size=size, seed=seed)
        if work.exists() and not work.is_dir():
            raise InputError(f"{work} is a file: give a folder, for shards, runs and results")
        if photos:
            find_pictures(photos / "bg")
            find_pictures(photos / "fg")
        self.work, self.photos, self.size, self.seed, self.device = work, photos, size, seed, device
        self.compose_sets, self.test_sets = compose_sets, test_sets
        self.training_flags = ["--batch-size", str(batch_size), "--size", str(size), "--seed", str(seed),
                               "--precision", precision]  # fmt: skip

    def run(self, plan: Sequence[Baseline]) -> tuple[list[BaselineResult], dict[str, str]]:
        """Do everything that is not done yet; return the results, and why the runs of these names failed.

        A run that fails is told of and left out; the others go on.
        """
        results, seconds, failed = list[BaselineResult](), dict[Baseline, float](), dict[str, str]()
        for name in dict.fromkeys(baseline.data for baseline in plan):
            compose(self.work, name, self.compose_sets, self.seed, self.photos)
        for number, baseline in enumerate(plan, 1):
            place = f"{number}/{len(plan)} {baseline.name}"
            try:
                seconds[baseline], is_new = self.train_and_score(baseline)
            except CommandError as error:
                failed[baseline.name] = str(error)
                echo(f"{place}: FAILED: {error}")
                continue
            results.append(read_result(baseline, self.size, self.folder(baseline)))
            minutes = seconds_left(plan[number:], seconds) / 60
            took = f"{seconds[baseline]:,.0f} s" if is_new else "done before"
            told = f", about {minutes:,.1f} min" if minutes else ""
            echo(f"{place}: {results[-1].in_short()}; {took}, {len(plan) - number} left{told}")
        return results, failed

    def folder(self, baseline: Baseline) -> Path:
        """Of a run, as fgbg-train makes it."""
        return self.work / "runs" / baseline.name

    def log(self, baseline: Baseline) -> Path:
        """What the commands of a run print."""
        return self.work / "logs" / f"{baseline.name}.log"

    def train_and_score(self, baseline: Baseline) -> tuple[float, bool]:
        """Train and score a network, as far as it is not done: the seconds of both, and whether any was done now."""
        out, by_sets = self.folder(baseline), baseline.budget == "sets"
        shards = ["--shards", str(self.work / "data" / baseline.data), "--device", self.device]
        flags = [
            "--model", baseline.network, "--loss", baseline.loss, "--lr", f"{baseline.lr:g}",
            "--optimizer", "adamw", "--mask-weight", "2", "--no-mirror",
            f"--{baseline.budget}", baseline.spent, *self.training_flags, *([] if baseline.depth else ["--no-depth"]),
        ]  # fmt: skip
        # Minutes are those of one process on a quiet machine: a run that was stopped is none of them.
        resume = by_sets and has_checkpoint(out)
        trained = out / "trained.json"
        if not trained.exists() and not resume:
            shutil.rmtree(out, ignore_errors=True)
        places = [*shards, "--out", str(out), "--no-report", *(["--resume"] if resume else [])]
        places += ["--checkpoint-every", str(CHECKPOINT_EVERY)] if by_sets else []
        training_sec, is_new = once(self.log(baseline), trained, "tools.train", flags, places)
        flags, places = ["--sets", str(self.test_sets)], [str(out), *shards, "--out", str(out / SPLIT)]
        scored = out / SPLIT / "scored.json"
        scoring_sec, is_scored = once(self.log(baseline), scored, "benchmarks.baseline_results", flags, places)
        return training_sec + scoring_sec, is_new or is_scored


def compose(work: Path, name: str, sets: int, seed: int, photos: Path | None) -> Path:
    """Make the shards of a data set in WORK/data, unless they are there; `photos` as for `Study`.

    Those of a name with "photos" are of photographs, those of one with "hard" are made with --hard. Raises `InputError`
    where nothing of them could be scored: before hours of training, not after them.
    """
    folder = (photos or Path()).resolve()
    photographs = ["--backgrounds", str(folder / "bg"), "--foregrounds", str(folder / "fg")]
    flags = [*(photographs if "photos" in name else ["--synthetic"]), *(["--hard"] if "hard" in name else [])]
    flags += ["--sets", str(sets), "--seed", str(seed)]
    shards = work / "data" / name
    log = work / "logs" / f"{name}.log"
    seconds, is_new = once(log, shards.with_suffix(".json"), "tools.compose", flags, ["--shards", str(shards)])
    if is_new:
        echo(f"composed {name}: {sets:,} sets, {seconds:,.0f} s")
    require_test_sets(name, shards)
    return shards


def once(log: Path, record: Path, module: str, flags: list[str], places: list[str]) -> tuple[float, bool]:
    """Run a command unless it has been run to its end: the seconds that it took, and whether it ran now.

    See `processes.run`.
    """
    seconds = seconds_taken(record, module, flags)
    if seconds is not None:
        return seconds, False
    return run(module, flags, places, record, log), True


def require_test_sets(name: str, shards: Path) -> None:
    """Raise `InputError` for a data set without sets of a background and a foreground of the split test."""
    manifest = Manifest.load(shards)
    if not Split(load_index(shards, manifest), [shard.sets for shard in manifest.shards], SPLIT).count:
        raise InputError(
            f"{name}: of {manifest.sets:,} sets none is of a background and a foreground of the split {SPLIT}; "
            f"make more: --compose-sets"
        )


def seconds_left(left: Sequence[Baseline], taken: dict[Baseline, float]) -> float:
    """What the runs `left` will take: each as long as those of its network and budget before, else as all."""
    alike = [
        [sec for done, sec in taken.items() if (done.network, done.budget) == (wanted.network, wanted.budget)]
        for wanted in left
    ]
    return sum(mean(seconds or taken.values()) for seconds in alike)


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
@click.option("--networks", callback=_names, default=",".join(NETWORKS), help="Or unet-W, as unet-16.")
@click.option("--losses", callback=_names, default=",".join(RECIPES), help="Loss recipes.")
@click.option("--compose-sets", type=click.IntRange(1), default=20_000, help="Sets in each data set, of all splits.")
@click.option("--test-sets", type=click.IntRange(1), default=200, help="Sets scored, at most.")
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Sets a step.")
@click.option("--size", type=click.IntRange(32), default=128, help="Height and width, pixels; 16, 32, ...")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of data, first weights and order.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", help="auto: the GPU if there is one.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", help="Of all networks.")
def main(
    work: Path, photos: Path | None, sets: int, minutes: float, budget: str,
    data: list[str], networks: list[str], losses: list[str], **settings: Any,
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
        echo("photos: left out, there is no --photos DIR")
    amounts = {"sets": float(sets), "minutes": minutes}
    budgets = [(name, amounts[name]) for name in BUDGETS if budget in (name, "both")]
    plan = list(baselines(data, networks, losses, budgets))
    study = Study(work, photos, **settings)
    if len(plan) < len(data) * len(networks) * len(losses) * len(budgets):
        echo(SAME)
    with stoppable(work):
        results, failed = study.run(plan)
    if results:
        found = machine()
        about = {"machine": found, "command": shlex.join(["python", "-m", "benchmarks.baselines", *sys.argv[1:]]),
                 "settings": settings, "failed": failed}  # fmt: skip
        save_results(work / "baselines.json", results, about)
        draw_chart(results, describe_machine(found), work / "baselines.png")
        echo("", *tables(results).split("\n"), "")
        echo(f"numbers: {work / 'baselines.json'}, chart: {work / 'baselines.png'}")
    if failed:
        raise InputError(f"{len(failed)} of {len(plan)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
