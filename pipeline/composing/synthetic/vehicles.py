"""Cars: a lofted body with a cabin of glass on it, and wheels below.

The body is a profile (x, height, half width) swept across the car; the parts are convex enough to be painted one after
the other.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.composing.synthetic.brush import F64, Brush, Drawn, loft, on_both_sides, round_off
from pipeline.composing.synthetic.wheel import rim, tyre


@dataclass(frozen=True)
class Shape:
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
    "sedan": Shape(4.65, 0.90, 0.93, 0.72, 0.95, 1.45, (1.25, 2.0, 3.25, 4.1), 0.33, 2),
    "hatchback": Shape(4.0, 0.87, 0.95, 0.76, 0.95, 1.48, (1.0, 1.75, 3.35, 3.92), 0.32, 2),
    "coupe": Shape(4.4, 0.92, 0.88, 0.68, 0.9, 1.32, (1.45, 2.2, 2.95, 4.15), 0.34, 1),
    "wagon": Shape(4.75, 0.91, 0.95, 0.74, 0.97, 1.5, (1.25, 2.0, 4.2, 4.68), 0.33, 3),
    "suv": Shape(4.7, 0.96, 1.12, 0.95, 1.1, 1.75, (1.15, 1.75, 4.1, 4.6), 0.39, 3),
    "mini": Shape(3.6, 0.83, 0.95, 0.8, 0.95, 1.52, (0.75, 1.4, 3.1, 3.55), 0.3, 1),
    "pickup": Shape(5.2, 0.95, 1.1, 0.98, 1.08, 1.8, (1.4, 2.0, 3.15, 3.4), 0.4, 2, bed=True),
    "van": Shape(5.0, 0.98, 1.2, 1.05, 1.2, 2.05, (0.6, 1.35, 4.85, 4.98), 0.35, 1, blind=True),
    "minibus": Shape(4.9, 0.97, 1.15, 0.98, 1.15, 1.95, (0.65, 1.4, 4.7, 4.88), 0.35, 4),
}
_PAINTS = (  # display RGB; grays are as common as on the road, so that brightness alone does not give a car away
    *((0.86, 0.86, 0.85), (0.62, 0.63, 0.64), (0.45, 0.46, 0.47), (0.33, 0.34, 0.35), (0.15, 0.15, 0.16)),
    *((0.68, 0.1, 0.09), (0.12, 0.22, 0.48), (0.16, 0.42, 0.66), (0.1, 0.3, 0.2), (0.82, 0.65, 0.12)),
    *((0.45, 0.36, 0.28), (0.36, 0.1, 0.14), (0.72, 0.68, 0.58), (0.82, 0.36, 0.1), (0.3, 0.42, 0.46)),
)


def _vary(shape: Shape, rng: np.random.Generator) -> Shape:
    """The same kind of car by another maker."""
    long, high = rng.uniform(0.95, 1.06), rng.uniform(0.95, 1.06)
    return Shape(
        shape.length_m * long,
        shape.half_width_m * float(rng.uniform(0.97, 1.04)),
        shape.belt_m * high,
        shape.nose_m * high * float(rng.uniform(0.95, 1.04)),
        shape.tail_m * high,
        shape.roof_m * high * float(rng.uniform(0.98, 1.03)),
        (shape.cabin_m[0] * long, shape.cabin_m[1] * long, shape.cabin_m[2] * long, shape.cabin_m[3] * long),
        shape.wheel_m * float(rng.uniform(0.96, 1.1)),
        shape.doors,
        shape.bed,
        shape.blind,
    )


def _body(brush: Brush, s: Shape, paint: F64, axles: tuple[float, float]) -> None:
    """Lower body: sides with wheel arches, then bumpers, bonnet and boot lofted over it."""
    w, end, low = s.half_width_m, s.length_m, 0.24
    top = np.array(
        [
            (0.06, low, 0.86 * w),
            (0.0, 0.45, 0.84 * w),
            (0.04, s.nose_m - 0.08, 0.84 * w),
            (0.25, s.nose_m, 0.9 * w),
            (s.cabin_m[0] * 0.8, s.belt_m - 0.05, 0.97 * w),
            (s.cabin_m[0] + 0.3, s.belt_m, w),
            (s.cabin_m[3] - 0.4, s.belt_m + 0.01, w),
            (end - 0.12, s.tail_m, 0.9 * w),
            (end, s.tail_m - 0.2, 0.87 * w),
            (end, 0.5, 0.87 * w),
            (end - 0.08, low, 0.88 * w),
        ]
    )
    top = round_off(top, 2)
    on_both_sides(brush, top, paint * 0.96)
    lower = np.array([(x, min(y, 0.62 * s.belt_m), z) for x, y, z in top])
    on_both_sides(brush, lower, paint * 0.84)
    sill = np.array([(x, min(y, 0.36), z) for x, y, z in top])
    on_both_sides(brush, sill, paint * 0.35)
    turn = np.linspace(np.pi, 0, 17)
    for x in axles:
        r = s.wheel_m * 1.17
        arch = np.column_stack([x + r * np.cos(turn), s.wheel_m + r * np.sin(turn), np.full(17, 0.985 * w)])
        foot = np.array([(x + r, low, 0.985 * w), (x - r, low, 0.985 * w)])
        on_both_sides(brush, np.concatenate([arch, foot]), np.full(3, 0.07))
    loft(brush, top, paint, 0.14)
    if s.bed:
        front, back, y = s.cabin_m[3] + 0.05, end - 0.2, s.belt_m + 0.01
        deck = [(front, y, -0.85 * w), (front, y, 0.85 * w), (back, y, 0.8 * w), (back, y, -0.8 * w)]
        brush.paint(np.array(deck), np.full(3, 0.16))


def _cabin(brush: Brush, s: Shape, paint: F64, glass: F64) -> None:
    """Roof, pillars and windows: glass is painted into the painted faces, a hand's breadth from their edges."""
    foot_a, top_a, top_b, foot_b = s.cabin_m
    base, end = s.belt_m - 0.02, s.length_m
    tall = s.blind or s.doors == 4
    roof_w = (0.86 if tall else 0.74) * s.half_width_m
    # The cabin's feet follow the body, which narrows towards its ends.
    narrow = np.interp([foot_a, foot_b], [0.25, foot_a + 0.3, end - 0.5, end], [0.88, 0.98, 0.98, 0.86])
    foot_wa, foot_wb = narrow * s.half_width_m
    tops = [(top_a, s.roof_m - 0.03, roof_w), (top_b, s.roof_m - 0.02, min(roof_w, foot_wb))]
    line = np.array([(foot_a, base, foot_wa), *tops, (foot_b, base, foot_wb)])
    crown = np.array([(0.5 * (top_a + top_b), s.roof_m + 0.02, roof_w)])
    outline = np.concatenate([line[:1], round_off(np.concatenate([line[1:2], crown, line[2:3]]), 2), line[3:]])
    on_both_sides(brush, outline, paint)
    loft(brush, outline, paint, 0.14)

    def at(fore_aft: float, up: float) -> F64:
        """A point of the cabin's side: 0..1 from its front edge to its rear edge, 0..1 from its foot to the roof."""
        front, rear = line[0] + (line[1] - line[0]) * up, line[3] + (line[2] - line[3]) * up
        return np.asarray(front + (rear - front) * fore_aft)

    cuts = np.linspace(0.05, 0.95, s.doors + 1) if not s.blind else np.array([0.05, 0.3])
    for a, b in pairwise(cuts):
        window = np.array([at(a, 0.08), at(a + 0.012, 0.86), at(b - 0.03, 0.86), at(b - 0.02, 0.08)])
        on_both_sides(brush, window, glass, 0.1)
        streak = [at(a + 0.5 * (b - a), 0.08), at(a + 0.6 * (b - a), 0.86)]
        streak += [at(a + 0.75 * (b - a), 0.86), at(a + 0.65 * (b - a), 0.08)]
        on_both_sides(brush, np.array(streak), glass * 1.5, 0.1)
    for lower, upper in ((line[0], line[1]), (line[2], line[3])):
        screen = [lower + (upper - lower) * t for t in (0.1, 0.9)]
        (xa, ya, wa), (xb, yb, wb) = screen
        pane = np.array([(xa, ya, -0.9 * wa), (xa, ya, 0.9 * wa), (xb, yb, 0.88 * wb), (xb, yb, -0.88 * wb)])
        if not (s.blind and lower is line[2]):
            brush.paint(pane, glass, 0.22)


