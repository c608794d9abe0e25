"""How the surfaces of a synthetic street look: texture, paint, windows, light, shadow, sky and haze."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.raycast import ROAD, SKY, leaf_texture
from pipeline.synthetic.scene import F32, PAVEMENT, POST, WALL, Plan, texture, vec

LEAVES = 4  # a kind of surface, beside the kinds of boxes


@dataclass(frozen=True)
class Hits:
    """Where N rays end: surface ids, z-depths, ray directions and world points (x, y, z), and a ray's width there."""

    surface: NDArray[np.intp]
    depth_m: F32
    ray: tuple[F32, F32, F32]
    at_m: tuple[F32, F32, F32]
    size_m: F32


@dataclass(frozen=True)
class Look:
    """Of N hits: linear colour [3, N], the surface's normal (x, y, z), light of its own [3, N]."""

    albedo: F32
    normal: tuple[F32 | float, F32 | float, F32 | float]
    glow: F32 | None = None


def _column(values: tuple[float, ...] | F32) -> F32:
    return np.asarray(values, np.float32)[:, None]


def _pulse(x: F32, low: F32 | float, high: F32 | float, width: F32) -> F32:
    """How much of a window of `width` around x lies in [low, high] of each unit period: stripes that never alias."""

    def area(at: F32) -> F32:
        whole = np.floor(at)
        return whole * (high - low) + np.clip(at - whole - low, 0, high - low)

    width = np.maximum(width, np.float32(1e-3))
    return np.asarray((area(x + width / 2) - area(x - width / 2)) / width, np.float32)


def _mix(base: F32, over: F32, amount: F32) -> F32:
    mixed: F32 = base + (over - base) * amount
    return mixed


def _look_of_road(plan: Plan, hits: Hits) -> Look:
    """Asphalt or cobbles with lane lines and a crossing."""
    (x, _, z), wide = hits.at_m, hits.size_m
    deep = wide / np.maximum(-hits.ray[1], 1e-3)
    fine = np.minimum(1, 0.02 / deep)
    grain = 1 + 0.10 * fine * texture(plan.noise, x * 60, z * 60) + 0.07 * texture(plan.noise, x * 5, z * 3)
    if plan.cobbles:
        row = np.floor(z / 0.22)
        gaps = 1 - _pulse(z / 0.22, 0.1, 1, deep / 0.22) * _pulse(x / 0.3 + 0.5 * (row % 2), 0.08, 1, wide / 0.3)
        stone = texture(plan.noise, np.floor(x / 0.3 + 0.5 * (row % 2)) * 37, row * 53)
        grain = grain * (1 + 0.12 * np.minimum(1, 0.25 / deep) * stone) * (1 - 0.45 * gaps)
    half, reach = plan.road_half_m, np.abs(x)
    grain = grain * (1 - 0.12 * np.exp(-(((reach - half * 0.5) / 0.45) ** 2)))  # the wheels' track
    albedo = _column(plan.road_rgb) * grain

    def stripe(at: F32, low: float, high: float) -> F32:
        share: F32 = np.clip((np.minimum(at + wide / 2, high) - np.maximum(at - wide / 2, low)) / wide, 0, 1)
        return share

    centre, edges, crossing_z = plan.lines
    paint: F32 = centre * stripe(x, -0.08, 0.08) * _pulse(z / 9, 0.0, 0.4, deep / 9)
    paint = paint + edges * stripe(reach, half - 0.42, half - 0.3)
    if crossing_z > 0:
        over = np.clip((np.minimum(z + deep / 2, crossing_z + 3) - np.maximum(z - deep / 2, crossing_z)) / deep, 0, 1)
        paint = np.maximum(paint, over * _pulse(x, 0.0, 0.5, wide) * (reach < half - 0.3))
    worn = np.clip(0.75 + 0.12 * texture(plan.noise, x * 20, z * 20), 0, 1)
    albedo = _mix(albedo, _column((0.75, 0.75, 0.72)), (paint * worn * (1 - 0.6 * plan.cobbles)).astype(np.float32))
    return Look(albedo, (0.0, 1.0, 0.0))


