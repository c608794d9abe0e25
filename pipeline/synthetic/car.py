"""One synthetic car: a lofted body drawn as shaded polygons in perspective, with straight alpha.

Car axes in metres: x from the front bumper backwards, y up, z from the middle to the right-hand side. The body is a
profile (x, height, half width) swept across the car; a cabin with glass stands on it, wheels below it. A pinhole
camera looks at it from `VIEW_M` away, and polygons that face it are painted from far to near (the parts are convex
enough for that), `SUPERSAMPLE` times finer than the picture; averaging that makes the soft edge.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

F64 = NDArray[np.float64]
VIEW_M = 11.0  # distance of the drawing camera; placing a car elsewhere only scales it
SUPERSAMPLE = 4
LONG_SIDE_PX = 160  # longer side of the drawn car; placed cars are rarely larger


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


@dataclass(frozen=True)
class Car:
    """A drawn car: straight-alpha uint8 RGBA [H, W, 4] and the metres that H and W measure at its nearest wheel.

    The picture's last opaque row is where the nearest wheel meets the road.
    """

    rgba: NDArray[np.uint8]
    width_m: float
    height_m: float


class _Brush:
    """Paints polygons given in car coordinates, as seen by the drawing camera."""

    def __init__(self, yaw_rad: float, eye_m: float, length_m: float, to_sun: F64) -> None:
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        self.turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])  # car to view: x right, y up, z away
        self.middle, self.eye_m, self.to_sun = np.array([length_m / 2, 0, 0]), eye_m, to_sun
        self.todo: list[tuple[F64, tuple[int, int, int]]] = []

    def view(self, points: F64) -> F64:
        """Car points [N, 3] to picture coordinates (right, down) [N, 2], metres at distance `VIEW_M`."""
        seen = (points - self.middle) @ self.turn.T
        scale = VIEW_M / (VIEW_M + seen[:, 2])
        return np.column_stack([seen[:, 0] * scale, (self.eye_m - seen[:, 1]) * scale])

    def paint(self, points: F64, rgb: F64, shiny: float = 0.0, any_side: bool = False) -> None:
        """Queue a polygon in display RGB, lit by the sun and the sky; `shiny` adds a reflection of the sky."""
        seen = self.view(points)
        if not any_side and not _clockwise(seen):
            return
        a, b = points[1] - points[0], points[-1] - points[0]
        normal = self.turn @ np.array([a[2] * b[1] - a[1] * b[2], a[0] * b[2] - a[2] * b[0], a[1] * b[0] - a[0] * b[1]])
        normal /= max(float(np.sqrt((normal**2).sum())), 1e-9)
        if normal[2] > 0:
            normal = -normal
        light = 0.52 + 0.17 * normal[1] + 0.4 * max(0.0, float((normal * self.to_sun).sum()))
        colour = rgb * light + shiny * max(0.0, normal[1]) * np.array([0.8, 0.9, 1.0])
        r, g, b_ = (np.clip(colour, 0, 1) * 255).astype(int)
        self.todo.append((seen, (int(r), int(g), int(b_))))

    def picture(self) -> tuple[NDArray[np.uint8], float]:
        """Everything queued, cropped to its bounds, and metres a pixel."""
        everything = np.concatenate([points for points, _ in self.todo])
        low, high = everything.min(0), everything.max(0)
        metres_px = float((high - low).max()) / LONG_SIDE_PX
        # Start the grid at the bottom: the road's contact line must fall on a pixel's edge.
        size = np.ceil((high - low) / metres_px - 1e-6).astype(int)
        origin = np.array([low[0], high[1] - size[1] * metres_px])
        fine = Image.new("RGBA", (int(size[0]) * SUPERSAMPLE, int(size[1]) * SUPERSAMPLE))
        draw = ImageDraw.Draw(fine)
        for points, rgb in self.todo:
            at = (points - origin) / metres_px * SUPERSAMPLE - 0.5
            draw.polygon([(float(x), float(y)) for x, y in at], fill=(*rgb, 255))
        drawn = fine.resize((int(size[0]), int(size[1])), Image.Resampling.BOX)  # Pillow averages premultiplied RGBA
        rgba = np.array(drawn)
        rgba[rgba[..., 3] == 0] = 0
        return rgba, metres_px


def _clockwise(seen: F64) -> bool:
    """Whether a polygon's corners run clockwise in the picture, which is how outsides are written here."""
    x, y = seen.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() + x[-1] * y[0] - x[0] * y[-1]) > 1e-9


def _round_off(points: F64, times: int) -> F64:
    """Chaikin's corner cutting of an open polyline [N, K]; the ends stay."""
    for _ in range(times):
        a, b = points[:-1], points[1:]
        cut = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], 1).reshape(-1, points.shape[1])
        points = np.concatenate([points[:1], cut, points[-1:]])
    return points


