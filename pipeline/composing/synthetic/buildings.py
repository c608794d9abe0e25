"""The houses of a synthetic street: blocks with cornices, gabled houses, shops with awnings, balconies."""

from dataclasses import dataclass

import numpy as np

from pipeline.composing.synthetic.ground import PAVEMENT_M, Ground
from pipeline.composing.synthetic.solid import PLAIN, WALL, Rgb, Solid, linear, oblong

_WALLS = (  # display RGB families: brick, pastel plaster, stone, concrete
    ((0.55, 0.3, 0.24), (0.48, 0.27, 0.2), (0.62, 0.4, 0.3), (0.42, 0.28, 0.26)),
    ((0.9, 0.82, 0.62), (0.85, 0.66, 0.62), (0.66, 0.76, 0.84), (0.93, 0.92, 0.88), (0.72, 0.8, 0.66), (0.9, 0.7, 0.5)),
    ((0.76, 0.7, 0.6), (0.68, 0.64, 0.58), (0.8, 0.77, 0.7), (0.6, 0.56, 0.5)),
    ((0.5, 0.5, 0.52), (0.62, 0.62, 0.62), (0.4, 0.42, 0.45), (0.72, 0.73, 0.74)),
)
_TILES = ((0.5, 0.26, 0.2), (0.3, 0.3, 0.33), (0.42, 0.34, 0.28))
_FOUNDATION_M = 4.0  # walls go on below the ground, which may slope
DEPTH_M = 11.0


@dataclass(frozen=True)
class _Plot:
    """Where a house stands: its middle, the y of its ground, the yaws of a v that runs across the street or along."""

    x_m: float
    z_m: float
    base_m: float
    across: float
    along: float

    def fixture(self, u_m: float, half_m: float, profile: tuple[tuple[float, float], ...], rgb: Rgb) -> Solid:
        """Something on the house, `u_m` along its front; v runs from the street, 0 at the house's middle."""
        x, z = self.x_m + u_m * np.cos(self.across), self.z_m - u_m * np.sin(self.across)
        return Solid(float(x), float(z), self.across, half_m, profile, PLAIN, rgb, self.base_m)


def _plot(ground: Ground, side: int, near_m: float, z_m: float) -> _Plot:
    """The plot of a house whose front's middle is `near_m` from the road's, at `z_m`."""
    turn = ground.turn(z_m)
    away = side * np.array([np.cos(turn), -np.sin(turn)])
    x, z = np.array([ground.aside(z_m) + side * near_m, z_m]) + away * DEPTH_M / 2
    base = ground.hill(z_m) + PAVEMENT_M
    return _Plot(float(x), float(z), base, float(np.arctan2(away[0], away[1])), turn)


def _walls(plot: _Plot, style: "_Style") -> Solid:
    """Walls and roof; a gable looks at the street if the ridge runs across it."""
    half, deep = style.width_m / 2, DEPTH_M / 2
    low, top = plot.base_m - _FOUNDATION_M, plot.base_m + style.eave_m
    yaw, half_u, half_v = (plot.along, deep, half) if style.roof == "across" else (plot.across, half, deep)
    profile = oblong(half_v, low, top)
    if style.roof != "flat":
        profile = (*profile[:3], (0.0, top + style.pitch * half_v), profile[3])
    bay = style.width_m / max(1, round(style.width_m / style.bay_m))
    return Solid(
        *(plot.x_m, plot.z_m, yaw, half_u, profile, WALL, style.rgb, plot.base_m, style.trim_rgb),
        *(bay, style.storey_m, style.window, style.shop, style.eave_m),
    )


