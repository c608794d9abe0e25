from collections.abc import Callable

import numpy as np
import pytest

from pipeline.composing.synthetic.brush import F64, LONG_SIDE_PX, Brush, Drawn
from pipeline.composing.synthetic.people import (
    draw_barrier,
    draw_bicycle,
    draw_cart,
    draw_cones,
    draw_motorbike,
    draw_people,
)
from pipeline.composing.synthetic.scene import TOP_M
from pipeline.composing.synthetic.source import KINDS, draw_foreground
from pipeline.composing.synthetic.vehicles import draw_bus, draw_car, draw_truck, random_paint

Draw = Callable[[np.random.Generator, F64], Drawn]
SIZES_M: dict[Draw, tuple[float, float, float, float]] = {  # least and most width, least and most height
    draw_car: (1.5, 5.8, 1.0, 2.6),
    draw_people: (0.25, 2.6, 1.35, 2.1),
    draw_bicycle: (0.4, 2.1, 1.4, 2.1),
    draw_motorbike: (0.55, 2.3, 1.2, 2.1),
    draw_truck: (2.0, 6.6, 2.3, TOP_M),
    draw_bus: (2.4, 6.6, 2.5, TOP_M),
    draw_cart: (0.7, 3.2, 0.7, 2.1),
    draw_barrier: (0.9, 4.5, 0.7, 1.6),
    draw_cones: (0.2, 4.2, 0.35, 1.5),
}
SUN = np.array([0.4, 0.7, -0.6]) / np.sqrt(1.01)
KIND = pytest.mark.parametrize("draw", SIZES_M, ids=lambda draw: draw.__name__)


def gallery(draw: Draw, count: int = 12) -> list[Drawn]:
    return [draw(np.random.default_rng((7, number)), SUN) for number in range(count)]


def test_every_kind_is_tested_and_drawn_and_most_are_cars() -> None:
    assert set(KINDS) == set(SIZES_M)
    assert sum(KINDS.values()) == pytest.approx(1)
    assert KINDS[draw_car] > 0.5


def test_a_foreground_depends_on_seed_and_number_alone() -> None:
    for number in range(8):
        one, again = draw_foreground(5, number), draw_foreground(5, number)
        assert one.rgba.tobytes() == again.rgba.tobytes()
        assert (one.width_m, one.height_m) == (again.width_m, again.height_m)
        assert one.width_m / one.height_m == pytest.approx(one.rgba.shape[1] / one.rgba.shape[0])
        assert not one.rgba[one.rgba[..., 3] == 0].any()
    assert len({draw_foreground(seed, number).rgba.tobytes() for seed in (5, 6) for number in range(10)}) == 20


@KIND
def test_things_have_the_size_of_what_they_are(draw: Draw) -> None:
    least_wide, most_wide, least_high, most_high = SIZES_M[draw]
    for rgba, metres_px in gallery(draw):
        height, width, channels = rgba.shape
        assert rgba.dtype == np.uint8
        assert channels == 4
        assert max(height, width) == LONG_SIDE_PX
        assert least_wide < width * metres_px < most_wide
        assert least_high < height * metres_px < most_high


@KIND
def test_alpha_is_solid_inside_soft_at_the_edge_and_straight(draw: Draw) -> None:
    for rgba, _ in gallery(draw):
        alpha = rgba[..., 3]
        assert (alpha == 255).mean() > 0.05
        soft = (alpha > 0) & (alpha < 255)
        assert 0 < soft.sum() < 0.45 * (alpha > 0).sum()
        assert not rgba[alpha == 0].any()
        # A soft pixel is by one less covered or at the border: nothing inside is see-through.
        clear = np.pad(alpha < 255, 1, constant_values=True)
        shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        by_clear = np.sum([np.roll(clear, shift, (0, 1))[1:-1, 1:-1] for shift in shifts], axis=0)
        # But tiny gaps, such as between a rider's leg and the frame.
        gaps = (by_clear[soft] == 1).mean()
        assert gaps == 0 if draw in (draw_car, draw_bus, draw_truck, draw_cones) else gaps < 0.03


