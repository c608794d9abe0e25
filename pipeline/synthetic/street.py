"""One synthetic street, rendered: a picture, and the exact depth of every pixel.

Everything is a pure function of (seed, street id): `scene` decides what stands there, `raycast` finds how far it is,
`surfaces` how it looks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.raycast import cast
from pipeline.synthetic.scene import F32, SIZE_PX, Camera, Plan, plan_street, vec
from pipeline.synthetic.surfaces import shade

SUPERSAMPLE = 2  # colour rays a pixel, along each axis; depth has one ray, through the pixel's centre


@dataclass(frozen=True)
class Street:
    """A rendered street: uint8 RGB [H, W, 3], float32 z-depth in metres [H, W] (sky: inf) and what a car needs."""

    rgb: NDArray[np.uint8]
    depth_m: F32
    camera: Camera
    road_half_m: float
    light_rgb: F32  # how a white thing standing on the road appears, display RGB about 0.3 to 1.1


def _display(plan: Plan, linear: F32) -> F32:
    """Linear to display RGB in 0..1: saturation, a soft shoulder for highlights, gamma 2."""
    gray = (linear[0] + linear[1] + linear[2]) / 3
    linear = np.maximum(gray + (linear - gray) * np.float32(plan.light.saturation), 0)
    return np.minimum(np.sqrt(linear / np.sqrt(1 + np.float32(0.35) * linear * linear)), 1)


def render_street(seed: int, street: int) -> Street:
    """Street number `street` of `seed`: the same picture whenever and wherever it is rendered."""
    plan = plan_street(seed, street)
    depth_m, _ = cast(plan, 1)
    fine = _display(plan, shade(plan, *cast(plan, SUPERSAMPLE), SUPERSAMPLE))
    n = SUPERSAMPLE
    total = sum((fine[:, i::n, j::n] for i in range(n) for j in range(n)), np.zeros((3, SIZE_PX, SIZE_PX), np.float32))
    rgb = np.ascontiguousarray((total * np.float32(255 / n**2) + 0.5).astype(np.uint8).transpose(1, 2, 0))
    light = plan.light
    white = light.ambient_rgb * 0.9 + light.sun_rgb * (0.55 * max(0.25, float(light.to_sun[1])))
    return Street(rgb, depth_m, plan.camera, plan.road_half_m, np.sqrt(vec(white)))
