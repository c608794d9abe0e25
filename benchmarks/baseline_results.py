"""What a baseline came to: its last checkpoint scored, all of its figures, and these as JSON, Markdown and a chart.

`python -m benchmarks.baseline_results RUN` scores a run as fgbg-evaluate does, in the headline cell alone: the other
three would take most of the time, and the network `net` a second for each set.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# isort: off
import pipeline.plotting  # noqa: F401 - before matplotlib

# isort: on
import click
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.devices import torch_device
from pipeline.resume import atomic_file
from tools.cli import Command
from train.checkpoint import Run, load_run
from train.config import DEVICES
from train.evaluate import CELLS, HEADLINE, Evaluation, draw, evaluate, open_split
from train.logging import Line
from train.networks import build_network
from train.scoring import NETWORK, TRIVIAL, Summary

SPLIT = "test"
DATA = ("synthetic", "hard", "photos")
BUDGETS = ("sets", "minutes")
ABOUT = ("network", "loss", "parameters", "GMAC", "lr", "sets seen", "minutes", "sets/s")
CHARTED = {"mask_iou": ("mask IoU", "|fg_bg - bg| > t"), "depth_ssim": ("depth SSIM", "mean depth")}
"""Scores: their titles, and those of the trivial baselines."""
COLOURS = {"sets": "#c2573a", "minutes": "#3a76c2"}
BAR, GAP = 0.8, 0.6  # of the distance between two rows: all bars of a row together; more room between two networks
WIDTH_IN, ROW_IN, PANEL_IN, FRAME_IN, DPI = 11.0, 0.26, 0.9, 0.8, 130


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--shards", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For evaluation.json.")
@click.option("--sets", type=click.IntRange(1), required=True, help="Sets scored, at most.")
@click.option("--device", type=click.Choice(DEVICES), default="auto")
def main(run: Path, shards: Path, out: Path, sets: int, device: str) -> None:
    """Score the last checkpoint of RUN on sets of new backgrounds with new foregrounds."""
    evaluation = score(run, shards, sets, torch_device(device))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(out / "evaluation.json") as file:
        file.write(json.dumps(evaluation.numbers(), indent=1, allow_nan=False).encode())


def score(folder: Path, shards: Path, sets: int, device: torch.device) -> Evaluation:
    """The evaluation of a run's last checkpoint, see `score_run`.

    The last checkpoint is what a budget has bought; the best may be of any step. Raises `InputError` where there is no
    such run or set.
    """
    return score_run(load_run(folder, "last", device, shards), sets, device)


def score_run(run: Run, sets: int, device: torch.device) -> Evaluation:
    """The evaluation of a run on at most `sets` sets of the cell new/new of the split test.

    They are drawn as `fgbg-evaluate --sets-per-cell` draws them. Raises `InputError` where there is no such set.
    """
    opened = open_split(run, SPLIT, device)
    headline = opened.loader.sibling(SPLIT, shuffle=False)  # both ids are of the split: new with new
    picked = np.sort(draw(headline.rows(), sets))
    only = opened.protocol._replace(cells={HEADLINE: CELLS[HEADLINE]})
    opened = opened._replace(protocol=only, loader=headline.sibling(SPLIT, shuffle=False, picked=picked))
    return evaluate(run, SPLIT, opened)


def training_time(lines: Sequence[Line]) -> tuple[int, float, float]:
    """Sets seen, seconds of training and seconds of these that it waited for data, by the lines of metrics.jsonl."""
    sets, seconds, waited_sec = 0, 0.0, 0.0
    for line in lines:
        if line["kind"] == "train":
            more = line["sets_seen"] - sets
            took = more / line["sets_per_sec"] if more else 0.0
            sets, seconds, waited_sec = line["sets_seen"], seconds + took, waited_sec + took * line["stall_share"]
    return sets, seconds, waited_sec


def network_shapes(network: str, depth: bool) -> tuple[torch.Size, ...]:
    """The shapes of a network's parameters, by which `net` without depth is known to be `convgen`."""
    return tuple(parameter.shape for parameter in _without_memory(network, depth).parameters())


