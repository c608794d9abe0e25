"""The part `whole`: sets composed and packed on this machine, a network trained on them and scored, as a user would.

Each step is a command of ours in a process of its own; what is done is noted, and a stopped step goes on where it was.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

from benchmarks.baselines.process import done, run
from benchmarks.baselines.results import training_time
from pipeline.errors import InputError
from pipeline.resume import atomic_file
from tools.gpu_check.context import Context, Result
from tools.gpu_check.original import FOUND
from train.cells import HEADLINE
from train.checkpoint import begun, load_last
from train.logging import Line, read_lines
from train.scoring import NETWORK, TRIVIAL

GOAL_SETS_PER_SEC, GOAL_SEC = 20_000, 600.0
SET_BYTES = 40_000  # on disk, with room to spare
CELL = "new foregrounds on new backgrounds"
SCORES = {"mask_iou": f"mask IoU, {CELL}", "depth_ssim": f"depth SSIM, {CELL}"}


class Form(NamedTuple):
    """How much of it is done."""

    sets: int
    model: str
    epochs: int
    batch_size: int
    size: int
    """Height and width, pixels."""
    log_every: int
    """Steps; each line of metrics waits for the device."""
    test_sets: int
    """Scored in each cell, at most."""


FULL = Form(400_000, "unet-s", 20, 256, 128, 100, 500)
SMALL = Form(300, "unet-4", 3, 16, 32, 5, 20)


class Step(NamedTuple):
    """A command of ours."""

    name: str
    module: str
    flags: list[str]
    """What decides its result."""
    places: list[str]
    """Paths and the device."""


def measure(context: Context) -> Result:
    """Compose, train, score, as far as it is not done; then what came of it."""
    form = FULL if context.on_gpu else SMALL
    for step in steps(form, context.work, context.flag):
        note = context.work / f"{step.name}.json"
        if done(note, step.module, step.flags) is None:
            prepare(step, form, context.work)
            places = [*step.places, *resuming(step, context.work)]
            with counted(context.work, step.name):
                run(step.module, step.flags, places, note, context.work / f"{step.name}.log")
            context.say(f"{step.name}: {spent_sec(context.work)[step.name]:,.1f} s")
    return report(context, form)


def steps(form: Form, work: Path, device: str) -> list[Step]:
    """What is done, in order."""
    shards, out = ["--shards", str(work / "shards")], str(work / "run")
    training = [
        "--model", form.model, "--epochs", str(form.epochs), "--batch-size", str(form.batch_size),
        "--size", str(form.size), "--resident", "auto", "--log-every", str(form.log_every), "--seed", "0",
    ]  # fmt: skip
    scoring = ["--split", "test", "--sets-per-cell", str(form.test_sets)]
    return [
        Step("compose", "tools.compose", ["--synthetic", "--sets", str(form.sets), "--seed", "0"], shards),
        Step("train", "tools.train", training, [*shards, "--out", out, "--device", device, "--no-report"]),
        Step("evaluate", "tools.evaluate", scoring, [out, *shards, "--out", str(work / "test"), "--device", device]),
    ]


def prepare(step: Step, form: Form, work: Path) -> None:
    """Make room for a step; raises `InputError` where the disk has none for the sets."""
    if step.name == "compose" and not (work / "shards").exists():
        free = shutil.disk_usage(work).free
        if free < form.sets * SET_BYTES:
            need = f"{form.sets:,} sets may take {form.sets * SET_BYTES / 1e9:.0f} GB"
            raise InputError(f"{need}, {work} has {free / 1e9:.0f} GB free: give a WORK with more room")
    if step.name == "train" and not begun(work / "run"):
        shutil.rmtree(work / "run", ignore_errors=True)  # of a run that was stopped before its first checkpoint


def resuming(step: Step, work: Path) -> list[str]:
    """The flag with which a step goes on; the others do so by themselves."""
    return ["--resume"] if step.name == "train" and begun(work / "run") else []


@contextmanager
def counted(work: Path, name: str) -> Iterator[None]:
    """Add the seconds that are spent within, even if it is interrupted, to those of this step so far."""
    began_sec = time.perf_counter()
    try:
        yield
    finally:
        spent = spent_sec(work)
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - began_sec
        with atomic_file(work / "spent.json") as file:
            file.write(json.dumps(spent).encode())


def spent_sec(work: Path) -> dict[str, float]:
    """Seconds by the names of the steps, over all starts."""
    path = work / "spent.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def report(context: Context, form: Form) -> Result:
    """The figures of all that is done, and beside them the original's loop, where that was measured."""
    work, spent = context.work, spent_sec(context.work)
    trained = training(read_lines(work / "run" / "metrics.jsonl"), load_last(work / "run").checkpoint.state)
    whole_sec = epoch_sec(work / "run" / "pictures")
    sets = trained["sets_an_epoch"]
    end_to_end = sets / median_low(whole_sec) if whole_sec else None
    cell = json.loads((work / "test" / "evaluation.json").read_text())["cells"][HEADLINE]
    original = work.parent / "original" / FOUND
    theirs = json.loads(original.read_text())["sets_per_sec"]["median"] if original.exists() else None
    ratio = end_to_end / theirs if end_to_end and theirs else None
    figures: dict[str, Any] = {
        **form._asdict(), **trained, "spent_sec": spent, "epoch_sec": whole_sec,
        "end_to_end_sets_per_sec": end_to_end, "ratio_to_original": ratio, "scores": cell["scores"],
        "scored_sets": cell["sets"],
    }  # fmt: skip
    rows = {
        "composed and packed": [f"{form.sets:,} sets in {spent['compose']:,.1f} s"],
        f"{form.model}, {form.epochs} epochs of {sets:,} sets": [f"{trained['elapsed_sec']:,.1f} s"],
        "epoch 1, while it trains, compilation included": [rate(trained["epoch_1"])],
        "from epoch 2 on, while it trains": [rate(trained["later"])],
        "from epoch 2 on, with validation, pictures and checkpoints": [
            f"{end_to_end:,.0f} sets/s" if end_to_end else "-"
        ],
        "against the original's loop": [f"{ratio:,.0f} x" if ratio else "not measured: the part original"],
        **{title: [score(cell["scores"], name)] for name, title in SCORES.items()},
    }
    return Result(figures, ["figure"], rows, list(notes(context, form, figures)))


