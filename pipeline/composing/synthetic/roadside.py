"""What stands beside the road of a synthetic street: houses, trees and hedges, street furniture, parked vehicles.

Positions `x_m` are distances to the right of the road's centre line; `side` is -1 (left) or 1 (right).
"""

from dataclasses import dataclass

import numpy as np

from pipeline.composing.synthetic.scene import PAVEMENT_M, TOP_M, Ground, Kind, Rgb, Solid, box_profile, vary_colour

# Colours are display RGB.
_WALLS = (  # families: brick, pastel plaster, stone, concrete
    ((0.55, 0.3, 0.24), (0.48, 0.27, 0.2), (0.62, 0.4, 0.3), (0.42, 0.28, 0.26)),
    ((0.9, 0.82, 0.62), (0.85, 0.66, 0.62), (0.66, 0.76, 0.84), (0.93, 0.92, 0.88), (0.72, 0.8, 0.66), (0.9, 0.7, 0.5)),
    ((0.76, 0.7, 0.6), (0.68, 0.64, 0.58), (0.8, 0.77, 0.7), (0.6, 0.56, 0.5)),
    ((0.5, 0.5, 0.52), (0.62, 0.62, 0.62), (0.4, 0.42, 0.45), (0.72, 0.73, 0.74)),
)
_TILES = ((0.5, 0.26, 0.2), (0.3, 0.3, 0.33), (0.42, 0.34, 0.28))
_GREENS = ((0.34, 0.45, 0.2), (0.26, 0.38, 0.18), (0.42, 0.5, 0.24), (0.24, 0.34, 0.22))
_AUTUMN = ((0.62, 0.46, 0.18), (0.58, 0.33, 0.15), (0.66, 0.55, 0.25))
_SIGNS = ((0.75, 0.12, 0.1), (0.12, 0.25, 0.6), (0.85, 0.7, 0.15), (0.9, 0.9, 0.88), (0.15, 0.45, 0.25))
_BINS = ((0.2, 0.3, 0.22), (0.28, 0.28, 0.3), (0.16, 0.2, 0.32), (0.45, 0.3, 0.16), (0.3, 0.26, 0.22))
_PAINTS = (
    *((0.86, 0.86, 0.85), (0.62, 0.63, 0.64), (0.4, 0.41, 0.42), (0.2, 0.2, 0.21), (0.68, 0.12, 0.1)),
    *((0.14, 0.24, 0.48), (0.2, 0.42, 0.62), (0.14, 0.3, 0.22), (0.72, 0.68, 0.58)),
)
# (length, half width, waist, bonnet height, roof height, cabin v: rear foot, rear top, front top, front foot, glass to)
_VEHICLES = (
    (4.5, 0.88, 0.92, 0.78, 1.44, (-2.0, -1.3, 0.25, 1.05), 1.0),
    (4.0, 0.86, 0.95, 0.8, 1.5, (-1.95, -1.7, 0.35, 1.1), 1.0),
    (4.6, 0.92, 1.08, 0.98, 1.72, (-2.25, -1.9, 0.4, 1.15), 1.0),
    (5.1, 0.97, 1.15, 1.05, 2.05, (-2.5, -2.45, 1.3, 2.05), 0.3),
    (4.7, 0.95, 1.1, 1.0, 1.95, (-2.3, -2.2, 1.25, 1.95), 1.0),
)
_TREES = ("broad", "round", "poplar", "conifer")
_FOUNDATION_M = 4.0  # walls go on below the ground, which may slope
HOUSE_DEPTH_M = 11.0
LANE_M = 2.15  # width of a parking lane


class _HouseStyle:
    """Size, windows, roof and colours of a house."""

    def __init__(self, rng: np.random.Generator, family: tuple[Rgb, ...], storeys: float, detached: bool) -> None:
        self.width_m = float(rng.uniform(7, 12) if detached else rng.uniform(6, 16))
        self.storey_m = float(rng.uniform(2.9, 3.7))
        self.eave_m = self.storey_m * max(1.0, round(storeys * rng.uniform(0.6, 1.45))) + float(rng.uniform(0.5, 1.3))
        self.bay_m = float(rng.uniform(2.0, 3.6))
        self.window = (float(rng.uniform(0.36, 0.7)), float(rng.uniform(0.45, 0.66)))
        self.rgb = vary_colour(rng, family[rng.integers(len(family))], 0.03)
        self.trim_rgb = vary_colour(rng, (0.85, 0.84, 0.8) if rng.random() < 0.6 else (0.3, 0.3, 0.3), 0.03)
        self.chimney_rgb = vary_colour(rng, (0.5, 0.33, 0.27), 0.04)
        self.shop = 0.0 if detached else float(rng.random())
        gabled = 0.95 if detached else 0.5 if storeys < 4 else 0.1
        self.roof = str(rng.choice(["along", "across"], p=[0.7, 0.3])) if rng.random() < gabled else "flat"
        self.pitch = float(rng.uniform(0.45, 0.9))
        if self.roof != "flat":
            self.trim_rgb = vary_colour(rng, _TILES[rng.integers(len(_TILES))], 0.03)


