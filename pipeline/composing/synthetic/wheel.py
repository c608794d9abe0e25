"""Wheels of vehicles: tyres and rims."""

import numpy as np

from pipeline.composing.synthetic.brush import F64, Brush, clockwise


def ring(x: float, radius: float, axle_y: float, z: float) -> F64:
    """A circle across the car, clockwise as seen from the near (-z) side."""
    turn = np.linspace(2 * np.pi, 0, 33)[:-1]
    return np.stack([x + radius * np.cos(turn), axle_y + radius * np.sin(turn), np.full(32, z)], 1)


def tyre(brush: Brush, x: float, side_m: float, radius: float, width_m: float = 0.2) -> None:
    """A tyre; `side_m` is z of its outer face, signed."""
    inner = ring(x, radius, radius, side_m - np.sign(side_m) * width_m)[::2]
    outer = ring(x, radius, radius, side_m)[::2]
    brush.paint(inner, np.full(3, 0.08), any_side=True)
    for a, b, c, d in zip(inner, np.roll(inner, -1, 0), np.roll(outer, -1, 0), outer, strict=True):
        brush.paint(np.array([a, b, c, d]), np.full(3, 0.1), any_side=True)


def rim(brush: Brush, x: float, side_m: float, radius: float, spokes: int, rgb: F64) -> None:
    """The outer face of a wheel, if it faces us: tyre wall, rim, spokes, hub."""

    def disc(share: float) -> F64:
        return ring(x, share * radius, radius, side_m)[:: 1 if side_m < 0 else -1]

    if not clockwise(brush.view(disc(1.0))):
        return
    brush.paint(disc(1.0), np.full(3, 0.11))
    brush.paint(disc(0.7), rgb * 0.4)
    for k in range(spokes):
        at = 2 * np.pi * k / spokes + 0.3
        along, across = np.array([np.cos(at), np.sin(at)]), np.array([-np.sin(at), np.cos(at)])
        bar = np.array([s * 0.1 * across + r * along for r, s in ((0, -1), (0.68, -1), (0.68, 1), (0, 1))])
        points = np.column_stack([np.array([x, radius]) + bar * radius, np.full(4, side_m)])
        brush.paint(points, rgb, any_side=True)
    brush.paint(disc(0.2), rgb * 0.9)
