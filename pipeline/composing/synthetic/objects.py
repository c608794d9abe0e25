"""How the smaller things of a synthetic street look: vehicles, furniture, hedges, lamps and leaves."""

import numpy as np

from pipeline.composing.synthetic.camera import F32, vec
from pipeline.composing.synthetic.hits import Faces, Hits, Look
from pipeline.composing.synthetic.raycast import first_ball
from pipeline.composing.synthetic.texture import column, leaf_texture, mix, pulse, span, texture


def look_of_plain(faces: Faces) -> Look:
    """One colour, a little weathered, and planks or courses where it is near."""
    noise, deep = faces.hits.plan.noise, faces.hits.size_m
    along = faces.u + faces.v
    grain = 1 + 0.08 * texture(noise, along * 14, faces.y * 14)
    joints = pulse(along / 0.16, 0.0, 0.1, deep / 0.16) * pulse(faces.y / 0.16, 0.08, 1.0, deep / 0.16)
    return Look(_rgb(faces) * (grain * (1 - 0.25 * joints)))


def look_of_hedge(faces: Faces) -> Look:
    """Leaves, darker towards the ground."""
    leaves = 1 + 0.35 * leaf_texture(faces.hits.plan.noise, faces.u, faces.y, faces.v)
    return Look(_rgb(faces) * np.clip(leaves * (0.6 + 0.35 * faces.y), 0.2, 1.6))


def look_of_body(faces: Faces) -> Look:
    """Paint over a dark sill, door seams, arches over the wheels, lamps at both ends."""
    deep, u, y, v = faces.hits.size_m, faces.u, faces.y, faces.v
    half, length, waist = faces.of(vec([(s.half_m, s.length_m, s.eave_m) for s in faces.solids]))
    side, end = faces.face < 2, np.abs(v) > 0.46 * length
    dark = span(y, -1.0, 0.36, deep)
    for axle in (-0.3, 0.3):
        from_axle = np.hypot(v - axle * length, y - 0.33)
        dark = np.maximum(dark, span(from_axle, -1.0, 0.42, deep) * side)
    seams = span(np.abs(v - 0.02 * length), -0.015, 0.015, deep) + span(np.abs(v + 0.2 * length), -0.015, 0.015, deep)
    dark = np.maximum(dark, 0.6 * seams * side)
    albedo = _rgb(faces) * (1 - 0.9 * dark)
    at_lamp = end * span(y, 0.66 * waist, 0.82 * waist, deep) * span(np.abs(u), 0.55 * half, 0.95 * half, deep)
    lamp = np.where(v > 0, column((0.75, 0.75, 0.7)), column((0.4, 0.02, 0.02)))
    albedo = mix(albedo, lamp.astype(np.float32), (at_lamp * ~side).astype(np.float32))
    plate = end * ~side * span(y, 0.42, 0.53, deep) * span(np.abs(u), -1.0, 0.26, deep)
    return Look(mix(albedo, column((0.6, 0.6, 0.55)), plate.astype(np.float32)))


def look_of_cabin(faces: Faces) -> Look:
    """Glass between pillars, a roof of paint; a van's load space has paint for glass."""
    deep, y, v, ny = faces.hits.size_m, faces.y, faces.v, faces.normal[1]
    shapes = [(*(f(v for v, _ in s.profile) for f in (min, max)), max(y for _, y in s.profile)) for s in faces.solids]
    rear, front, top = faces.of(vec(shapes))
    base, waist, glass_share = faces.of(vec([(s.base_m, s.eave_m, s.glass) for s in faces.solids]))
    top = top - base
    side = faces.face < 2
    up = (y - waist) / np.maximum(top - waist, 0.1)
    share = (v - rear) / np.maximum(front - rear, 0.1)
    pane = span(up, 0.08, 0.86, deep / 0.5)
    pillars = pulse((share + 0.02) * 2.6, 0.0, 0.07, deep) * side
    pane = pane * (1 - pillars) * np.where(side | (share < 0.5), share > 1 - glass_share - 0.02, True)
    pane = np.where(~side & (ny > 0.9), 0, pane).astype(np.float32)
    sky = faces.hits.plan.light.zenith_rgb + 0.5 * faces.hits.plan.light.horizon_rgb
    glass = 0.02 + column(sky) * (0.05 + 0.1 * np.maximum(ny, 0) + 0.03 * (up > 0.5))
    return Look(mix(_rgb(faces), glass.astype(np.float32), pane))


def look_of_wheel(faces: Faces) -> Look:
    """A tyre around a lighter rim."""
    axles = faces.of(vec([(float(np.mean([v for v, _ in s.profile])),) for s in faces.solids]))[0]
    from_axle = np.hypot(faces.v - axles, faces.y - 0.33)
    rim = span(from_axle, -1.0, 0.2, faces.hits.size_m) * (faces.face < 2)
    return Look(mix(_rgb(faces), column((0.3, 0.3, 0.31)), (0.8 * rim).astype(np.float32)))


def look_of_lamp(faces: Faces) -> Look:
    """A lantern; it burns when it is dark."""
    burning = faces.hits.plan.light.lamps * np.ones_like(faces.u)
    return Look(column((0.5, 0.5, 0.48)) * np.ones_like(faces.u), column((2.2, 1.6, 0.9)) * burning)


def look_of_leaves(hits: Hits) -> tuple[Look, tuple[F32, F32, F32]]:
    """Leaf balls, and their normals."""
    plan, number, (x, y, z) = hits.plan, hits.surface - first_ball(hits.plan), hits.at_m
    ball = np.ascontiguousarray(plan.balls.T)[:, number]
    nx, ny, nz = (x - ball[0]) / ball[3], (y - ball[1]) / ball[3], (z - ball[2]) / ball[3]
    leaves = (1 + 0.4 * leaf_texture(plan.noise, x - ball[0], y - ball[1], z - ball[2])) * (0.75 + 0.35 * ny)
    rgb = np.ascontiguousarray(plan.leaf_rgb.T)[:, number]
    return Look(rgb * np.clip(leaves, 0.25, 1.8)), (nx, ny, nz)


def _rgb(faces: Faces) -> F32:
    return faces.of(vec([s.rgb for s in faces.solids]))
