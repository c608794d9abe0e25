"""Draws synthetic foregrounds: shaded polygons in perspective, with straight alpha.

Object axes in metres: x from its front backwards, y up, z to its right-hand side, (0, 0, 0) on the ground. A pinhole
camera looks at it from `view_m` away; parts are painted from far to near, `SUPERSAMPLE` times finer than the picture,
and averaging that makes the soft edge.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

F64 = NDArray[np.float64]
Drawn = tuple[NDArray[np.uint8], float]
SUPERSAMPLE = 4
LONG_SIDE_PX = 160  # longer side of the drawn picture; standing foregrounds are rarely larger


class Brush:
    """Paints polygons given in object coordinates, as seen by the drawing camera."""

    def __init__(self, yaw_rad: float, eye_m: float, length_m: float, to_sun: F64, view_m: float = 11.0) -> None:
        """Look at a thing `length_m` long from its left, turned by `yaw_rad`, with the eye `eye_m` high."""
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        self.turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])  # object to view: x right, y up, z away
        self.middle, self.eye_m, self.to_sun = np.array([length_m / 2, 0, 0]), eye_m, to_sun
        self.view_m = view_m  # distance of the drawing camera; standing a thing elsewhere only scales it
        self.far_m = 0.0  # of the part that is being painted: far parts are painted first
        self.todo: list[tuple[float, F64, tuple[int, int, int]]] = []

    def away(self, point: F64) -> float:
        """How much farther than the object's middle a point is, in metres."""
        return float(self.turn[2] @ (point - self.middle))

    def view(self, points: F64) -> F64:
        """Object points [N, 3] to picture coordinates (right, down) [N, 2], metres at the object's middle."""
        seen = (points - self.middle) @ self.turn.T
        scale = self.view_m / (self.view_m + seen[:, 2])
        return np.column_stack([seen[:, 0] * scale, (self.eye_m - seen[:, 1]) * scale])

    def paint(self, points: F64, rgb: F64, shiny: float = 0.0, any_side: bool = False) -> None:
        """Queue a polygon in display RGB, lit by the sun and the sky; `shiny` adds a reflection of the sky."""
        seen = self.view(points)
        if not any_side and not clockwise(seen):
            return
        a, b = points[1] - points[0], points[-1] - points[0]
        normal = self.turn @ np.array([a[2] * b[1] - a[1] * b[2], a[0] * b[2] - a[2] * b[0], a[1] * b[0] - a[0] * b[1]])
        normal /= max(float(np.sqrt((normal**2).sum())), 1e-9)
        self._queue(seen, rgb, -normal if normal[2] > 0 else normal, shiny)

    def _queue(self, seen: F64, rgb: F64, normal: F64, shiny: float) -> None:
        light = 0.52 + 0.17 * normal[1] + 0.4 * max(0.0, float((normal * self.to_sun).sum()))
        colour = rgb * light + shiny * max(0.0, normal[1]) * np.array([0.8, 0.9, 1.0])
        r, g, b = (np.clip(colour, 0, 1) * 255).astype(int)
        self.todo.append((self.far_m, seen, (int(r), int(g), int(b))))

    def limb(self, ends: F64, radii: tuple[float, float], rgb: F64, strips: int = 5, nearer_m: float = 0.0) -> None:
        """A round limb between two points [2, 3], tapering from one radius to the other, round at both ends.

        It is painted as if it were `nearer_m` nearer than its middle.
        """
        self.far_m = self.away(ends.mean(0)) - nearer_m
        a, b = self.view(ends)
        along = b - a
        length = float(np.hypot(*along))
        aside = np.array([-along[1], along[0]]) / length if length > 1e-6 else np.array([1.0, 0.0])
        turn = np.linspace(0, 2 * np.pi, 17)[:-1]
        circle = np.column_stack([np.cos(turn), np.sin(turn)])
        ahead = np.array([0.0, 0.2, -0.98])
        for centre, radius in ((a, radii[0]), (b, radii[1])):
            self._queue(centre + circle * radius, rgb, ahead, 0.0)
        for low, high in pairwise(np.linspace(-1, 1, strips + 1)):
            middle = (low + high) / 2
            normal = np.array([aside[0] * middle, -aside[1] * middle, -np.sqrt(1 - middle**2)])
            strip = [a + aside * radii[0] * low, a + aside * radii[0] * high]
            strip += [b + aside * radii[1] * high, b + aside * radii[1] * low]
            self._queue(np.array(strip), rgb, normal, 0.0)

    def ball(self, centre: F64, radius: float, rgb: F64, nearer_m: float = 0.0) -> None:
        """A ball, shaded in rings about the point that faces the sun most."""
        self.far_m = self.away(centre) - nearer_m
        (at,) = self.view(centre[None])
        turn = np.linspace(0, 2 * np.pi, 25)[:-1]
        circle = np.column_stack([np.cos(turn), np.sin(turn)]) * radius
        lit = self.to_sun[:2] * [1, -1]
        for share in (1.0, 0.8, 0.55, 0.3):
            normal = (1 - share) * self.to_sun + share * np.array([0.0, -0.1, -0.6])
            self._queue(at + circle * share + lit * radius * 0.5 * (1 - share), rgb, normal, 0.0)

    def block(self, low: tuple[float, float, float], high: tuple[float, float, float], rgb: F64) -> None:
        """A box between two corners (x, y, z)."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        self.far_m = self.away((np.array(low) + np.array(high)) / 2)
        self.paint(np.array([(x0, y0, z0), (x0, y1, z0), (x1, y1, z0), (x1, y0, z0)]), rgb)
        self.paint(np.array([(x1, y0, z1), (x1, y1, z1), (x0, y1, z1), (x0, y0, z1)]), rgb)
        self.paint(np.array([(x0, y0, z1), (x0, y1, z1), (x0, y1, z0), (x0, y0, z0)]), rgb)
        self.paint(np.array([(x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1)]), rgb)
        self.paint(np.array([(x0, y1, z0), (x0, y1, z1), (x1, y1, z1), (x1, y1, z0)]), rgb)

    def picture(self, feet: F64) -> Drawn:
        """Everything queued, cropped to its bounds, as straight-alpha uint8 RGBA [H, W, 4], and metres a pixel.

        The metres hold where the nearest of `feet` [N, 3], the points that touch the ground, is.
        """
        todo = sorted(self.todo, key=lambda part: -part[0])
        everything = np.concatenate([points for _, points, _ in todo])
        low, high = everything.min(0), everything.max(0)
        metres_px = float((high - low).max()) / LONG_SIDE_PX
        # Start the grid at the bottom: the road's contact line must fall on a pixel's edge.
        size = np.ceil((high - low) / metres_px - 1e-6).astype(int)
        origin = np.array([low[0], high[1] - size[1] * metres_px])
        fine = Image.new("RGBA", (int(size[0]) * SUPERSAMPLE, int(size[1]) * SUPERSAMPLE))
        draw = ImageDraw.Draw(fine)
        for _, points, rgb in todo:
            at = (points - origin) / metres_px * SUPERSAMPLE - 0.5
            draw.polygon([(float(x), float(y)) for x, y in at], fill=(*rgb, 255))
        drawn = fine.resize((int(size[0]), int(size[1])), Image.Resampling.BOX)  # Pillow averages premultiplied RGBA
        # The picture's scale holds at the object's middle; what is nearer is drawn larger, so a pixel is less there.
        metres_px *= (self.view_m + min(self.away(foot) for foot in feet)) / self.view_m
        return np.array(drawn), metres_px


def moved(point: F64, x: float, y: float, z: float) -> F64:
    """A point, moved."""
    return np.asarray(point + np.array([x, y, z]))


def clockwise(seen: F64) -> bool:
    """Whether a polygon's corners run clockwise in the picture, which is how outsides are written here."""
    x, y = seen.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() + x[-1] * y[0] - x[0] * y[-1]) > 1e-9


def round_off(points: F64, times: int) -> F64:
    """Chaikin's corner cutting of an open polyline [N, K]; the ends stay."""
    for _ in range(times):
        a, b = points[:-1], points[1:]
        cut = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], 1).reshape(-1, points.shape[1])
        points = np.concatenate([points[:1], cut, points[-1:]])
    return points


def loft(brush: Brush, profile: F64, paint: F64, shiny: float) -> None:
    """Sweep a profile [N, 3] of (x, y, half width) across the car: a strip between any two of its points."""
    for (xa, ya, wa), (xb, yb, wb) in pairwise(profile):
        brush.paint(np.array([(xa, ya, -wa), (xa, ya, wa), (xb, yb, wb), (xb, yb, -wb)]), paint, shiny)


def on_both_sides(brush: Brush, outline: F64, rgb: F64, shiny: float = 0.0) -> None:
    """A panel of points (x, y, half width), written clockwise as seen from the near (-z) side."""
    brush.paint(outline * [1, 1, -1], rgb, shiny)
    brush.paint(outline[::-1], rgb, shiny)
