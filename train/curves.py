"""Training curves: losses and scores over steps, as a PNG in the run's folder and as SVG in its report."""

import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

# isort: off
from pipeline.plotting import mpl  # before the rest of matplotlib

# isort: on
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from pipeline.resume import atomic_file

if TYPE_CHECKING:
    from train.logging import Line

MAX_POINTS = 400  # of a curve; where there are more, each is the mean of its share of them
MAX_MARKED = 30  # points that have a dot each; more of them run together
MAX_TICKS = 7
SVG_INCHES = (5.0, 3.05)  # 360 x 220 units of an SVG
# Colours of the PNG. In an SVG each is the variable of this name, so that the page decides: dark mode, print.
COLOURS = {
    "ink": "#1c1e21",
    "faint": "#5f6670",
    "line": "#d9dce1",
    "first": "#2563c9",
    "second": "#c2410c",
    "third": "#7c7f86",
}
STYLES = {"training": ("first", "-"), "validation": ("second", "-"), "network": ("second", "-")}
BASELINE_STYLE = ("third", "--")  # of any other label

Point = tuple[float, float]


class Series(NamedTuple):
    """A curve of a chart: where its values stand in metrics.jsonl, and what it is called."""

    kind: str
    """"train" or "val"."""
    name: str
    """Name of the value in lines of that kind."""
    label: str


class Chart(NamedTuple):
    """What is drawn on one pair of axes."""

    title: str
    series: tuple[Series, ...]
    log: bool = False
    """A logarithmic axis, unless a value is 0 or less."""
    from_zero: bool = False
    scale: float = 1.0
    """Factor between a logged value and the one that is shown."""


LOSSES = tuple(
    Chart(f"{part} loss", (Series("train", name, "training"), Series("val", name, "validation")), log=True)
    for part, name in (("mask", "mask_loss"), ("depth", "depth_loss"))
)
SCORES = (
    Chart(
        "mask IoU in validation",
        (Series("val", "mask_iou", "network"), Series("val", "baseline_iou", "|fg_bg - bg| > t")),
    ),
    Chart("depth SSIM in validation", (Series("val", "depth_ssim", "network"),)),
)
OPTIMIZATION = (
    Chart("learning rate", (Series("train", "lr", "training"),), from_zero=True),
    Chart("gradient norm", (Series("train", "grad_norm", "training"),), log=True),
)
SPEED = (
    Chart("sets/s", (Series("train", "sets_per_sec", "training"),), from_zero=True),
    Chart("time waited for data, %", (Series("train", "stall_share", "training"),), from_zero=True, scale=100),
)


def draw_curves(lines: "Sequence[Line]", path: Path) -> None:
    """Write losses and, below them, scores of validation, from the lines of metrics.jsonl, as a PNG."""
    logged = [[chart for chart in row if curves_of(chart, lines)] for row in (LOSSES, SCORES)]
    grid = [row for row in logged if row]
    columns = max(map(len, grid))
    figure = Figure(figsize=(5 * columns, 4 * len(grid)))
    FigureCanvasAgg(figure)
    # By hand: a layout that matplotlib finds by itself takes longer than all of the drawing.
    margin = {1: 0.12, 2: 0.06}[len(grid)]
    figure.subplots_adjust(0.14 / columns, margin, 0.98, 1 - 1.33 * margin, wspace=0.18, hspace=0.38)
    for place, row in enumerate(grid):
        for number, chart in enumerate(row):
            draw(figure.add_subplot(len(grid), columns, place * columns + number + 1), chart, lines)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def draw_svg(chart: Chart, lines: "Sequence[Line]") -> str:
    """An `svg` element for a page of HTML, "" where nothing of the chart was logged.

    The page defines the variables --ink, --faint, ... of `COLOURS`. The same lines give the same text.
    """
    if not (labels := list(curves_of(chart, lines))):
        return ""
    # Text stays text, in the page's font. The salt makes ids repeat from run to run, but not within a page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.title}):
        figure = Figure(figsize=SVG_INCHES, facecolor="none")
        FigureCanvasSVG(figure)
        figure.subplots_adjust(0.13, 0.155, 0.97, 0.8)
        draw(figure.subplots(), chart, lines)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    description = f"{chart.title}: {', '.join(labels)}, over steps"
    return for_html(file.getvalue(), description)


