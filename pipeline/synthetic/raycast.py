"""How far everything in a synthetic street is: one ray at a time in principle, all of them at once in numpy."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.scene import F32, SIZE_PX, Box, Plan, texture

SKY, ROAD = -1, 0  # surface ids; box b has 1 + 3b (side), 2 + 3b (front), 3 + 3b (top); balls follow


def _window(plan: Plan, corners_m: NDArray[np.float64], scale: int) -> tuple[slice, slice]:
    """Rows and columns of the ray grid that can see the convex hull of `corners_m`; all of them if it is beside us."""
    seen = plan.camera.project(corners_m)
    if seen[:, 2].min() < 0.3:
        return slice(0, SIZE_PX * scale), slice(0, SIZE_PX * scale)
    low = np.clip(np.floor(seen[:, :2].min(0) * scale) - 1, 0, SIZE_PX * scale).astype(int)
    high = np.clip(np.ceil(seen[:, :2].max(0) * scale) + 1, 0, SIZE_PX * scale).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


def cast(plan: Plan, scale: int) -> tuple[F32, NDArray[np.int16]]:
    """The nearest surface along every ray: z-depth in metres (sky: inf) and surface id, both [H, W] * scale."""
    dx, dy, dz = plan.camera.rays(scale)
    with np.errstate(divide="ignore", over="ignore"):
        depth = np.where(dy < 0, -np.float32(plan.camera.height_m) / dy, np.float32(np.inf))
    surface = np.where(dy < 0, ROAD, SKY).astype(np.int16)

    def keep(at: tuple[slice, slice], t: F32, hit: NDArray[np.bool_], label: int) -> None:
        hit &= (t < depth[at]) & (t > 0)
        np.copyto(depth[at], t, where=hit)
        np.copyto(surface[at], np.int16(label), where=hit)

    for b, box in enumerate(plan.boxes):
        corners = np.array([(x, y, z) for x in box.x_m for y in (0.0, box.height_m) for z in box.z_m])
        at = _window(plan, corners, scale)
        if dx[at].size:
            for part, t, hit in _hit_box(plan, (dx[at], dy[at], dz[at]), box):
                keep(at, t, hit, 1 + 3 * b + part)
    for k, (cx, cy, cz, r) in enumerate(plan.balls.astype(np.float64)):
        corners = np.array([(x, y, z) for x in (cx - r, cx + r) for y in (cy - r, cy + r) for z in (cz - r, cz + r)])
        at = _window(plan, corners, scale)
        if dx[at].size:
            t, hit = _hit_ball(plan, (dx[at], dy[at], dz[at]), (cx, cy, cz, r))
            keep(at, t, hit, 1 + 3 * len(plan.boxes) + k)
    return depth, surface


def _hit_box(plan: Plan, ray: tuple[F32, F32, F32], box: Box) -> Iterator[tuple[int, F32, NDArray[np.bool_]]]:
    """Depth of the planes of a box's side (0), front (1) and top (2), if they face us, and where they are hit."""
    (x, y, z), (z0, z1) = ray, box.z_m
    x0, x1, top = box.x_m[0] - plan.camera.x_m, box.x_m[1] - plan.camera.x_m, box.height_m - plan.camera.height_m
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if x0 > 0 or x1 < 0:
            t = np.float32(x0 if x0 > 0 else x1) / x
            yield 0, t, (t * z >= z0) & (t * z <= z1) & (t * y <= top)
        if z0 > 0:
            t = np.float32(z0) / z
            yield 1, t, (t * x >= x0) & (t * x <= x1) & (t * y <= top)
        if top < 0:
            t = np.float32(top) / y
            yield 2, t, (t * x >= x0) & (t * x <= x1) & (t * z >= z0) & (t * z <= z1)


def _hit_ball(plan: Plan, ray: tuple[F32, F32, F32], ball: tuple[float, ...]) -> tuple[F32, NDArray[np.bool_]]:
    """Depth of a leaf ball's near side and where it is hit: towards its rim, holes in the leaves let rays through."""
    (x, y, z), r = ray, np.float32(ball[3])
    ox, oy, oz = (np.float32(v) for v in (plan.camera.x_m - ball[0], plan.camera.height_m - ball[1], -ball[2]))
    a, half_b, c = x * x + y * y + z * z, x * ox + y * oy + z * oz, ox * ox + oy * oy + oz * oz - r * r
    inside = half_b * half_b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    t = ((-half_b - root) / a).astype(np.float32)
    facing = root / (np.sqrt(a) * r)  # cosine between ray and surface: 1 in the middle, 0 at the rim
    holes = leaf_texture(plan, ox + t * x, oy + t * y, oz + t * z)
    return t, (inside > 0) & (facing > 0.38 + 0.28 * holes)


def leaf_texture(plan: Plan, x: F32, y: F32, z: F32) -> F32:
    """The noise tile laid through space twice, so that it is streaked on no side of a ball."""
    return 0.7 * (texture(plan.noise, x * 14, y * 14) + texture(plan.noise, z * 14 + 77, x * 9 - y * 11))
