"""Foregrounds with four wheels: cars, buses and box lorries.

A car's body is a profile (x, height, half width) lofted across the car, with a cabin of glass on it and wheels below;
its parts are convex enough to be painted one after the other. Buses and lorries are boxes, drawn end on or a little
turned, since they are long.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from pipeline.composing.synthetic.brush import (
    F64,
    Brush,
    Drawn,
    cut_corners,
    half_disc,
    is_clockwise,
    paint_rim,
    paint_tyre,
)

Range = tuple[float, float]


@dataclass(frozen=True)
class CarShape:
    """Proportions of a kind of car, in metres. `cabin_m`: x of the windscreen's foot and top, rear top and foot."""

    length_m: float
    half_width_m: float
    belt_m: float
    nose_m: float
    tail_m: float
    roof_m: float
    cabin_m: tuple[float, float, float, float]
    wheel_m: float
    doors: int
    bed: bool = False
    blind: bool = False  # a van's load space has no side windows


_SHAPES = {
    "sedan": CarShape(4.65, 0.90, 0.93, 0.72, 0.95, 1.45, (1.25, 2.0, 3.25, 4.1), 0.33, 2),
    "hatchback": CarShape(4.0, 0.87, 0.95, 0.76, 0.95, 1.48, (1.0, 1.75, 3.35, 3.92), 0.32, 2),
    "coupe": CarShape(4.4, 0.92, 0.88, 0.68, 0.9, 1.32, (1.45, 2.2, 2.95, 4.15), 0.34, 1),
    "wagon": CarShape(4.75, 0.91, 0.95, 0.74, 0.97, 1.5, (1.25, 2.0, 4.2, 4.68), 0.33, 3),
    "suv": CarShape(4.7, 0.96, 1.12, 0.95, 1.1, 1.75, (1.15, 1.75, 4.1, 4.6), 0.39, 3),
    "mini": CarShape(3.6, 0.83, 0.95, 0.8, 0.95, 1.52, (0.75, 1.4, 3.1, 3.55), 0.3, 1),
    "pickup": CarShape(5.2, 0.95, 1.1, 0.98, 1.08, 1.8, (1.4, 2.0, 3.15, 3.4), 0.4, 2, bed=True),
    "van": CarShape(5.0, 0.98, 1.2, 1.05, 1.2, 2.05, (0.6, 1.35, 4.85, 4.98), 0.35, 1, blind=True),
    "minibus": CarShape(4.9, 0.97, 1.15, 0.98, 1.15, 1.95, (0.65, 1.4, 4.7, 4.88), 0.35, 4),
}
_PAINTS = (  # display RGB; grays are as common as on the road, so that brightness alone does not give a car away
    *((0.86, 0.86, 0.85), (0.62, 0.63, 0.64), (0.45, 0.46, 0.47), (0.33, 0.34, 0.35), (0.15, 0.15, 0.16)),
    *((0.68, 0.1, 0.09), (0.12, 0.22, 0.48), (0.16, 0.42, 0.66), (0.1, 0.3, 0.2), (0.82, 0.65, 0.12)),
    *((0.45, 0.36, 0.28), (0.36, 0.1, 0.14), (0.72, 0.68, 0.58), (0.82, 0.36, 0.1), (0.3, 0.42, 0.46)),
)
_GLASS = np.array([0.15, 0.18, 0.21])  # of buses and lorries
_HEADLAMP, _REAR_LAMP = np.array([1.35, 1.35, 1.25]), np.array([0.95, 0.1, 0.08])
_ROAD_WIDTH_M = 5.8  # how much of the road's width buses and lorries may take; streets are wider


def random_paint(rng: np.random.Generator) -> F64:
    """The display RGB of a vehicle."""
    return np.clip(np.array(_PAINTS[rng.integers(len(_PAINTS))]) * rng.uniform(0.85, 1.15), 0.08, 0.92) * 1.15


