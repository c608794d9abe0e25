"""How far everything in a synthetic street is: one ray at a time in principle, all of them at once in numpy."""

import numpy as np
from numpy.typing import NDArray

from pipeline.composing.synthetic.camera import F32, SIZE_PX
from pipeline.composing.synthetic.ground import PAVEMENT_M
from pipeline.composing.synthetic.scene import Plan
from pipeline.composing.synthetic.solid import F64, MAX_FACES, Solid
from pipeline.composing.synthetic.texture import leaf_texture

# Surface ids. Solid s has FIRST_FACE + MAX_FACES * s + its face; balls follow.
SKY, ROAD, WALK, KERB, FIRST_FACE = -1, 0, 1, 2, 4
NEAR_M = 0.3
HORIZON_M = 20_000.0  # ground farther along the road than this is sky, so that no coordinate overflows
Window = tuple[slice, slice]
_BALL = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)


def first_ball(plan: Plan) -> int:
    """The surface id of the first leaf ball."""
    return FIRST_FACE + MAX_FACES * len(plan.solids)


def _windows(plan: Plan, hulls: list[F64], scale: int) -> list[tuple[Window, float]]:
    """For each convex hull of points [N, 3]: rows and columns of the rays that can see it, and its least depth."""
    camera = plan.ground.camera
    starts = np.cumsum([0, *(len(hull) for hull in hulls)])
    seen = (np.concatenate(hulls) - [camera.x_m, camera.height_m, 0.0]) @ camera.axes().T
    nearest = np.minimum.reduceat(seen[:, 2], starts[:-1])
    slopes = seen[:, :2] / np.maximum(seen[:, 2:], NEAR_M)
    low, high = (extreme.reduceat(slopes, starts[:-1], axis=0) for extreme in (np.minimum, np.maximum))
    for k in np.flatnonzero(nearest < NEAR_M):
        low[k], high[k] = _in_front(seen[starts[k] : starts[k + 1]])
    first, last = ((at * camera.focal_px + SIZE_PX / 2) * scale for at in (low, high))
    first, last = (np.clip(at, 0, SIZE_PX * scale).astype(int) for at in (first - 1, last + 2))
    spans = zip(first.tolist(), last.tolist(), nearest.tolist(), strict=True)
    return [((slice(y0, y1), slice(x0, x1)), max(near, NEAR_M)) for (x0, y0), (x1, y1), near in spans]


def _in_front(seen: F64) -> tuple[F64, F64]:
    """Least and greatest slopes of the part of a hull [N, 3], in camera axes, that is not nearer than `NEAR_M`."""
    near = seen[:, 2] < NEAR_M
    front, back = seen[~near], seen[near]
    if not len(front):
        return np.zeros(2), np.zeros(2)
    # The plane cuts the hull where it cuts lines between its points.
    share = (NEAR_M - back[:, None, 2]) / (front[None, :, 2] - back[:, None, 2])
    cut = back[:, None] + (front[None] - back[:, None]) * share[..., None]
    slopes = np.concatenate([front[:, :2] / front[:, 2:], cut[..., :2].reshape(-1, 2) / NEAR_M])
    return slopes.min(0), slopes.max(0)


def cast(plan: Plan, scale: int) -> tuple[F32, NDArray[np.int16]]:
    """The nearest surface along every ray: z-depth in metres (sky: inf) and surface id, both [H, W] * scale."""
    ray = plan.ground.camera.rays(scale)
    depth, surface = _cast_ground(plan, ray)
    balls = plan.balls.astype(np.float64)
    hulls = [*(solid.corners for solid in plan.solids), *(ball[:3] + _BALL * ball[3] for ball in balls)]
    windows = _windows(plan, hulls, scale) if hulls else []
    for k in sorted(range(len(hulls)), key=lambda k: windows[k][1]):  # the nearest hide others
        at, nearest = windows[k]
        if not depth[at].size or depth[at].max() < nearest:
            continue
        seen_by = ray[0][at], ray[1][at], ray[2][at]
        if k < len(plan.solids):
            t, face = _hit_solid(plan, seen_by, plan.solids[k])
            label = face + np.int16(FIRST_FACE + MAX_FACES * k)
        else:
            t = _hit_ball(plan, seen_by, balls[k - len(plan.solids)])
            label = np.full(t.shape, first_ball(plan) + k - len(plan.solids), np.int16)
        nearer = t < depth[at]
        np.copyto(depth[at], t, where=nearer)
        np.copyto(surface[at], label, where=nearer)
    return depth, surface


