"""What the rays of a synthetic street see: surfaces in sun, shadow, sky light, lamplight and haze."""

import numpy as np
from numpy.typing import NDArray

from pipeline.composing.synthetic.camera import F32, vec
from pipeline.composing.synthetic.facade import look_of_wall
from pipeline.composing.synthetic.hits import Faces, Hits, Look
from pipeline.composing.synthetic.objects import (
    look_of_body,
    look_of_cabin,
    look_of_hedge,
    look_of_lamp,
    look_of_leaves,
    look_of_plain,
    look_of_wheel,
)
from pipeline.composing.synthetic.paving import look_of_road, look_of_walk
from pipeline.composing.synthetic.raycast import FIRST_FACE, KERB, ROAD, SKY, WALK, first_ball
from pipeline.composing.synthetic.scene import Plan
from pipeline.composing.synthetic.shadow import Shadows
from pipeline.composing.synthetic.sky import look_of_sky
from pipeline.composing.synthetic.solid import BODY, CABIN, HEDGE, LAMP, MAX_FACES, PLAIN, WALL, WHEEL

Normal = tuple[F32 | float, F32 | float, F32 | float]
_PAINTERS = {
    WALL: look_of_wall,
    PLAIN: look_of_plain,
    HEDGE: look_of_hedge,
    BODY: look_of_body,
    CABIN: look_of_cabin,
    WHEEL: look_of_wheel,
    LAMP: look_of_lamp,
}
_GROUND, _LEAVES = 100, 101
_LAMPS = 8  # so many lamps, the nearest, light the street


def _lamplight(plan: Plan, hits: Hits, normal: Normal) -> F32:
    """What the street lamps give, as a share of a lamp's colour: as 1 / distance^2, by the angle of incidence."""
    heads = sorted((s for s in plan.solids if s.kind == LAMP), key=lambda s: s.z_m)[:_LAMPS]
    total: F32 = np.zeros_like(hits.depth_m)
    for head in heads:
        y = head.profile[0][1] - 0.05
        height = y - head.base_m
        way = [np.float32(p) - at for p, at in zip((head.x_m, y, head.z_m), hits.at_m, strict=True)]
        distance2: F32 = way[0] * way[0] + way[1] * way[1] + way[2] * way[2] + np.float32(4)  # a lantern is no point
        facing = way[0] * normal[0] + way[1] * normal[1] + way[2] * normal[2]
        strength = np.float32(0.6 * height * height)
        total = total + strength * np.maximum(facing, 0) / (distance2 * np.sqrt(distance2))
    return total


def _lit(plan: Plan, shadows: Shadows, hits: Hits, look: Look, normal: Normal, on_ground: bool) -> F32:
    """Light and haze on what was hit, linear RGB [3, N]."""
    light, (nx, ny, nz) = plan.light, normal
    lambert: F32 = np.maximum(nx * light.to_sun[0] + ny * light.to_sun[1] + nz * light.to_sun[2], 0)
    lambert = lambert * (1 - shadows.of_houses(*hits.at_m))
    open_sky: F32 = np.asarray(0.72 + 0.28 * ny + 0.1 * nx, np.float32)
    if on_ground:
        sun, sky = shadows.on_ground(hits.at_m[0], hits.at_m[2])
        lambert, open_sky = lambert * (1 - 0.92 * sun), open_sky * (1 - 0.65 * sky)
    clear = np.exp(-hits.depth_m / np.float32(light.haze_m))
    lamp = _lamplight(plan, hits, normal) * light.lamps if light.lamps else None
    out = np.empty_like(look.albedo)
    for k in range(3):
        bright = open_sky * light.ambient_rgb[k] + lambert * light.sun_rgb[k]
        if lamp is not None:
            bright = bright + lamp * np.float32((1.0, 0.72, 0.4)[k])
        glow = 0.0 if look.glow is None else look.glow[k]
        out[k] = (look.albedo[k] * bright + glow - light.horizon_rgb[k]) * clear + light.horizon_rgb[k]
    return out


def _kinds(plan: Plan) -> NDArray[np.int8]:
    """What every surface id is, from `SKY` on."""
    kinds = np.full(first_ball(plan) + len(plan.balls) + 1, _LEAVES, np.int8)
    kinds[0] = SKY
    kinds[1 + ROAD : 1 + FIRST_FACE] = _GROUND
    kinds[1 + FIRST_FACE : 1 + first_ball(plan)] = np.repeat([s.kind for s in plan.solids], MAX_FACES)
    return kinds


def shade(plan: Plan, depth: F32, surface: NDArray[np.int16], scale: int) -> F32:
    """Linear RGB [3, H, W] of what `cast` found along the rays, of which there are `scale` x `scale` a pixel."""
    camera, shadows = plan.ground.camera, Shadows(plan)
    rays = [plane.ravel() for plane in camera.rays(scale)]
    shape, surface, depth = depth.shape, surface.ravel(), depth.ravel()
    kind = _kinds(plan)[surface + 1]
    out: F32 = np.empty((3, depth.size), np.float32)

    def hits_at(at: NDArray[np.intp]) -> Hits:
        t, (rx, ry, rz) = depth[at], (plane[at] for plane in rays)
        at_m = (t * rx + np.float32(camera.x_m), t * ry + np.float32(camera.height_m), t * rz)
        return Hits(plan, surface[at].astype(np.intp), t, (rx, ry, rz), at_m, t / np.float32(camera.focal_px * scale))

    sky = np.flatnonzero(kind == SKY)
    out[:, sky] = look_of_sky(plan, (rays[0][sky], rays[1][sky], rays[2][sky]))
    road, walk = np.flatnonzero(surface == ROAD), np.flatnonzero((surface >= WALK) & (surface < FIRST_FACE))
    hits = hits_at(road)
    out[:, road] = _lit(plan, shadows, hits, look_of_road(hits), (0.0, 1.0, 0.0), on_ground=True)
    hits = hits_at(walk)
    kerb = vec(hits.surface >= KERB)
    towards_road = vec(np.where(hits.surface == KERB, 1, -1)) * kerb
    out[:, walk] = _lit(plan, shadows, hits, look_of_walk(hits), (towards_road, 1 - kerb, 0.0), on_ground=True)
    for which, painter in _PAINTERS.items():
        at = np.flatnonzero(kind == which)
        if len(at):
            hits = hits_at(at)
            faces = Faces(hits)
            out[:, at] = _lit(plan, shadows, hits, painter(faces), faces.normal, on_ground=False)
    at = np.flatnonzero(kind == _LEAVES)
    if len(at):
        hits = hits_at(at)
        look, normal = look_of_leaves(hits)
        out[:, at] = _lit(plan, shadows, hits, look, normal, on_ground=False)
    return out.reshape(3, *shape)
