"""What the runs of a speed run came to: medians and ranges over seeds, as tables in Markdown and as a chart."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

# isort: off
import pipeline.plotting  # noqa: F401 - before matplotlib

# isort: on
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.speedrun_training import Trained
from pipeline.resume import atomic_file
from pipeline.words import plural
from train.scoring import NETWORK, TRIVIAL

TARGETS = {"mask_iou": (0.90, 0.93), "depth_ssim": (0.90, 0.93)}
TITLES = {"mask_iou": "mask IoU", "depth_ssim": "depth SSIM"}
NOT_REACHED = "not reached"
COLOURS = ("#2563c9", "#c2410c")  # of the recipe, and of the one that it is compared with
WIDTH_IN, ROW_IN, DPI = 11.0, 3.6, 120
LOWEST = 0.6  # score at the bottom of a panel, unless a run ends below it


class Measure(NamedTuple):
    """A row of the tables, and an entry of results.json."""

    title: str
    of_run: Callable[[Trained], float | None]
    """Infinite: not reached. None: the data have no such score."""
    format: str
    trivial: Callable[[Trained], str] = lambda run: ""
    is_ratio_told: bool = True

    def shown(self, value: float) -> str:
        """A value as text."""
        return NOT_REACHED if math.isinf(value) else format(value, self.format)

    def summary(self, runs: Sequence[Trained]) -> str:
        """Median and range over seeds: 14,500 (14,000 - 15,500)."""
        values = [value for run in runs if (value := self.of_run(run)) is not None]
        return spread(values, self.shown)

    def ratio(self, runs: Mapping[int, Trained], others: Mapping[int, Trained]) -> str:
        """Ours by the other's, median and range over the seeds that both have; a dash where it was not reached."""
        pairs = [(self.of_run(runs[seed]), self.of_run(others[seed])) for seed in runs.keys() & others.keys()]
        finite = [one / other for one, other in pairs if one and other and math.isfinite(one) and math.isfinite(other)]
        if not self.is_ratio_told or not finite or len(finite) < len(pairs):
            return "-"
        return spread(finite, lambda value: f"{value:.2f}")


def spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """Median and range; a dash where there is no value."""
    if not values:
        return "-"
    low, high = shown(min(values)), shown(max(values))
    return shown(median(values)) + (f" ({low} - {high})" if low != high else "")


def _sets_to(score: str, target: float) -> Callable[[Trained], float | None]:
    return lambda run: _reached(run, score, target, "sets")


def _minutes_to(score: str, target: float) -> Callable[[Trained], float | None]:
    return lambda run: _reached(run, score, target, "minutes")


def _reached(run: Trained, score: str, target: float, what: str) -> float | None:
    if score not in run.end.scores:
        return None
    point = run.reached(score, target)
    return math.inf if point is None else float(getattr(point, what))


def _tested(score: str, who: str = NETWORK) -> Callable[[Trained], float | None]:
    def mean(run: Trained) -> float | None:
        found = (run.tested(score, who) or {}).get("mean")
        return None if found is None else float(found)

    return mean


def _trivial(score: str) -> Callable[[Trained], str]:
    def told(run: Trained) -> str:
        value = _tested(score, TRIVIAL)(run)
        name = f"\\|fg_bg - bg\\| > {run.test['threshold']}" if score.startswith("mask") else "mean depth"
        return "" if value is None else f"{value:.3f} ({name})"

    return told


MEASURES = (
    *(Measure(f"sets to {TITLES[score]} {target:.2f}", _sets_to(score, target), ",.0f")
      for score, targets in TARGETS.items() for target in targets),
    *(Measure(f"minutes to {TITLES[score]} {target:.2f}", _minutes_to(score, target), ".2f")
      for score, targets in TARGETS.items() for target in targets),
    *(Measure(f"test {TITLES[score]}", _tested(score), ".3f", _trivial(score), is_ratio_told=False)
      for score in TARGETS),
    Measure("sets seen", lambda run: run.end.sets, ",.0f"),
    Measure("minutes of training", lambda run: run.end.minutes, ".2f"),
    Measure("sets/s", lambda run: run.sets_per_sec, ",.0f"),
    Measure("share of time that training waited for data", lambda run: run.waited_sec / run.end.minutes / 60, ".1%",
            is_ratio_told=False),
)  # fmt: skip

