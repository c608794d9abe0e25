"""Drawing synthetic foregrounds: shaded polygons in perspective by the painter's algorithm, with straight alpha.

Object axes in metres: x from its front backwards, y up, z to its right-hand side, (0, 0, 0) on the ground. A pinhole
camera looks at it from `view_m` away; parts are painted from far to near, `SUPERSAMPLE` times finer than the picture,
and averaging that makes the soft edge. Colours are display RGB; more than 1 is a bright colour before it is shaded.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

F64 = NDArray[np.float64]
Drawn = tuple[NDArray[np.uint8], float]  # RGBA [H, W, 4] with straight alpha, and metres a pixel
SUPERSAMPLE = 4
LONG_SIDE_PX = 160  # longer side of the drawn picture; placed foregrounds are rarely larger


class Brush:
    """Paints polygons given in object coordinates, as seen by the drawing camera."""

    def __init__(self, yaw_rad: float, eye_m: float, length_m: float, to_sun: F64, view_m: float = 11.0) -> None:
        """Look at an object `length_m` long from its left, turned by `yaw_rad`, with the eye `eye_m` high."""
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        self.rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])  # object to view: x right, y up, z away
        self.middle, self.eye_m, self.to_sun = np.array([length_m / 2, 0, 0]), eye_m, to_sun
        self.view_m = view_m  # distance of the drawing camera; placing an object elsewhere only scales it
        self.sort_depth_m = 0.0  # of the part that is being painted: the farthest parts are painted first
        self.queue: list[tuple[float, F64, tuple[int, int, int]]] = []

    def depth_m(self, point: F64) -> float:
        """How much farther than the object's middle a point is, in metres."""
        return float(self.rotation[2] @ (point - self.middle))

    def project(self, points: F64) -> F64:
        """Object points [N, 3] to picture coordinates (right, down) [N, 2], metres at the object's middle."""
        seen = (points - self.middle) @ self.rotation.T
        scale = self.view_m / (self.view_m + seen[:, 2])
        return np.column_stack([seen[:, 0] * scale, (self.eye_m - seen[:, 1]) * scale])

    def paint(self, points: F64, rgb: F64, shiny: float = 0.0, any_side: bool = False) -> None:
        """Queue a polygon [N, 3], lit by the sun and the sky; `shiny` adds a reflection of the sky.

        It is seen from where its corners run clockwise, or with `any_side` from everywhere.
        """
        seen = self.project(points)
        if not any_side and not is_clockwise(seen):
            return
        a, b = points[1] - points[0], points[-1] - points[0]
        cross = np.array([a[2] * b[1] - a[1] * b[2], a[0] * b[2] - a[2] * b[0], a[1] * b[0] - a[0] * b[1]])  # b x a
        normal = self.rotation @ cross
        normal /= max(float(np.sqrt((normal**2).sum())), 1e-9)
        self._add(seen, rgb, -normal if normal[2] > 0 else normal, shiny)

    def _add(self, seen: F64, rgb: F64, normal: F64, shiny: float = 0.0) -> None:
        light = 0.52 + 0.17 * normal[1] + 0.4 * max(0.0, float((normal * self.to_sun).sum()))
        colour = rgb * light + shiny * max(0.0, normal[1]) * np.array([0.8, 0.9, 1.0])
        r, g, b = (np.clip(colour, 0, 1) * 255).astype(int)
        self.queue.append((self.sort_depth_m, seen, (int(r), int(g), int(b))))

    def limb(
        self, start: F64, end: F64, radii: tuple[float, float], rgb: F64, strips: int = 5, nearer_m: float = 0.0
    ) -> None:
        """A round limb between two points, tapering from one radius to the other, round at both ends.

        It is painted as if it were `nearer_m` nearer than its middle.
        """
        self.sort_depth_m = self.depth_m((start + end) / 2) - nearer_m
        a, b = self.project(np.array([start, end]))
        along = b - a
        length = float(np.hypot(*along))
        across = np.array([-along[1], along[0]]) / length if length > 1e-6 else np.array([1.0, 0.0])
        angle = np.linspace(0, 2 * np.pi, 17)[:-1]
        circle = np.column_stack([np.cos(angle), np.sin(angle)])
        for centre, radius in ((a, radii[0]), (b, radii[1])):
            self._add(centre + circle * radius, rgb, np.array([0.0, 0.2, -0.98]))
        for low, high in pairwise(np.linspace(-1, 1, strips + 1)):
            middle = (low + high) / 2
            normal = np.array([across[0] * middle, -across[1] * middle, -np.sqrt(1 - middle**2)])
            strip = [a + across * radii[0] * low, a + across * radii[0] * high]
            strip += [b + across * radii[1] * high, b + across * radii[1] * low]
            self._add(np.array(strip), rgb, normal)

    def crossbar(self, middle: F64, half_m: float, radius: float, rgb: F64) -> None:
        """A round bar across the object (along z): a handlebar, an axle."""
        start, end = translate(middle, 0, 0, -half_m), translate(middle, 0, 0, half_m)
        self.limb(start, end, (radius, radius), rgb, 3)

    def ball(self, centre: F64, radius: float, rgb: F64, nearer_m: float = 0.0) -> None:
        """A ball, shaded in rings about the point that faces the sun most."""
        self.sort_depth_m = self.depth_m(centre) - nearer_m
        (middle,) = self.project(centre[None])
        angle = np.linspace(0, 2 * np.pi, 25)[:-1]
        circle = np.column_stack([np.cos(angle), np.sin(angle)]) * radius
        highlight = self.to_sun[:2] * [1, -1]
        for share in (1.0, 0.8, 0.55, 0.3):
            normal = (1 - share) * self.to_sun + share * np.array([0.0, -0.1, -0.6])
            self._add(middle + circle * share + highlight * radius * 0.5 * (1 - share), rgb, normal)

    def box(self, low: tuple[float, float, float], high: tuple[float, float, float], rgb: F64) -> None:
        """A box between two corners (x, y, z), without its bottom."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        self.sort_depth_m = self.depth_m((np.array(low) + np.array(high)) / 2)
        self.paint(np.array([(x0, y0, z0), (x0, y1, z0), (x1, y1, z0), (x1, y0, z0)]), rgb)
        self.paint(np.array([(x1, y0, z1), (x1, y1, z1), (x0, y1, z1), (x0, y0, z1)]), rgb)
        self.paint(np.array([(x0, y0, z1), (x0, y1, z1), (x0, y1, z0), (x0, y0, z0)]), rgb)
        self.paint(np.array([(x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1)]), rgb)
        self.paint(np.array([(x0, y1, z0), (x0, y1, z1), (x1, y1, z1), (x1, y1, z0)]), rgb)

    def render(self, feet: F64) -> Drawn:
        """Everything queued, cropped to its bounds, as straight-alpha uint8 RGBA [H, W, 4], and metres a pixel.

        The metres hold where the nearest of `feet` [N, 3], the points that touch the ground, is.
        """
        parts = sorted(self.queue, key=lambda part: -part[0])
        corners = np.concatenate([points for _, points, _ in parts])
        low, high = corners.min(0), corners.max(0)
        metres_px = float((high - low).max()) / LONG_SIDE_PX
        # Start the grid at the bottom: the road's contact line must fall on a pixel's edge.
        size = np.ceil((high - low) / metres_px - 1e-6).astype(int)
        origin = np.array([low[0], high[1] - size[1] * metres_px])
        fine = Image.new("RGBA", (int(size[0]) * SUPERSAMPLE, int(size[1]) * SUPERSAMPLE))
        draw = ImageDraw.Draw(fine)
        for _, points, rgb in parts:
            fine_px = (points - origin) / metres_px * SUPERSAMPLE - 0.5
            draw.polygon([(float(x), float(y)) for x, y in fine_px], fill=(*rgb, 255))
        drawn = fine.resize((int(size[0]), int(size[1])), Image.Resampling.BOX)  # Pillow averages premultiplied RGBA
        # The picture's scale holds at the object's middle; what is nearer is drawn larger, so a pixel is less there.
        metres_px *= (self.view_m + min(self.depth_m(foot) for foot in feet)) / self.view_m
        return np.array(drawn), metres_px


def standing_brush(rng: np.random.Generator, yaw_deg: float, to_sun: F64, view_m: float) -> Brush:
    """A brush for an object around the origin, at the eye level of someone who stands."""
    return Brush(np.radians(yaw_deg), float(rng.uniform(1.4, 2.2)), 0.0, to_sun, view_m)


def translate(point: F64, x: float, y: float, z: float) -> F64:
    """A point, moved by (x, y, z)."""
    return np.asarray(point + np.array([x, y, z]))


def is_clockwise(seen: F64) -> bool:
    """Whether a polygon's corners [N, 2] run clockwise in the picture, which is how outsides are written here."""
    x, y = seen.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() + x[-1] * y[0] - x[0] * y[-1]) > 1e-9


