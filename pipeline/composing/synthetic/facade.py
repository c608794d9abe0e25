"""How the houses of a synthetic street look: plaster, windows, doors, shop fronts, cornices, tiles."""

import numpy as np

from pipeline.composing.synthetic.camera import F32, vec
from pipeline.composing.synthetic.hits import Faces, Look
from pipeline.composing.synthetic.texture import column, mix, pulse, span, texture


def look_of_wall(faces: Faces) -> Look:
    """Walls with rows of windows; what is not upright is roof."""
    plan, noise, deep = faces.hits.plan, faces.hits.plan.noise, faces.hits.size_m
    lengths = [(s.half_m, max(v for v, _ in s.profile)) for s in faces.solids]
    half_u, half_v = faces.of(vec(lengths))
    on_side = faces.face < 2
    a = np.where(on_side, faces.v + half_v, faces.u + half_u)  # runs along the wall, as y runs up (m)
    (nx, ny, nz), (rx, ry, rz) = faces.normal, faces.hits.ray
    facing = np.maximum(np.abs(nx * rx + ny * ry + nz * rz), 1e-2)
    wide, roof = deep / facing, ny > 0.1
    styles = [(*s.rgb, *s.trim_rgb, s.bay_m, s.storey_m, *s.window, s.eave_m, s.shop) for s in faces.solids]
    style = faces.of(vec(styles))
    rgb, trim_rgb, (bay, storey, window_w, window_h, height, shop) = style[:3], style[3:6], style[6:]
    y = faces.y
    floor_y = y / storey
    bay_a, ground = a / bay, (floor_y < 1).astype(np.float32)
    is_shop = ground * (shop > 0.55)
    low_y, high_y = 0.52 - window_h / 2, 0.52 + window_h / 2
    low_y, high_y = low_y + is_shop * (0.16 - low_y), high_y + is_shop * (0.74 - high_y)
    window_w = window_w + is_shop * (0.86 - window_w)
    fa, fy = wide / bay, deep / storey
    frame_a, frame_y = np.float32(0.09) / bay, np.float32(0.09) / storey
    cell_a, cell_y = np.floor(bay_a), np.floor(floor_y)
    number = faces.number.astype(np.float32)
    luck = texture(noise, cell_a * 31 + number * 17, cell_y * 47 + number * 5)
    luck = 1 / (1 + np.exp(-1.7 * luck))  # nearly uniform in 0..1, one draw a window
    door = ground * (1 - is_shop) * ((cell_a + number) % 3 == 1)
    low_y, high_y = low_y * (1 - door), high_y + door * (0.68 - high_y)
    window_w = window_w + door * (np.float32(1.15) / bay - window_w)
    low_a, high_a = 0.5 - window_w / 2, 0.5 + window_w / 2
    body = np.clip((height - 0.55 - y) / deep + 0.5, 0, 1) * ~roof  # no windows in the cornice
    pane = pulse(bay_a, low_a, high_a, fa) * pulse(floor_y, low_y, high_y, fy) * body
    outer = pulse(bay_a, low_a - frame_a, high_a + frame_a, fa) * pulse(floor_y, low_y - frame_y, high_y + frame_y, fy)
    bars = np.maximum(pulse(bay_a, 0.485, 0.515, fa), pulse(floor_y, 0.5, 0.525, fy)) * pane * (1 - is_shop)
    fade = np.minimum(1, 0.05 / wide)
    grain = 1 + 0.05 * texture(noise, a * 4, y * 4) + 0.06 * fade * texture(noise, a * 24, y * 40)
    grain = grain - 0.1 * np.exp(-np.maximum(y, 0) / 0.8)  # splashes near the ground
    albedo = rgb * grain
    cornice = span(y, height - 0.5, height, deep)
    band = pulse(floor_y, 0.0, 0.05, fy) * (1 - ground) * body
    albedo = mix(albedo, trim_rgb, np.maximum(cornice * 0.6, band * 0.45).astype(np.float32))
    sign = is_shop * pulse(floor_y, 0.79, 0.96, fy)
    colour = _gaudy(noise, len(faces.solids))[:, faces.number]
    albedo = mix(albedo, np.clip(0.2 + 0.15 * colour, 0.01, 0.7), sign)
    frame = np.maximum(np.clip(outer - pane, 0, 1), bars) * body
    height_in = np.clip((floor_y - cell_y - low_y) / np.maximum(high_y - low_y, 0.01), 0, 1)
    glass = (0.03 + 0.12 * luck * height_in) * column(plan.light.zenith_rgb) * 1.6 + 0.015
    curtain = ((luck * 7.3) % 1 < 0.3) * (1 - is_shop) * 0.5
    glass = mix(glass, column((0.4, 0.38, 0.34)), curtain.astype(np.float32))
    glass = mix(glass, np.clip(0.12 + 0.1 * colour, 0.01, 0.4), door.astype(np.float32))
    albedo = mix(albedo, glass.astype(np.float32), pane)
    albedo = mix(albedo, trim_rgb * 0.9, (frame * 0.8).astype(np.float32))
    slates = 1 - 0.3 * pulse(y / 0.35, 0.0, 0.18, deep / 0.35)
    slates = slates * (
        1 + 0.1 * fade * texture(noise, a * 9, np.floor(y / 0.35) * 31) + 0.06 * texture(noise, a * 3, y)
    )
    albedo = np.where(roof, trim_rgb * slates, albedo)
    lamp = pane * (luck > 1 - plan.light.lit) * (1 - door) * (0.4 + 0.6 * height_in) * (0.5 + 0.5 * luck) * (1 - bars)
    return Look(albedo.astype(np.float32), (lamp * column((0.85, 0.56, 0.24))).astype(np.float32))


def _gaudy(noise: F32, solids: int) -> F32:
    """A colour [3, solids] of its own for each solid's sign and door, as deviations from a mean."""
    number = np.arange(solids, dtype=np.float32)
    return np.stack([texture(noise, number * 71 + 13 * k, number * 29 + 7 * k) for k in range(3)])