def _look_of_pavement(plan: Plan, hits: Hits) -> Look:
    """Paving slabs behind a lighter kerb stone."""
    (x, _, z), wide, part = hits.at_m, hits.size_m, (hits.surface - 1) % 3
    deep = wide / np.maximum(-hits.ray[1], 1e-3)
    rgb = vec([b.rgb for b in plan.boxes]).T[:, (hits.surface - 1) // 3]
    slabs = _pulse(x / 0.6, 0.05, 1, wide / 0.6) * _pulse(z / 0.9, 0.04, 1, deep / 0.9)
    shade = 0.78 + 0.22 * slabs + 0.07 * texture(plan.noise, x * 8, z * 8)
    kerb = np.abs(x) < plan.road_half_m + 0.28
    albedo = rgb * np.where(kerb, np.float32(1.15), shade)
    return Look(albedo, (-np.sign(x) * (part == 0), (part == 2).astype(np.float32), 0.0))


def _look_of_wall(plan: Plan, hits: Hits) -> Look:
    """Plaster, windows, doors and shop fronts; posts and trunks are walls without any."""
    boxes, box, on_side = plan.boxes, (hits.surface - 1) // 3, (hits.surface - 1) % 3 == 0
    (x, y, z), (rx, _, rz), deep = hits.at_m, hits.ray, hits.size_m
    corner = np.ascontiguousarray(vec([(b.z_m[0], b.x_m[0]) for b in boxes]).T)[:, box]
    a = np.where(on_side, z - corner[0], x - corner[1])  # runs along the wall, as y runs up (m)
    wide = deep / np.maximum(np.abs(np.where(on_side, rx, rz)), 1e-2)
    walls = [(*b.rgb, *b.trim_rgb, b.bay_m, b.storey_m, *b.window, b.height_m, b.shop, b.kind == POST) for b in boxes]
    look = np.ascontiguousarray(vec(walls).T)[:, box]
    bay, storey, window_w, window_h, height, shop, post = look[6:]
    floor_y = y / storey
    bay_a, ground = a / bay, (floor_y < 1).astype(np.float32)
    is_shop = ground * (shop > 0.55)
    low_y, high_y = 0.52 - window_h / 2, 0.52 + window_h / 2
    low_y, high_y = low_y + is_shop * (0.16 - low_y), high_y + is_shop * (0.74 - high_y)
    window_w = window_w + is_shop * (0.86 - window_w)
    fa, fy = wide / bay, deep / storey
    frame_a, frame_y = np.float32(0.09) / bay, np.float32(0.09) / storey
    cell_a, cell_y = np.floor(bay_a), np.floor(floor_y)
    number = box.astype(np.float32)
    luck = texture(plan.noise, cell_a * 31 + number * 17, cell_y * 47 + number * 5)
    luck = 1 / (1 + np.exp(-1.7 * luck))  # nearly uniform in 0..1, one draw a window
    door = ground * (1 - is_shop) * ((cell_a + number) % 3 == 1)
    low_y, high_y = low_y * (1 - door), high_y + door * (0.68 - high_y)
    window_w = window_w + door * (np.float32(1.15) / bay - window_w)
    low_a, high_a = 0.5 - window_w / 2, 0.5 + window_w / 2
    body = np.clip((height - 0.55 - y) / deep + 0.5, 0, 1) * (1 - post)  # no windows in the cornice
    pane = _pulse(bay_a, low_a, high_a, fa) * _pulse(floor_y, low_y, high_y, fy) * body
    outer = _pulse(bay_a, low_a - frame_a, high_a + frame_a, fa) * _pulse(
        floor_y, low_y - frame_y, high_y + frame_y, fy
    )
    fade = np.minimum(1, 0.05 / wide)
    grain = 1 + 0.05 * texture(plan.noise, a * 4, y * 4) + 0.06 * fade * texture(plan.noise, a * 24, y * 40)
    grain = grain - 0.1 * np.exp(-y / 0.8)  # splashes near the ground
    albedo = look[:3] * grain
    cornice = np.clip((y - (height - 0.5)) / deep + 0.5, 0, 1) * (1 - post)
    band = _pulse(floor_y, 0.0, 0.05, fy) * (1 - ground) * body
    albedo = _mix(albedo, look[3:6], np.maximum(cornice * 0.6, band * 0.45).astype(np.float32))
    sign = is_shop * _pulse(floor_y, 0.79, 0.96, fy)
    colour = _gaudy(plan, len(boxes))[:, box]
    albedo = _mix(albedo, np.clip(0.2 + 0.15 * colour, 0.01, 0.7), sign)
    albedo = _mix(albedo, look[3:6] * 0.9, (np.clip(outer - pane, 0, 1) * body * 0.8).astype(np.float32))
    height_in = np.clip((floor_y - cell_y - low_y) / np.maximum(high_y - low_y, 0.01), 0, 1)
    glass = 0.03 + 0.12 * luck * height_in
    glass_rgb = glass * _column(plan.light.zenith_rgb) * 1.6 + 0.015
    glass_rgb = _mix(glass_rgb, np.clip(0.12 + 0.1 * colour, 0.01, 0.4), door.astype(np.float32))
    albedo = _mix(albedo, glass_rgb.astype(np.float32), pane)
    lamp = pane * (luck > 1 - plan.light.lit) * (1 - door) * (0.4 + 0.6 * height_in)
    normal = (-np.sign(rx) * on_side, 0.0, -(~on_side).astype(np.float32))
    return Look(albedo, normal, lamp * _column((0.75, 0.5, 0.22)))


def _gaudy(plan: Plan, boxes: int) -> F32:
    """A colour [3, boxes] of its own for each box's sign and door, as deviations from a mean."""
    number = np.arange(boxes, dtype=np.float32)
    return np.stack([texture(plan.noise, number * 71 + 13 * k, number * 29 + 7 * k) for k in range(3)])


def _look_of_leaves(plan: Plan, hits: Hits) -> Look:
    (x, y, z), ball = hits.at_m, plan.balls[hits.surface - 1 - 3 * len(plan.boxes)].T
    nx, ny, nz = (x - ball[0]) / ball[3], (y - ball[1]) / ball[3], (z - ball[2]) / ball[3]
    leaves = (1 + 0.4 * leaf_texture(plan, x - ball[0], y - ball[1], z - ball[2])) * (0.75 + 0.35 * ny)
    return Look(_column(plan.leaf_rgb) * np.clip(leaves, 0.25, 1.8), (nx, ny, nz))


def _shadow(plan: Plan, x: F32, y: F32, z: F32) -> F32:
    """1 where the row of buildings on the sun's side hides the sun, 0 where it does not; soft over half a metre."""
    sun = plan.light.to_sun
    walls = [b for b in plan.boxes if b.kind == WALL and b.x_m[0] * sun[0] > 0]
    line = np.float32(np.median([min(map(abs, b.x_m)) for b in walls]) if walls else 50) * np.sign(sun[0])
    roof = np.zeros(1024, np.float32)  # height of the row at every 0.25 m from z = -20
    for b in walls:
        roof[max(0, int((b.z_m[0] + 20) * 4)) : max(0, int((b.z_m[1] + 20) * 4))] = b.height_m
    way = np.maximum((line - x) / sun[0], 0)
    at = np.clip((z + way * sun[2] + 20) * 4, 0, 1023).astype(np.int32)
    shade: F32 = np.clip((roof[at] - y - way * sun[1]) * 2 + 0.5, 0, 1) * (way > 0.3)
    return shade


def _sky(plan: Plan, dx: F32, dy: F32, dz: F32) -> F32:
    light = plan.light
    up = dy / np.sqrt(dx * dx + dy * dy + dz * dz)
    rgb = _mix(_column(light.horizon_rgb), _column(light.zenith_rgb), np.clip(up * 1.7, 0, 1) ** 0.7)
    far = 1 / np.maximum(up, 0.04)
    cover = texture(plan.noise, dx * far * 9, dz * far * 9) * 0.35
    cover = cover + texture(plan.noise, dx * far * 22 + 90, dz * far * 22) * 0.2
    cloud = np.clip(cover + light.clouds - 0.65, 0, 0.8) * np.clip(up * 5, 0, 1)
    return _mix(rgb, _column(light.ambient_rgb * 0.9 + light.sun_rgb * 0.2), cloud)


def _lit(plan: Plan, hits: Hits, look: Look) -> F32:
    """Sun, shadow, sky light and haze on what was hit, linear RGB [3, N]."""
    light, (nx, ny, nz) = plan.light, look.normal
    lambert = np.maximum(nx * light.to_sun[0] + ny * light.to_sun[1] + nz * light.to_sun[2], 0)
    lambert = lambert * (1 - _shadow(plan, *hits.at_m))
    open_sky = np.asarray(0.72 + 0.28 * ny + 0.1 * nx, np.float32)
    clear = np.exp(-hits.depth_m / np.float32(light.haze_m))
    out = np.empty_like(look.albedo)
    for k in range(3):
        shine = look.albedo[k] * (open_sky * light.ambient_rgb[k] + lambert * light.sun_rgb[k])
        glow = 0.0 if look.glow is None else look.glow[k]
        out[k] = (shine + glow - light.horizon_rgb[k]) * clear + light.horizon_rgb[k]
    return out


def shade(plan: Plan, depth: F32, surface: NDArray[np.int16], scale: int) -> F32:
    """Linear RGB [3, H, W] of what `cast` found along the rays, of which there are `scale` x `scale` a pixel."""
    camera = plan.camera
    rays = [plane.ravel() for plane in camera.rays(scale)]
    kinds = np.repeat([b.kind for b in plan.boxes], 3)
    kind_of = np.concatenate([[SKY, ROAD], kinds, np.full(len(plan.balls), LEAVES)]).astype(np.int8)
    kind = kind_of[surface.ravel() + 1]
    out = np.empty((3, depth.size), np.float32)
    sky = np.flatnonzero(kind == SKY)
    out[:, sky] = _sky(plan, *(plane[sky] for plane in rays))
    looks = {
        (ROAD, ROAD): _look_of_road,
        (PAVEMENT, PAVEMENT): _look_of_pavement,
        (WALL, POST): _look_of_wall,
        (LEAVES, LEAVES): _look_of_leaves,
    }
    for (one, other), look in looks.items():
        at = np.flatnonzero((kind == one) | (kind == other))
        t, (rx, ry, rz) = depth.ravel()[at], (plane[at] for plane in rays)
        at_m = (t * rx + np.float32(camera.x_m), t * ry + np.float32(camera.height_m), t * rz)
        size_m = t / np.float32(camera.focal_px * scale)
        hits = Hits(surface.ravel()[at].astype(np.intp), t, (rx, ry, rz), at_m, size_m)
        out[:, at] = _lit(plan, hits, look(plan, hits))
    return out.reshape(3, *depth.shape)