def training(lines: Sequence[Line], state: dict[str, Any]) -> dict[str, Any]:
    """Sets/s and share of stalls of epoch 1 and of those after it, by metrics.jsonl; seconds by the last checkpoint."""
    first = training_time([line for line in lines if line["epoch"] == 1])
    every = training_time(lines)
    later = [of_all - of_first for of_all, of_first in zip(every, first, strict=True)]
    epochs = max(line["epoch"] for line in lines)
    return {
        "elapsed_sec": state["elapsed_sec"],
        "sets_seen": every[0],
        "sets_an_epoch": round(every[0] / epochs),
        "epoch_1": speed(*first),
        "later": speed(*later),
    }


def speed(sets: float, sec: float, waited_sec: float) -> dict[str, float] | None:
    """Of sets that took so many seconds, of which so many were waited for data; None of none."""
    return {"sets_per_sec": sets / sec, "stall_share": waited_sec / sec} if sec else None


def epoch_sec(pictures: Path) -> list[float]:
    """Seconds of each epoch from 2 on, all that is done at its end included: between the pictures of two ends.

    Where a run was stopped and went on, one has the time in between; the (lower) median is none of it.
    """
    ends = [path.stat().st_mtime for path in sorted(pictures.glob("epoch_*.png"))]
    return [end - start for start, end in pairwise(ends)]


def rate(found: dict[str, float] | None) -> str:
    """For the table."""
    return (
        f"{found['sets_per_sec']:,.0f} sets/s, {found['stall_share']:.1%} of the time waiting for data"
        if found
        else "-"
    )


def score(scores: dict[str, Any], name: str) -> str:
    """New foregrounds on new backgrounds: the mean, its interval, and the trivial baseline's mean; for the table."""
    of = scores.get(NETWORK, {}).get(name)
    if not of or of["mean"] is None:
        return "-"
    interval = f" [{of['low']:.3f}, {of['high']:.3f}]" if of["low"] is not None else ""
    trivial = scores.get(TRIVIAL, {}).get(name)
    beside = f" (trivial {trivial['mean']:.3f})" if trivial and trivial["mean"] is not None else ""
    return f"{of['mean']:.3f}{interval}{beside}"


def notes(context: Context, form: Form, figures: dict[str, Any]) -> Iterator[str]:
    """What the goals come to, and where the sets were."""
    if not context.on_gpu:
        yield f"{FULL.sets:,} sets, {FULL.epochs} epochs of {FULL.model}: skipped: no GPU"
        return
    end_to_end, elapsed_sec = figures["end_to_end_sets_per_sec"], figures["elapsed_sec"]
    fast = end_to_end is not None and end_to_end >= GOAL_SETS_PER_SEC
    yield f"goal of {GOAL_SETS_PER_SEC:,} sets/s end to end from epoch 2 on: {'reached' if fast else 'missed'}"
    in_time = elapsed_sec < GOAL_SEC
    yield f"goal of {form.epochs} epochs in {GOAL_SEC / 60:.0f} minutes: {'reached' if in_time else 'missed'}"
    log = (context.work / "train.log").read_text(errors="replace")
    yield from [line for line in log.splitlines() if "decoded sets stay" in line][:1]
