"""Tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import click


def print_table(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print named rows under the titles of their columns, each column as wide as it has to be."""
    lines = [["", *titles], *([name, *cells] for name, cells in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles) + 1)]
    for name, *cells in lines:
        numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        click.echo("  ".join((f"{name:{widths[0]}}", *numbers)).rstrip())


def quartiles(values: Mapping[str, float], digits: int = 0) -> str:
    """Median and quartiles, as `timing.spread` gives them."""
    return f"{values['median']:,.{digits}f} ({values['q1']:,.{digits}f}-{values['q3']:,.{digits}f})"


def print_rates(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print rows of `timing.row`: rates, ratios, CPU time, and peak memory and megapixels where they have them."""
    base = next(iter(rows.values()))["ratio_to"]
    more = {"megapixels_per_sec": ("Mpixel/s", ",.0f"), "peak_mib": ("peak MiB", ",.0f")}
    shown = [name for name in more if any(row.get(name) is not None for row in rows.values())]
    titles = ["sets/s (quartiles)", f"x {base} (quartiles)", "CPU s/1000", *(more[name][0] for name in shown)]
    cells = {
        name: [
            quartiles(row["sets_per_sec"]),
            quartiles(row["ratio"], 2),
            f"{row['cpu_sec_per_1000_sets']:.2f}",
            *(number(row.get(key), more[key][1]) for key in shown),
        ]
        for name, row in rows.items()
    }
    print_table(titles, cells)


def number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)
