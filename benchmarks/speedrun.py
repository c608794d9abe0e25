"""python -m benchmarks.speedrun: how many sets and minutes a recipe needs to a mask IoU and a depth SSIM.

As speed runs of the field do (airbench, modded-nanogpt): data, split and targets are fixed, the recipe is not.
"""

import hashlib
import json
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path

import click

from benchmarks import baseline_results
from benchmarks.baselines import compose, once
from benchmarks.processes import CommandError, stoppable
from benchmarks.speedrun_results import draw_chart, numbers, table
from benchmarks.speedrun_training import Trained, config_of
from pipeline.composing.photos import find_pictures
from pipeline.errors import InputError
from pipeline.loading.split import BACKGROUND_SALT, FOREGROUND_SALT, group
from pipeline.resume import atomic_file
from tools.cli import Command, echo
from tools.measure import describe_machine, machine
from train.config import BUDGETS
from train.scoring import describe

ROOT = Path(__file__).parent.parent
CODE = ("pipeline", "train", "tools/before_torch.py", "benchmarks/speedrun_training.py")  # what a result depends on
PHOTOS = ("photos", "photos-hard")  # data sets without depth
DATA = (*baseline_results.DATA, "photos-hard")
SETS = 40_000  # of training, where nothing else is asked for
SEED = 0  # of the data
HELD_OUT = {"bg": (BACKGROUND_SALT, {"test": 6, "val": 2}), "fg": (FOREGROUND_SALT, {"test": 6, "val": 3})}
"""By the folder of photographs: the split's salt, and how many of them are of test and of val."""

Results = dict[str, dict[str, dict[int, Trained]]]
"""Runs by data, recipe and number of the seed."""


def number_pictures(pictures: Sequence[str], salt: str, held_out: dict[str, int]) -> list[str]:
    """A picture for each number 0, 1, ..., so that the split of the numbers parts the pictures, too.

    As many pictures as `held_out` says are given to numbers of test and val, all others to numbers of train; where
    there are more numbers than pictures of a group, the same are taken again. fgbg-compose numbers pictures by their
    natural order, and of a few dozen numbers the split leaves a single one for test. Raises `InputError` where there
    are too few pictures.
    """
    least = sum(held_out.values()) + 1
    if len(pictures) < least:
        raise InputError(f"{len(pictures)} pictures, expected {least} or more: {held_out} of them are held out")
    left = random.Random(0).sample(pictures, len(pictures))
    parts = {name: [left.pop() for _ in range(sets)] for name, sets in held_out.items()} | {"train": left}
    placed, numbered = dict.fromkeys(parts, 0), list[str]()
    for number in count():
        if all(placed[name] >= len(part) for name, part in parts.items()):
            return numbered
        name = group(salt, number)
        numbered.append(parts[name][placed[name] % len(parts[name])])
        placed[name] += 1
    raise AssertionError


def copy_photos(photos: Path, out: Path) -> None:
    """Copy PHOTOS/bg and PHOTOS/fg into the folder `out` under the numbers that `number_pictures` gives them.

    Raises `InputError` where `out` holds those of other photographs.
    """
    wanted = dict[str, Path]()
    for name, (salt, held_out) in HELD_OUT.items():
        pictures = find_pictures(photos / name)
        try:
            numbered = number_pictures(pictures, salt, held_out)
        except InputError as error:
            raise InputError(f"{photos / name}: {error}") from error
        for number, picture in enumerate(numbered):
            wanted[f"{name}/{number:04}_{Path(picture).name}"] = photos / name / picture
    if out.exists():
        found = {str(path.relative_to(out)): path.stat().st_size for path in out.rglob("*") if path.is_file()}
        if found != {name: source.stat().st_size for name, source in wanted.items()}:
            raise InputError(f"{out} has other pictures than {photos}: continue with the same, or give another WORK")
        return
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in HELD_OUT:
        (partial / name).mkdir(parents=True)
    for name, source in wanted.items():
        shutil.copyfile(source, partial / name)
    partial.replace(out)


