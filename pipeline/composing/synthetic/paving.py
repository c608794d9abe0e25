"""How the ground of a synthetic street looks: asphalt, cobbles, lines, kerbs, slabs, grass."""

import numpy as np

from pipeline.composing.synthetic.camera import F32
from pipeline.composing.synthetic.hits import Hits, Look
from pipeline.composing.synthetic.parked import LANE_M
from pipeline.composing.synthetic.raycast import WALK
from pipeline.composing.synthetic.texture import column, mix, pulse, span, texture


def look_of_road(hits: Hits) -> Look:
    """Asphalt or cobbles with lane lines, parking lanes and a crossing."""
    plan, (x, _, z), wide, deep = hits.plan, hits.at_m, hits.size_m, _deep(hits)
    x = x - plan.ground.aside(z)
    paving, noise = plan.paving, plan.noise
    fine = np.minimum(1, 0.02 / deep)
    grain = 1 + 0.10 * fine * texture(noise, x * 60, z * 60) + 0.07 * texture(noise, x * 5, z * 3)
    if paving.cobbles:
        row = np.floor(z / 0.22)
        gaps = 1 - pulse(z / 0.22, 0.1, 1, deep / 0.22) * pulse(x / 0.3 + 0.5 * (row % 2), 0.08, 1, wide / 0.3)
        stone = texture(noise, np.floor(x / 0.3 + 0.5 * (row % 2)) * 37, row * 53)
        grain = grain * (1 + 0.12 * np.minimum(1, 0.25 / deep) * stone) * (1 - 0.45 * gaps)
    half, reach = plan.ground.road_half_m, np.abs(x)
    grain = grain * (1 - 0.12 * np.exp(-(((reach - half * 0.5) / 0.45) ** 2)))  # the wheels' track
    patch = texture(noise, np.floor(x / 2.6 + 0.3) * 41, np.floor(z / 7.3) * 59)  # mended asphalt
    grain = grain * (1 - 0.14 * (patch > 0.9) * (1 - paving.cobbles))
    kerb = np.where(x < 0, np.float32(plan.kerb_m[0]), np.float32(plan.kerb_m[1]))
    gutter = span(reach, kerb - 0.25, kerb + 1, wide)
    albedo = column(paving.road_rgb) * (grain * (1 - 0.18 * gutter))
    centre, edges, crossing_z = paving.lines
    paint: F32 = centre * span(x, -0.08, 0.08, wide) * pulse(z / 9, 0.0, 0.4, deep / 9)
    parking = kerb > half + 0.5 * LANE_M
    paint = paint + edges * span(reach, half - 0.42, half - 0.3, wide) * ~parking
    if crossing_z > 0:
        over = span(z, crossing_z, crossing_z + 3, deep)
        paint = np.maximum(paint, over * pulse(x, 0.0, 0.5, wide) * (reach < half - 0.3))
    bays = np.maximum(pulse(z / 6, 0.0, 0.02, deep / 6) * (reach > half), span(reach, half, half + 0.1, wide))
    paint = np.maximum(paint, bays * parking)
    worn = np.clip(0.75 + 0.12 * texture(noise, x * 20, z * 20), 0, 1)
    white = (paint * worn * (1 - 0.6 * paving.cobbles)).astype(np.float32)
    return Look(mix(albedo, column((0.75, 0.75, 0.72)), white))


def look_of_walk(hits: Hits) -> Look:
    """Paving slabs behind a lighter kerb stone, and grass where there are no houses."""
    plan, (x, _, z), wide, deep = hits.plan, hits.at_m, hits.size_m, _deep(hits)
    x = x - plan.ground.aside(z)
    kerb, lawn = (np.where(x < 0, np.float32(left), np.float32(right)) for left, right in (plan.kerb_m, plan.grass_m))
    reach = np.abs(x)
    slabs = pulse(x / 0.6, 0.05, 1, wide / 0.6) * pulse(z / 0.9, 0.04, 1, deep / 0.9)
    shade = 0.78 + 0.22 * slabs + 0.07 * texture(plan.noise, x * 8, z * 8)
    stone = (hits.surface != WALK) | (reach < kerb + 0.28)
    albedo = column(plan.paving.walk_rgb) * np.where(stone, np.float32(1.15), shade).astype(np.float32)
    blades = np.minimum(1, 0.05 / deep) * texture(plan.noise, x * 40, z * 22)
    patches = 1 + 0.14 * texture(plan.noise, x * 1.5, z * 1.1) + 0.1 * texture(plan.noise, x * 9, z * 7) + 0.16 * blades
    grass = column(plan.paving.grass_rgb) * np.clip(patches, 0.4, 1.7)
    return Look(mix(albedo, grass.astype(np.float32), span(reach, lawn, 1e4, wide)))


def _deep(hits: Hits) -> F32:
    """How long a ray's footprint on the level ground is."""
    deep: F32 = hits.size_m / np.maximum(-hits.ray[1], 1e-3)
    return deep
