"""One run of a speed run: a network trained as by fgbg-train, scored as it learns with the clock stopped, and tested.

`python -m benchmarks.speedrun_training` writes what it came to into a file.
"""

import json
import math
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

import tools.train
from benchmarks.baseline_results import score_run
from pipeline.devices import torch_device
from pipeline.errors import InputError
from pipeline.limits import MOST_COUNT
from pipeline.loading.loader import Loader
from pipeline.resume import atomic_file
from pipeline.workers import timed
from tools.cli import Command, echo
from tools.measure import synchronize
from train.checkpoint import Run
from train.config import BUDGETS, Config
from train.distributed import SINGLE
from train.evaluate import HEADLINE
from train.run_folder import is_complete, share_done
from train.runtime import describe_device, deterministic, open_loader
from train.scoring import MeanScores, Summary, Validator, describe
from train.train_step import Learner, StepResult

OTHERS = ("--shards", "--out", "--resume", "--override", "--report", "--no-report", "--peer-protocol")
"""Options of fgbg-train that are of no recipe."""


class Point(NamedTuple):
    """What a run had come to when its validation sets were scored."""

    sets: int
    """Seen in training."""
    minutes: float
    """Of training alone."""
    scores: MeanScores


class Trained(NamedTuple):
    """One run, of one recipe and seed."""

    settings: dict[str, Any]
    """Those that decide the result."""
    points: list[Point]
    waited_sec: float
    """How long training waited for data."""
    test: dict[str, Any]
    """The headline cell of the split test, as evaluation.json has it, and the trivial mask's `threshold`."""

    @property
    def end(self) -> Point:
        """The last scoring."""
        return self.points[-1]

    @property
    def sets_per_sec(self) -> float:
        """Sets a second of training."""
        return self.end.sets / self.end.minutes / 60

    def reached(self, score: str, target: float) -> Point | None:
        """The first scoring at which a score of validation was `target` or more; None: it never was."""
        return next((point for point in self.points if point.scores.get(score, 0.0) >= target), None)

    def tested(self, score: str, who: str) -> Summary | None:
        """A score on the test sets; `who` is NETWORK or TRIVIAL. None where there is none."""
        found: Summary | None = self.test["scores"][who].get(score)
        return found

    @classmethod
    def read(cls, path: Path) -> "Trained":
        """What `main` has written."""
        content = json.loads(path.read_text())
        return cls(**content | {"points": [Point(*point) for point in content["points"]]})


def config_of(recipe: Sequence[str], shards: Path, out: Path) -> Config:
    """The settings that fgbg-train makes of its flags; raises `InputError` and `click.UsageError` as it does."""
    for word in recipe:
        if word.partition("=")[0] in OTHERS:
            raise click.UsageError(f"{word} is of no recipe: leave it out after --")
    ctx = tools.train.main.make_context("fgbg-train", ["--shards", str(shards), "--out", str(out), *recipe])
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT}
    settings = {name: ctx.params[name] for name in (*tools.train.PLACES, *tools.train.SETTINGS)}
    settings |= {name: None for name in BUDGETS if name not in given}
    return Config(**settings)


class TimedTraining:
    """The steps of `train.trainer.Trainer`, without its logs and checkpoints, and with a clock that can be stopped.

    What the loader makes ahead while the clock stands, two or three batches, is not timed.
    """

    def __init__(self, config: Config, loader: Loader, learner: Learner) -> None:
        self.config, self._loader, self._learner = config, loader, learner
        self.sets, self.waited_sec = 0, 0.0
        self._before_sec, self._began_sec = 0.0, time.perf_counter()

    @property
    def elapsed_sec(self) -> float:
        """How long the clock has run."""
        return self._before_sec + time.perf_counter() - self._began_sec

    @property
    def progress(self) -> float:
        """How much of the run is done, from 0 to 1."""
        return share_done(self.config, self._learner.step, len(self._loader), self.sets, self.elapsed_sec)

    def run(self, every: int, score: Callable[[], MeanScores]) -> list[Point]:
        """Train to the end, and score after every so many sets and at the end.

        Raises `InputError` where losses or scores are no numbers.
        """
        points, over = list[Point](), False
        self._learner.network.train()
        self._began_sec = time.perf_counter()
        while not over:
            for batch, wait_sec in timed(self._loader):
                self.waited_sec += wait_sec
                if not (sets := len(batch.bg)):  # all of them were damaged
                    continue
                step = self._learner.train_step(batch, self.progress, sets)
                self.sets += sets
                over = is_complete(self.config, self._loader.epoch, self.sets, self.elapsed_sec)
                if over or self.sets // every > (self.sets - sets) // every:
                    synchronize()
                    self._before_sec = self.elapsed_sec
                    scores = score()
                    self._require_numbers(step, scores)
                    points.append(Point(self.sets, self._before_sec / 60, scores))
                    minutes, rate = self._before_sec / 60, self.sets / self._before_sec
                    echo(f"{self.sets:,} sets, {minutes:.2f} min, {rate:,.0f} sets/s: {describe(scores)}")
                    self._began_sec = time.perf_counter()
                if over:
                    break
        return points

    def _require_numbers(self, step: StepResult, scores: MeanScores) -> None:
        for name, value in [*((name, float(loss)) for name, loss in step.losses.items()), *scores.items()]:
            if not math.isfinite(value):
                raise InputError(f"{name} is {value} at step {self._learner.step}: try a smaller --lr")


def train_and_test(config: Config, every: int, device: torch.device) -> Trained:
    """A whole run. Raises `InputError` where there is no set to be scored."""
    config = config.on_device(device.type)
    echo(describe_device(config, device, 1))
    with open_loader(config, device) as loader:
        learner = Learner(config, device)
        validator = Validator(loader, config.training_split, config.validation_split, SINGLE, echo)

        def scores() -> MeanScores:
            found = validator.scores(learner.averaged, learner.criterion, config.precision)
            if found is None:
                raise InputError(f"no set of {config.shards} is of the split val: compose more")
            return found

        training = TimedTraining(config, loader, learner)
        try:
            with deterministic(config.deterministic):
                points = training.run(every, scores)
        finally:
            validator.close()
        run = Run(Path(str(config.out)), learner.step, loader.manifest.sha256, config, learner.averaged)
    tested = score_run(run, MOST_COUNT, device)
    test = {**tested.cells[HEADLINE]._asdict(), "threshold": tested.threshold}
    return Trained(config.settings(), points, training.waited_sec, test)


@click.command(cls=Command)
@click.option("--recipe", required=True, help="Flags of fgbg-train, as a shell takes them.")
@click.option("--every", type=click.IntRange(1), required=True, help="Sets between two scorings.")
@click.option("--shards", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file of the result.")
def main(recipe: str, every: int, shards: Path, out: Path) -> None:
    """Train a network, score it as it learns, and test it."""
    config = config_of(shlex.split(recipe), shards, out)
    device = torch_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    trained = train_and_test(config, every, device)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        file.write(json.dumps(trained._asdict(), allow_nan=False).encode())


if __name__ == "__main__":
    main()
