"""What stands in a synthetic street, drawn from (seed, street id): camera, ground, light, solids, leaf balls.

World axes in metres: x to the right, y up, z along the street. The road is a strip that may turn aside and rise; both
are functions of z alone, so that a street's cross-section is the same everywhere.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.composing.synthetic.buildings import house_across, row_of_houses
from pipeline.composing.synthetic.camera import F32, SIZE_PX, Camera, vec
from pipeline.composing.synthetic.ground import Curve, Ground
from pipeline.composing.synthetic.light import Light, draw_light
from pipeline.composing.synthetic.parked import LANE_M, parked_row
from pipeline.composing.synthetic.roadside import Site
from pipeline.composing.synthetic.solid import Rgb, Solid, linear
from pipeline.composing.synthetic.texture import make_noise
from pipeline.composing.synthetic.trees import Gardener, hedge


@dataclass(frozen=True)
class Paving:
    """How the ground looks. `lines`: strength of centre line and edge lines, z of the zebra crossing (m)."""

    road_rgb: Rgb
    walk_rgb: Rgb
    grass_rgb: Rgb
    cobbles: float
    lines: tuple[float, float, float]


@dataclass(frozen=True)
class Plan:
    """What stands in a street. `balls` is float32 [N, 4], centre and radius in metres; `leaf_rgb` [N, 3], linear.

    `kerb_m` and `grass_m` are distances from the road's middle, on the left and on the right.
    """

    ground: Ground
    light: Light
    solids: tuple[Solid, ...]
    balls: F32
    leaf_rgb: F32
    paving: Paving
    kerb_m: tuple[float, float]
    grass_m: tuple[float, float]
    noise: F32  # [TILE, TILE], mean 0, deviation 1, periodic


def _camera(rng: np.random.Generator, half_m: float) -> Camera:
    return Camera(
        focal_px=float(SIZE_PX / 2 / np.tan(np.radians(rng.uniform(46, 72)) / 2)),
        height_m=float(rng.uniform(1.35, 2.4)),
        pitch_rad=float(np.radians(rng.uniform(-3, 9))),
        yaw_rad=float(np.radians(np.clip(rng.normal(0, 4), -9, 9))),
        x_m=half_m * float(rng.uniform(-0.5, 0.5)),
    )


def _bend(rng: np.random.Generator) -> Curve:
    """A road that turns aside by up to 30 degrees, or not at all."""
    if rng.random() < 0.55:
        return Curve()
    radius, turn, start = rng.uniform(45, 160), rng.uniform(0.12, 0.55), rng.uniform(3, 22)
    sign = float(rng.choice([-1.0, 1.0]))
    return Curve(sign / (2 * float(radius)), float(start), float(start + turn * radius))


def _hill(rng: np.random.Generator) -> Curve:
    """A road that goes on level, climbs or falls by up to 10 %."""
    if rng.random() < 0.5:
        return Curve()
    grade, start, long = rng.uniform(0.02, 0.1), rng.uniform(5, 22), rng.uniform(20, 60)
    sign = float(rng.choice([-1.0, 1.0], p=[0.4, 0.6]))
    return Curve(sign * float(grade / (2 * long)), float(start), float(start + long))


def _paving(rng: np.random.Generator) -> Paving:
    lines = (
        float(rng.random() < 0.6),
        float(rng.random() < 0.4),
        float(rng.uniform(7, 22)) if rng.random() < 0.25 else -99.0,
    )
    grass = (0.36, 0.44, 0.2) if rng.random() < 0.7 else (0.5, 0.46, 0.27)
    road = linear(rng, (0.42, 0.42, 0.43), 0.012)
    return Paving(
        road, linear(rng, (0.6, 0.59, 0.57), 0.02), linear(rng, grass, 0.03), float(rng.random() < 0.2), lines
    )


def plan_street(seed: int, street: int) -> Plan:
    """Decide everything about street number `street` of `seed`, without rendering it."""
    rng = np.random.default_rng((seed, 1, street))
    half, end = float(rng.uniform(3.4, 5.4)), float(rng.uniform(55, 150))
    light = draw_light(rng)
    ground = Ground(_camera(rng, half), half, _bend(rng), _hill(rng), np.inf, light.white_rgb)
    storeys = float(rng.choice([rng.uniform(1.6, 3), rng.uniform(3, 5.5), rng.uniform(6, 12)], p=[0.4, 0.45, 0.15]))
    gardener, site = Gardener(rng, ground), Site(rng, ground)
    left, right = (_side(rng, light, gardener, site, side, end, storeys) for side in (-1, 1))
    solids = [*left.solids, *right.solids]
    if not (left.is_open or right.is_open) and rng.random() < 0.5:  # the street ends at a building across
        solids.append(house_across(rng, ground, end + 14, storeys))
    planted = gardener.planted
    return Plan(
        ground=ground,
        light=light,
        solids=(*solids, *site.solids, *planted.solids),
        balls=vec(np.asarray(planted.balls, np.float64).reshape(-1, 4)),
        leaf_rgb=vec(np.asarray(planted.leaf_rgb, np.float64).reshape(-1, 3)),
        paving=_paving(rng),
        kerb_m=(left.kerb_m, right.kerb_m),
        grass_m=(left.grass_m, right.grass_m),
        noise=make_noise(rng),
    )


class _Side(NamedTuple):
    """One side of a street: houses and parked vehicles, where the kerb is and where grass begins."""

    solids: list[Solid]
    is_open: bool
    kerb_m: float
    grass_m: float


def _side(
    rng: np.random.Generator, light: Light, gardener: Gardener, site: Site, side: int, end_m: float, storeys: float
) -> _Side:
    """Build and furnish one side; trees go to the gardener, furniture to the site."""
    ground = site.ground
    walk, parking = float(rng.uniform(1.6, 4.0)), rng.random() < 0.45
    kerb = ground.road_half_m + (LANE_M if parking else 0.0)
    back = kerb + walk
    open_share = 0.3 if storeys < 5 else 0.08
    use = str(rng.choice(["houses", "detached", "open"], p=[0.75 - open_share, 0.25, open_share]))
    solids: list[Solid] = []
    if use == "open":
        gardener.park(side, back)
    elif use == "detached":
        solids += row_of_houses(rng, ground, side, back + 0.1, end_m, min(storeys, 2.4), detached=True)
    else:
        solids += row_of_houses(rng, ground, side, back + 0.1, end_m, storeys, detached=False)
    if use != "houses":
        _border(rng, site, gardener, side, back)
    if parking:
        solids += parked_row(rng, ground, side, min(end_m, 60))
    growing = rng.random() < (0.5 if use == "houses" else 0.35)
    if growing:
        gardener.row(side, kerb + min(0.7, walk / 3), 70)
    if light.lamps > 0 or (not growing and rng.random() < 0.75):
        site.lamps(side, kerb + 0.45, 65)
    if rng.random() < 0.2:
        site.bollards(side, kerb + 0.3)
    site.things(side, kerb, walk, [solid.z_m for solid in gardener.planted.solids])
    return _Side(solids, use == "open", kerb, back if use == "open" else 500.0)


def _border(rng: np.random.Generator, site: Site, gardener: Gardener, side: int, x_m: float) -> None:
    """What divides gardens or a park from the pavement: a hedge, a fence, a low wall, or nothing."""
    kind = str(rng.choice(["hedge", "fence", "wall", "none"]))
    z = float(rng.uniform(1, 12)), float(rng.uniform(30, 70))
    if kind == "hedge":
        at = z[0]
        while at < z[1]:
            site.solids.append(hedge(rng, site.ground, side * (x_m + 0.5), at, 2.1, gardener.leaf))
            at += 4.0 if rng.random() < 0.9 else 7.0
    elif kind == "fence":
        planks = linear(rng, ((0.9, 0.9, 0.88), (0.5, 0.4, 0.3), (0.3, 0.32, 0.3))[rng.integers(3)], 0.03)
        site.fence(side, x_m + 0.2, z, planks, float(rng.uniform(0.9, 1.5)), posts=True)
    elif kind == "wall":
        brick = linear(rng, ((0.52, 0.32, 0.26), (0.68, 0.66, 0.62))[rng.integers(2)], 0.03)
        site.fence(side, x_m + 0.2, z, brick, float(rng.uniform(0.5, 1.2)), posts=False)
