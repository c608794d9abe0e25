"""Cars and vans parked at the kerb of a synthetic street."""

import numpy as np

from pipeline.composing.synthetic.ground import Ground
from pipeline.composing.synthetic.solid import BODY, CABIN, WHEEL, Rgb, Solid, linear

LANE_M = 2.15  # what parking takes of the street's width
_PAINTS = (
    *((0.86, 0.86, 0.85), (0.62, 0.63, 0.64), (0.4, 0.41, 0.42), (0.2, 0.2, 0.21), (0.68, 0.12, 0.1)),
    *((0.14, 0.24, 0.48), (0.2, 0.42, 0.62), (0.14, 0.3, 0.22), (0.72, 0.68, 0.58)),
)
# (length, half width, waist, bonnet height, roof height, cabin v: rear foot, rear top, front top, front foot, glass to)
_KINDS = (
    (4.5, 0.88, 0.92, 0.78, 1.44, (-2.0, -1.3, 0.25, 1.05), 1.0),
    (4.0, 0.86, 0.95, 0.8, 1.5, (-1.95, -1.7, 0.35, 1.1), 1.0),
    (4.6, 0.92, 1.08, 0.98, 1.72, (-2.25, -1.9, 0.4, 1.15), 1.0),
    (5.1, 0.97, 1.15, 1.05, 2.05, (-2.5, -2.45, 1.3, 2.05), 0.3),
    (4.7, 0.95, 1.1, 1.0, 1.95, (-2.3, -2.2, 1.25, 1.95), 1.0),
)


def _vehicle(rng: np.random.Generator, ground: Ground, x_m: float, z_m: float, facing: int) -> list[Solid]:
    """A car or van, `x_m` from the road's middle, its front towards +z if `facing` is 1."""
    length, half, waist, bonnet, roof, cabin, glass = _KINDS[rng.choice(len(_KINDS), p=[0.32, 0.3, 0.18, 0.1, 0.1])]
    rgb = linear(rng, _PAINTS[rng.integers(len(_PAINTS))], 0.02)
    y = ground.hill(z_m)
    turn = ground.turn(z_m) + float(rng.normal(0, 0.015)) + (0.0 if facing > 0 else np.pi)
    x, end = x_m + ground.aside(z_m), length / 2

    def solid(profile: list[tuple[float, float]], half_m: float, kind: int, paint: Rgb) -> Solid:
        at = tuple((v, y + up) for v, up in profile)
        return Solid(x, z_m, turn, half_m, at, kind, paint, y, eave_m=waist, length_m=length, glass=glass)

    body = [(-end + 0.06, 0.24), (end - 0.06, 0.24), (end, 0.5), (end - 0.1, bonnet), (cabin[3], waist)]
    body += [(-end + 0.1, waist), (-end, 0.55)]
    top = [(cabin[0], waist - 0.02), (cabin[3], waist - 0.02), (cabin[2], roof), (cabin[1], roof)]
    around = np.linspace(0, 2 * np.pi, 9)[:-1] + np.pi / 8
    made = [solid(body, half, BODY, rgb), solid(top, half * (0.84 if roof < 1.6 else 0.92), CABIN, rgb)]
    for v in (-0.3 * length, 0.3 * length):
        wheel = [(v + 0.33 * float(np.cos(a)), 0.33 + 0.33 * float(np.sin(a))) for a in around]
        made.append(solid(wheel, half - 0.02, WHEEL, (0.01, 0.01, 0.011)))
    return made


def parked_row(rng: np.random.Generator, ground: Ground, side: int, end_m: float) -> list[Solid]:
    """Vehicles along one kerb, with gaps, in the lane between the road's edge and the kerb."""
    made: list[Solid] = []
    z, full, facing = float(rng.uniform(5, 16)), float(rng.uniform(0.3, 0.95)), 1 if side > 0 else -1
    while z < end_m:
        if rng.random() < full:
            at = facing if rng.random() < 0.85 else -facing
            made += _vehicle(rng, ground, side * (ground.road_half_m + LANE_M / 2 + 0.06), z, at)
        z += float(rng.uniform(5.6, 6.8)) * float(np.cos(ground.turn(z)))
    return made