@dataclass(frozen=True)
class _Plot:
    """Where a house stands: its middle, the y of its ground, the yaws of a v that runs across the street or along."""

    x_m: float
    z_m: float
    base_m: float
    across_rad: float
    along_rad: float

    def fixture(self, u_m: float, half_m: float, profile: tuple[tuple[float, float], ...], rgb: Rgb) -> Solid:
        """A part of the house, `u_m` along its front; v runs from the street, 0 at the house's middle."""
        x = self.x_m + u_m * np.cos(self.across_rad)
        z = self.z_m - u_m * np.sin(self.across_rad)
        return Solid(float(x), float(z), self.across_rad, half_m, profile, Kind.PLAIN, rgb, self.base_m)


def row_of_houses(
    rng: np.random.Generator, ground: Ground, side: int, front_m: float, end_m: float, storeys: float, detached: bool
) -> list[Solid]:
    """Houses along one side of the street; `front_m` is the distance of their fronts from the road's centre line."""
    solids: list[Solid] = []
    family, z = _WALLS[rng.integers(len(_WALLS))], float(rng.uniform(-12, -4))
    while z < end_m:
        style = _HouseStyle(rng, family, storeys, detached)
        near_m = front_m + float(rng.choice([0.0, rng.uniform(0, 1.2), rng.uniform(1, 4)], p=[0.6, 0.25, 0.15]))
        near_m += float(rng.uniform(2.5, 6)) if detached else 0.0
        step = style.width_m * float(np.cos(ground.heading_rad(z + style.width_m / 2)))
        bulge_m = abs(ground.centre_x.bend) * (style.width_m / 2) ** 2  # by which a straight front cuts into the bend
        if z + step > 0.5:
            plot = _plot(ground, side, near_m + bulge_m, z + step / 2)
            solids += [_walls(plot, style), *_fixtures(rng, plot, style, near=z < 40)]
        gap = rng.uniform(2.5, 9) if detached else rng.uniform(1.5, 5) if rng.random() < 0.15 else 0.0
        z += step + float(gap)
    return solids


def house_across(rng: np.random.Generator, ground: Ground, z_m: float, storeys: float) -> Solid:
    """The building at which the street ends."""
    style = _HouseStyle(rng, _WALLS[rng.integers(len(_WALLS))], storeys, detached=False)
    base = ground.elevation(z_m) + PAVEMENT_M
    profile = box_profile(6.0, base - _FOUNDATION_M, base + style.eave_m)
    position = (ground.centre_x(z_m), z_m, ground.heading_rad(z_m))
    return Solid(*position, 16.0, profile, Kind.WALL, style.rgb, base, style.trim_rgb, eave_m=style.eave_m)


def _plot(ground: Ground, side: int, near_m: float, z_m: float) -> _Plot:
    """The plot of a house whose front's middle is `near_m` from the road's centre line, at `z_m`."""
    heading = ground.heading_rad(z_m)
    outward = side * np.array([np.cos(heading), -np.sin(heading)])
    x, z = np.array([ground.centre_x(z_m) + side * near_m, z_m]) + outward * HOUSE_DEPTH_M / 2
    base = ground.elevation(z_m) + PAVEMENT_M
    return _Plot(float(x), float(z), base, float(np.arctan2(outward[0], outward[1])), heading)


def _walls(plot: _Plot, style: _HouseStyle) -> Solid:
    """Walls and roof; a gable looks at the street if the ridge runs across it."""
    half, half_depth = style.width_m / 2, HOUSE_DEPTH_M / 2
    low, top = plot.base_m - _FOUNDATION_M, plot.base_m + style.eave_m
    across = style.roof == "across"
    yaw, half_u, half_v = (plot.along_rad, half_depth, half) if across else (plot.across_rad, half, half_depth)
    profile = box_profile(half_v, low, top)
    if style.roof != "flat":
        profile = (*profile[:3], (0.0, top + style.pitch * half_v), profile[3])
    bay = style.width_m / max(1, round(style.width_m / style.bay_m))
    return Solid(
        *(plot.x_m, plot.z_m, yaw, half_u, profile, Kind.WALL, style.rgb, plot.base_m, style.trim_rgb),
        *(bay, style.storey_m, style.window, style.shop, style.eave_m),
    )