@cache
def gmac(network: str, depth: bool, size: int) -> float:
    """Multiplications of one prediction at `size` x `size` pixels, in thousands of millions."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        picture = torch.empty((1, 1, size, size), dtype=torch.uint8)
        _without_memory(network, depth).eval()(picture, picture)
    return float(counter.get_total_flops()) / 2e9


def _without_memory(network: str, depth: bool) -> nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return build_network(network, depth)


@dataclass(frozen=True)
class BaselineResult:
    """What one run came to: a row of a table."""

    data: str
    network: str
    loss: str
    budget: str
    amount: float
    lr: float
    depth: bool
    parameters: int
    gmac: float
    sets_seen: int
    minutes: float
    """Of training; validations are left out."""
    sets_per_sec: float
    """The same way."""
    stall_share: float
    """Of these minutes, that training waited for data."""
    test_sets: int
    """New backgrounds with new foregrounds."""
    test_backgrounds: int
    threshold: int
    """Of the trivial |fg_bg - bg| > t, in 0..255."""
    scores: dict[str, dict[str, Summary]]
    """By who is scored, "network" or "trivial", and the score's name."""

    def mean(self, score: str, who: str = NETWORK) -> float | None:
        """A score's mean; None where there is none."""
        return self.scores[who].get(score, {}).get("mean")

    def in_short(self) -> str:
        """The scores that say most."""
        means = {title: self.mean(name) for name, (title, _) in CHARTED.items()}
        return ", ".join(f"{title} {mean:.3f}" for title, mean in means.items() if mean is not None) or "no test set"


def save_results(path: Path, results: Sequence[BaselineResult], about: Mapping[str, Any]) -> None:
    """Write all runs, and what there is to know `about` them, as one JSON file."""
    with atomic_file(path) as file:
        runs = [asdict(result) for result in results]
        file.write(json.dumps({**about, "runs": runs}, indent=1, allow_nan=False).encode())


def describe_budget(amount: float, budget: str) -> str:
    """1,280 sets; 1 minute."""
    return counted(amount, budget.removesuffix("s"))


def counted(number: float, noun: str) -> str:
    """1 set, 2 sets."""
    return f"{number:,.12g} {noun}{'' if number == 1 else 's'}"


class Column(NamedTuple):
    """A score in the table."""

    title: str
    score: str
    best: Callable[[list[float]], float] = max
    interval: bool = False

    def cell(self, result: BaselineResult, who: str = NETWORK) -> str:
        """0.892 [0.871, 0.910]; a dash where there is no such score; no interval on a single background."""
        score = result.scores[who].get(self.score, {})
        mean, low, high = (score.get(what) for what in ("mean", "low", "high"))
        if mean is None:
            return "-"
        if not self.interval or low is None or high is None:
            return f"{mean:.3f}"
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


MASK = (
    Column("mask IoU [95 %]", "mask_iou", interval=True),
    Column("Dice", "mask_dice"),
    Column("boundary F 1 px", "boundary_f_1px"),
)
DEPTH = (Column("depth SSIM [95 %]", "depth_ssim", interval=True), Column("RMSE", "depth_rmse", min))


def tables(results: Sequence[BaselineResult]) -> str:
    """All results as Markdown: a table for each data set and budget, with a title and a sentence on its sets."""
    groups = [[r for r in results if (r.data, r.budget) == (data, budget)] for data in DATA for budget in BUDGETS]
    return "\n\n".join(_table(group) for group in groups if group)


