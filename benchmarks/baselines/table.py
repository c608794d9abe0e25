"""Results as Markdown: one table for each data set and budget."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.baselines.plan import BUDGETS, DATA, describe_budget
from benchmarks.baselines.results import Row
from train.scoring import NETWORK, TRIVIAL


class Column(NamedTuple):
    """A score in the table."""

    title: str
    score: str
    best: Callable[[list[float]], float] = max
    interval: bool = False


MASK = (
    Column("mask IoU [95 %]", "mask_iou", interval=True),
    Column("Dice", "mask_dice"),
    Column("boundary F 1 px", "boundary_f_1px"),
)
DEPTH = (Column("depth SSIM [95 %]", "depth_ssim", interval=True), Column("RMSE", "depth_rmse", min))
ABOUT = ("network", "loss", "parameters", "GMAC", "lr", "sets seen", "minutes", "sets/s")


def tables(rows: Sequence[Row]) -> str:
    """All tables, in the order of DATA and BUDGETS, each with a title and a sentence on its sets."""
    parts = list[str]()
    for data in DATA:
        for budget in BUDGETS:
            if chosen := [row for row in rows if (row.data, row.budget) == (data, budget)]:
                parts.append(table(chosen))
    return "\n\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """The table of one data set and budget; the best of each score is bold."""
    first = rows[0]
    columns = (*MASK, *(DEPTH if first.depth else ()))
    lines = [
        f"### {first.data}, {describe_budget(first.amount, first.budget)} of training each",
        "",
        f"New foregrounds on {counted(first.test_backgrounds, 'new background')}: "
        f"{counted(first.test_sets, 'test set')}{'' if first.depth else ', the mask alone'}.",
        "",
        "| " + " | ".join([*ABOUT, *(column.title for column in columns)]) + " |",
        "|---" * (len(ABOUT) + len(columns)) + "|",
    ]
    winners = {column.score: _best(rows, column) for column in columns}
    for row in rows:
        about = [row.network, row.loss, f"{row.parameters / 1e6:.2f} M", f"{row.gmac:.3g}", f"{row.lr:g}",
                 f"{row.sets_seen:,}", f"{row.minutes:.1f}", _rate(row.sets_per_sec)]  # fmt: skip
        found = [_bold(number(row, column), row.mean(column.score) == winners[column.score]) for column in columns]
        lines.append("| " + " | ".join([*about, *found]) + " |")
    trivial = f"\\|fg_bg - bg\\| > {first.threshold}" + (", mean depth" if first.has_baseline_depth else "")
    lines.append("| " + " | ".join([trivial, *["-"] * (len(ABOUT) - 1), *(number(first, c, TRIVIAL) for c in columns)])
                 + " |")  # fmt: skip
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """1 set, 2 sets."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def number(row: Row, column: Column, who: str = NETWORK) -> str:
    """0.892 [0.871, 0.910]; a dash where there is no such score; no interval on a single background."""
    score = row.scores[who].get(column.score, {})
    mean, low, high = (score.get(what) for what in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if not column.interval or low is None or high is None:
        return f"{mean:.3f}"
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _best(rows: Sequence[Row], column: Column) -> float | None:
    means = [mean for row in rows if (mean := row.mean(column.score)) is not None]
    return column.best(means) if means else None


def _bold(text: str, best: bool) -> str:
    mean, space, interval = text.partition(" ")
    return f"**{mean}**{space}{interval}" if best and mean != "-" else text


def _rate(sets_per_sec: float) -> str:
    return f"{sets_per_sec:,.0f}" if sets_per_sec >= 10 else f"{sets_per_sec:.1f}"