def draw_car(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A car of one of nine shapes: fronts and rears a little turned, plain side views, and everything between."""
    kinds = list(_SHAPES)
    shape = _vary_shape(_SHAPES[kinds[rng.integers(len(kinds))]], rng)
    paint = random_paint(rng)
    glass = np.array([0.16, 0.19, 0.22]) * rng.uniform(0.7, 1.3)
    yaw = rng.choice(
        [rng.normal(90, 9), rng.normal(-90, 9), rng.normal(0, 6), rng.uniform(-75, 75)], p=[0.2, 0.2, 0.2, 0.4]
    )
    brush = Brush(np.radians(yaw), rng.uniform(1.5, 2.3), shape.length_m, to_sun)
    axles = (shape.length_m * 0.19, shape.length_m * 0.81)
    metal, spokes = np.full(3, rng.uniform(0.5, 1.0)), int(rng.integers(5, 9))
    w = shape.half_width_m
    wheels = [(x, side * 0.97 * w) for x in axles for side in (-1.0, 1.0)]
    floor = [(0.5, -0.85 * w), (0.5, 0.85 * w), (shape.length_m - 0.5, 0.85 * w), (shape.length_m - 0.5, -0.85 * w)]
    brush.paint(np.array([(x, 0.16, z) for x, z in floor]), np.full(3, 0.06), any_side=True)
    for x, side_m in wheels:
        paint_tyre(brush, x, side_m, shape.wheel_m)
    _paint_body(brush, shape, paint, axles)
    for x, side_m in wheels:
        paint_rim(brush, x, side_m, shape.wheel_m, spokes, metal)
    _paint_details(brush, shape, paint, rng)
    _paint_cabin(brush, shape, paint, glass)
    return brush.render(np.array([(x, 0.0, side_m) for x, side_m in wheels]))


def _vary_shape(shape: CarShape, rng: np.random.Generator) -> CarShape:
    """The same kind of car by another maker."""
    length, height = rng.uniform(0.95, 1.06), rng.uniform(0.95, 1.06)
    foot_a, top_a, top_b, foot_b = shape.cabin_m
    return replace(
        shape,
        length_m=shape.length_m * length,
        half_width_m=shape.half_width_m * float(rng.uniform(0.97, 1.04)),
        belt_m=shape.belt_m * height,
        nose_m=shape.nose_m * height * float(rng.uniform(0.95, 1.04)),
        tail_m=shape.tail_m * height,
        roof_m=shape.roof_m * height * float(rng.uniform(0.98, 1.03)),
        cabin_m=(foot_a * length, top_a * length, top_b * length, foot_b * length),
        wheel_m=shape.wheel_m * float(rng.uniform(0.96, 1.1)),
    )


def _paint_body(brush: Brush, shape: CarShape, paint: F64, axles: Range) -> None:
    """Lower body: sides with wheel arches, then bumpers, bonnet and boot lofted over it."""
    w, end, low = shape.half_width_m, shape.length_m, 0.24
    profile = [(0.06, low, 0.86 * w), (0.0, 0.45, 0.84 * w), (0.04, shape.nose_m - 0.08, 0.84 * w)]
    profile += [(0.25, shape.nose_m, 0.9 * w), (shape.cabin_m[0] * 0.8, shape.belt_m - 0.05, 0.97 * w)]
    profile += [(shape.cabin_m[0] + 0.3, shape.belt_m, w), (shape.cabin_m[3] - 0.4, shape.belt_m + 0.01, w)]
    profile += [(end - 0.12, shape.tail_m, 0.9 * w), (end, shape.tail_m - 0.2, 0.87 * w)]
    profile += [(end, 0.5, 0.87 * w), (end - 0.08, low, 0.88 * w)]
    body = cut_corners(np.array(profile), 2)
    paint_both_sides(brush, body, paint * 0.96)
    for top, shade in ((0.62 * shape.belt_m, 0.84), (0.36, 0.35)):  # the lower half, and the sill
        paint_both_sides(brush, np.array([(x, min(y, top), z) for x, y, z in body]), paint * shade)
    for x in axles:
        r = shape.wheel_m * 1.17
        foot = np.array([(x + r, low, 0.985 * w), (x - r, low, 0.985 * w)])
        arch = np.concatenate([half_disc(x, r, shape.wheel_m, 0.985 * w), foot])
        paint_both_sides(brush, arch, np.full(3, 0.07))
    loft(brush, body, paint, 0.14)
    if shape.bed:
        front, back, y = shape.cabin_m[3] + 0.05, end - 0.2, shape.belt_m + 0.01
        deck = [(front, y, -0.85 * w), (front, y, 0.85 * w), (back, y, 0.8 * w), (back, y, -0.8 * w)]
        brush.paint(np.array(deck), np.full(3, 0.16))


def _paint_cabin(brush: Brush, shape: CarShape, paint: F64, glass: F64) -> None:
    """Roof, pillars and windows: glass is painted into the painted faces, a hand's breadth from their edges."""
    foot_a, top_a, top_b, foot_b = shape.cabin_m
    base, end = shape.belt_m - 0.02, shape.length_m
    roof_w = (0.86 if shape.blind or shape.doors == 4 else 0.74) * shape.half_width_m
    # The cabin's feet follow the body, which narrows towards its ends.
    taper = np.interp([foot_a, foot_b], [0.25, foot_a + 0.3, end - 0.5, end], [0.88, 0.98, 0.98, 0.86])
    foot_wa, foot_wb = taper * shape.half_width_m
    tops = [(top_a, shape.roof_m - 0.03, roof_w), (top_b, shape.roof_m - 0.02, min(roof_w, foot_wb))]
    line = np.array([(foot_a, base, foot_wa), *tops, (foot_b, base, foot_wb)])
    crown = np.array([(0.5 * (top_a + top_b), shape.roof_m + 0.02, roof_w)])
    outline = np.concatenate([line[:1], cut_corners(np.concatenate([line[1:2], crown, line[2:3]]), 2), line[3:]])
    paint_both_sides(brush, outline, paint)
    loft(brush, outline, paint, 0.14)

    def point(along: float, height: float) -> F64:
        """A point of the cabin's side: 0..1 from its front edge to its rear edge, 0..1 from its foot to the roof."""
        front, rear = line[0] + (line[1] - line[0]) * height, line[3] + (line[2] - line[3]) * height
        return np.asarray(front + (rear - front) * along)

    cuts = np.linspace(0.05, 0.95, shape.doors + 1) if not shape.blind else np.array([0.05, 0.3])
    for a, b in pairwise(cuts):
        window = [point(a, 0.08), point(a + 0.012, 0.86), point(b - 0.03, 0.86), point(b - 0.02, 0.08)]
        paint_both_sides(brush, np.array(window), glass, 0.1)
        streak = [point(a + 0.5 * (b - a), 0.08), point(a + 0.6 * (b - a), 0.86)]
        streak += [point(a + 0.75 * (b - a), 0.86), point(a + 0.65 * (b - a), 0.08)]
        paint_both_sides(brush, np.array(streak), glass * 1.5, 0.1)
    for lower, upper in ((line[0], line[1]), (line[2], line[3])):
        screen = [lower + (upper - lower) * t for t in (0.1, 0.9)]
        loft(brush, np.array(screen) * [[1, 1, 0.9], [1, 1, 0.88]], glass, 0.22)


def _paint_details(brush: Brush, shape: CarShape, paint: F64, rng: np.random.Generator) -> None:
    """Lamps, grille, plates, door lines, handles and mirrors."""
    w, end, belt = shape.half_width_m, shape.length_m, shape.belt_m
    lamp_h, lamp_w = rng.uniform(0.11, 0.17), rng.uniform(0.26, 0.4)
    nose, tail = shape.nose_m - 0.1, shape.tail_m - 0.12
    _paint_end(brush, 0.0, (0.28, 0.28 + 0.5 * (nose - 0.3)), (-0.55 * w, 0.55 * w), np.full(3, 0.1))
    _paint_end(brush, -0.01, (nose - lamp_h, nose), (-0.42 * w, 0.42 * w), np.array([0.16, 0.16, 0.17]))
    _paint_end(brush, -0.02, (0.42, 0.53), (-0.26, 0.26), np.array([1.1, 1.1, 1.05]))
    _paint_end(brush, end + 0.01, (tail - 0.28, tail - 0.17), (-0.26, 0.26), np.array([1.2, 1.2, 1.1]))
    _paint_end(brush, end + 0.01, (0.26, 0.38), (-0.7 * w, 0.7 * w), np.full(3, 0.12))
    for side in (-1, 1):
        near, far = sorted((side * (0.82 - lamp_w) * w, side * 0.82 * w))
        _paint_end(brush, -0.02, (nose - lamp_h, nose + 0.01), (near, far), _HEADLAMP)
        _paint_end(brush, end + 0.01, (tail - 0.2, tail), (near, far), _REAR_LAMP)
    front = [(0.05, nose - lamp_h, 0.86 * w), (0.05, nose, 0.86 * w), (0.42, nose + 0.03, 0.93 * w)]
    paint_both_sides(brush, np.array(front), np.array([1.25, 1.25, 1.2]))
    rear = [(end - 0.3, tail - 0.05, 0.9 * w), (end - 0.3, tail, 0.9 * w)]
    rear += [(end - 0.02, tail, 0.87 * w), (end - 0.02, tail - 0.2, 0.87 * w)]
    paint_both_sides(brush, np.array(rear), np.array([0.85, 0.09, 0.08]))
    cuts = np.linspace(shape.cabin_m[0] + 0.2, shape.cabin_m[3] - 0.5, min(shape.doors, 2) + 1)
    for k, x in enumerate(cuts):
        _paint_panel(brush, (x, x + 0.025), (0.36, belt), w, paint * 0.45)
        if k:
            _paint_panel(brush, (x - 0.3, x - 0.1), (0.83 * belt, 0.87 * belt), w, paint * 0.5)
    mirror = np.array([(0, 0, 0.95 * w), (0, 0.15, 0.98 * w), (0, 0.16, w + 0.17), (0, 0.03, w + 0.17)])
    for side in (-1, 1):
        position = np.array([shape.cabin_m[0] + 0.45, belt, 0])
        brush.paint((mirror + position) * [1, 1, side], paint * 0.8, any_side=True)


def draw_bus(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A city bus with doors on its right-hand side, a band of windows and a sign over the windscreen."""
    length, half, top = float(rng.uniform(6.5, 11.0)), 1.25, float(rng.uniform(2.8, 3.2))
    brush = _long_brush(rng, to_sun, length, half)
    paint = random_paint(rng)
    band_paint = paint if rng.random() < 0.4 else random_paint(rng)
    axles = [length * 0.2, length * 0.76]
    _paint_tyres(brush, axles, half, 0.48)
    _paint_hull(brush, (0.0, length), (0.32, top), half, paint)
    _paint_panel(brush, (0.05, length - 0.05), (0.32, 0.95), half, band_paint * 0.94)
    panes = max(3, round(length / 1.6))
    for k in range(panes):
        a, b = (0.25 + (length - 0.5) * (k + share) / panes for share in (0.04, 0.96))
        _paint_panel(brush, (a, b), (1.1, top - 0.5), half, _GLASS * rng.uniform(0.8, 1.3))
    for x in (0.3, length * 0.5):
        for k in (0, 1):  # the doors' wings
            a, b = x + 0.62 * k, x + 0.62 * k + 0.56
            wing = np.array([(b, 0.4, half), (b, top - 0.4, half), (a, top - 0.4, half), (a, 0.4, half)])
            brush.paint(wing, _GLASS * 0.8)
    _paint_wheels(brush, axles, half, 0.48)
    _paint_end(brush, -0.01, (1.0, top - 0.5), (-0.92 * half, 0.92 * half), _GLASS * 1.1, 0.1)
    _paint_end(brush, -0.01, (top - 0.42, top - 0.14), (-0.7 * half, 0.7 * half), np.array([0.08, 0.08, 0.08]))
    _paint_end(brush, -0.02, (top - 0.36, top - 0.2), (-0.55 * half, 0.2 * half), np.array([1.0, 0.72, 0.2]))
    _paint_end(brush, length + 0.01, (1.5, top - 0.45), (-0.8 * half, 0.8 * half), _GLASS)
    _paint_lamps(brush, length, half, 0.62)
    _paint_mirrors(brush, 0.05, top - 0.7, half)
    return brush.render(np.array([(x, 0.0, side * half) for x in axles for side in (-1, 1)]))


def draw_truck(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A box lorry: a cab, and behind it a load box in another colour."""
    length, half, top = float(rng.uniform(5.4, 8.0)), float(rng.uniform(1.05, 1.22)), float(rng.uniform(2.7, 3.3))
    brush = _long_brush(rng, to_sun, length, half)
    paint, roof, cab = random_paint(rng), float(rng.uniform(2.1, 2.5)), float(rng.uniform(1.55, 1.9))
    load_paint = random_paint(rng) if rng.random() < 0.4 else np.full(3, rng.uniform(0.75, 1.05))
    axles = [0.95, length - 1.25]
    _paint_tyres(brush, axles, half, 0.45)
    _paint_panel(brush, (0.4, length - 0.1), (0.42, 0.75), 0.8 * half, np.full(3, 0.14))  # the chassis

    def paint_load() -> None:
        _paint_hull(brush, (cab + 0.12, length), (0.75, top), half, load_paint, radius_m=0.06)
        if rng.random() < 0.6:
            _paint_panel(brush, (cab + 0.3, length - 0.2), (1.3, 1.75), half, random_paint(rng))
        _paint_end(brush, length + 0.01, (0.85, top - 0.1), (-0.015, 0.015), np.full(3, 0.2))

    def paint_cab() -> None:
        front = [(0.0, 0.4, half), (0.0, 1.15, half), (0.22, roof - 0.12, 0.94 * half), (0.5, roof, 0.92 * half)]
        outline = np.array([*front, (cab, roof, 0.92 * half), (cab, 0.4, half)])
        paint_both_sides(brush, outline, paint)
        loft(brush, outline, paint, 0.12)
        window = [(0.28, 1.2, half), (0.42, roof - 0.25, 0.95 * half), (cab - 0.35, roof - 0.25, 0.95 * half)]
        paint_both_sides(brush, np.array([*window, (cab - 0.35, 1.2, half)]), _GLASS)
        loft(brush, np.array([(0.02, 1.2, 0.88 * half), (0.2, roof - 0.2, 0.84 * half)]), _GLASS * 1.1, 0.15)
        _paint_end(brush, -0.01, (0.55, 0.95), (-0.6 * half, 0.6 * half), np.full(3, 0.12))
        _paint_mirrors(brush, 0.3, 1.35, half)

    cab_is_nearer = brush.depth_m(np.array([0.0, 0.0, 0.0])) < brush.depth_m(np.array([length, 0.0, 0.0]))
    for paint_part in (paint_load, paint_cab) if cab_is_nearer else (paint_cab, paint_load):
        paint_part()
    _paint_wheels(brush, axles, half, 0.45)
    _paint_lamps(brush, length, half, 0.55)
    return brush.render(np.array([(x, 0.0, side * half) for x in axles for side in (-1, 1)]))


def _long_brush(rng: np.random.Generator, to_sun: F64, length: float, half: float) -> Brush:
    """An eye from which the whole is not wider than `_ROAD_WIDTH_M`, though its near end looks larger."""
    most = float(np.degrees(np.arcsin(min(0.95, (0.82 * _ROAD_WIDTH_M - 2 * half) / length))))
    yaw = float(rng.choice([-90.0, 90.0])) + float(rng.uniform(-most, most))
    return Brush(np.radians(yaw), float(rng.uniform(1.6, 2.3)), length, to_sun, view_m=max(14.0, 3.2 * length))


def loft(brush: Brush, profile: F64, paint: F64, shiny: float) -> None:
    """Sweep a profile [N, 3] of (x, y, half width) across the vehicle: a strip between any two of its points."""
    for (xa, ya, wa), (xb, yb, wb) in pairwise(profile):
        brush.paint(np.array([(xa, ya, -wa), (xa, ya, wa), (xb, yb, wb), (xb, yb, -wb)]), paint, shiny)


def paint_both_sides(brush: Brush, outline: F64, rgb: F64, shiny: float = 0.0) -> None:
    """A panel [N, 3] of points (x, y, half width), written clockwise as seen from the near (-z) side."""
    brush.paint(outline * [1, 1, -1], rgb, shiny)
    brush.paint(outline[::-1], rgb, shiny)


def _paint_panel(brush: Brush, x: Range, y: Range, half: float, rgb: F64) -> None:
    """A rectangle on both sides."""
    corners = [(x[0], y[0], half), (x[0], y[1], half), (x[1], y[1], half), (x[1], y[0], half)]
    paint_both_sides(brush, np.array(corners), rgb)


def _paint_end(brush: Brush, x: float, y: Range, z: Range, rgb: F64, shiny: float = 0.0) -> None:
    """A rectangle on the front (x < 1) or on the rear."""
    corners = np.array([(x, y[0], z[0]), (x, y[0], z[1]), (x, y[1], z[1]), (x, y[1], z[0])])
    brush.paint(corners if x < 1 else corners[::-1], rgb, shiny)


def _paint_hull(brush: Brush, x: Range, y: Range, half: float, rgb: F64, radius_m: float = 0.22) -> None:
    """A box with rounded edges above."""
    (x0, x1), (y0, y1), r = x, y, radius_m
    line = [(x0, y0, half), (x0, y1 - r, half), (x0 + r, y1, half - 0.3 * r), (x1 - r, y1, half - 0.3 * r)]
    outline = np.array([*line, (x1, y1 - r, half), (x1, y0, half)])
    outline = np.concatenate([outline[:1], cut_corners(outline[1:-1], 1), outline[-1:]])
    paint_both_sides(brush, outline, rgb)
    loft(brush, outline, rgb, 0.1)


def _paint_lamps(brush: Brush, length: float, half: float, y: float) -> None:
    """Lamps and number plates of a bus or a lorry."""
    for side in (-1, 1):
        near, far = sorted((side * 0.55 * half, side * 0.92 * half))
        _paint_end(brush, -0.02, (y, y + 0.18), (near, far), _HEADLAMP)
        _paint_end(brush, length + 0.02, (y, y + 0.25), (near, far), _REAR_LAMP)
    _paint_end(brush, -0.02, (0.38, 0.5), (-0.28, 0.28), np.full(3, 1.05))
    _paint_end(brush, length + 0.02, (0.4, 0.52), (-0.28, 0.28), np.full(3, 1.05))


def _paint_mirrors(brush: Brush, x: float, y: float, half: float) -> None:
    """Outside mirrors; they are painted first of all where the front looks away from us."""
    brush.sort_depth_m = 99.0 if brush.rotation[2, 0] < 0 else 0.0
    plate = [(x, y, half), (x, y + 0.4, half), (x - 0.05, y + 0.4, half + 0.22), (x - 0.05, y, half + 0.22)]
    for side in (-1, 1):
        brush.paint(np.array(plate) * [1, 1, side], np.full(3, 0.12), any_side=True)
    brush.sort_depth_m = 0.0


def _paint_tyres(brush: Brush, axles: list[float], half: float, radius: float) -> None:
    """Tyres, before the hull is painted over them."""
    for x in axles:
        for side_m in (-half, half):
            paint_tyre(brush, x, side_m, radius)


def _paint_wheels(brush: Brush, axles: list[float], half: float, radius: float) -> None:
    """What is seen of the wheels from outside, in dark arches."""
    for x in axles:
        for side_m in (-half, half):
            arch = half_disc(x, 1.15 * radius, radius, side_m)[:: 1 if side_m < 0 else -1]
            if is_clockwise(brush.project(arch)):
                brush.paint(arch, np.full(3, 0.07))
                paint_tyre(brush, x, side_m, radius)
                paint_rim(brush, x, side_m, radius, 6, np.full(3, 0.5))