def _details(brush: Brush, s: Shape, paint: F64, rng: np.random.Generator) -> None:
    """Lamps, grille, plates, door lines, handles and mirrors."""
    w, end = s.half_width_m, s.length_m
    lamp_h, lamp_w = rng.uniform(0.11, 0.17), rng.uniform(0.26, 0.4)

    def patch(x: float, y: tuple[float, float], z: tuple[float, float], rgb: tuple[float, float, float]) -> None:
        corners = np.array([(x, y[0], z[0]), (x, y[0], z[1]), (x, y[1], z[1]), (x, y[1], z[0])])
        brush.paint(corners if x < end / 2 else corners[::-1], np.array(rgb))

    nose, tail = s.nose_m - 0.1, s.tail_m - 0.12
    patch(0.0, (0.28, 0.28 + 0.5 * (nose - 0.3)), (-0.55 * w, 0.55 * w), (0.1, 0.1, 0.1))
    patch(-0.01, (nose - lamp_h, nose), (-0.42 * w, 0.42 * w), (0.16, 0.16, 0.17))
    patch(-0.02, (0.42, 0.53), (-0.26, 0.26), (1.1, 1.1, 1.05))
    patch(end + 0.01, (tail - 0.28, tail - 0.17), (-0.26, 0.26), (1.2, 1.2, 1.1))
    patch(end + 0.01, (0.26, 0.38), (-0.7 * w, 0.7 * w), (0.12, 0.12, 0.12))
    for side in (-1, 1):
        lamp = (side * (0.82 - lamp_w) * w, side * 0.82 * w)
        near, far = min(lamp), max(lamp)
        patch(-0.02, (nose - lamp_h, nose + 0.01), (near, far), (1.35, 1.35, 1.25))
        patch(end + 0.01, (tail - 0.2, tail), (near, far), (0.95, 0.1, 0.08))
    wrap = np.array([(0.05, nose - lamp_h, 0.86 * w), (0.05, nose, 0.86 * w)])
    on_both_sides(brush, np.concatenate([wrap, [(0.42, nose + 0.03, 0.93 * w)]]), np.array([1.25, 1.25, 1.2]))
    rear = np.array([(end - 0.3, tail - 0.05, 0.9 * w), (end - 0.3, tail, 0.9 * w)])
    rear = np.concatenate([rear, [(end - 0.02, tail, 0.87 * w), (end - 0.02, tail - 0.2, 0.87 * w)]])
    on_both_sides(brush, rear, np.array([0.85, 0.09, 0.08]))
    cuts = np.linspace(s.cabin_m[0] + 0.2, s.cabin_m[3] - 0.5, min(s.doors, 2) + 1)
    for k, x in enumerate(cuts):
        seam = np.array([(x, 0.36, w), (x, s.belt_m, w), (x + 0.025, s.belt_m, w), (x + 0.025, 0.36, w)])
        on_both_sides(brush, seam, paint * 0.45)
        if k:
            handle = [(x - 0.3, 0.83, w), (x - 0.3, 0.87, w), (x - 0.1, 0.87, w), (x - 0.1, 0.83, w)]
            on_both_sides(brush, np.array(handle) * [1, s.belt_m, 1], paint * 0.5)
    mirror_x, y = s.cabin_m[0] + 0.45, s.belt_m
    for side in (-1, 1):
        out = np.array([(0, 0, 0.95 * w), (0, 0.15, 0.98 * w), (0, 0.16, w + 0.17), (0, 0.03, w + 0.17)])
        brush.paint((out + np.array([mirror_x, y, 0])) * [1, 1, side], paint * 0.8, any_side=True)