def _fixtures(rng: np.random.Generator, plot: _Plot, style: _HouseStyle, near: bool) -> list[Solid]:
    """A chimney, an awning over a shop, balconies if the house is near."""
    solids: list[Solid] = []
    half, front, base, eave = style.width_m / 2, -HOUSE_DEPTH_M / 2, plot.base_m, style.eave_m
    if style.roof != "flat" and rng.random() < 0.6:
        top = base + eave + style.pitch * (half if style.roof == "across" else -front) + 0.7
        stack = box_profile(0.35, base + eave, top)
        solids.append(plot.fixture(float(rng.uniform(-0.7, 0.7)) * half, 0.45, stack, style.chimney_rgb))
    if style.shop > 0.55 and rng.random() < 0.45:
        y = base + style.storey_m * 0.74
        wedge = ((front - 1.25, y), (front, y), (front, y + 0.55), (front - 0.06, y + 0.55))
        red, green, blue = rng.uniform(0.15, 0.85, 3)
        solids.append(plot.fixture(0.0, half * 0.85, wedge, vary_colour(rng, (red, green, blue), 0.03)))
    if near and eave > 2.6 * style.storey_m and rng.random() < 0.3:
        rgb = vary_colour(rng, (0.35, 0.35, 0.36) if rng.random() < 0.5 else (0.8, 0.8, 0.78), 0.02)
        columns = max(1, round(style.width_m / style.bay_m / 2))
        for storey in range(1, min(4, int(eave / style.storey_m))):
            y = base + storey * style.storey_m
            balcony = ((front - 0.9, y - 0.1), (front, y - 0.1), (front, y + 0.95), (front - 0.9, y + 0.95))
            for k in range(columns):
                solids.append(plot.fixture(((k + 0.5) / columns - 0.5) * style.width_m * 0.9, 1.15, balcony, rgb))
    return solids


