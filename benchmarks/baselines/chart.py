"""The chart: a bar for each run, in a PNG."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.baselines.plan import BUDGETS, DATA, describe_budget
from benchmarks.baselines.results import Row
from pipeline.resume import atomic_file
from train.scoring import NETWORK, TRIVIAL

SCORES = {"mask_iou": "mask IoU", "depth_ssim": "depth SSIM"}
TRIVIALS = {"mask_iou": "|fg_bg - bg| > t", "depth_ssim": "mean depth"}
COLOURS = {"sets": "#c2573a", "minutes": "#3a76c2"}
BAR = 0.8  # of the distance between two rows, for all bars of a row together
GAP = 0.6  # rows between two networks
WIDTH_IN, ROW_IN, PANEL_IN, FRAME_IN, DPI = 11.0, 0.26, 0.9, 0.8, 130


def draw_chart(rows: Sequence[Row], subtitle: str, path: Path) -> None:
    """Draw mask IoU and depth SSIM with their intervals: panels by data, rows by network and loss, bars by budget."""
    data = [name for name in DATA if any(row.data == name for row in rows)]
    of_data = [[row for row in rows if row.data == name] for name in data]
    heights = [PANEL_IN + ROW_IN * len(places(chosen)) for chosen in of_data]
    figure = Figure(figsize=(WIDTH_IN, FRAME_IN + sum(heights)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(data), len(SCORES), squeeze=False, sharey="row", height_ratios=heights)
    for name, chosen, axes_row in zip(data, of_data, panels, strict=True):
        for axes, score in zip(axes_row, SCORES, strict=True):
            _panel(axes, name, chosen, score)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle("New backgrounds, new foregrounds", fontsize=13, ha="left", x=0.01)
    figure.supxlabel(subtitle, fontsize=8, color="#555555", ha="left", x=0.01)
    FigureCanvasAgg(figure)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def places(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """How far down each network with each loss stands: losses one below the other, networks with a gap between."""
    found, place, former = dict[tuple[str, str], float](), 0.0, ""
    for network, loss in dict.fromkeys((row.network, row.loss) for row in rows):
        place += GAP if former not in ("", network) else 0
        found[network, loss] = place
        place, former = place + 1, network
    return found


def _panel(axes: Axes, data: str, rows: Sequence[Row], score: str) -> None:
    scored = [row for row in rows if row.mean(score) is not None]
    if not scored:
        axes.axis("off")
        return
    at = places(rows)
    budgets = [budget for budget in BUDGETS if any(row.budget == budget for row in rows)]
    height = BAR / len(budgets)
    for nth, budget in enumerate(budgets):
        chosen = [row for row in scored if row.budget == budget]
        middle = [at[row.network, row.loss] + (nth - (len(budgets) - 1) / 2) * height for row in chosen]
        means = [row.mean(score) or 0.0 for row in chosen]
        axes.barh(middle, means, height, color=COLOURS[budget], label=_amount(chosen, budget))
        for row, y, mean in zip(chosen, middle, means, strict=True):
            summary = row.scores[NETWORK][score]
            low, high = summary["low"], summary["high"]
            if low is not None and high is not None:
                axes.plot([low, high], [y, y], color="#222222", linewidth=1)
            axes.text(1.01, y, f"{mean:.3f}", va="center", fontsize=6.5, color=COLOURS[budget])
    trivial = scored[0].mean(score, TRIVIAL)
    if trivial is not None:
        axes.axvline(trivial, color="#444444", linestyle="--", linewidth=1)
    told = f"; dashed: {TRIVIALS[score]}, {trivial:.3f}" if trivial is not None else ""
    axes.set_title(f"{data}: {SCORES[score]}{told}", fontsize=9.5, loc="left")
    axes.set_yticks(list(at.values()), [f"{network}, {loss}" for network, loss in at], fontsize=8)
    axes.set_ylim(max(at.values()) + 0.6, -0.6)  # the first on top
    axes.set_xlim(0, 1)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _amount(rows: Sequence[Row], budget: str) -> str | None:
    amounts = sorted({row.amount for row in rows})
    return f"{describe_budget(amounts[0], budget)} of training" if len(amounts) == 1 else budget