def _loft(brush: _Brush, profile: F64, paint: F64, shiny: float) -> None:
    """Sweep a profile [N, 3] of (x, y, half width) across the car: a strip between any two of its points."""
    for (xa, ya, wa), (xb, yb, wb) in pairwise(profile):
        brush.paint(np.array([(xa, ya, -wa), (xa, ya, wa), (xb, yb, wb), (xb, yb, -wb)]), paint, shiny)


def _on_both_sides(brush: _Brush, outline: F64, rgb: F64, shiny: float = 0.0) -> None:
    """A panel of points (x, y, half width), written clockwise as seen from the near (-z) side."""
    brush.paint(outline * [1, 1, -1], rgb, shiny)
    brush.paint(outline[::-1], rgb, shiny)


def _ring(x: float, radius: float, axle_y: float, z: float) -> F64:
    """A circle across the car, clockwise as seen from the near (-z) side."""
    turn = np.linspace(2 * np.pi, 0, 33)[:-1]
    return np.stack([x + radius * np.cos(turn), axle_y + radius * np.sin(turn), np.full(32, z)], 1)


def _tyre(brush: _Brush, x: float, side_m: float, radius: float) -> None:
    """A tyre 0.2 m wide; `side_m` is z of its outer face, signed."""
    inner = _ring(x, radius, radius, side_m - np.sign(side_m) * 0.2)[::2]
    outer = _ring(x, radius, radius, side_m)[::2]
    brush.paint(inner, np.full(3, 0.08), any_side=True)
    for a, b, c, d in zip(inner, np.roll(inner, -1, 0), np.roll(outer, -1, 0), outer, strict=True):
        brush.paint(np.array([a, b, c, d]), np.full(3, 0.1), any_side=True)


def _rim(brush: _Brush, x: float, side_m: float, radius: float, spokes: int, rgb: F64) -> None:
    """The outer face of a wheel, if it faces us: tyre wall, rim, spokes, hub."""

    def disc(share: float) -> F64:
        return _ring(x, share * radius, radius, side_m)[:: 1 if side_m < 0 else -1]

    if not _clockwise(brush.view(disc(1.0))):
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


def _body(brush: _Brush, s: Shape, paint: F64, axles: tuple[float, float]) -> None:
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
    top = _round_off(top, 2)
    _on_both_sides(brush, top, paint * 0.96)
    lower = np.array([(x, min(y, 0.62 * s.belt_m), z) for x, y, z in top])
    _on_both_sides(brush, lower, paint * 0.84)
    sill = np.array([(x, min(y, 0.36), z) for x, y, z in top])
    _on_both_sides(brush, sill, paint * 0.35)
    turn = np.linspace(np.pi, 0, 17)
    for x in axles:
        r = s.wheel_m * 1.17
        arch = np.column_stack([x + r * np.cos(turn), s.wheel_m + r * np.sin(turn), np.full(17, 0.985 * w)])
        foot = np.array([(x + r, low, 0.985 * w), (x - r, low, 0.985 * w)])
        _on_both_sides(brush, np.concatenate([arch, foot]), np.full(3, 0.07))
    _loft(brush, top, paint, 0.14)
    if s.bed:
        front, back, y = s.cabin_m[3] + 0.05, end - 0.2, s.belt_m + 0.01
        deck = [(front, y, -0.85 * w), (front, y, 0.85 * w), (back, y, 0.8 * w), (back, y, -0.8 * w)]
        brush.paint(np.array(deck), np.full(3, 0.16))


def _cabin(brush: _Brush, s: Shape, paint: F64, glass: F64) -> None:
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
    outline = np.concatenate([line[:1], _round_off(np.concatenate([line[1:2], crown, line[2:3]]), 2), line[3:]])
    _on_both_sides(brush, outline, paint)
    _loft(brush, outline, paint, 0.14)

    def at(fore_aft: float, up: float) -> F64:
        """A point of the cabin's side: 0..1 from its front edge to its rear edge, 0..1 from its foot to the roof."""
        front, rear = line[0] + (line[1] - line[0]) * up, line[3] + (line[2] - line[3]) * up
        return np.asarray(front + (rear - front) * fore_aft)

    cuts = np.linspace(0.05, 0.95, s.doors + 1) if not s.blind else np.array([0.05, 0.3])
    for a, b in pairwise(cuts):
        window = np.array([at(a, 0.08), at(a + 0.012, 0.86), at(b - 0.03, 0.86), at(b - 0.02, 0.08)])
        _on_both_sides(brush, window, glass, 0.1)
        streak = [at(a + 0.5 * (b - a), 0.08), at(a + 0.6 * (b - a), 0.86)]
        streak += [at(a + 0.75 * (b - a), 0.86), at(a + 0.65 * (b - a), 0.08)]
        _on_both_sides(brush, np.array(streak), glass * 1.5, 0.1)
    for lower, upper in ((line[0], line[1]), (line[2], line[3])):
        screen = [lower + (upper - lower) * t for t in (0.1, 0.9)]
        (xa, ya, wa), (xb, yb, wb) = screen
        pane = np.array([(xa, ya, -0.9 * wa), (xa, ya, 0.9 * wa), (xb, yb, 0.88 * wb), (xb, yb, -0.88 * wb)])
        if not (s.blind and lower is line[2]):
            brush.paint(pane, glass, 0.22)