@KIND
def test_the_last_row_touches_the_ground_and_the_picture_is_cropped(draw: Draw) -> None:
    for rgba, _ in gallery(draw):
        alpha = rgba[..., 3]
        assert alpha[-1].max() >= 128
        assert alpha[0].max() > 0
        assert alpha[:, 0].max() > 0
        assert alpha[:, -2:].max() > 0


@KIND
def test_soft_pixels_have_the_colour_of_their_thing(draw: Draw) -> None:
    """Straight alpha: a pixel covered by a tenth is as bright as those beside it, neither darkened nor lightened."""
    ratios = []
    for rgba, _ in gallery(draw):
        alpha, gray = rgba[..., 3], rgba[..., :3].mean(-1)
        rows, columns = np.nonzero((alpha > 20) & (alpha < 128))
        for row, column in zip(rows, columns, strict=True):
            window = (slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2))
            solid = gray[window][alpha[window] == 255]
            if len(solid):
                ratios.append((gray[row, column] + 5) / (solid.mean() + 5))
    assert len(ratios) > 50
    assert np.median(ratios) == pytest.approx(1, abs=0.06)


def test_some_cars_are_about_as_bright_as_a_road() -> None:
    levels = np.array([rgba[rgba[..., 3] == 255][:, :3].mean() for rgba, _ in gallery(draw_car, 40)])
    assert ((levels > 60) & (levels < 125)).sum() > 10
    assert levels.min() < 60
    assert levels.max() > 130


def test_a_block_is_as_large_as_its_corners_say_and_stands_where_its_feet_are() -> None:
    brush = Brush(0.0, 1.0, 2.0, SUN, view_m=1000.0)  # so far away that there is no perspective
    brush.box((0.0, 0.0, -0.5), (2.0, 1.0, 0.5), np.ones(3))
    rgba, metres_px = brush.render(np.array([(0.0, 0.0, -0.5)]))
    assert rgba.shape == (80, 160, 4)
    assert metres_px == pytest.approx(2 / 160, rel=1e-3)
    assert (rgba[..., 3] == 255).mean() > 0.97


def test_near_parts_are_painted_over_far_ones_whatever_came_first() -> None:
    for order in (1, -1):
        brush = Brush(0.0, 1.0, 0.0, SUN)
        for z, rgb in [(1.0, np.array([1.0, 0, 0])), (-1.0, np.array([0, 1.0, 0]))][::order]:
            brush.ball(np.array([0.0, 1.0, z]), 0.3, rgb)
        rgba, _ = brush.render(np.zeros((1, 3)))
        assert rgba[80, 80, 0] == 0 < rgba[80, 80, 1]


def test_cars_are_no_boxes_and_stand_on_wheels() -> None:
    for number in range(25):
        rgba, _ = draw_car(np.random.default_rng((2, number)), SUN)
        alpha = rgba[..., 3]
        assert 0.4 < (alpha == 255).mean() < 0.97
        assert alpha[0, 0] == alpha[0, -1] == 0
        assert alpha[-1].max() >= 128
        tyres = rgba[-1, alpha[-1] == 255, :3]
        assert len(tyres) == 0 or tyres.max() < 40


def test_cars_are_turned_all_ways() -> None:
    shapes = [draw_car(np.random.default_rng((3, number)), SUN)[0].shape for number in range(40)]
    ratios = np.array([width / height for height, width, _ in shapes])
    assert (ratios < 1.5).sum() > 5
    assert (ratios > 2.0).sum() > 5


def test_paint_is_bright_enough_to_be_seen() -> None:
    paints = np.array([random_paint(np.random.default_rng(number)) for number in range(50)])
    assert paints.min() >= 0.08 * 1.15 - 1e-9
    assert len(np.unique(paints, axis=0)) > 40
