"""The chart: a bar for each loader, in a PNG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.resume import atomic_file

COLOURS = {"warm": "#c2573a", "cold": "#3a76c2"}
OTHERS = {"warm": "#e3b8aa", "cold": "#b0c6e3"}  # whoever is not ours
LINEAR_UP_TO = 20
"""Between larger rates and smaller ones than so many times these, the shorter bars could not be told apart."""
WIDTH_IN, ROW_IN, FRAME_IN, DPI = 9.0, 0.42, 1.5, 150


def draw_chart(loaders: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str, subtitle: str, path: Path) -> None:
    """Draw sets a second, medians with whiskers at the quartiles: {page cache: {loader: row of the contest}}."""
    names = dict.fromkeys(name for rows in loaders.values() for name in rows)
    bars = [(name, cache, rows[name]) for name in names for cache, rows in loaders.items() if name in rows]
    figure = Figure(figsize=(WIDTH_IN, FRAME_IN + ROW_IN * len(bars)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    farthest = max(row["sets_per_sec"]["q3"] for _, _, row in bars)
    nearest = min(row["sets_per_sec"]["q1"] for _, _, row in bars)
    logarithmic = farthest > LINEAR_UP_TO * nearest
    for place, (name, cache, row) in enumerate(bars):
        rate = row["sets_per_sec"]
        whiskers = [[rate["median"] - rate["q1"]], [rate["q3"] - rate["median"]]]
        colour = (COLOURS if name.startswith("ours") else OTHERS)[cache]
        axes.barh(place, rate["median"], xerr=whiskers, color=colour, capsize=3, height=0.7)
        ratio = f"{row['ratio']['median']:.2f} x {row['ratio_to']}"
        label = f"   {rate['median']:,.0f}   {ratio}"
        axes.text(rate["q3"], place, label, va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [name if len(loaders) == 1 else f"{name}, {cache}" for name, cache, _ in bars])
    axes.invert_yaxis()  # the first on top
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(nearest / 2, farthest * (farthest / nearest) ** 0.4)
    else:
        axes.set_xlim(0, 1.4 * farthest)
    axes.set_xlabel(f"sets/s{' (logarithmic)' if logarithmic else ''}: median, quartiles")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(subtitle, fontsize=8, color="#555555", loc="left")
    figure.suptitle(title, fontsize=12, ha="left", x=0.01)
    FigureCanvasAgg(figure)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