def cut_corners(points: F64, times: int) -> F64:
    """Chaikin's corner cutting of an open polyline [N, K]; the ends stay."""
    for _ in range(times):
        a, b = points[:-1], points[1:]
        cut = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], 1).reshape(-1, points.shape[1])
        points = np.concatenate([points[:1], cut, points[-1:]])
    return points


def half_disc(x: float, radius: float, axle_y: float, z: float) -> F64:
    """The upper half of a circle across the object, [17, 3], clockwise as seen from the near (-z) side."""
    angle = np.linspace(np.pi, 0, 17)
    return np.column_stack([x + radius * np.cos(angle), axle_y + radius * np.sin(angle), np.full(17, z)])


def paint_tyre(brush: Brush, x: float, side_m: float, radius: float, width_m: float = 0.2) -> None:
    """A tyre on the ground at x; `side_m` is z of its outer face, signed."""
    inner = _circle(x, radius, radius, side_m - np.sign(side_m) * width_m)[::2]
    outer = _circle(x, radius, radius, side_m)[::2]
    brush.paint(inner, np.full(3, 0.08), any_side=True)
    for a, b, c, d in zip(inner, np.roll(inner, -1, 0), np.roll(outer, -1, 0), outer, strict=True):
        brush.paint(np.array([a, b, c, d]), np.full(3, 0.1), any_side=True)