def for_html(document: str, description: str) -> str:
    """The `svg` element of a document by matplotlib, without what HTML does not need, in colours of the page."""
    content = re.search(r"<svg[^>]*>(.*</svg>)", document, re.DOTALL)
    size = re.search(r'viewBox="[^"]*"', document)
    assert content
    assert size
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", content[1], flags=re.DOTALL)  # would be of the page
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # "axes_1" in every chart
    text = re.sub("font-family: [^;]*; ", "", text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return f'<svg {size[0]} role="img"><title>{html.escape(description)}</title>{text}'


def draw(axes: Axes, chart: Chart, lines: "Sequence[Line]") -> None:
    """Draw what of a chart was logged, at least one point."""
    for label, points in curves_of(chart, lines).items():
        colour, dashes = STYLES.get(label, BASELINE_STYLE)
        [curve] = axes.plot(
            *zip(*points, strict=True), label=label, linestyle=dashes, color=COLOURS[colour], clip_on=False
        )
        if len(points) <= MAX_MARKED:
            curve.set(marker="o", markersize=4)
        if min(value for _, value in points) <= 0:
            chart = chart._replace(log=False)
    if chart.log:
        axes.set_yscale("log")
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    for axis, (low, high), log in ((axes.xaxis, axes.get_xlim(), False), (axes.yaxis, axes.get_ylim(), chart.log)):
        ticks = list(round_values(low, high, log=log, whole=axis is axes.xaxis))
        axis.set_ticks(ticks, labels=[tick_label(tick) for tick in ticks])
    axes.minorticks_off()
    axes.tick_params(length=0, labelcolor=COLOURS["faint"])
    axes.grid(axis="y", color=COLOURS["line"], clip_on=False)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    axes.set_xlabel("step", color=COLOURS["faint"])
    axes.set_title(chart.title, loc="left", pad=24, color=COLOURS["ink"], fontweight="bold", fontsize=12)
    if len(chart.series) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0,
            ncols=len(chart.series),
            frameon=False,
            labelcolor=COLOURS["faint"],
        )


def curves_of(chart: Chart, lines: "Sequence[Line]") -> dict[str, list[Point]]:
    """The points (step, value) of each series, by its label; values that are not finite, and empty series, left out."""
    curves = dict[str, list[Point]]()
    for kind, name, label in chart.series:
        points = [
            (float(line["step"]), chart.scale * line[name])
            for line in lines
            if line["kind"] == kind and math.isfinite(line.get(name, math.nan))
        ]
        if points:
            curves[label] = thinned(points)
    return curves


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most so many points, each the mean of those that follow one another in its place."""
    if len(points) <= most:
        return list(points)
    means = [part.mean(axis=0) for part in np.array_split(np.array(points, np.float64), most)]
    return [(float(step), float(value)) for step, value in means]


def round_values(low: float, high: float, *, log: bool = False, whole: bool = False) -> Iterator[float]:
    """At most MAX_TICKS round values from `low` to `high`, for the ticks of an axis; `whole` numbers only."""
    linear = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=1)
    logarithmic = [LogLocator(subs=subs) for subs in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7))]
    for locator in (*logarithmic, linear) if log else (linear,):
        found = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
        if len(found) > 2 or locator is linear:
            yield from found[:: max(1, math.ceil(len(found) / MAX_TICKS))]
            return


def tick_label(value: float) -> str:
    """A tick in few characters: 0.002, 20, 15k, 1.5M."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:.4g}"