def _fixtures(rng: np.random.Generator, plot: _Plot, style: "_Style", near: bool) -> list[Solid]:
    """A chimney, an awning over a shop, balconies if the house is near."""
    made: list[Solid] = []
    half, front, base, eave = style.width_m / 2, -DEPTH_M / 2, plot.base_m, style.eave_m
    if style.roof != "flat" and rng.random() < 0.6:
        top = base + eave + style.pitch * (half if style.roof == "across" else -front) + 0.7
        stack = oblong(0.35, base + eave, top)
        made.append(plot.fixture(float(rng.uniform(-0.7, 0.7)) * half, 0.45, stack, style.chimney_rgb))
    if style.shop > 0.55 and rng.random() < 0.45:
        y = base + style.storey_m * 0.74
        wedge = ((front - 1.25, y), (front, y), (front, y + 0.55), (front - 0.06, y + 0.55))
        red, green, blue = rng.uniform(0.15, 0.85, 3)
        made.append(plot.fixture(0.0, half * 0.85, wedge, linear(rng, (red, green, blue), 0.03)))
    if near and eave > 2.6 * style.storey_m and rng.random() < 0.3:
        rgb = linear(rng, (0.35, 0.35, 0.36) if rng.random() < 0.5 else (0.8, 0.8, 0.78), 0.02)
        columns = max(1, round(style.width_m / style.bay_m / 2))
        for storey in range(1, min(4, int(eave / style.storey_m))):
            y = base + storey * style.storey_m
            balcony = ((front - 0.9, y - 0.1), (front, y - 0.1), (front, y + 0.95), (front - 0.9, y + 0.95))
            for k in range(columns):
                made.append(plot.fixture(((k + 0.5) / columns - 0.5) * style.width_m * 0.9, 1.15, balcony, rgb))
    return made


class _Style:
    """What a house looks like, but for where it stands."""

    def __init__(self, rng: np.random.Generator, family: tuple[Rgb, ...], storeys: float, detached: bool) -> None:
        self.width_m = float(rng.uniform(7, 12) if detached else rng.uniform(6, 16))
        self.storey_m = float(rng.uniform(2.9, 3.7))
        self.eave_m = self.storey_m * max(1.0, round(storeys * rng.uniform(0.6, 1.45))) + float(rng.uniform(0.5, 1.3))
        self.bay_m = float(rng.uniform(2.0, 3.6))
        self.window = (float(rng.uniform(0.36, 0.7)), float(rng.uniform(0.45, 0.66)))
        self.rgb = linear(rng, family[rng.integers(len(family))], 0.03)
        self.trim_rgb = linear(rng, (0.85, 0.84, 0.8) if rng.random() < 0.6 else (0.3, 0.3, 0.3), 0.03)
        self.chimney_rgb = linear(rng, (0.5, 0.33, 0.27), 0.04)
        self.shop = 0.0 if detached else float(rng.random())
        gabled = 0.95 if detached else 0.5 if storeys < 4 else 0.1
        self.roof = str(rng.choice(["along", "across"], p=[0.7, 0.3])) if rng.random() < gabled else "flat"
        self.pitch = float(rng.uniform(0.45, 0.9))
        if self.roof != "flat":
            self.trim_rgb = linear(rng, _TILES[rng.integers(len(_TILES))], 0.03)


def row_of_houses(
    rng: np.random.Generator, ground: Ground, side: int, front_m: float, end_m: float, storeys: float, detached: bool
) -> list[Solid]:
    """One side of the street; `front_m` is the distance of its line from the road's middle."""
    solids: list[Solid] = []
    family, z = _WALLS[rng.integers(len(_WALLS))], float(rng.uniform(-12, -4))
    while z < end_m:
        style = _Style(rng, family, storeys, detached)
        near = front_m + float(rng.choice([0.0, rng.uniform(0, 1.2), rng.uniform(1, 4)], p=[0.6, 0.25, 0.15]))
        near += float(rng.uniform(2.5, 6)) if detached else 0.0
        step = style.width_m * float(np.cos(ground.turn(z + style.width_m / 2)))
        bulge = abs(ground.aside.bend) * (style.width_m / 2) ** 2  # by which a straight front cuts into the bend
        if z + step > 0.5:
            plot = _plot(ground, side, near + bulge, z + step / 2)
            solids += [_walls(plot, style), *_fixtures(rng, plot, style, near=z < 40)]
        gap = rng.uniform(2.5, 9) if detached else rng.uniform(1.5, 5) if rng.random() < 0.15 else 0.0
        z += step + float(gap)
    return solids


def house_across(rng: np.random.Generator, ground: Ground, z_m: float, storeys: float) -> Solid:
    """The building at which the street ends."""
    style = _Style(rng, _WALLS[rng.integers(len(_WALLS))], storeys, detached=False)
    base = ground.hill(z_m) + PAVEMENT_M
    profile = oblong(6.0, base - _FOUNDATION_M, base + style.eave_m)
    at = (ground.aside(z_m), z_m, ground.turn(z_m))
    return Solid(*at, 16.0, profile, WALL, style.rgb, base, style.trim_rgb, eave_m=style.eave_m)