class Vegetation:
    """Trees, bushes and hedges of one street: trunks are solids, crowns are balls of leaves."""

    def __init__(self, rng: np.random.Generator, ground: Ground) -> None:
        self.rng, self.ground = rng, ground
        self.trunks, self.leaf_rgb = list[Solid](), list[Rgb]()
        self.balls = list[tuple[float, float, float, float]]()  # x, y, z, radius in metres
        greens = _GREENS if rng.random() < 0.75 else _AUTUMN
        self.green = greens[rng.integers(len(greens))]

    def row(self, side: int, x_m: float, end_m: float) -> None:
        """Trees of one kind along one side, evenly spaced."""
        rng = self.rng
        kind = str(rng.choice(_TREES, p=[0.5, 0.2, 0.15, 0.15]))
        z, step, size = float(rng.uniform(7, 16)), float(rng.uniform(7, 18)), float(rng.uniform(0.8, 1.35))
        while z < end_m:
            self.tree(kind, side * x_m, z, size * float(rng.uniform(0.85, 1.15)))
            z += step * float(rng.uniform(0.8, 1.25))

    def park(self, side: int, from_m: float) -> None:
        """Scattered trees and bushes on an open side, and a wood far behind it."""
        rng = self.rng
        for _ in range(int(rng.integers(2, 8))):
            kind = str(rng.choice(_TREES))
            self.tree(kind, side * (from_m + float(rng.uniform(3, 25))), float(rng.uniform(14, 70)), 1.3)
        for _ in range(int(rng.integers(0, 6))):
            x, z, size = rng.uniform((1.2, 9, 0.5), (8, 40, 1.0))
            self.bush(side * (from_m + float(x)), float(z), float(size))
        for k in range(12):
            leaf = vary_colour(rng, self.green, 0.03)
            x, z = side * (from_m + 14 + 9.0 * k), float(rng.uniform(95, 130)) - 3 * k
            r = float(rng.uniform(5, 8))
            self._ball(x + self.ground.centre_x(z), self.ground.elevation(z) + 0.4 * r, z, r, leaf)

    def tree(self, kind: str, x_m: float, z_m: float, size: float) -> None:
        """A tree; over the road no leaf is lower than `TOP_M`."""
        rng, base = self.rng, self.ground.elevation(z_m) + PAVEMENT_M
        x = x_m + self.ground.centre_x(z_m)
        bark = vary_colour(rng, (0.32, 0.26, 0.2), 0.02)
        leaf, needles = vary_colour(rng, self.green, 0.025), vary_colour(rng, (0.2, 0.31, 0.21), 0.02)
        if kind == "broad":
            trunk, crown = float(rng.uniform(2.6, 3.8)), size * float(rng.uniform(1.3, 2.1))
            for _ in range(7):
                r = crown * float(rng.uniform(0.5, 0.8))
                dx, dy, dz = np.clip(rng.normal(0, 0.45, 3), -0.75, 0.75) * crown
                self._ball(x + dx, base + trunk + 0.9 * crown + 0.8 * dy, z_m + dz, r, leaf)
        elif kind == "round":
            trunk, crown = float(rng.uniform(2.0, 2.8)), size * float(rng.uniform(0.9, 1.3))
            self._ball(x, base + trunk + 0.8 * crown, z_m, crown, leaf)
            for _ in range(4):
                dx, dy, dz = rng.uniform(-0.4, 0.4, 3) * crown
                self._ball(x + dx, base + trunk + crown + dy, z_m + dz, 0.75 * crown, leaf)
        elif kind == "poplar":
            trunk, r = 1.2, size * float(rng.uniform(0.6, 0.9))
            for k in range(8):
                dx, dz = rng.uniform(-0.15, 0.15, 2) * r
                self._ball(x + dx, base + trunk + 0.7 * r * (k + 1), z_m + dz, r * (1.05 - 0.006 * k**2.5), leaf)
        else:
            trunk, r = 0.8, size * float(rng.uniform(1.1, 1.6))
            for k in range(10):
                dx, dz = rng.uniform(-0.08, 0.08, 2) * r
                self._ball(x + dx, base + trunk + 0.4 * r * (k + 0.8), z_m + dz, r * (1 - 0.088 * k), needles)
        width, top = 0.13 * (1 + 0.3 * size), base + trunk + 1.0
        profile = ((-width, base - 0.5), (width, base - 0.5), (0.75 * width, top), (-0.75 * width, top))
        self.trunks.append(Solid(x, z_m, 0.6, 0.85 * width, profile, Kind.PLAIN, bark, base))

    def bush(self, x_m: float, z_m: float, size_m: float) -> None:
        """A few balls of leaves on the ground, clear of the road."""
        base, x = self.ground.elevation(z_m) + PAVEMENT_M, x_m + self.ground.centre_x(z_m)
        leaf = vary_colour(self.rng, self.green, 0.03)
        for _ in range(2):
            dx, dz = self.rng.uniform(-0.5, 0.5, 2) * size_m
            self._ball(x + dx, base + 0.5 * size_m, z_m + dz, size_m * float(self.rng.uniform(0.6, 0.9)), leaf)

    def hedge(self, x_m: float, z_m: float, half_m: float) -> Solid:
        """A clipped hedge along the street, `half_m` to either side of `z_m`."""
        base, x = self.ground.elevation(z_m) + PAVEMENT_M, x_m + self.ground.centre_x(z_m)
        profile = box_profile(half_m, base - 1.0, base + float(self.rng.uniform(0.9, 1.6)))
        leaf = vary_colour(self.rng, self.green, 0.01)
        return Solid(x, z_m, self.ground.heading_rad(z_m), 0.4, profile, Kind.HEDGE, leaf, base)

    def _ball(self, x: float, y: float, z: float, r: float, leaf: Rgb) -> None:
        ground = self.ground
        if abs(x - ground.centre_x(z)) - r < ground.road_half_m:
            y = max(y, ground.elevation(z) + TOP_M + 0.1 + r)
        self.balls.append((float(x), float(y), float(z), r))
        self.leaf_rgb.append(leaf)