Recipes = Mapping[str, Mapping[int, Trained]]
"""Runs by the recipe's flags and the number of the seed; of two recipes the first is compared with the second."""


def numbers(runs: Mapping[int, Trained]) -> dict[str, Any]:
    """Everything of a recipe on one data set as JSON has it; null where a target was not reached."""
    measured = {measure.title: [measure.of_run(run) for run in runs.values()] for measure in MEASURES}
    plain = {
        title: [None if value is None or math.isinf(value) else value for value in values]
        for title, values in measured.items()
    }
    return {"seeds": list(runs), **plain, "runs": [run._asdict() for run in runs.values()]}


def table(name: str, recipes: Recipes, every: int) -> str:
    """One data set as Markdown: a row a measure, a column a recipe, the ratio of two and the trivial baselines.

    `every`: sets between two scorings.
    """
    first = next(iter(next(iter(recipes.values())).values()))
    seeds = max(map(len, recipes.values()))
    sets = f"{plural(first.test['sets'], 'test set')} on {plural(first.test['backgrounds'], 'new background')}"
    titles = ["", *(_label(flags) for flags in recipes), *(["ratio"] if len(recipes) == 2 else []), "trivial"]
    rows = [
        [
            measure.title, *(measure.summary(list(runs.values())) for runs in recipes.values()),
            *([measure.ratio(*recipes.values())] if len(recipes) == 2 else []), measure.trivial(first),
        ]
        for measure in MEASURES
        if any(measure.of_run(run) is not None for runs in recipes.values() for run in runs.values())
    ]  # fmt: skip
    return "\n".join([
        f"### {name}", "", f"Median (range) over {plural(seeds, 'seed')}; {sets} and "
        f"{plural(first.test['foregrounds'], 'new foreground')}; validated every {every:,} sets.", "",
        f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *(f"| {' | '.join(row)} |" for row in rows),
    ])  # fmt: skip


def _label(flags: str) -> str:
    return f"`{flags}`" if flags else "defaults"


def draw_chart(data: Mapping[str, Recipes], subtitle: str, path: Path) -> None:
    """Draw validation's IoU and SSIM over sets: a row of panels a data set, a curve a seed, a colour a recipe."""
    figure = Figure(figsize=(WIDTH_IN, 1 + ROW_IN * len(data)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(data), len(TARGETS), squeeze=False)
    for (name, recipes), row in zip(data.items(), panels, strict=True):
        for axes, score in zip(row, TARGETS, strict=True):
            _panel(axes, f"{name}: {TITLES[score]} in validation", recipes, score)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", frameon=False, fontsize=9)
    figure.supxlabel(subtitle, fontsize=8, color="#555555", ha="left", x=0.01)
    FigureCanvasAgg(figure)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def _panel(axes: Axes, title: str, recipes: Recipes, score: str) -> None:
    ends, trivial = list[float](), None
    for (flags, runs), colour in zip(recipes.items(), COLOURS, strict=False):
        for number, run in enumerate(runs.values()):
            points = [(point.sets, point.scores[score]) for point in run.points if score in point.scores]
            if points:
                label = None if number else flags or "defaults"
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    linewidth=1.2,
                    alpha=0.8,
                    label=label,
                    marker=".",
                    markersize=3,
                )
                ends.append(points[-1][1])
                trivial = _tested(score, TRIVIAL)(run)
    if not ends:
        axes.axis("off")
        return
    for target in TARGETS[score]:
        axes.axhline(target, color="#444444", linestyle="--", linewidth=0.8)
    if trivial is not None:
        axes.axhline(trivial, color="#444444", linestyle=":", linewidth=0.8)
        title = f"{title}; dotted: trivial, {trivial:.3f} in test"
    axes.set_ylim(min(LOWEST, max(0.0, min(ends) - 0.05)), 1)
    axes.set_xlim(left=0)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("sets", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
