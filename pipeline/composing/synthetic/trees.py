"""Trees, bushes and hedges: trunks are solids, crowns are balls of leaves."""

from dataclasses import dataclass, field

import numpy as np

from pipeline.composing.synthetic.ground import PAVEMENT_M, TOP_M, Ground
from pipeline.composing.synthetic.solid import HEDGE, PLAIN, Rgb, Solid, linear, oblong

_KINDS = ("broad", "round", "poplar", "conifer")
_GREENS = ((0.34, 0.45, 0.2), (0.26, 0.38, 0.18), (0.42, 0.5, 0.24), (0.24, 0.34, 0.22))
_AUTUMN = ((0.62, 0.46, 0.18), (0.58, 0.33, 0.15), (0.66, 0.55, 0.25))


@dataclass
class Planting:
    """What grows in a street; a ball is (x, y, z, radius) in metres, with a linear colour."""

    solids: list[Solid] = field(default_factory=list)
    balls: list[tuple[float, float, float, float]] = field(default_factory=list)
    leaf_rgb: list[Rgb] = field(default_factory=list)


class Gardener:
    """Plants trees of a street, which are of one kind on each side, all about as high."""

    def __init__(self, rng: np.random.Generator, ground: Ground) -> None:
        self.rng, self.ground, self.planted = rng, ground, Planting()
        leaves = _GREENS if rng.random() < 0.75 else _AUTUMN
        self.leaf = leaves[rng.integers(len(leaves))]

    def tree(self, kind: str, x_m: float, z_m: float, size: float) -> None:
        """A tree `x_m` to the right of the road's middle; over the road no leaf is lower than `TOP_M`."""
        rng, base = self.rng, self.ground.hill(z_m) + PAVEMENT_M
        x = x_m + self.ground.aside(z_m)
        bark = linear(rng, (0.32, 0.26, 0.2), 0.02)
        leaf, needles = linear(rng, self.leaf, 0.025), linear(rng, (0.2, 0.31, 0.21), 0.02)
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
        self.planted.solids.append(Solid(x, z_m, 0.6, 0.85 * width, profile, PLAIN, bark, base))

    def bush(self, x_m: float, z_m: float, size_m: float) -> None:
        """A few balls of leaves on the ground, clear of the road."""
        base, x = self.ground.hill(z_m) + PAVEMENT_M, x_m + self.ground.aside(z_m)
        leaf = linear(self.rng, self.leaf, 0.03)
        for _ in range(2):
            dx, dz = self.rng.uniform(-0.5, 0.5, 2) * size_m
            self._ball(x + dx, base + 0.5 * size_m, z_m + dz, size_m * float(self.rng.uniform(0.6, 0.9)), leaf)

    def row(self, side: int, x_m: float, end_m: float) -> None:
        """Trees along one side, evenly spaced."""
        rng = self.rng
        kind = str(rng.choice(_KINDS, p=[0.5, 0.2, 0.15, 0.15]))
        z, step, size = float(rng.uniform(7, 16)), float(rng.uniform(7, 18)), float(rng.uniform(0.8, 1.35))
        while z < end_m:
            self.tree(kind, side * x_m, z, size * float(rng.uniform(0.85, 1.15)))
            z += step * float(rng.uniform(0.8, 1.25))

    def park(self, side: int, from_m: float) -> None:
        """Scattered trees and bushes on an open side, and a wood far behind it."""
        rng = self.rng
        for _ in range(int(rng.integers(2, 8))):
            kind = str(rng.choice(_KINDS))
            self.tree(kind, side * (from_m + float(rng.uniform(3, 25))), float(rng.uniform(14, 70)), 1.3)
        for _ in range(int(rng.integers(0, 6))):
            x, z, size = rng.uniform((1.2, 9, 0.5), (8, 40, 1.0))
            self.bush(side * (from_m + float(x)), float(z), float(size))
        for k in range(12):
            leaf = linear(rng, self.leaf, 0.03)
            x, z = side * (from_m + 14 + 9.0 * k), float(rng.uniform(95, 130)) - 3 * k
            r = float(rng.uniform(5, 8))
            base = self.ground.hill(z)
            self._ball(x + self.ground.aside(z), base + 0.4 * r, z, r, leaf)

    def _ball(self, x: float, y: float, z: float, r: float, leaf: Rgb) -> None:
        ground = self.ground
        if abs(x - ground.aside(z)) - r < ground.road_half_m:
            y = max(y, ground.hill(z) + TOP_M + 0.1 + r)
        self.planted.balls.append((float(x), float(y), float(z), r))
        self.planted.leaf_rgb.append(leaf)


def hedge(rng: np.random.Generator, ground: Ground, x_m: float, z_m: float, half_m: float, leaf: Rgb) -> Solid:
    """A clipped hedge along the street, `half_m` to either side of `z_m`."""
    base = ground.hill(z_m) + PAVEMENT_M
    profile = oblong(half_m, base - 1.0, base + float(rng.uniform(0.9, 1.6)))
    return Solid(x_m + ground.aside(z_m), z_m, ground.turn(z_m), 0.4, profile, HEDGE, linear(rng, leaf, 0.01), base)