def code_hash() -> str:
    """A hash of all that decides how a recipe learns: results of one version are none of another."""
    digest = hashlib.sha256()
    for path in sorted(path for place in CODE for path in _python_files(ROOT / place)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _python_files(place: Path) -> list[Path]:
    return list(place.rglob("*.py")) if place.is_dir() else [place]


def commit() -> str:
    """The commit of this checkout, with "-dirty" where files differ from it; "unknown" outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


class SpeedRun:
    """All runs in one folder: shards in WORK/data/NAME, what a run came to in WORK/runs, output in WORK/logs."""

    def __init__(
        self, work: Path, photos: Path | None, *, compose_sets: int, every: int, budget: Sequence[str]
    ) -> None:
        """`budget` are the flags of fgbg-train for recipes that do not say themselves how long to train."""
        if work.exists() and not work.is_dir():
            raise InputError(f"{work} is a file: give a folder, for shards, runs and results")
        self.work, self.photos, self.compose_sets, self.every, self.budget = work, photos, compose_sets, every, budget
        self.machine, self.code = machine(), code_hash()

    def flags(self, recipe: Sequence[str], data: str, nth: int) -> list[str]:
        """All flags of fgbg-train for one run, the `nth` of its recipe, from 0; raises as `config_of` does."""
        is_long = any(word.partition("=")[0] in {f"--{name}" for name in BUDGETS} for word in recipe)
        flags = [*([] if is_long else self.budget), *recipe, *(["--no-depth"] if data in PHOTOS else [])]
        return [*flags, "--seed", str(config_of(flags, self.work, self.work).seed + nth)]

    def compose(self, data: Sequence[str]) -> None:
        """Make the data sets, unless they are there; photographs are looked at first."""
        photos = self.work / "photos"
        if self.photos and not set(data).isdisjoint(PHOTOS):
            copy_photos(self.photos, photos)
        for name in data:
            compose(self.work, name, self.compose_sets, SEED, photos)

    def train(self, recipe: Sequence[str], data: str, nth: int) -> tuple[Trained, bool]:
        """What a run comes to, and whether it was trained now; not again where code, machine and recipe are the same.

        Raises `InputError` where the code has changed meanwhile, `CommandError` where the run fails.
        """
        if code_hash() != self.code:
            raise InputError(f"code in {', '.join(CODE)} has changed since this began: runs would not be comparable")
        flags, shards = self.flags(recipe, data, nth), self.work / "data" / data
        config = asdict(config_of(flags, Path(data), Path()))
        identity = json.dumps([config, self.every, self.code, self.machine], default=str).encode()
        name = f"{data}-seed-{config['seed']}-{hashlib.sha256(identity).hexdigest()[:10]}"
        result, log = self.work / "runs" / f"{name}.json", self.work / "logs" / f"{name}.log"
        words = ["--recipe", shlex.join(flags), "--every", str(self.every)]
        places = ["--shards", str(shards), "--out", str(result)]
        _, is_new = once(log, result.with_suffix(".done.json"), "benchmarks.speedrun_training", words, places)
        return Trained.read(result), is_new

    def run(self, recipes: dict[str, list[str]], data: Sequence[str], seeds: int) -> tuple[Results, list[str]]:
        """Train all recipes with all seeds on all data, in turn; the results, and which runs failed."""
        results, failed = Results(), list[str]()
        self.compose(data)
        plan = [(name, nth, label) for name in data for nth in range(seeds) for label in recipes]
        for number, (name, nth, label) in enumerate(plan, 1):
            place = f"{number}/{len(plan)} {name}, run {nth + 1} of {label or 'defaults'}"
            try:
                trained, is_new = self.train(recipes[label], name, nth)
            except CommandError as error:
                failed.append(place)
                echo(f"{place}: FAILED: {error}")
                continue
            results.setdefault(name, {}).setdefault(label, {})[nth] = trained
            end, told = trained.end, "" if is_new else ", done before"
            echo(f"{place}: {describe(end.scores)} after {end.sets:,} sets, {end.minutes:.1f} min{told}")
        return results, failed


def _data(_: click.Context, __: click.Parameter, text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in DATA:
            raise click.BadParameter(f"{name!r}: expected some of {', '.join(DATA)}")
    return names


def _words(flags: str) -> list[str]:
    try:
        return shlex.split(flags)
    except ValueError as error:
        raise click.UsageError(f"--against {flags!r}: {error}") from error


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("work", type=click.Path(path_type=Path))
@click.argument("recipe", nargs=-1, type=click.UNPROCESSED)
@click.option("--data", callback=_data, default=",".join(baseline_results.DATA),
              help=f"Data sets, of {', '.join(DATA)}.")  # fmt: skip
@click.option("--photos", type=click.Path(path_type=Path), metavar="DIR",
              help="DIR/bg and DIR/fg hold backgrounds, and foregrounds with alpha, for the data photos.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=3, help="Runs of each recipe, seeds 0, 1, ...")
@click.option("--sets", type=click.IntRange(1), help=f"How many sets a run sees; without --minutes {SETS:,}.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="How long a run trains, without its scorings.")
@click.option("--every", type=click.IntRange(1), default=500, help="Sets of training between two scorings.")
@click.option("--against", metavar="FLAGS", help="Another recipe, in quotes, trained in turn; '' for the defaults.")
@click.option("--compose-sets", type=click.IntRange(1), default=20_000, help="Sets in each data set, of all splits.")
def main(
    work: Path, recipe: tuple[str, ...], data: list[str], photos: Path | None, seeds: int,
    sets: int | None, minutes: float | None, every: int, against: str | None, compose_sets: int,
) -> None:  # fmt: skip
    """Train a recipe with several seeds on fixed data, and tell how soon it reaches its targets on unseen ids.

    The recipe is flags of fgbg-train, after --. Shards, results of runs and logs are kept in the folder WORK: when the
    command is given again, it leaves out what is done. At the end it writes WORK/results.json and speedrun.png, and
    prints tables in Markdown.
    """
    if sets and minutes:
        raise click.UsageError("give --sets or --minutes, not both")
    if not photos and (lacking := [name for name in data if name in PHOTOS]):
        data = [name for name in data if name not in PHOTOS]
        if not data:
            raise click.UsageError(f"--data {','.join(lacking)} needs --photos DIR")
        echo(f"{', '.join(lacking)}: left out, there is no --photos DIR")
    recipes = {shlex.join(recipe): list(recipe)}
    if against is not None:
        other = _words(against)
        recipes[shlex.join(other)] = other
        if len(recipes) == 1:
            raise click.UsageError("--against has the flags that stand after --: there is nothing to compare")
    budget = ["--minutes", f"{minutes}"] if minutes else ["--sets", f"{sets or SETS}"]
    speed_run = SpeedRun(work, photos, compose_sets=compose_sets, every=every, budget=budget)
    for flags in recipes.values():
        for name in data:
            speed_run.flags(flags, name, 0)  # tells what is wrong with them before anything is made
    with stoppable(work):
        results, failed = speed_run.run(recipes, data, seeds)
    if results:
        command, version = shlex.join(["python", "-m", "benchmarks.speedrun", *sys.argv[1:]]), commit()
        about = f"{describe_machine(speed_run.machine)}; commit {version}"
        content = {"machine": speed_run.machine, "commit": version, "command": command, "every": every,
                   "compose_sets": compose_sets, "failed": failed,
                   "data": {name: {flags: numbers(runs) for flags, runs in of.items()} for name, of in results.items()},
                   }  # fmt: skip
        with atomic_file(work / "results.json") as file:
            file.write(json.dumps(content, indent=1, allow_nan=False).encode())
        draw_chart(results, about, work / "speedrun.png")
        for name, of in results.items():
            echo("", *table(name, of, every).split("\n"))
        echo("", about, command, f"numbers: {work / 'results.json'}, chart: {work / 'speedrun.png'}")
    if failed:
        raise InputError(f"{len(failed)} of {len(data) * seeds * len(recipes)} runs failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