def paint_rim(brush: Brush, x: float, side_m: float, radius: float, spokes: int, rgb: F64) -> None:
    """The outer face of a wheel, if it faces us: tyre wall, rim, spokes, hub."""

    def disc(share: float) -> F64:
        return _circle(x, share * radius, radius, side_m)[:: 1 if side_m < 0 else -1]

    if not is_clockwise(brush.project(disc(1.0))):
        return
    brush.paint(disc(1.0), np.full(3, 0.11))
    brush.paint(disc(0.7), rgb * 0.4)
    for k in range(spokes):
        angle = 2 * np.pi * k / spokes + 0.3
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        bar = np.array([s * 0.1 * across + r * along for r, s in ((0, -1), (0.68, -1), (0.68, 1), (0, 1))])
        points = np.column_stack([np.array([x, radius]) + bar * radius, np.full(4, side_m)])
        brush.paint(points, rgb, any_side=True)
    brush.paint(disc(0.2), rgb * 0.9)


def _circle(x: float, radius: float, axle_y: float, z: float) -> F64:
    """A circle across the object, [32, 3], clockwise as seen from the near (-z) side."""
    angle = np.linspace(2 * np.pi, 0, 33)[:-1]
    return np.stack([x + radius * np.cos(angle), axle_y + radius * np.sin(angle), np.full(32, z)], 1)
