"""The report of a run: one HTML file that needs nothing but a browser, read back from the run's folder."""

import platform
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from pipeline.resume import atomic_file
from pipeline.workers import available_cores
from train.checkpoint import BEST
from train.config import Config
from train.evaluate import Evaluation, evaluate, open_split
from train.logging import Line, read_lines
from train.report_data import data
from train.report_page import DASH, Html, element, page, paragraph, row, section, table
from train.report_progress import curves, throughput
from train.report_scores import cells, pictures, result
from train.run import Run, open_run

REPORT, METRICS = "report.html", "metrics.jsonl"  # in the folder of a run
SETS_PER_CELL = 256  # that are scored: the report of a long run shall not take long
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")  # packages, of which one is needed
NOWHERE = "not installed as a package"
Watch = Callable[[Iterable[Batch]], Iterable[Batch]]


class Report(NamedTuple):
    """What a report is made of."""

    name: str
    """The run's."""
    run: Run
    shards: Path
    device: torch.device
    lines: list[Line]
    """Of metrics.jsonl."""
    evaluation: Evaluation | None
    """On validation sets; None where they cannot be scored."""
    notes: list[str]
    """What is missing, a sentence each."""


def write_report(folder: Path, shards: Path, device: torch.device, watch: Watch = iter) -> Path:
    """Write `folder`/report.html about the run in `folder`, finished or not, on `shards`; return its path.

    Scores at most SETS_PER_CELL validation sets of each cell with the best checkpoint, or the last; `watch` may count
    their batches. The same files give the same report on the same machine. What is missing (validation sets, depth,
    numbers, the shards themselves) is said in it. Raises `InputError` where no checkpoint of the run can be opened.
    """
    notes = list[str]()
    run = _opened(folder, shards, device, notes)
    lines = _logged(folder, notes)
    evaluation: Evaluation | None = None
    try:
        # However many sets are damaged: it is said how many.
        run = run._replace(config=replace(run.config, max_bad_share=1.0))
        opened = open_split(run, "val", device, peer=run.peer_protocol, most=SETS_PER_CELL)
        evaluation = evaluate(run, "val", opened, watch)
    except InputError as error:
        notes.append(f"Nothing was scored: {error}")
    path = folder / REPORT
    with atomic_file(path) as file:
        report = Report(folder.resolve().name, run, shards, device, lines, evaluation, notes)
        file.write(text(report).encode(errors="replace"))  # a folder's name may be no text
    return path


def _opened(folder: Path, shards: Path, device: torch.device, notes: list[str]) -> Run:
    try:
        return open_run(folder, "best", device, shards)
    except InputError as error:
        run = open_run(folder, "last", device, shards)
        why = str(error) if (folder / BEST).exists() else "the run has had no validation."
        notes.append(f"The last checkpoint was scored, for want of the best: {why}")
        return run


def _logged(folder: Path, notes: list[str]) -> list[Line]:
    try:
        return [line for line in read_lines(folder / METRICS) if {"kind", "step", "epoch"} <= line.keys()]
    except (ValueError, AttributeError) as error:
        notes.append(f"{METRICS} is damaged ({error}): no curves.")
        return []


def text(report: Report) -> str:
    """The file."""
    evaluation, lines, run = report.evaluation, report.lines, report.run
    scored = f"{run.checkpoint.name} of step {run.step:,}"
    if lines:
        last = max(lines, key=lambda line: int(line["step"]))
        sets = max((line.get("sets_seen", 0) for line in lines), default=0)
        state = f"Trained to step {last['step']:,}, epoch {last['epoch']:,}, {sets:,} sets; scored: {scored}."
    else:
        state = f"Scored: {scored}."
    head = [element("h1", report.name)]
    if evaluation:
        head.append(result(evaluation))
    head.append(paragraph(state, class_="note"))
    if evaluation and (damaged := evaluation.opened.loader.quarantined):
        left_out = f"Sets left out of the scores as damaged: {len(damaged):,}, such as {damaged[0]}"
        head.append(paragraph(left_out, class_="warning"))
    head += [paragraph(note, class_="warning") for note in report.notes]
    scores = [pictures(evaluation), cells(evaluation)] if evaluation else []
    return page(
        f"{report.name}: report of fgbg-train",
        element("header", *head),
        settings(run.config),
        data(report.shards),
        curves(lines),
        *scores,
        throughput(lines),
        versions(report.device),
    )


def settings(config: Config) -> Html:
    """All that decide the course of a run, those unlike the default marked."""
    rows, changed = list[Html](), 0
    for name, value in config.settings().items():
        default = Config.__dataclass_fields__[name].default
        differs = value != default
        changed += differs
        both = shown(value) + ("*" if differs else ""), shown(default)
        rows.append(row(name.replace("_", "-"), *both, class_="changed" if differs else "", numbers=False))
    caption = f"{len(rows)} settings, {changed} unlike the default (*)"
    return section("Settings", table(caption, ["", "this run", "default"], rows, numbers_from=9))


def shown(value: object) -> str:
    """A setting as a reader has it."""
    return DASH if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)


def versions(device: torch.device) -> Html:
    """What the report was made with: programs and machine."""
    on_gpu = device.type == "cuda"
    facts = {
        "fgbg": installed("fgbg"),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "DALI": ", ".join(f"{name} {installed(name)}" for name in DALI if installed(name) != NOWHERE) or NOWHERE,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU, {processor()}",
        "cores": str(available_cores()),
    }
    rows = (row(name, fact, numbers=False) for name, fact in facts.items())
    return section("Versions", table("Of the machine that wrote this report", ["", ""], rows, numbers_from=9))


def installed(name: str) -> str:
    """The version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return NOWHERE


def processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