def _details(brush: _Brush, s: Shape, paint: F64, rng: np.random.Generator) -> None:
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
    _on_both_sides(brush, np.concatenate([wrap, [(0.42, nose + 0.03, 0.93 * w)]]), np.array([1.25, 1.25, 1.2]))
    rear = np.array([(end - 0.3, tail - 0.05, 0.9 * w), (end - 0.3, tail, 0.9 * w)])
    rear = np.concatenate([rear, [(end - 0.02, tail, 0.87 * w), (end - 0.02, tail - 0.2, 0.87 * w)]])
    _on_both_sides(brush, rear, np.array([0.85, 0.09, 0.08]))
    cuts = np.linspace(s.cabin_m[0] + 0.2, s.cabin_m[3] - 0.5, min(s.doors, 2) + 1)
    for k, x in enumerate(cuts):
        seam = np.array([(x, 0.36, w), (x, s.belt_m, w), (x + 0.025, s.belt_m, w), (x + 0.025, 0.36, w)])
        _on_both_sides(brush, seam, paint * 0.45)
        if k:
            handle = [(x - 0.3, 0.83, w), (x - 0.3, 0.87, w), (x - 0.1, 0.87, w), (x - 0.1, 0.83, w)]
            _on_both_sides(brush, np.array(handle) * [1, s.belt_m, 1], paint * 0.5)
    mirror_x, y = s.cabin_m[0] + 0.45, s.belt_m
    for side in (-1, 1):
        out = np.array([(0, 0, 0.95 * w), (0, 0.15, 0.98 * w), (0, 0.16, w + 0.17), (0, 0.03, w + 0.17)])
        brush.paint((out + np.array([mirror_x, y, 0])) * [1, 1, side], paint * 0.8, any_side=True)


def draw_car(seed: int, car: int) -> Car:
    """Car number `car` of `seed`: the same picture whenever and wherever it is drawn."""
    rng = np.random.default_rng((seed, 2, car))
    kinds = list(_SHAPES)
    shape = _vary(_SHAPES[kinds[rng.integers(len(kinds))]], rng)
    paint = np.clip(np.array(_PAINTS[rng.integers(len(_PAINTS))]) * rng.uniform(0.85, 1.15), 0.08, 0.92) * 1.15
    glass = np.array([0.16, 0.19, 0.22]) * rng.uniform(0.7, 1.3)
    # 0: its left side, 90: ...; fronts and rears a little turned, plain side views, and everything between
    view = rng.choice(
        [rng.normal(90, 9), rng.normal(-90, 9), rng.normal(0, 6), rng.uniform(-75, 75)], p=[0.2, 0.2, 0.2, 0.4]
    )
    sun = np.array([rng.uniform(-0.7, 0.7), rng.uniform(0.5, 0.9), -0.6])
    brush = _Brush(np.radians(view), rng.uniform(1.5, 2.3), shape.length_m, sun / np.sqrt((sun**2).sum()))
    axles = (shape.length_m * 0.19, shape.length_m * 0.81)
    rim, spokes = np.full(3, rng.uniform(0.5, 1.0)), int(rng.integers(5, 9))
    w = shape.half_width_m
    wheels = [(x, side * 0.97 * w) for x in axles for side in (-1.0, 1.0)]
    under = [(0.5, -0.85 * w), (0.5, 0.85 * w), (shape.length_m - 0.5, 0.85 * w), (shape.length_m - 0.5, -0.85 * w)]
    brush.paint(np.array([(x, 0.16, z) for x, z in under]), np.full(3, 0.06), any_side=True)
    for x, side_m in wheels:
        _tyre(brush, x, side_m, shape.wheel_m)
    _body(brush, shape, paint, axles)
    for x, side_m in wheels:
        _rim(brush, x, side_m, shape.wheel_m, spokes, rim)
    _details(brush, shape, paint, rng)
    _cabin(brush, shape, paint, glass)
    rgba, metres_px = brush.picture()
    # The picture's scale holds at the car's middle; what is nearer is drawn larger, so a pixel is less there.
    feet = np.array([(x, 0.0, side_m) for x, side_m in wheels]) - brush.middle
    metres_px *= (VIEW_M + float((feet @ brush.turn.T)[:, 2].min())) / VIEW_M
    return Car(rgba, rgba.shape[1] * metres_px, rgba.shape[0] * metres_px)