def _table(results: Sequence[BaselineResult]) -> str:
    """The table of one data set and budget; the best of each score is bold."""
    first = results[0]
    columns = (*MASK, *(DEPTH if first.depth else ()))
    rows = [
        [r.network, r.loss, f"{r.parameters / 1e6:.2f} M", f"{r.gmac:.3g}", f"{r.lr:g}", f"{r.sets_seen:,}",
         f"{r.minutes:.1f}", f"{r.sets_per_sec:,.{0 if r.sets_per_sec >= 10 else 1}f}"]
        for r in results
    ]  # fmt: skip
    for column in columns:
        means = [mean for result in results if (mean := result.mean(column.score)) is not None]
        for row, result in zip(rows, results, strict=True):
            mean, space, interval = column.cell(result).partition(" ")
            is_best = means and result.mean(column.score) == column.best(means)
            row.append(f"**{mean}**{space}{interval}" if is_best else f"{mean}{space}{interval}")
    has_depth = first.mean("depth_ssim", TRIVIAL) is not None
    trivial = [f"\\|fg_bg - bg\\| > {first.threshold}" + (", mean depth" if has_depth else ""), *"-" * (len(ABOUT) - 1)]
    rows.append([*trivial, *(column.cell(first, TRIVIAL) for column in columns)])
    titles = [*ABOUT, *(column.title for column in columns)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    sets = f"{counted(first.test_backgrounds, 'new background')}: {counted(first.test_sets, 'test set')}"
    return "\n".join([
        f"### {first.data}, {describe_budget(first.amount, first.budget)} of training each", "",
        f"New foregrounds on {sets}{'' if first.depth else ', the mask alone'}.", "", *lines,
    ])  # fmt: skip


def draw_chart(results: Sequence[BaselineResult], subtitle: str, path: Path) -> None:
    """Draw mask IoU and depth SSIM with their intervals: panels by data, rows by network and loss, bars by budget."""
    of_data = [of for name in DATA if (of := [result for result in results if result.data == name])]
    heights = [PANEL_IN + ROW_IN * len(places(of)) for of in of_data]
    figure = Figure(figsize=(WIDTH_IN, FRAME_IN + sum(heights)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(of_data), len(CHARTED), squeeze=False, sharey="row", height_ratios=heights)
    for of, row in zip(of_data, panels, strict=True):
        for axes, score in zip(row, CHARTED, strict=True):
            _panel(axes, of, score)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle("New backgrounds, new foregrounds", fontsize=13, ha="left", x=0.01)
    figure.supxlabel(subtitle, fontsize=8, color="#555555", ha="left", x=0.01)
    FigureCanvasAgg(figure)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def places(results: Sequence[BaselineResult]) -> dict[tuple[str, str], float]:
    """How far down each network with each loss stands: losses one below the other, networks with a gap between."""
    found, place, former = dict[tuple[str, str], float](), 0.0, ""
    for network, loss in dict.fromkeys((result.network, result.loss) for result in results):
        place += GAP if former not in ("", network) else 0
        found[network, loss] = place
        place, former = place + 1, network
    return found


def _panel(axes: Axes, results: Sequence[BaselineResult], score: str) -> None:
    scored = [result for result in results if result.mean(score) is not None]
    if not scored:
        axes.axis("off")
        return
    at, (title, trivial_title) = places(results), CHARTED[score]
    budgets = [budget for budget in BUDGETS if any(result.budget == budget for result in results)]
    height = BAR / len(budgets)
    for nth, budget in enumerate(budgets):
        chosen = [result for result in scored if result.budget == budget]
        middle = [at[result.network, result.loss] + (nth - (len(budgets) - 1) / 2) * height for result in chosen]
        means = [result.mean(score) or 0.0 for result in chosen]
        amounts = list({result.amount for result in chosen})
        label = f"{describe_budget(amounts[0], budget)} of training" if len(amounts) == 1 else budget
        axes.barh(middle, means, height, color=COLOURS[budget], label=label)
        for result, y, mean in zip(chosen, middle, means, strict=True):
            low, high = (result.scores[NETWORK][score][end] for end in ("low", "high"))
            if low is not None and high is not None:
                axes.plot([low, high], [y, y], color="#222222", linewidth=1)
            axes.text(1.01, y, f"{mean:.3f}", va="center", fontsize=6.5, color=COLOURS[budget])
    trivial, told = scored[0].mean(score, TRIVIAL), ""
    if trivial is not None:
        axes.axvline(trivial, color="#444444", linestyle="--", linewidth=1)
        told = f"; dashed: {trivial_title}, {trivial:.3f}"
    axes.set_title(f"{scored[0].data}: {title}{told}", fontsize=9.5, loc="left")
    axes.set_yticks(list(at.values()), [f"{network}, {loss}" for network, loss in at], fontsize=8)
    axes.set_ylim(max(at.values()) + 0.6, -0.6)  # the first on top
    axes.set_xlim(0, 1)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
