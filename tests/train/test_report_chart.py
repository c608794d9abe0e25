"""Charts: every point lies where its value belongs, by the axis that the reader sees."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest

from train.report_chart import FEW_POINTS, MOST_POINTS, Axis, Series, chart, label, thinned
from train.report_page import Html


def one(points: list[tuple[float, float]], **flags: bool) -> Html:
    drawn = chart("t", [Series("s", points, "first")], **flags)
    assert drawn is not None
    return drawn


def places(drawn: str) -> list[tuple[float, float]]:
    """Of the points of the first line."""
    found = re.search(r'd="M([^"]*)" class="series', drawn)
    assert found
    return [(float(x), float(y)) for x, y in (pair.split() for pair in found[1].split("L"))]


def test_equal_steps_are_equal_lengths_and_higher_is_up() -> None:
    (x0, y0), (x1, y1), (x2, y2) = places(one([(0, 1.0), (10, 2.0), (20, 3.0)]))
    assert x1 - x0 == x2 - x1 > 0
    assert y0 - y1 == y1 - y2 > 0


def test_equal_factors_are_equal_lengths_on_a_logarithmic_axis() -> None:
    y = [place[1] for place in places(one([(0, 0.01), (1, 0.1), (2, 1.0)], log=True))]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.11)
    not_above_zero = [place[1] for place in places(one([(0, 0.0), (1, 0.5), (2, 1.0)], log=True))]
    assert not_above_zero[0] - not_above_zero[1] == not_above_zero[1] - not_above_zero[2]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.28, 0.31), (1e-4, 5.0), (80.0, 95.0), (1.0, 1e6)])
def test_ticks_are_few_rise_and_lie_on_the_axis(low: float, high: float, log: bool) -> None:
    axis = Axis([high, low], 100, 0, log=log)
    assert 2 <= len(axis.ticks) <= 8
    assert all(low <= tick <= high for tick in axis.ticks)
    assert all(axis(before) > axis(after) for before, after in pairwise(axis.ticks))
    assert (axis(low), axis(high)) == (100, 0)
    for tick in axis.ticks:
        share = math.log(tick / low) / math.log(high / low) if log else (tick - low) / (high - low)
        assert axis(tick) == pytest.approx(100 - 100 * share, abs=0.06)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
@pytest.mark.parametrize("log", [False, True])
def test_a_single_point_has_its_dot_in_the_middle(value: float, log: bool) -> None:
    drawn = one([(7, value)], log=log)
    assert drawn.count("<circle") == 1
    axis = Axis([value], 0, 100, log=log)
    assert axis(value) == 50


def test_what_is_no_number_is_left_out() -> None:
    nothing = [(1.0, math.nan), (2.0, math.inf)]
    assert chart("t", [Series("s", nothing, "first"), Series("e", [], "second")]) is None
    assert len(places(one([*nothing, (3, 1.0), (4, 2.0)]))) == 2


def test_many_points_become_means_of_what_follows_one_another() -> None:
    rng = np.random.default_rng(0)
    points = [(float(step), float(value)) for step, value in enumerate(rng.normal(size=10 * MOST_POINTS))]
    found = thinned(points)
    assert len(found) == MOST_POINTS
    assert found[3] == pytest.approx(np.mean(points[30:40], axis=0))
    assert thinned(points[:5]) == points[:5]
    assert one(points).count("<circle") == 0
    assert one(points[:FEW_POINTS]).count("<circle") == FEW_POINTS


def test_zero_is_on_the_axis_where_it_is_asked_for() -> None:
    axis_bottom = places(one([(0, 0.0), (1, 9.0)]))[0][1]
    assert places(one([(0, 5.0), (1, 9.0)]))[0][1] == axis_bottom
    assert places(one([(0, 5.0), (1, 9.0)], from_zero=True))[0][1] < axis_bottom


def test_labels() -> None:
    assert [label(value) for value in (0.0, 0.002, 20.0, 9000.0, 15000.0, 1.5e6)] == [
        "0", "0.002", "20", "9000", "15k", "1.5M",
    ]  # fmt: skip


def test_what_a_line_is_called_is_escaped() -> None:
    drawn = chart("a < b & c", [Series("|fg_bg - bg| > t", [(0, 1.0), (1, 2.0)], "third")])
    assert drawn is not None
    assert "a &lt; b &amp; c" in drawn
    assert "| > t" not in drawn
