"""Charts of a report: lines over steps as inline SVG, which takes its colours from the page."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from train.report_page import Html, element

WIDTH, HEIGHT = 360, 220  # units of the drawing; about pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 44, 34  # of it, around the lines
MOST_POINTS = 400  # of a line; each is the mean of its share of more
FEW_POINTS = 30  # up to which each has a dot
TICKS = 5

Point = tuple[float, float]


class Series(NamedTuple):
    """A line and what it is called."""

    label: str
    points: Sequence[Point]
    """(step, value), by step; values that are no numbers are left out."""
    class_: str
    """Of the page's style: first, second or third."""


class Axis:
    """From values to a length in the drawing."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool = False) -> None:
        """`start` and `end` are where the lowest and the highest of `values` lie; `log` needs them above 0."""
        low, high = min(values), max(values)
        self._log = log and low > 0
        if low == high:  # there is no slope in one value
            low, high = (low / 2, high * 2) if self._log else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
        self._low, self._high = self._scaled(low), self._scaled(high)
        self._start, self._end = start, end
        self.ticks = list(self._ticks(low, high))
        """Round values between the lowest and the highest."""

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        share = (self._scaled(value) - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 1)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self._log else value

    def _ticks(self, low: float, high: float) -> Iterator[float]:
        for locator in (LogLocator(subs=(1, 2, 5)) if self._log else None, MaxNLocator(TICKS)):
            found = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high] if locator else []
            if len(found) > 1:
                thinned = found[:: -(-len(found) // (TICKS + 2))]
                return iter(thinned)
        return iter(())


def chart(title: str, lines: Iterable[Series], *, log: bool = False, from_zero: bool = False) -> Html | None:
    """The lines over steps; None where none has a point. `log`: a logarithmic axis where all values are above 0."""
    drawn = [line._replace(points=thinned(finite)) for line in lines if (finite := numbers(line.points))]
    if not drawn:
        return None
    across = Axis([step for line in drawn for step, _ in line.points], LEFT, WIDTH - RIGHT)
    values = [value for line in drawn for _, value in line.points] + ([0.0] if from_zero else [])
    up = Axis(values, HEIGHT - BOTTOM, TOP, log=log)
    content = [element("title", f"{title}: {', '.join(line.label for line in drawn)}, over steps")]
    for tick in up.ticks:
        content.append(element("path", d=f"M{LEFT} {up(tick)}H{WIDTH - RIGHT}", class_="axis"))
        content.append(element("text", label(tick), x=LEFT - 5, y=up(tick) + 4, text_anchor="end"))
    for tick in across.ticks:
        content.append(element("text", label(tick), x=across(tick), y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    content.append(element("text", "step", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle"))
    along = LEFT
    for line in drawn:
        places = [(across(step), up(value)) for step, value in line.points]
        content.append(element("path", d="M" + "L".join(f"{x} {y}" for x, y in places), class_=f"series {line.class_}"))
        if len(places) <= FEW_POINTS:
            content += [element("circle", cx=x, cy=y, r=2.5, class_=f"dot {line.class_}") for x, y in places]
        content.append(element("path", d=f"M{along} 32h16", class_=f"series {line.class_}"))
        content.append(element("text", line.label, x=along + 20, y=36))
        along += 34 + 6 * len(line.label)
    content.append(element("text", title, x=LEFT, y=14, style="font-size:13px;font-weight:600;fill:var(--ink)"))
    return element("svg", *content, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")


def numbers(points: Iterable[Point]) -> list[Point]:
    """The points whose values are finite."""
    return [point for point in points if math.isfinite(point[1])]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many points, each the mean of those that follow one another in its place."""
    if len(points) <= most:
        return list(points)
    means = [part.mean(axis=0) for part in np.array_split(np.array(points, np.float64), most)]
    return [(float(step), float(value)) for step, value in means]


def label(value: float) -> str:
    """A tick in few characters: 0.002, 20, 15k, 1.5M."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:.4g}"
