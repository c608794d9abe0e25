"""Small things in the road: traffic cones, barriers, and carts with a load."""

import numpy as np

from pipeline.composing.synthetic.brush import F64, Brush, Drawn, moved
from pipeline.composing.synthetic.people import draw_dress, paint_walker
from pipeline.composing.synthetic.vehicles import draw_paint
from pipeline.composing.synthetic.wheel import rim, tyre

_ORANGE, _WHITE, _RED = np.array([1.05, 0.42, 0.12]), np.full(3, 1.05), np.array([0.9, 0.14, 0.12])


def draw_barrier(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A red and white barrier, often between cones."""
    brush = _brush(rng, to_sun)
    half, feet = float(rng.uniform(0.6, 1.2)), []
    rgb = _RED if rng.random() < 0.7 else _ORANGE
    for z in (-0.8 * half, 0.8 * half):
        brush.block((-0.28, 0.0, z - 0.07), (0.28, 0.09, z + 0.07), np.full(3, 0.2))
        brush.block((-0.03, 0.09, z - 0.03), (0.03, 1.0, z + 0.03), np.full(3, 0.75))
        feet += [(x, 0.0, z + side) for x in (-0.28, 0.28) for side in (-0.07, 0.07)]
    count = 2 * int(half / 0.2) + 1
    for y in (0.8, 0.45) if rng.random() < 0.6 else (0.75,):
        for k in range(count):
            a, b = ((2 * (k + edge) / count - 1) * half for edge in (0, 1))
            brush.block((-0.05, y, a), (-0.02, y + 0.24, b), _WHITE if k % 2 else rgb)
            brush.block((0.02, y, a), (0.05, y + 0.24, b), _WHITE if k % 2 else rgb)
    for side in (-1, 1):
        if rng.random() < 0.4:
            feet += _cone(brush, np.array([rng.uniform(-0.3, 0.3), 0.0, side * (half + rng.uniform(0.3, 0.8))]), 0.75)
        if rng.random() < 0.4:
            brush.ball(np.array([0.0, 1.08, side * 0.8 * half]), 0.09, np.array([1.1, 0.75, 0.1]))
    return brush.picture(np.array(feet))


def draw_cones(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """One to four traffic cones in a row."""
    brush, size = _brush(rng, to_sun), float(rng.uniform(0.5, 1.0))
    count, step, slant = int(rng.integers(1, 5)), float(rng.uniform(0.7, 1.2)), float(rng.uniform(-0.5, 0.5))
    feet = []
    for k in range(count):
        at = (k - (count - 1) / 2) * step
        feet += _cone(brush, np.array([slant * at, 0.0, at]), size)
    return brush.picture(np.array(feet))


def draw_cart(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A hand cart with boxes on it and whoever pushes it, or a three-wheeled cargo bicycle."""
    yaw = float(rng.uniform(-180, 180))
    brush = Brush(np.radians(yaw), float(rng.uniform(1.4, 2.2)), 0.0, to_sun, view_m=10.0)
    half, long, deck = float(rng.uniform(0.32, 0.45)), float(rng.uniform(0.45, 0.7)), float(rng.uniform(0.3, 0.55))
    paint, dress = draw_paint(rng), draw_dress(rng)
    brush.block((-long, deck - 0.08, -half), (long, deck, half), np.full(3, 0.3))
    if rng.random() < 0.5:
        brush.block((-long, deck, -half), (long, deck + float(rng.uniform(0.5, 0.8)), half), paint)
    else:
        for k in range(int(rng.integers(2, 6))):
            x, z = (-0.5 * long, 0.5 * long)[k % 2], (-0.45 * half, 0.45 * half)[k // 2 % 2]
            y, size = deck + 0.34 * (k // 4), float(rng.uniform(0.12, 0.19))
            rgb = np.array([0.72, 0.56, 0.38]) if rng.random() < 0.6 else draw_paint(rng)
            brush.block((x - 1.3 * size, y, z - size), (x + 1.3 * size, y + 0.33, z + size), rgb)
    radius, feet = min(0.2, 0.55 * deck), []
    for x in (-0.7 * long, 0.7 * long):
        for side_m in (-half - 0.02, half + 0.02):
            brush.far_m = brush.away(np.array([x, radius, 1.15 * side_m]))
            tyre(brush, x, side_m, radius, 0.06)
            rim(brush, x, side_m, radius, 6, np.full(3, 0.6))
            feet.append((x, 0.0, side_m))
    grip = np.array([long + 0.3, 1.0, 0.0])
    for side in (-0.8 * half, 0.8 * half):
        brush.limb(np.array([[long, deck, side], moved(grip, 0, 0, side)]), (0.02, 0.02), np.full(3, 0.25), 3)
    brush.limb(np.array([moved(grip, 0, 0, -half), moved(grip, 0, 0, half)]), (0.022, 0.022), np.full(3, 0.15), 3)
    if rng.random() < 0.6:
        soles = paint_walker(brush, rng, dress, np.array([long + 0.75, 0.0, 0.0]))
        feet += [(float(x), 0.0, float(z)) for x, _, z in soles]
    return brush.picture(np.array(feet))


def _brush(rng: np.random.Generator, to_sun: F64) -> Brush:
    return Brush(np.radians(90 + rng.normal(0, 25)), float(rng.uniform(1.4, 2.2)), 0.0, to_sun, view_m=8.0)


def _cone(brush: Brush, at: F64, height: float) -> list[tuple[float, float, float]]:
    """A cone on its square foot; the foot's corners."""
    x, _, z = at
    foot = 0.25 * height
    brush.block((x - foot, 0.0, z - foot), (x + foot, 0.05 * height, z + foot), _ORANGE * 0.75)
    for low, high, rgb in (
        (0.05, 0.35, _ORANGE),
        (0.35, 0.55, _WHITE),
        (0.55, 0.7, _ORANGE),
        (0.7, 0.82, _WHITE),
        (0.82, 1, _ORANGE),
    ):
        _frustum(brush, at, height, low, high, rgb)
    return [(x + a, 0.0, z + b) for a in (-foot, foot) for b in (-foot, foot)]


def _frustum(brush: Brush, at: F64, height: float, low: float, high: float, rgb: F64) -> None:
    """A band of a cone, painted facet by facet."""
    turn = np.linspace(0, 2 * np.pi, 17)
    around = np.column_stack([np.cos(turn), np.zeros(17), np.sin(turn)])
    below, above = (at + around * (0.2 - 0.165 * y) * height + [0, y * height, 0] for y in (low, high))
    brush.far_m = brush.away(at) - 0.1 * low
    for k in range(16):
        brush.paint(np.array([below[k], above[k], above[k + 1], below[k + 1]]), rgb)
