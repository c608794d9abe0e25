"""The building block of synthetic streets: a convex profile, upright, swept sideways.

A solid's own axes are u (along the sweep), y (up, in world metres) and v (the profile's other axis); unturned, u is
the world's x and v its z. Face 0 looks to -u, face 1 to +u, face 2 + k is swept by the profile's edge k.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Rgb = tuple[float, float, float]
WALL, PLAIN, HEDGE, BODY, CABIN, WHEEL, LAMP = range(1, 8)  # what a solid looks like
MAX_FACES = 10


@dataclass(frozen=True)
class Solid:
    """A swept profile. Colours are linear RGB; window sizes are fractions of a bay and of a storey."""

    x_m: float
    z_m: float
    yaw_rad: float  # positive turns v from z towards x
    half_m: float  # it reaches this far along u
    profile: tuple[tuple[float, float], ...]  # (v, y), convex, counterclockwise with v to the right and y up
    kind: int
    rgb: Rgb
    base_m: float  # y of the ground that it stands on
    trim_rgb: Rgb = (0.5, 0.5, 0.5)
    bay_m: float = 3.0
    storey_m: float = 3.2
    window: tuple[float, float] = (0.5, 0.55)
    shop: float = 0.0
    eave_m: float = 0.0  # height of its walls, or of its waist, over base_m
    length_m: float = 0.0  # of the vehicle that it is part of
    glass: float = 1.0  # share of a cabin that has windows, from its front

    @cached_property
    def planes(self) -> F64:
        """Outward normal (u, y, v) and offset of every face: inside is normal . point <= offset; float64 [F, 4]."""
        at = np.array(self.profile)
        v, y = (np.roll(at, -1, 0) - at).T
        edges = np.stack([np.zeros(len(at)), -v, y], 1) / np.hypot(v, y)[:, None]
        offset = edges[:, 1] * at[:, 1] + edges[:, 2] * at[:, 0]
        sides = np.array([(-1.0, 0, 0, self.half_m), (1.0, 0, 0, self.half_m)])
        return np.concatenate([sides, np.column_stack([edges, offset])])

    @cached_property
    def normals(self) -> F64:
        """Outward normals in world axes, float64 [F, 3]."""
        u, y, v = self.planes[:, :3].T
        c, s = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        return np.stack([u * c + v * s, y, v * c - u * s], 1)

    @cached_property
    def corners(self) -> F64:
        """World points of which it is the convex hull, float64 [2 * edges, 3]."""
        v, y = np.array(self.profile * 2).T
        u = np.repeat([-self.half_m, self.half_m], len(self.profile))
        c, s = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        return np.stack([self.x_m + u * c + v * s, y, self.z_m + v * c - u * s], 1)


def oblong(half_v: float, low: float, top: float) -> tuple[tuple[float, float], ...]:
    """The profile of a box."""
    return (-half_v, low), (half_v, low), (half_v, top), (-half_v, top)


def linear(rng: np.random.Generator, display: tuple[float, ...], spread: float) -> Rgb:
    """A linear colour (display squared) near a display colour."""
    r, g, b = np.clip(np.asarray(display) * rng.uniform(0.85, 1.12) + rng.normal(0, spread, 3), 0.04, 0.97) ** 2
    return float(r), float(g), float(b)
