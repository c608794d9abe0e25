"""Shading: the colour of every surface of a synthetic street, in sun, shadow, sky light, lamplight and haze.

A material function gets the hits of one kind of surface and returns their albedo; stripes and windows are averaged
over a ray's width (a box filter), so that nothing aliases.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.composing.synthetic.raycast import (
    FIRST_FACE,
    KERB,
    ROAD,
    SKY,
    WALK,
    Hits,
    Normal,
    Rays,
    Shadows,
    SolidHits,
    bilinear_texture,
    first_ball_id,
    lamplight,
    leaf_texture,
    texture,
)
from pipeline.composing.synthetic.roadside import LANE_M
from pipeline.composing.synthetic.scene import F32, MAX_FACES, Kind, Scene, f32

_GROUND, _LEAVES = 100, 101  # kinds of surfaces beside those of solids


@dataclass(frozen=True)
class Material:
    """Of N hits: linear albedo [3, N], and light that they emit [3, N]."""

    albedo: F32
    emission: F32 | None = None


def pulse_train(x: F32, low: F32 | float, high: F32 | float, width: F32) -> F32:
    """How much of a window of `width` around x lies in [low, high] of each unit period: filtered stripes."""

    def integral(end: F32) -> F32:
        period = np.floor(end)
        return period * (high - low) + np.clip(end - period - low, 0, high - low)

    width = np.maximum(width, np.float32(1e-3))
    return f32((integral(x + width / 2) - integral(x - width / 2)) / width)


def pulse(x: F32, low: F32 | float, high: F32 | float, width: F32) -> F32:
    """How much of a window of `width` around x lies in [low, high]."""
    width = np.maximum(width, np.float32(1e-4))
    share: F32 = np.clip((np.minimum(x + width / 2, high) - np.maximum(x - width / 2, low)) / width, 0, 1)
    return share


def mix(base: F32, over: F32, amount: F32) -> F32:
    """`base` where amount is 0, `over` where it is 1."""
    mixed: F32 = (over - base) * amount
    mixed += base
    return mixed


def rgb_column(values: tuple[float, ...] | F32) -> F32:
    """A colour as float32 [3, 1], which broadcasts over N points."""
    return np.asarray(values, np.float32)[:, None]


def shade(scene: Scene, depth: F32, surface: NDArray[np.int16], scale: int) -> F32:
    """Linear RGB [3, H, W] of what `cast_rays` found along the rays, of which there are `scale` x `scale` a pixel."""
    camera, shadows = scene.ground.camera, Shadows(scene)
    rays = [plane.ravel() for plane in camera.rays(scale)]
    shape, surface, depth = depth.shape, surface.ravel(), depth.ravel()
    kind = _surface_kinds(scene)[surface + 1]
    out: F32 = np.empty((3, depth.size), np.float32)

    def hits_of(where: NDArray[np.intp]) -> Hits:
        t, (rx, ry, rz) = depth[where], (plane[where] for plane in rays)
        point_m = (t * rx + np.float32(camera.x_m), t * ry + np.float32(camera.height_m), t * rz)
        width_m = t / np.float32(camera.focal_px * scale)
        return Hits(scene, surface[where].astype(np.intp), t, (rx, ry, rz), point_m, width_m)

    sky = np.flatnonzero(kind == SKY)
    out[:, sky] = sky_colour(scene, (rays[0][sky], rays[1][sky], rays[2][sky]))
    road, walk = np.flatnonzero(surface == ROAD), np.flatnonzero((surface >= WALK) & (surface < FIRST_FACE))
    hits = hits_of(road)
    out[:, road] = _lit(shadows, hits, road_material(hits), (0.0, 1.0, 0.0), on_ground=True)
    hits = hits_of(walk)
    kerb = f32(hits.surface >= KERB)
    towards_road = f32(np.where(hits.surface == KERB, 1, -1)) * kerb
    out[:, walk] = _lit(shadows, hits, walk_material(hits), (towards_road, 1 - kerb, 0.0), on_ground=True)
    for solid_kind, material in _MATERIALS.items():
        where = np.flatnonzero(kind == solid_kind)
        if len(where):
            solid_hits = SolidHits(hits_of(where))
            out[:, where] = _lit(shadows, solid_hits.hits, material(solid_hits), solid_hits.normal, on_ground=False)
    leaves = np.flatnonzero(kind == _LEAVES)
    if len(leaves):
        hits = hits_of(leaves)
        out[:, leaves] = _lit(shadows, hits, *leaves_material(hits), on_ground=False)
    return out.reshape(3, *shape)


def _surface_kinds(scene: Scene) -> NDArray[np.int8]:
    """The kind of every surface id, from `SKY` on."""
    kinds = np.full(first_ball_id(scene) + len(scene.balls) + 1, _LEAVES, np.int8)
    kinds[0] = SKY
    kinds[1 + ROAD : 1 + FIRST_FACE] = _GROUND
    kinds[1 + FIRST_FACE : 1 + first_ball_id(scene)] = np.repeat([s.kind for s in scene.solids], MAX_FACES)
    return kinds


def _lit(shadows: Shadows, hits: Hits, material: Material, normal: Normal, on_ground: bool) -> F32:
    """Light and haze on what was hit, linear RGB [3, N]."""
    light, (nx, ny, nz) = hits.scene.light, normal
    lambert: F32 = np.maximum(nx * light.to_sun[0] + ny * light.to_sun[1] + nz * light.to_sun[2], 0)
    lambert = lambert * (1 - shadows.from_houses(*hits.point_m))
    open_sky: F32 = np.asarray(0.72 + 0.28 * ny + 0.1 * nx, np.float32)
    if on_ground:
        sun, sky = shadows.on_ground(hits.point_m[0], hits.point_m[2])
        lambert, open_sky = lambert * (1 - 0.92 * sun), open_sky * (1 - 0.65 * sky)
    visibility = np.exp(-hits.depth_m / np.float32(light.haze_m))
    lamp = lamplight(hits, normal) * light.lamps if light.lamps else None
    out = np.empty_like(material.albedo)
    for k in range(3):
        irradiance = open_sky * light.ambient_rgb[k] + lambert * light.sun_rgb[k]
        if lamp is not None:
            irradiance = irradiance + lamp * np.float32((1.0, 0.72, 0.4)[k])
        emission = 0.0 if material.emission is None else material.emission[k]
        radiance = material.albedo[k] * irradiance + emission
        out[k] = (radiance - light.horizon_rgb[k]) * visibility + light.horizon_rgb[k]
    return out


def sky_colour(scene: Scene, rays: Rays) -> F32:
    """Linear RGB [3, N] along rays that hit nothing: from horizon to zenith, with clouds on a level far above."""
    light, (dx, dy, dz) = scene.light, rays
    rise = dy / np.sqrt(dx * dx + dy * dy + dz * dz)
    rgb = mix(rgb_column(light.horizon_rgb), rgb_column(light.zenith_rgb), np.clip(rise * 1.7, 0, 1) ** 0.7)
    distance = 1 / np.maximum(rise, 0.04)
    u, v = dx * distance, dz * distance
    cover = 0.35 * bilinear_texture(scene.noise, u * 9, v * 9)
    cover = cover + 0.2 * bilinear_texture(scene.noise, u * 22 + 90, v * 22)
    cover = cover + 0.1 * bilinear_texture(scene.noise, u * 60 + 40, v * 60)
    cloud = np.clip((cover + light.clouds - 0.65) * 1.3, 0, 0.85) * np.clip(rise * 5, 0, 1)
    white = light.ambient_rgb * (0.9 if light.lamps == 0 else 0.6) + light.sun_rgb * 0.2
    thickness = np.clip(cover + light.clouds - 0.9, 0, 1)  # thick clouds are dark below
    return mix(rgb, rgb_column(white) * (1.06 - 0.22 * thickness), cloud)


def _ground_coordinates(hits: Hits) -> tuple[F32, F32, F32]:
    """x from the road's centre line, z, and the length of a ray's footprint along the level ground, metres."""
    x, _, z = hits.point_m
    return x - hits.scene.ground.centre_x(z), z, hits.width_m / np.maximum(-hits.ray[1], 1e-3)


def road_material(hits: Hits) -> Material:
    """Asphalt or cobbles with lane lines, parking lanes and a crossing."""
    scene, width, (x, z, length) = hits.scene, hits.width_m, _ground_coordinates(hits)
    paving, noise = scene.paving, scene.noise
    fine = np.minimum(1, 0.02 / length)
    grain = 1 + 0.10 * fine * texture(noise, x * 60, z * 60) + 0.07 * texture(noise, x * 5, z * 3)
    if paving.cobbles:
        row = np.floor(z / 0.22)
        stones = pulse_train(z / 0.22, 0.1, 1, length / 0.22)
        gaps = 1 - stones * pulse_train(x / 0.3 + 0.5 * (row % 2), 0.08, 1, width / 0.3)
        stone = texture(noise, np.floor(x / 0.3 + 0.5 * (row % 2)) * 37, row * 53)
        grain = grain * (1 + 0.12 * np.minimum(1, 0.25 / length) * stone) * (1 - 0.45 * gaps)
    half, reach = scene.ground.road_half_m, np.abs(x)
    grain = grain * (1 - 0.12 * np.exp(-(((reach - half * 0.5) / 0.45) ** 2)))  # the wheels' track
    patch = texture(noise, np.floor(x / 2.6 + 0.3) * 41, np.floor(z / 7.3) * 59)  # mended asphalt
    grain = grain * (1 - 0.14 * (patch > 0.9) * (1 - paving.cobbles))
    kerb = np.where(x < 0, np.float32(scene.kerb_m[0]), np.float32(scene.kerb_m[1]))
    gutter = pulse(reach, kerb - 0.25, kerb + 1, width)
    albedo = rgb_column(paving.road_rgb) * (grain * (1 - 0.18 * gutter))
    centre, edges, crossing_z = paving.lines
    paint: F32 = centre * pulse(x, -0.08, 0.08, width) * pulse_train(z / 9, 0.0, 0.4, length / 9)
    parking = kerb > half + 0.5 * LANE_M
    paint = paint + edges * pulse(reach, half - 0.42, half - 0.3, width) * ~parking
    if crossing_z > 0:
        crossing = pulse(z, crossing_z, crossing_z + 3, length)
        paint = np.maximum(paint, crossing * pulse_train(x, 0.0, 0.5, width) * (reach < half - 0.3))
    bay_ends = pulse_train(z / 6, 0.0, 0.02, length / 6) * (reach > half)
    paint = np.maximum(paint, np.maximum(bay_ends, pulse(reach, half, half + 0.1, width)) * parking)
    wear = np.clip(0.75 + 0.12 * texture(noise, x * 20, z * 20), 0, 1)
    white = (paint * wear * (1 - 0.6 * paving.cobbles)).astype(np.float32)
    return Material(mix(albedo, rgb_column((0.75, 0.75, 0.72)), white))


def walk_material(hits: Hits) -> Material:
    """Paving slabs behind a lighter kerb stone, and grass where there are no houses."""
    scene, width, (x, z, length) = hits.scene, hits.width_m, _ground_coordinates(hits)
    sides = (scene.kerb_m, scene.grass_m)
    kerb, lawn = (np.where(x < 0, np.float32(left), np.float32(right)) for left, right in sides)
    reach = np.abs(x)
    slabs = pulse_train(x / 0.6, 0.05, 1, width / 0.6) * pulse_train(z / 0.9, 0.04, 1, length / 0.9)
    grain = 0.78 + 0.22 * slabs + 0.07 * texture(scene.noise, x * 8, z * 8)
    kerbstone = (hits.surface != WALK) | (reach < kerb + 0.28)
    albedo = rgb_column(scene.paving.walk_rgb) * np.where(kerbstone, np.float32(1.15), grain).astype(np.float32)
    blades = np.minimum(1, 0.05 / length) * texture(scene.noise, x * 40, z * 22)
    patches = 1 + 0.14 * texture(scene.noise, x * 1.5, z * 1.1) + 0.1 * texture(scene.noise, x * 9, z * 7)
    patches = patches + 0.16 * blades
    grass = rgb_column(scene.paving.grass_rgb) * np.clip(patches, 0.4, 1.7)
    return Material(mix(albedo, grass.astype(np.float32), pulse(reach, lawn, 1e4, width)))


def wall_material(hits: SolidHits) -> Material:
    """Walls of plaster or brick with rows of windows, doors, shop fronts and cornices; what is not upright is roof."""
    noise, depth = hits.noise, hits.width_m
    half_u, half_v = hits.per_hit([(s.half_m, max(v for v, _ in s.profile)) for s in hits.solids])
    a = np.where(hits.face < 2, hits.v + half_v, hits.u + half_u)  # along the wall, as y is up it (m)
    (nx, ny, nz), (rx, ry, rz) = hits.normal, hits.hits.ray
    facing = np.maximum(np.abs(nx * rx + ny * ry + nz * rz), 1e-2)
    width, roof = depth / facing, ny > 0.1
    styles = [(*s.rgb, *s.trim_rgb, s.bay_m, s.storey_m, *s.window, s.eave_m, s.shop) for s in hits.solids]
    style = hits.per_hit(styles)
    rgb, trim_rgb, (bay, storey, window_w, window_h, height, shop) = style[:3], style[3:6], style[6:]
    y, floor_y, bay_a = hits.y, hits.y / storey, a / bay
    ground = (floor_y < 1).astype(np.float32)
    is_shop = ground * (shop > 0.55)
    low_y, high_y = 0.52 - window_h / 2, 0.52 + window_h / 2
    low_y, high_y = low_y + is_shop * (0.16 - low_y), high_y + is_shop * (0.74 - high_y)
    window_w = window_w + is_shop * (0.86 - window_w)
    fa, fy = width / bay, depth / storey
    frame_a, frame_y = np.float32(0.09) / bay, np.float32(0.09) / storey
    cell_a, cell_y = np.floor(bay_a), np.floor(floor_y)
    number = hits.number.astype(np.float32)
    chance = texture(noise, cell_a * 31 + number * 17, cell_y * 47 + number * 5)
    chance = 1 / (1 + np.exp(-1.7 * chance))  # nearly uniform in 0..1, one draw a window
    door = ground * (1 - is_shop) * ((cell_a + number) % 3 == 1)
    low_y, high_y = low_y * (1 - door), high_y + door * (0.68 - high_y)
    window_w = window_w + door * (np.float32(1.15) / bay - window_w)
    low_a, high_a = 0.5 - window_w / 2, 0.5 + window_w / 2
    body = np.clip((height - 0.55 - y) / depth + 0.5, 0, 1) * ~roof  # no windows in the cornice
    pane = pulse_train(bay_a, low_a, high_a, fa) * pulse_train(floor_y, low_y, high_y, fy) * body
    outer = pulse_train(bay_a, low_a - frame_a, high_a + frame_a, fa)
    outer = outer * pulse_train(floor_y, low_y - frame_y, high_y + frame_y, fy)
    bars = np.maximum(pulse_train(bay_a, 0.485, 0.515, fa), pulse_train(floor_y, 0.5, 0.525, fy)) * pane * (1 - is_shop)
    fade = np.minimum(1, 0.05 / width)
    grain = 1 + 0.05 * texture(noise, a * 4, y * 4) + 0.06 * fade * texture(noise, a * 24, y * 40)
    grain = grain - 0.1 * np.exp(-np.maximum(y, 0) / 0.8)  # splashes near the ground
    cornice = pulse(y, height - 0.5, height, depth)
    band = pulse_train(floor_y, 0.0, 0.05, fy) * (1 - ground) * body
    albedo = mix(rgb * grain, trim_rgb, np.maximum(cornice * 0.6, band * 0.45).astype(np.float32))
    # Each solid's sign and door has a colour of its own, [3, N] as deviations from a mean.
    solid = np.arange(len(hits.solids), dtype=np.float32)
    colour = np.stack([texture(noise, solid * 71 + 13 * k, solid * 29 + 7 * k) for k in range(3)])[:, hits.number]
    sign = is_shop * pulse_train(floor_y, 0.79, 0.96, fy)
    albedo = mix(albedo, np.clip(0.2 + 0.15 * colour, 0.01, 0.7), sign)
    frame = np.maximum(np.clip(outer - pane, 0, 1), bars) * body
    pane_y = np.clip((floor_y - cell_y - low_y) / np.maximum(high_y - low_y, 0.01), 0, 1)
    glass = (0.03 + 0.12 * chance * pane_y) * rgb_column(hits.scene.light.zenith_rgb) * 1.6 + 0.015
    curtain = ((chance * 7.3) % 1 < 0.3) * (1 - is_shop) * 0.5
    glass = mix(glass, rgb_column((0.4, 0.38, 0.34)), curtain.astype(np.float32))
    glass = mix(glass, np.clip(0.12 + 0.1 * colour, 0.01, 0.4), door.astype(np.float32))
    albedo = mix(albedo, glass.astype(np.float32), pane)
    albedo = mix(albedo, trim_rgb * 0.9, (frame * 0.8).astype(np.float32))
    courses = 1 - 0.3 * pulse_train(y / 0.35, 0.0, 0.18, depth / 0.35)
    slates = 1 + 0.1 * fade * texture(noise, a * 9, np.floor(y / 0.35) * 31) + 0.06 * texture(noise, a * 3, y)
    albedo = np.where(roof, trim_rgb * (courses * slates), albedo)
    is_lit = pane * (chance > 1 - hits.scene.light.lit) * (1 - door)
    lamp = is_lit * (0.4 + 0.6 * pane_y) * (0.5 + 0.5 * chance) * (1 - bars)
    return Material(albedo.astype(np.float32), (lamp * rgb_column((0.85, 0.56, 0.24))).astype(np.float32))


def plain_material(hits: SolidHits) -> Material:
    """One colour, a little weathered, and planks or courses where it is near."""
    along = hits.u + hits.v
    grain = 1 + 0.08 * texture(hits.noise, along * 14, hits.y * 14)
    joints = pulse_train(along / 0.16, 0.0, 0.1, hits.width_m / 0.16)
    joints = joints * pulse_train(hits.y / 0.16, 0.08, 1.0, hits.width_m / 0.16)
    return Material(hits.rgb * (grain * (1 - 0.25 * joints)))


def hedge_material(hits: SolidHits) -> Material:
    """Leaves, darker towards the ground."""
    leaves = 1 + 0.35 * leaf_texture(hits.noise, hits.u, hits.y, hits.v)
    return Material(hits.rgb * np.clip(leaves * (0.6 + 0.35 * hits.y), 0.2, 1.6))


def body_material(hits: SolidHits) -> Material:
    """A vehicle's paint over a dark sill, door seams, arches over the wheels, lamps and plates at both ends."""
    width, u, y, v = hits.width_m, hits.u, hits.y, hits.v
    half, length, waist = hits.per_hit([(s.half_m, s.length_m, s.eave_m) for s in hits.solids])
    side, end = hits.face < 2, np.abs(v) > 0.46 * length
    dark = pulse(y, -1.0, 0.36, width)
    for axle in (-0.3, 0.3):
        radius = np.hypot(v - axle * length, y - 0.33)
        dark = np.maximum(dark, pulse(radius, -1.0, 0.42, width) * side)
    seams = pulse(np.abs(v - 0.02 * length), -0.015, 0.015, width)
    seams = seams + pulse(np.abs(v + 0.2 * length), -0.015, 0.015, width)
    dark = np.maximum(dark, 0.6 * seams * side)
    albedo = hits.rgb * (1 - 0.9 * dark)
    on_lamp = end * pulse(y, 0.66 * waist, 0.82 * waist, width) * pulse(np.abs(u), 0.55 * half, 0.95 * half, width)
    lamp = np.where(v > 0, rgb_column((0.75, 0.75, 0.7)), rgb_column((0.4, 0.02, 0.02)))
    albedo = mix(albedo, lamp.astype(np.float32), (on_lamp * ~side).astype(np.float32))
    plate = end * ~side * pulse(y, 0.42, 0.53, width) * pulse(np.abs(u), -1.0, 0.26, width)
    return Material(mix(albedo, rgb_column((0.6, 0.6, 0.55)), plate.astype(np.float32)))


