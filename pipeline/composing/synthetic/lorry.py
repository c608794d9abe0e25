"""Buses and box lorries: boxes with windows, drawn end on or a little turned, since they are long."""

import numpy as np

from pipeline.composing.synthetic.brush import F64, Brush, Drawn, clockwise, loft, on_both_sides, round_off
from pipeline.composing.synthetic.vehicles import draw_paint
from pipeline.composing.synthetic.wheel import rim, tyre

_WIDTH_M = 5.8  # how much of the road's width they may take; streets are wider
_GLASS = np.array([0.15, 0.18, 0.21])


def draw_bus(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A city bus with doors on its right-hand side, a band of windows and a sign over the windscreen."""
    length, half, top = float(rng.uniform(6.5, 11.0)), 1.25, float(rng.uniform(2.8, 3.2))
    brush = _brush(rng, to_sun, length, half)
    paint = draw_paint(rng)
    second = paint if rng.random() < 0.4 else draw_paint(rng)
    axles = [length * 0.2, length * 0.76]
    _wheels(brush, rng, axles, half, 0.48, first=True)
    _hull(brush, (0.0, length), (0.32, top), half, paint)
    band = np.array([(0.05, 0.32, half), (0.05, 0.95, half), (length - 0.05, 0.95, half), (length - 0.05, 0.32, half)])
    on_both_sides(brush, band, second * 0.94)
    panes = max(3, round(length / 1.6))
    for k in range(panes):
        a, b = (0.25 + (length - 0.5) * (k + share) / panes for share in (0.04, 0.96))
        pane = np.array([(a, 1.1, half), (a, top - 0.5, half), (b, top - 0.5, half), (b, 1.1, half)])
        on_both_sides(brush, pane, _GLASS * rng.uniform(0.8, 1.3))
    for x in (0.3, length * 0.5):
        for k in (0, 1):  # the doors' wings
            a, b = x + 0.62 * k, x + 0.62 * k + 0.56
            wing = np.array([(b, 0.4, half), (b, top - 0.4, half), (a, top - 0.4, half), (a, 0.4, half)])
            brush.paint(wing, _GLASS * 0.8)
    _wheels(brush, rng, axles, half, 0.48, first=False)
    _face(brush, -0.01, (1.0, top - 0.5), (-0.92 * half, 0.92 * half), _GLASS * 1.1, 0.1)
    _face(brush, -0.01, (top - 0.42, top - 0.14), (-0.7 * half, 0.7 * half), np.array([0.08, 0.08, 0.08]))
    _face(brush, -0.02, (top - 0.36, top - 0.2), (-0.55 * half, 0.2 * half), np.array([1.0, 0.72, 0.2]))
    _face(brush, length + 0.01, (1.5, top - 0.45), (-0.8 * half, 0.8 * half), _GLASS)
    _lamps(brush, length, half, 0.62)
    _mirrors(brush, 0.05, top - 0.7, half)
    return brush.picture(_feet(axles, half))


def draw_truck(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A box lorry: a cab, and behind it a load box in another colour."""
    length, half, top = float(rng.uniform(5.4, 8.0)), float(rng.uniform(1.05, 1.22)), float(rng.uniform(2.7, 3.3))
    brush = _brush(rng, to_sun, length, half)
    paint, roof, cab = draw_paint(rng), float(rng.uniform(2.1, 2.5)), float(rng.uniform(1.55, 1.9))
    load = draw_paint(rng) if rng.random() < 0.4 else np.full(3, rng.uniform(0.75, 1.05))
    axles = [0.95, length - 1.25]
    _wheels(brush, rng, axles, half, 0.45, first=True)
    chassis = np.array([(0.4, 0.42, 0.8 * half), (0.4, 0.75, 0.8 * half)])
    chassis = np.concatenate([chassis, [(length - 0.1, 0.75, 0.8 * half), (length - 0.1, 0.42, 0.8 * half)]])
    on_both_sides(brush, chassis, np.full(3, 0.14))
    towards_us = brush.away(np.array([0.0, 0.0, 0.0])) < brush.away(np.array([length, 0.0, 0.0]))

    def box() -> None:
        _hull(brush, (cab + 0.12, length), (0.75, top), half, load, sharp=True)
        stripe = [
            (cab + 0.3, 1.3, half),
            (cab + 0.3, 1.75, half),
            (length - 0.2, 1.75, half),
            (length - 0.2, 1.3, half),
        ]
        if rng.random() < 0.6:
            on_both_sides(brush, np.array(stripe), draw_paint(rng))
        _face(brush, length + 0.01, (0.85, top - 0.1), (-0.015, 0.015), np.full(3, 0.2))

    def cabin() -> None:
        front = [(0.0, 0.4, half), (0.0, 1.15, half), (0.22, roof - 0.12, 0.94 * half), (0.5, roof, 0.92 * half)]
        outline = np.array([*front, (cab, roof, 0.92 * half), (cab, 0.4, half)])
        on_both_sides(brush, outline, paint)
        loft(brush, outline, paint, 0.12)
        pane = [(0.28, 1.2, half), (0.42, roof - 0.25, 0.95 * half), (cab - 0.35, roof - 0.25, 0.95 * half)]
        on_both_sides(brush, np.array([*pane, (cab - 0.35, 1.2, half)]), _GLASS)
        ends = [(0.02, 1.2, 0.88 * half), (0.2, roof - 0.2, 0.84 * half)]
        (xa, ya, wa), (xb, yb, wb) = ends
        brush.paint(np.array([(xa, ya, -wa), (xa, ya, wa), (xb, yb, wb), (xb, yb, -wb)]), _GLASS * 1.1, 0.15)
        _face(brush, -0.01, (0.55, 0.95), (-0.6 * half, 0.6 * half), np.full(3, 0.12))
        _mirrors(brush, 0.3, 1.35, half)

    for part in (box, cabin) if towards_us else (cabin, box):
        part()
    _wheels(brush, rng, axles, half, 0.45, first=False)
    _lamps(brush, length, half, 0.55)
    return brush.picture(_feet(axles, half))


def _brush(rng: np.random.Generator, to_sun: F64, length: float, half: float) -> Brush:
    """An eye from which the whole is not wider than `_WIDTH_M`, though its near end looks larger."""
    most = float(np.degrees(np.arcsin(min(0.95, (0.82 * _WIDTH_M - 2 * half) / length))))
    yaw = float(rng.choice([-90.0, 90.0])) + float(rng.uniform(-most, most))
    return Brush(np.radians(yaw), float(rng.uniform(1.6, 2.3)), length, to_sun, view_m=max(14.0, 3.2 * length))


def _hull(
    brush: Brush, x: tuple[float, float], y: tuple[float, float], half: float, rgb: F64, sharp: bool = False
) -> None:
    """A box with rounded edges above."""
    (x0, x1), (y0, y1), r = x, y, 0.06 if sharp else 0.22
    line = [(x0, y0, half), (x0, y1 - r, half), (x0 + r, y1, half - 0.3 * r), (x1 - r, y1, half - 0.3 * r)]
    outline = np.array([*line, (x1, y1 - r, half), (x1, y0, half)])
    outline = np.concatenate([outline[:1], round_off(outline[1:-1], 1), outline[-1:]])
    on_both_sides(brush, outline, rgb)
    loft(brush, outline, rgb, 0.1)


def _face(brush: Brush, x: float, y: tuple[float, float], z: tuple[float, float], rgb: F64, shiny: float = 0.0) -> None:
    """A patch on the front (x < 1) or on the rear."""
    corners = np.array([(x, y[0], z[0]), (x, y[0], z[1]), (x, y[1], z[1]), (x, y[1], z[0])])
    brush.paint(corners if x < 1 else corners[::-1], rgb, shiny)


def _lamps(brush: Brush, length: float, half: float, y: float) -> None:
    for side in (-1, 1):
        near, far = sorted((side * 0.55 * half, side * 0.92 * half))
        _face(brush, -0.02, (y, y + 0.18), (near, far), np.array([1.35, 1.35, 1.25]))
        _face(brush, length + 0.02, (y, y + 0.25), (near, far), np.array([0.95, 0.1, 0.08]))
    _face(brush, -0.02, (0.38, 0.5), (-0.28, 0.28), np.full(3, 1.05))
    _face(brush, length + 0.02, (0.4, 0.52), (-0.28, 0.28), np.full(3, 1.05))


def _mirrors(brush: Brush, x: float, y: float, half: float) -> None:
    """Painted first of all where the front looks away from us."""
    brush.far_m = 99.0 if brush.turn[2, 0] < 0 else 0.0
    for side in (-1, 1):
        plate = np.array(
            [(x, y, half), (x, y + 0.4, half), (x - 0.05, y + 0.4, half + 0.22), (x - 0.05, y, half + 0.22)]
        )
        brush.paint(plate * [1, 1, side], np.full(3, 0.12), any_side=True)
    brush.far_m = 0.0


def _wheels(
    brush: Brush, rng: np.random.Generator, axles: list[float], half: float, radius: float, first: bool
) -> None:
    """Tyres before the hull is painted over them; then, in dark arches, what is seen of the wheels from outside."""
    for x in axles:
        for side_m in (-half, half):
            if first:
                tyre(brush, x, side_m, radius)
            elif clockwise(brush.view(_arch(x, side_m, radius))):
                brush.paint(_arch(x, side_m, radius), np.full(3, 0.07))
                tyre(brush, x, side_m, radius)
                rim(brush, x, side_m, radius, 6, np.full(3, 0.5))


def _arch(x: float, side_m: float, radius: float) -> F64:
    """The dark half round above a wheel, clockwise from outside."""
    turn = np.linspace(np.pi, 0, 17)
    over = np.column_stack(
        [x + 1.15 * radius * np.cos(turn), radius + 1.15 * radius * np.sin(turn), np.full(17, side_m)]
    )
    return over if side_m < 0 else over[::-1]


def _feet(axles: list[float], half: float) -> F64:
    return np.array([(x, 0.0, side * half) for x in axles for side in (-1, 1)])
