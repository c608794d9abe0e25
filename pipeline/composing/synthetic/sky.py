"""The sky over a synthetic street."""

import numpy as np

from pipeline.composing.synthetic.camera import F32
from pipeline.composing.synthetic.scene import Plan
from pipeline.composing.synthetic.texture import column, mix, smooth_texture


def look_of_sky(plan: Plan, ray: tuple[F32, F32, F32]) -> F32:
    """Linear RGB [3, N] along rays that end nowhere: from horizon to zenith, with clouds on a level far above."""
    light, (dx, dy, dz) = plan.light, ray
    up = dy / np.sqrt(dx * dx + dy * dy + dz * dz)
    rgb = mix(column(light.horizon_rgb), column(light.zenith_rgb), np.clip(up * 1.7, 0, 1) ** 0.7)
    far = 1 / np.maximum(up, 0.04)
    u, v = dx * far, dz * far
    cover = 0.35 * smooth_texture(plan.noise, u * 9, v * 9)
    cover = cover + 0.2 * smooth_texture(plan.noise, u * 22 + 90, v * 22)
    cover = cover + 0.1 * smooth_texture(plan.noise, u * 60 + 40, v * 60)
    cloud = np.clip((cover + light.clouds - 0.65) * 1.3, 0, 0.85) * np.clip(up * 5, 0, 1)
    white = light.ambient_rgb * (0.9 if light.lamps == 0 else 0.6) + light.sun_rgb * 0.2
    gray = column(white) * (1.06 - 0.22 * np.clip(cover + light.clouds - 0.9, 0, 1))  # thick clouds are dark below
    return mix(rgb, gray, cloud)
