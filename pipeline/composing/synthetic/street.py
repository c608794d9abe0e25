"""One synthetic street, rendered: a picture, and the exact depth of every pixel.

Everything is a pure function of (seed, street id): `scene` decides what stands there, `raycast` finds how far it is,
`surfaces` how it looks.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.composing.synthetic.camera import F32, SIZE_PX, vec
from pipeline.composing.synthetic.ground import TOP_M, Ground
from pipeline.composing.synthetic.raycast import FIRST_FACE, cast
from pipeline.composing.synthetic.scene import Plan, plan_street
from pipeline.composing.synthetic.surfaces import shade

SUPERSAMPLE = 2  # colour rays a pixel, along each axis; depth has one ray, through the pixel's centre


@dataclass(frozen=True)
class Street:
    """A rendered street: uint8 RGB [H, W, 3], float32 z-depth in metres [H, W] (sky: inf), and its road."""

    rgb: NDArray[np.uint8]
    depth_m: F32
    ground: Ground


def _display(plan: Plan, linear: F32) -> F32:
    """Linear to display RGB in 0..1: saturation, a soft shoulder for highlights, gamma 2."""
    gray = (linear[0] + linear[1] + linear[2]) / 3
    linear = np.maximum(gray + (linear - gray) * np.float32(plan.light.saturation), 0)
    return np.minimum(np.sqrt(linear / np.sqrt(1 + np.float32(0.35) * linear * linear)), 1)


def clear_reach_m(ground: Ground, depth_m: F32, surface: NDArray[np.int16]) -> float:
    """The z up to which nothing is before the road, or before anything up to `TOP_M` above it.

    `depth_m` and `surface` [H, W] are what `cast` found. Of the ground only a crest counts, by its shape: seen at a
    flat angle, one pixel of road is many metres long.
    """
    z = np.geomspace(3, 150, 60)
    x = np.linspace(-ground.road_half_m + 0.05, ground.road_half_m - 0.05, 61)
    at_z, at_x, at_y = (axis.ravel() for axis in np.meshgrid(z, x, np.linspace(0, TOP_M, 9), indexing="ij"))
    points = np.stack([at_x + ground.aside(at_z), at_y + ground.hill(at_z), at_z], 1)
    column, row, depth = ground.camera.project(points).T
    inside = (depth > 0) & (column >= 0) & (column < SIZE_PX) & (row >= 0) & (row < SIZE_PX)
    seen = np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int)
    behind = inside & (surface[seen] >= FIRST_FACE) & (depth_m[seen] < 0.98 * depth)
    eye_m = ground.camera.height_m
    beyond = ground.hill.meet(eye_m, vec((ground.hill(z) - eye_m) / z)) < 0.97 * z
    hidden = behind.reshape(len(z), -1).any(1) | beyond
    return float(z[np.argmax(hidden)] / 1.08) if hidden.any() else float(z[-1])


def render_street(seed: int, street: int) -> Street:
    """Street number `street` of `seed`: the same picture whenever and wherever it is rendered."""
    plan = plan_street(seed, street)
    depth_m, surface = cast(plan, 1)
    fine = _display(plan, shade(plan, *cast(plan, SUPERSAMPLE), SUPERSAMPLE))
    n = SUPERSAMPLE
    total = sum((fine[:, i::n, j::n] for i in range(n) for j in range(n)), np.zeros((3, SIZE_PX, SIZE_PX), np.float32))
    rgb = np.ascontiguousarray((total * np.float32(255 / n**2) + 0.5).astype(np.uint8).transpose(1, 2, 0))
    ground = replace(plan.ground, reach_m=clear_reach_m(plan.ground, depth_m, surface))
    return Street(rgb, depth_m, ground)