def cabin_material(hits: SolidHits) -> Material:
    """Glass between pillars, a painted roof; a van's load space has paint for glass."""
    width, v, ny, light = hits.width_m, hits.v, hits.normal[1], hits.scene.light
    extents = [(*(f(v for v, _ in s.profile) for f in (min, max)), max(y for _, y in s.profile)) for s in hits.solids]
    rear, front, top = hits.per_hit(extents)
    base, waist, glass_share = hits.per_hit([(s.base_m, s.eave_m, s.glass) for s in hits.solids])
    side = hits.face < 2
    height = (hits.y - waist) / np.maximum(top - base - waist, 0.1)
    share = (v - rear) / np.maximum(front - rear, 0.1)
    pane = pulse(height, 0.08, 0.86, width / 0.5)
    pillars = pulse_train((share + 0.02) * 2.6, 0.0, 0.07, width) * side
    pane = pane * (1 - pillars) * np.where(side | (share < 0.5), share > 1 - glass_share - 0.02, True)
    pane = np.where(~side & (ny > 0.9), 0, pane).astype(np.float32)
    sky = light.zenith_rgb + 0.5 * light.horizon_rgb
    glass = 0.02 + rgb_column(sky) * (0.05 + 0.1 * np.maximum(ny, 0) + 0.03 * (height > 0.5))
    return Material(mix(hits.rgb, glass.astype(np.float32), pane))