class Furniture:
    """Street furniture on the pavements, built of boxes that are turned as the road runs there."""

    def __init__(self, rng: np.random.Generator, ground: Ground) -> None:
        self.rng, self.ground, self.solids = rng, ground, list[Solid]()

    def box(
        self,
        x_m: float,
        z_m: float,
        size_m: tuple[float, float, float],
        rgb: Rgb,
        low_m: float = 0.0,
        kind: Kind = Kind.PLAIN,
    ) -> None:
        """A box of size (across, up, along) whose foot is `low_m` over the pavement."""
        base = self.ground.elevation(z_m) + PAVEMENT_M
        across, up, along = size_m
        profile = box_profile(along / 2, base + low_m - (0.5 if low_m == 0 else 0), base + low_m + up)
        x = x_m + self.ground.centre_x(z_m)
        self.solids.append(Solid(x, z_m, self.ground.heading_rad(z_m), across / 2, profile, kind, rgb, base))

    def lamps(self, side: int, x_m: float, end_m: float) -> None:
        """Street lamps along one side: masts with an arm over the road, or lanterns."""
        rng, mast = self.rng, self.rng.random() < 0.6
        rgb = vary_colour(rng, (0.25, 0.27, 0.27) if rng.random() < 0.6 else (0.5, 0.52, 0.53), 0.02)
        height = float(rng.uniform(6.0, 8.5) if mast else rng.uniform(3.6, 4.4))
        arm, z, step = float(rng.uniform(1.0, 1.9)), float(rng.uniform(6, 20)), float(rng.uniform(16, 28))
        while z < end_m:
            x = side * x_m
            if mast:
                self.box(x, z, (0.16, 1.1, 0.16), rgb)
                self.box(x, z, (0.1, height, 0.1), rgb)
                self.box(x - side * arm / 2, z, (arm, 0.07, 0.07), rgb, height)
                self.box(x - side * (arm + 0.25), z, (0.65, 0.12, 0.26), rgb, height - 0.02, Kind.LAMP)
            else:
                self.box(x, z, (0.09, height, 0.09), rgb)
                self.box(x, z, (0.34, 0.42, 0.34), rgb, height, Kind.LAMP)
                self.box(x, z, (0.44, 0.08, 0.44), rgb, height + 0.42)
            z += step * float(rng.uniform(0.95, 1.05))

    def bollards(self, side: int, x_m: float) -> None:
        """A row of bollards along the kerb."""
        rgb = vary_colour(self.rng, (0.25, 0.25, 0.26) if self.rng.random() < 0.6 else (0.8, 0.8, 0.78), 0.02)
        first, step = float(self.rng.uniform(5, 14)), float(self.rng.uniform(1.6, 2.6))
        for k in range(int(self.rng.integers(4, 9))):
            self.box(side * x_m, first + step * k, (0.16, 0.9, 0.16), rgb)

    def fence(self, side: int, x_m: float, z_m: tuple[float, float], rgb: Rgb, height_m: float, posts: bool) -> None:
        """A wall or, with posts, a fence of planks, in straight pieces that follow the road."""
        z, step = z_m[0], 4.0 if self.ground.centre_x.bend else 8.0
        while z < z_m[1]:
            along = step / np.cos(self.ground.heading_rad(z + step / 2)) + 0.1
            self.box(side * x_m, z + step / 2, (0.08 if posts else 0.25, height_m, float(along)), rgb)
            if posts:
                self.box(side * x_m, z, (0.14, height_m + 0.12, 0.14), (0.7 * rgb[0], 0.7 * rgb[1], 0.7 * rgb[2]))
            z += step

    def scatter(self, side: int, kerb_m: float, walk_m: float, trees_z_m: list[float]) -> None:
        """Bins, signs, cabinets and crates here and there, by the kerb, but not in a tree, or by the houses."""
        rng = self.rng
        for _ in range(int(rng.integers(1, 7))):
            z = float(4 + 36 * rng.random() ** 1.3)
            if any(abs(z - tree_z) < 0.8 for tree_z in trees_z_m):
                continue
            by_kerb, by_wall = side * (kerb_m + 0.45), side * (kerb_m + walk_m - 0.45)
            kind = rng.integers(6)
            if kind < 2:
                self._bin(by_wall if kind else by_kerb, z)
            elif kind == 2:
                self._cabinet(by_wall, z)
            elif kind == 3:
                self._crates(by_wall, z)
            else:
                self._sign(by_kerb, z)

    def _sign(self, x_m: float, z_m: float) -> None:
        """A traffic sign or a board on a pole."""
        rng, rgb = self.rng, vary_colour(self.rng, (0.55, 0.56, 0.57), 0.01)
        self.box(x_m, z_m, (0.07, 2.5, 0.07), rgb)
        size = float(rng.uniform(0.5, 0.75))
        rim = vary_colour(rng, _SIGNS[rng.integers(len(_SIGNS))], 0.02)
        self.box(x_m, z_m - 0.06, (size, size, 0.03), rim, 1.9)
        white = vary_colour(rng, (0.85, 0.85, 0.83), 0.02)
        self.box(x_m, z_m - 0.09, (0.7 * size, 0.7 * size, 0.03), white, 1.9 + 0.15 * size)

    def _bin(self, x_m: float, z_m: float) -> None:
        """A wheeled bin or a litter bin with its lid."""
        rgb = vary_colour(self.rng, _BINS[self.rng.integers(len(_BINS))], 0.02)
        size = float(self.rng.uniform(0.45, 0.75))
        self.box(x_m, z_m, (size, 0.95, size), rgb)
        self.box(x_m, z_m, (size + 0.08, 0.09, size + 0.08), (0.6 * rgb[0], 0.6 * rgb[1], 0.6 * rgb[2]), 0.95)

    def _cabinet(self, x_m: float, z_m: float) -> None:
        """A telephone or mains cabinet."""
        rgb = vary_colour(self.rng, (0.5, 0.53, 0.5) if self.rng.random() < 0.7 else (0.7, 0.2, 0.15), 0.02)
        self.box(x_m, z_m, (0.45, float(self.rng.uniform(1.0, 1.5)), float(self.rng.uniform(0.6, 1.2))), rgb)

    def _crates(self, x_m: float, z_m: float) -> None:
        """A few boxes put down, some on top of others."""
        for k in range(int(self.rng.integers(2, 5))):
            rgb = vary_colour(self.rng, (0.62, 0.5, 0.34) if self.rng.random() < 0.7 else (0.3, 0.42, 0.5), 0.03)
            size = float(self.rng.uniform(0.35, 0.6))
            self.box(x_m, z_m + 0.65 * (k // 2), (size, 0.45, size), rgb, 0.45 * (k % 2))


def parked_row(rng: np.random.Generator, ground: Ground, side: int, end_m: float) -> list[Solid]:
    """Vehicles along one kerb, with gaps, in the lane between the road's edge and the kerb."""
    solids: list[Solid] = []
    z, density, facing = float(rng.uniform(5, 16)), float(rng.uniform(0.3, 0.95)), 1 if side > 0 else -1
    while z < end_m:
        if rng.random() < density:
            front = facing if rng.random() < 0.85 else -facing
            solids += _parked_vehicle(rng, ground, side * (ground.road_half_m + LANE_M / 2 + 0.06), z, front)
        z += float(rng.uniform(5.6, 6.8)) * float(np.cos(ground.heading_rad(z)))
    return solids


def _parked_vehicle(rng: np.random.Generator, ground: Ground, x_m: float, z_m: float, facing: int) -> list[Solid]:
    """A car or van, its front towards +z if `facing` is 1: body, cabin and two pairs of wheels."""
    length, half, waist, bonnet, roof, cabin, glass = _VEHICLES[
        rng.choice(len(_VEHICLES), p=[0.32, 0.3, 0.18, 0.1, 0.1])
    ]
    rgb = vary_colour(rng, _PAINTS[rng.integers(len(_PAINTS))], 0.02)
    y = ground.elevation(z_m)
    yaw = ground.heading_rad(z_m) + float(rng.normal(0, 0.015)) + (0.0 if facing > 0 else np.pi)
    x, end = x_m + ground.centre_x(z_m), length / 2

    def solid(profile: list[tuple[float, float]], half_m: float, kind: Kind, paint: Rgb) -> Solid:
        raised = tuple((v, y + height) for v, height in profile)
        return Solid(x, z_m, yaw, half_m, raised, kind, paint, y, eave_m=waist, length_m=length, glass=glass)

    body = [(-end + 0.06, 0.24), (end - 0.06, 0.24), (end, 0.5), (end - 0.1, bonnet), (cabin[3], waist)]
    body += [(-end + 0.1, waist), (-end, 0.55)]
    top = [(cabin[0], waist - 0.02), (cabin[3], waist - 0.02), (cabin[2], roof), (cabin[1], roof)]
    octagon = np.linspace(0, 2 * np.pi, 9)[:-1] + np.pi / 8
    solids = [solid(body, half, Kind.BODY, rgb), solid(top, half * (0.84 if roof < 1.6 else 0.92), Kind.CABIN, rgb)]
    for v in (-0.3 * length, 0.3 * length):
        wheel = [(v + 0.33 * float(np.cos(a)), 0.33 + 0.33 * float(np.sin(a))) for a in octagon]
        solids.append(solid(wheel, half - 0.02, Kind.WHEEL, (0.01, 0.01, 0.011)))
    return solids
