"""The work: data is composed, networks are trained and scored, one after the other, what is done before left out."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from benchmarks.baselines.plan import Baseline, gmac
from benchmarks.baselines.process import CommandError, done, run
from benchmarks.baselines.results import Row, read_row
from benchmarks.baselines.score import SPLIT
from pipeline.composing.photos import find_pictures
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, load_index
from pipeline.loading.split import Split
from train.checkpoint import has_checkpoint
from train.config import Config

TRAINED, SCORED = "trained.json", "test/scored.json"  # notes of what is done, in a run's folder
CHECKPOINT_EVERY = 25  # steps; one of `net` takes most of a minute on two cores


@dataclass(frozen=True)
class Settings:
    """What all runs have in common."""

    compose_sets: int = 20_000
    """Sets of each data set, of all splits."""
    batch_size: int = 32
    size: int = 128
    """Height and width, pixels."""
    seed: int = 0
    test_sets: int = 200
    """Sets that are scored, at most."""
    device: str = "auto"
    precision: str = "auto"
    """Of all networks, as fgbg-train takes it."""


class Outcome(NamedTuple):
    """What came of all runs."""

    rows: list[Row]
    failed: dict[str, str]
    """Why, by the names of the runs that ended with an error."""


class Study:
    """All runs in one folder: shards in WORK/data/NAME, a run and its scores in WORK/runs/NAME, output in WORK/logs."""

    def __init__(self, work: Path, settings: Settings, photos: Path | None, say: Callable[[str], None]) -> None:
        """`photos` holds bg/ and fg/, for the data set of that name.

        Raises `InputError` where there is no picture in them, where `work` is a file, and for settings of no run.
        """
        Config(work, work, batch_size=settings.batch_size, size=settings.size, seed=settings.seed)
        if work.exists() and not work.is_dir():
            raise InputError(f"{work} is a file: give a folder, for shards, runs and results")
        if photos:
            find_pictures(photos / "bg")
            find_pictures(photos / "fg")
        self.work, self.settings, self.photos, self.say = work, settings, photos, say

    def run(self, plan: Sequence[Baseline]) -> Outcome:
        """Everything that is not done yet. A run that fails is told of and left out; the others go on."""
        finished, failed = list[tuple[Row, float]](), dict[str, str]()
        for name in dict.fromkeys(baseline.data for baseline in plan):
            self.compose(name)
        for number, baseline in enumerate(plan, 1):
            place = f"{number}/{len(plan)} {baseline.name}"
            try:
                seconds, skipped = self.one(baseline)
            except CommandError as error:
                failed[baseline.name] = str(error)
                self.say(f"{place}: FAILED: {error}")
                continue
            row = read_row(baseline, self.settings.size, self.folder(baseline))
            finished.append((row, seconds))
            left = describe_seconds(seconds_left(plan[number:], finished, self.settings.size))
            what = "done before" if skipped else f"{seconds:,.0f} s"
            self.say(f"{place}: {row.in_short()}; {what}, {len(plan) - number} left{left}")
        return Outcome([row for row, _ in finished], failed)

    def folder(self, baseline: Baseline) -> Path:
        """Of a run, as fgbg-train makes it."""
        return self.work / "runs" / baseline.name

    def compose_flags(self, name: str) -> list[str]:
        """What decides the sets of a data set, as flags of fgbg-compose."""
        common = ["--sets", str(self.settings.compose_sets), "--seed", str(self.settings.seed)]
        if name != "photos":
            return ["--synthetic", *(["--hard"] if name == "hard" else []), *common]
        if not self.photos:
            raise InputError("photos: no folder is given")
        photos = self.photos.resolve()
        return ["--backgrounds", str(photos / "bg"), "--foregrounds", str(photos / "fg"), *common]

    def compose(self, name: str) -> None:
        """Make the shards of a data set, unless they are there."""
        shards, flags = self.work / "data" / name, self.compose_flags(name)
        note = shards.with_suffix(".json")
        if done(note, "tools.compose", flags) is None:
            seconds = run("tools.compose", flags, ["--shards", str(shards)], note, self.log(name))
            self.say(f"composed {name}: {self.settings.compose_sets:,} sets, {seconds:,.0f} s")
        self.require_test_sets(name, shards)

    @staticmethod
    def require_test_sets(name: str, shards: Path) -> None:
        """Raise `InputError` where nothing could be scored: before hours of training, not after them."""
        manifest = Manifest.load(shards)
        if not Split(load_index(shards, manifest), [shard.sets for shard in manifest.shards], SPLIT).count:
            raise InputError(
                f"{name}: of {manifest.sets:,} sets none is of a background and a foreground of the split {SPLIT}; "
                f"make more: --compose-sets"
            )

    def one(self, baseline: Baseline) -> tuple[float, bool]:
        """Train and score a network, as far as it is not done: the seconds of both, and whether all was done before."""
        out, settings = self.folder(baseline), self.settings
        shards = ["--shards", str(self.work / "data" / baseline.data), "--device", settings.device]
        flags = [
            "--model", baseline.network, "--loss", baseline.loss, "--lr", f"{baseline.lr:g}",
            f"--{baseline.budget}", baseline.spent, "--batch-size", str(settings.batch_size),
            "--size", str(settings.size), "--seed", str(settings.seed), "--precision", settings.precision,
            *([] if baseline.depth else ["--no-depth"]),
        ]  # fmt: skip
        training = done(out / TRAINED, "tools.train", flags)
        skipped = training is not None
        if training is None:
            # Minutes are those of one process on a quiet machine: a run that was stopped is none of them.
            resume = baseline.budget == "sets" and has_checkpoint(out)
            if not resume:
                shutil.rmtree(out, ignore_errors=True)
            places = [*shards, "--out", str(out), "--no-report", *(["--resume"] if resume else [])]
            if baseline.budget == "sets":
                places += ["--checkpoint-every", str(CHECKPOINT_EVERY)]
            training = run("tools.train", flags, places, out / TRAINED, self.log(baseline.name))
        flags = ["--sets", str(settings.test_sets)]
        scoring = done(out / SCORED, "benchmarks.baselines.score", flags)
        skipped = skipped and scoring is not None
        if scoring is None:
            places = [str(out), *shards, "--out", str(out / "test")]
            scoring = run("benchmarks.baselines.score", flags, places, out / SCORED, self.log(baseline.name))
        return training + scoring, skipped

    def log(self, name: str) -> Path:
        """The file for what commands print."""
        return self.work / "logs" / f"{name}.log"


def seconds_left(left: Sequence[Baseline], finished: Sequence[tuple[Row, float]], size: int) -> float | None:
    """What the runs `left` will take, by others and the seconds that these took in all; None without any.

    A set takes as long as with the same network before, else in proportion to the network's arithmetic.
    """
    trained = [row for row, _ in finished if row.sets_seen]
    if not trained:
        return None
    total = len(left) * mean([seconds - 60 * row.minutes for row, seconds in finished])
    for baseline in left:
        if baseline.budget == "minutes":
            total += 60 * baseline.amount
        else:
            alike = [row for row in trained if row.network == baseline.network] or trained
            per_gmac = mean([60 * row.minutes / row.sets_seen / row.gmac for row in alike])
            total += per_gmac * gmac(baseline.network, baseline.depth, size) * baseline.amount
    return total


def describe_seconds(seconds: float | None) -> str:
    """For the end of a line."""
    if not seconds:
        return ""
    return f", about {seconds / 60:,.0f} min" if seconds > 90 else f", about {seconds:,.0f} s"