def wheel_material(hits: SolidHits) -> Material:
    """A tyre around a lighter rim."""
    (axle_v,) = hits.per_hit([(float(np.mean([v for v, _ in s.profile])),) for s in hits.solids])
    radius = np.hypot(hits.v - axle_v, hits.y - 0.33)
    rim = pulse(radius, -1.0, 0.2, hits.width_m) * (hits.face < 2)
    return Material(mix(hits.rgb, rgb_column((0.3, 0.3, 0.31)), (0.8 * rim).astype(np.float32)))


def lamp_material(hits: SolidHits) -> Material:
    """A lantern; it burns when it is dark."""
    ones = np.ones_like(hits.u)
    return Material(rgb_column((0.5, 0.5, 0.48)) * ones, rgb_column((2.2, 1.6, 0.9)) * (hits.scene.light.lamps * ones))


def leaves_material(hits: Hits) -> tuple[Material, Normal]:
    """Leaf balls, and their normals."""
    scene, number, (x, y, z) = hits.scene, hits.surface - first_ball_id(hits.scene), hits.point_m
    ball = np.ascontiguousarray(scene.balls.T)[:, number]
    dx, dy, dz = x - ball[0], y - ball[1], z - ball[2]
    normal = (dx / ball[3], dy / ball[3], dz / ball[3])
    leaves = (1 + 0.4 * leaf_texture(scene.noise, dx, dy, dz)) * (0.75 + 0.35 * normal[1])
    rgb = np.ascontiguousarray(scene.leaf_rgb.T)[:, number]
    return Material(rgb * np.clip(leaves, 0.25, 1.8)), normal


_MATERIALS = {
    Kind.WALL: wall_material,
    Kind.PLAIN: plain_material,
    Kind.HEDGE: hedge_material,
    Kind.BODY: body_material,
    Kind.CABIN: cabin_material,
    Kind.WHEEL: wheel_material,
    Kind.LAMP: lamp_material,
}