def _cast_ground(plan: Plan, ray: tuple[F32, F32, F32]) -> tuple[F32, NDArray[np.int16]]:
    """Road, kerbs and what lies behind them, which is higher by `PAVEMENT_M`."""
    ground, (dx, dy, dz) = plan.ground, ray
    eye_x, eye_y = np.float32(ground.camera.x_m), np.float32(ground.camera.height_m)
    # Along z, the way along the road: the camera never looks so far aside that a ray does not get on.
    climb, drift = dy / dz, dx / dz
    left, right = plan.kerb_m
    road_z = ground.hill.meet(ground.camera.height_m, climb)
    walk_z = ground.hill.meet(ground.camera.height_m - PAVEMENT_M, climb)
    with np.errstate(invalid="ignore"):
        x = eye_x + drift * walk_z - ground.aside(walk_z)
        on_walk = (x < -left) | (x > right)
    z = np.where(on_walk, walk_z, road_z)
    z[z > HORIZON_M] = np.inf
    surface = np.where(np.isfinite(z), np.where(on_walk, WALK, ROAD), SKY).astype(np.int16)
    for side, kerb in ((-1, left), (1, right)):
        # The kerb's face is met where the ray leaves the road: mirrored to the left side, a line meeting a curve.
        kerb_z = ground.aside.mirrored(side).meet(kerb - side * ground.camera.x_m, -side * drift)
        with np.errstate(invalid="ignore"):
            up = eye_y + climb * kerb_z - ground.hill(kerb_z)
            hit = (kerb_z < z) & (up >= 0) & (up <= np.float32(PAVEMENT_M))
        z = np.where(hit, kerb_z, z)
        surface[hit] = KERB + (side > 0)
    return (z / dz).astype(np.float32), surface


def _hit_solid(plan: Plan, ray: tuple[F32, F32, F32], solid: Solid) -> tuple[F32, NDArray[np.int16]]:
    """Depth at which each ray enters a solid (inf: it does not) and through which face.

    A ray is inside between the last plane that it enters and the first that it leaves.
    """
    (x, y, z), camera = ray, plan.ground.camera
    c, s = np.cos(solid.yaw_rad), np.sin(solid.yaw_rad)
    off_x, off_z = camera.x_m - solid.x_m, -solid.z_m
    eye = np.array([c * off_x - s * off_z, camera.height_m, s * off_x + c * off_z])
    c32, s32 = np.float32(c), np.float32(s)
    local = (c32 * x - s32 * z, y, s32 * x + c32 * z) if s else ray
    near, far = np.zeros_like(y), np.full_like(y, np.inf)
    face = np.zeros(y.shape, np.int16)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for k, (*normal, offset) in enumerate(solid.planes):
            outside = float(eye @ normal) - offset  # how far the eye is out of this plane
            along = [axis * np.float32(n) for axis, n in zip(local, normal, strict=True) if n]
            t: F32 = np.float32(-outside) / (along[0] if len(along) == 1 else along[0] + along[1])
            t[t < 0] = np.inf
            if outside > 0:
                face[t > near] = k
                np.maximum(near, t, out=near)
            else:
                np.minimum(far, t, out=far)
    near[(near >= far) | (near == 0)] = np.inf
    return near, face


def _hit_ball(plan: Plan, ray: tuple[F32, F32, F32], ball: F64) -> F32:
    """Depth of a leaf ball's near side, or inf: towards its rim, holes in the leaves let rays through."""
    (x, y, z), r, camera = ray, np.float32(ball[3]), plan.ground.camera
    ox, oy, oz = (np.float32(v) for v in (camera.x_m - ball[0], camera.height_m - ball[1], -ball[2]))
    a, half_b, c = x * x + y * y + z * z, x * ox + y * oy + z * oz, ox * ox + oy * oy + oz * oz - r * r
    inside = half_b * half_b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    t: F32 = ((-half_b - root) / a).astype(np.float32)
    facing = root / (np.sqrt(a) * r)  # cosine between ray and surface: 1 in the middle, 0 at the rim
    holes = leaf_texture(plan.noise, ox + t * x, oy + t * y, oz + t * z)
    np.copyto(t, np.float32(np.inf), where=(inside <= 0) | (facing <= 0.38 + 0.28 * holes) | (t <= 0))
    return t