def draw_paint(rng: np.random.Generator) -> F64:
    """The display RGB of a vehicle."""
    return np.clip(np.array(_PAINTS[rng.integers(len(_PAINTS))]) * rng.uniform(0.85, 1.15), 0.08, 0.92) * 1.15


def draw_car(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A car of one of nine shapes: fronts and rears a little turned, plain side views, and everything between."""
    kinds = list(_SHAPES)
    shape = _vary(_SHAPES[kinds[rng.integers(len(kinds))]], rng)
    paint = draw_paint(rng)
    glass = np.array([0.16, 0.19, 0.22]) * rng.uniform(0.7, 1.3)
    yaw = rng.choice(
        [rng.normal(90, 9), rng.normal(-90, 9), rng.normal(0, 6), rng.uniform(-75, 75)], p=[0.2, 0.2, 0.2, 0.4]
    )
    brush = Brush(np.radians(yaw), rng.uniform(1.5, 2.3), shape.length_m, to_sun)
    axles = (shape.length_m * 0.19, shape.length_m * 0.81)
    metal, spokes = np.full(3, rng.uniform(0.5, 1.0)), int(rng.integers(5, 9))
    w = shape.half_width_m
    wheels = [(x, side * 0.97 * w) for x in axles for side in (-1.0, 1.0)]
    under = [(0.5, -0.85 * w), (0.5, 0.85 * w), (shape.length_m - 0.5, 0.85 * w), (shape.length_m - 0.5, -0.85 * w)]
    brush.paint(np.array([(x, 0.16, z) for x, z in under]), np.full(3, 0.06), any_side=True)
    for x, side_m in wheels:
        tyre(brush, x, side_m, shape.wheel_m)
    _body(brush, shape, paint, axles)
    for x, side_m in wheels:
        rim(brush, x, side_m, shape.wheel_m, spokes, metal)
    _details(brush, shape, paint, rng)
    _cabin(brush, shape, paint, glass)
    return brush.picture(np.array([(x, 0.0, side_m) for x, side_m in wheels]))
