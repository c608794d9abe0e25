"""Curves: every point lies where its value belongs, by the axis that the reader sees."""

import html
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pages import Page
from train.curves import (
    MAX_MARKED,
    MAX_POINTS,
    Chart,
    Point,
    Series,
    draw_curves,
    draw_svg,
    round_values,
    thinned,
    tick_label,
)
from train.logging import Line

ONE = Chart("t", (Series("train", "x", "training"),))


def logged(points: list[Point], name: str = "x", kind: str = "train") -> list[Line]:
    return [{"kind": kind, "step": step, name: value} for step, value in points]


def places(points: list[Point], *, log: bool = False, from_zero: bool = False) -> list[Point]:
    """Where the points lie in the drawing, x and y; y grows downwards."""
    drawn = draw_svg(ONE._replace(log=log, from_zero=from_zero), logged(points))
    [path] = re.findall(r'd="M ([^"]*)" style="fill: none; stroke: var\(--first\)', drawn)
    return [(float(x), float(y)) for x, y in (pair.split() for pair in path.split("L"))]


def dots(points: list[Point], *, log: bool = False) -> list[Point]:
    drawn = draw_svg(ONE._replace(log=log), logged(points))
    return [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="(\S+)" y="(\S+)"', drawn)]


def test_equal_steps_are_equal_lengths_and_higher_is_up() -> None:
    (x0, y0), (x1, y1), (x2, y2) = places([(0, 1.0), (10, 2.0), (20, 3.0)])
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx(y1 - y2)
    assert (x1 > x0, y0 > y1) == (True, True)


def test_equal_factors_are_equal_lengths_on_a_logarithmic_axis() -> None:
    y = [place[1] for place in places([(0, 0.01), (1, 0.1), (2, 1.0)], log=True)]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2])
    not_above_zero = [place[1] for place in places([(0, 0.0), (1, 0.5), (2, 1.0)], log=True)]
    assert not_above_zero[0] - not_above_zero[1] == pytest.approx(not_above_zero[1] - not_above_zero[2])


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.28, 0.31), (1e-4, 5.0), (80.0, 95.0), (1.0, 1e6)])
def test_ticks_are_few_rise_and_lie_on_the_axis(low: float, high: float, log: bool) -> None:
    ticks = list(round_values(low, high, log=log))
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)
    assert all(before < after for before, after in pairwise(ticks))


def test_ticks_of_steps_are_whole() -> None:
    assert list(round_values(6.6, 7.4, whole=True)) == [7]
    assert list(round_values(0, 2, whole=True)) == [0, 1, 2]


@pytest.mark.parametrize("log", [False, True])
def test_ticks_stand_at_their_values(log: bool) -> None:
    drawn = draw_svg(ONE._replace(log=log), logged([(0, 0.1), (1, 1.0)]))
    (_, low), (_, high) = places([(0, 0.1), (1, 1.0)], log=log)
    ticks = re.findall(r'text-anchor: end[^>]* y="(\S+)"[^>]*>([\d.]+)<', drawn)
    assert len(ticks) > 2
    for y, text in ticks:
        share = math.log10(float(text) / 0.1) if log else (float(text) - 0.1) / 0.9
        # The label's baseline is below the middle of its digits, by the same for each.
        assert float(y) == pytest.approx(low + share * (high - low) + 3.8, abs=0.1)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
@pytest.mark.parametrize("log", [False, True])
def test_a_single_point_has_its_dot_well_inside(value: float, log: bool) -> None:
    [(x, y)] = dots([(7, value)], log=log)
    assert x == pytest.approx(198, abs=1)
    assert 60 < y < 170


def test_what_is_no_number_is_left_out() -> None:
    nothing = [(1.0, math.nan), (2.0, math.inf)]
    assert draw_svg(ONE, logged(nothing)) == ""
    assert draw_svg(ONE, logged([(1, 1.0)], kind="val")) == draw_svg(ONE, logged([(1, 1.0)], "y")) == ""
    assert len(places([*nothing, (3, 1.0), (4, 2.0)])) == 2


