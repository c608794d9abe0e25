"""Bicycles and motorbikes with their riders."""

import numpy as np

from pipeline.composing.synthetic.brush import F64, Brush, Drawn, moved
from pipeline.composing.synthetic.people import Dress, draw_dress, paint_arm, paint_leg, paint_trunk
from pipeline.composing.synthetic.vehicles import draw_paint

_BLACK = np.full(3, 0.1)


def draw_bicycle(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A bicycle in motion, seen from anywhere."""
    brush = _brush(rng, to_sun)
    frame, dress = draw_paint(rng), draw_dress(rng)
    rear, front, radius = np.array([0.52, 0.35, 0.0]), np.array([-0.53, 0.35, 0.0]), 0.35
    for hub in (rear, front):
        _hoop(brush, hub, radius - 0.022, 0.022, _BLACK)
        for k in range(10):
            turn = 2 * np.pi * k / 10
            brush.limb(
                np.array([hub, hub + radius * np.array([np.cos(turn), np.sin(turn), 0])]), (0.006, 0.006), _BLACK * 4, 1
            )
    crank, seat, head = np.array([0.08, 0.3, 0.0]), np.array([0.2, 0.86, 0.0]), np.array([-0.36, 0.8, 0.0])
    bar = head + np.array([0.02, 0.2, 0.0])
    for a, b in ((crank, seat), (crank, head), (seat, head), (rear, crank), (rear, seat), (front, head), (head, bar)):
        brush.limb(np.array([a, b]), (0.02, 0.02), frame, 3)
    brush.limb(np.array([moved(bar, 0, 0, -0.27), moved(bar, 0, 0, 0.27)]), (0.017, 0.017), _BLACK, 3)
    brush.limb(np.array([moved(seat, 0.08, 0.06, 0), moved(seat, -0.14, 0.06, 0)]), (0.07, 0.03), _BLACK, 3)
    turn = float(rng.uniform(0, 2 * np.pi))
    pedals = [crank + 0.17 * side * np.array([np.cos(turn), np.sin(turn), 0]) for side in (-1, 1)]
    _rider(brush, rng, dress, moved(seat, 0.03, 0.08, 0), bar, pedals, 0.24)
    if rng.random() < 0.25:  # a basket, or a courier's box
        brush.block((0.3, 0.78, -0.2), (0.72, 1.18, 0.2), draw_paint(rng))
    return brush.picture(np.array([rear * [1, 0, 1], front * [1, 0, 1]]))


def draw_motorbike(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A motorbike or a scooter."""
    brush = _brush(rng, to_sun)
    paint, dress, scooter = draw_paint(rng), draw_dress(rng), bool(rng.random() < 0.45)
    radius, base = (0.26, 0.62) if scooter else (0.32, 0.72)
    rear, front = np.array([base, radius, 0.0]), np.array([-base, radius, 0.0])
    for hub in (rear, front):
        _hoop(brush, hub, radius - 0.06, 0.06, _BLACK)
        _hoop(brush, hub, 0.6 * radius, 0.03, np.full(3, 0.4))
        brush.limb(
            np.array([moved(hub, 0, 0, -0.05), moved(hub, 0, 0, 0.05)]),
            (0.5 * radius, 0.5 * radius),
            np.full(3, 0.22),
            3,
        )
    head, seat = np.array([-0.42, 0.86, 0.0]), np.array([0.3, 0.8, 0.0])
    bar = head + np.array([0.06, 0.16, 0.0])
    for side in (-0.08, 0.08):
        brush.limb(np.array([moved(front, 0, 0, side), moved(head, 0, 0, side)]), (0.03, 0.035), np.full(3, 0.55), 3)
    brush.limb(np.array([moved(bar, 0, 0, -0.33), moved(bar, 0, 0, 0.33)]), (0.022, 0.022), _BLACK, 3)
    brush.limb(np.array([moved(rear, 0.02, radius, 0), moved(seat, 0.25, -0.02, 0)]), (0.09, 0.1), paint)  # mudguard
    brush.limb(np.array([moved(seat, 0.3, 0.0, 0), moved(seat, -0.2, -0.02, 0)]), (0.1, 0.13), _BLACK)
    if scooter:
        brush.limb(np.array([[0.35, 0.42, 0.0], [0.6, 0.5, 0.0]]), (0.17, 0.15), paint)
        brush.block((-0.32, 0.24, -0.17), (0.3, 0.32, 0.17), paint * 0.8)
        brush.limb(np.array([[-0.38, 0.3, 0.0], [-0.4, 0.88, 0.0]]), (0.13, 0.15), paint)
        pedals = [np.array([-0.05, 0.4, side]) for side in (-0.13, 0.13)]
    else:
        brush.limb(np.array([[-0.2, 0.42, 0.0], [0.25, 0.42, 0.0]]), (0.17, 0.17), np.full(3, 0.25))
        brush.limb(np.array([[-0.28, 0.88, 0.0], [0.12, 0.8, 0.0]]), (0.15, 0.11), paint)
        brush.limb(np.array([[0.1, 0.3, 0.17], [0.75, 0.36, 0.17]]), (0.04, 0.055), np.full(3, 0.6), 3)
        pedals = [np.array([0.12, 0.36, side]) for side in (-0.16, 0.16)]
    brush.ball(moved(head, -0.1, 0.0, 0), 0.085, np.array([1.2, 1.2, 1.1]))
    brush.ball(np.array([base + 0.02, radius + 0.34, 0.0]), 0.05, np.array([0.9, 0.1, 0.1]))
    _rider(brush, rng, dress, moved(seat, 0, 0.12, 0), bar, pedals, 0.3, always_helmet=True)
    return brush.picture(np.array([rear * [1, 0, 1], front * [1, 0, 1]]))


def _brush(rng: np.random.Generator, to_sun: F64) -> Brush:
    yaw = float(rng.choice([rng.normal(90, 12), rng.normal(-90, 12), rng.normal(0, 12), rng.uniform(-180, 180)]))
    return Brush(np.radians(yaw), float(rng.uniform(1.4, 2.2)), 0.0, to_sun, view_m=9.0)


def _hoop(brush: Brush, hub: F64, radius: float, thick: float, rgb: F64) -> None:
    """A tyre of round section, a piece at a time."""
    turn = np.linspace(0, 2 * np.pi, 25)
    points = hub + radius * np.column_stack([np.cos(turn), np.sin(turn), np.zeros(25)])
    for k in range(24):
        brush.limb(points[k : k + 2], (thick, thick), rgb, 1)


def _rider(
    brush: Brush,
    rng: np.random.Generator,
    dress: Dress,
    hip: F64,
    bar: F64,
    pedals: list[F64],
    bent_m: float,
    always_helmet: bool = False,
) -> None:
    """Someone seated at `hip`, hands on the bar, feet on the pedals."""
    size, lean = dress.height_m / 1.75, float(rng.uniform(0.1, 0.5))
    neck = hip + 0.55 * size * np.array([-np.sin(lean), np.cos(lean), 0.0])
    helmet = draw_paint(rng) if always_helmet or rng.random() < 0.5 else None
    for side, pedal in zip((-1, 1), pedals, strict=True):
        foot = moved(pedal, 0, 0.06, 0.1 * side if abs(float(pedal[2])) < 0.05 else 0.0)
        paint_leg(brush, dress, moved(hip, 0, 0, 0.1 * side), foot, bent_m)
        paint_arm(brush, dress, moved(neck, 0, -0.07, 0.19 * side), moved(bar, 0.03, 0.02, 0.25 * side), 0.1)
    paint_trunk(brush, dress, hip, neck, helmet)