def test_many_points_become_means_of_what_follows_one_another() -> None:
    rng = np.random.default_rng(0)
    points = [(float(step), float(value)) for step, value in enumerate(rng.normal(size=10 * MAX_POINTS))]
    found = thinned(points)
    assert len(found) == MAX_POINTS
    assert found[3] == pytest.approx(np.mean(points[30:40], axis=0))
    assert thinned(points[:5]) == points[:5]
    assert dots(points) == []
    assert dots(points[:MAX_MARKED]) == places(points[:MAX_MARKED])


def test_zero_is_on_the_axis_where_it_is_asked_for() -> None:
    assert places([(0, 5.0), (1, 9.0)])[0][1] > places([(0, 5.0), (1, 9.0)], from_zero=True)[0][1]
    assert places([(0, 0.0), (1, 0.0)], from_zero=True)[0][1] > 180


def test_labels() -> None:
    assert [tick_label(value) for value in (0.0, 0.002, 20.0, 9000.0, 15000.0, 1.5e6)] == [
        "0", "0.002", "20", "9000", "15k", "1.5M",
    ]  # fmt: skip


def test_the_drawing_is_part_of_its_page() -> None:
    lines = logged([(0, 0.25), (1, 0.5)])
    chart = ONE._replace(title="a < b & c", scale=100, series=(*ONE.series, Series("train", "x", "|fg_bg - bg| > t")))
    drawn = draw_svg(chart, lines)
    assert drawn == draw_svg(chart, lines)
    page = Page(drawn)
    assert page.texts["title"] == "a < b & c: training, |fg_bg - bg| > t, over steps"
    texts = [html.unescape(text) for text in re.findall("([^>]*)</text>", drawn)]
    assert {"a < b & c", "training", "|fg_bg - bg| > t", "30", "50", "step"} <= set(texts)
    assert "| > t" not in drawn
    assert not re.search("#[0-9a-f]{6}|https?:|url|<style|font-family", drawn)
    ids = [value for _, name, value in page.attributes if name == "id"]
    other = Page(draw_svg(chart._replace(title="other"), lines))
    ids += [value for _, name, value in other.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0


def test_a_logarithmic_axis_of_less_than_a_decade_has_ticks_enough() -> None:
    assert list(round_values(0.19, 1.3, log=True)) == pytest.approx([0.2, 0.5, 1])
    assert list(round_values(0.26, 1.1, log=True)) == pytest.approx([0.3, 0.5, 0.7, 1])


def test_scores_stand_below_the_losses(tmp_path: Path) -> None:
    lines: list[Line] = [{"kind": "train", "step": 1, "mask_loss": 0.5, "depth_loss": 0.5}]
    lines += [{"kind": "val", "step": 2, "mask_iou": 0.5, "baseline_iou": 0.4, "depth_ssim": 0.5}]
    draw_curves(lines, tmp_path / "four.png")
    draw_curves([{key: value for key, value in line.items() if "depth" not in key} for line in lines],
                tmp_path / "two.png")  # fmt: skip
    with Image.open(tmp_path / "four.png") as four, Image.open(tmp_path / "two.png") as two:
        assert (four.size, two.size) == ((1200, 960), (600, 960))
        gray = (0x7C, 0x7F, 0x86)  # of the baseline
        for picture in (four, two):
            height = picture.height // 2
            below = picture.convert("RGB").crop((0, height, picture.width, picture.height))
            assert gray in {color for _, color in below.getcolors(1 << 20) or []}


def test_losses_are_a_png(tmp_path: Path) -> None:
    lines: list[Line] = [{"kind": "train", "step": 1, "mask_loss": 0.5, "depth_loss": 0.5}]
    lines += [{**line, "kind": "val", "step": 2} for line in lines]
    draw_curves(lines, tmp_path / "both.png")
    draw_curves([{"kind": "train", "step": 1, "mask_loss": 0.5}], tmp_path / "mask.png")
    with Image.open(tmp_path / "both.png") as both, Image.open(tmp_path / "mask.png") as mask:
        assert (both.size, mask.size) == ((1200, 480), (600, 480))
        blue, red = (0x25, 0x63, 0xC9), (0xC2, 0x41, 0x0C)
        assert {blue, red} <= {color for _, color in both.convert("RGB").getcolors(1 << 20) or []}
        assert red not in {color for _, color in mask.convert("RGB").getcolors(1 << 20) or []}
