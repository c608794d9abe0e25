"""What stands on the pavements of a synthetic street: lamps, signs, bins, bollards, cabinets, crates, fences."""

import numpy as np

from pipeline.composing.synthetic.ground import PAVEMENT_M, Ground
from pipeline.composing.synthetic.solid import LAMP, PLAIN, Rgb, Solid, linear, oblong

_SIGNS = ((0.75, 0.12, 0.1), (0.12, 0.25, 0.6), (0.85, 0.7, 0.15), (0.9, 0.9, 0.88), (0.15, 0.45, 0.25))
_BINS = ((0.2, 0.3, 0.22), (0.28, 0.28, 0.3), (0.16, 0.2, 0.32), (0.45, 0.3, 0.16), (0.3, 0.26, 0.22))


class Site:
    """Puts solids on the pavement, upright and turned as the road runs there."""

    def __init__(self, rng: np.random.Generator, ground: Ground) -> None:
        self.rng, self.ground, self.solids = rng, ground, list[Solid]()

    def box(
        self, x_m: float, z_m: float, size: tuple[float, float, float], rgb: Rgb, low_m: float = 0.0, kind: int = PLAIN
    ) -> None:
        """A box of size (across, up, along) whose foot is `low_m` over the pavement."""
        base = self.ground.hill(z_m) + PAVEMENT_M
        across, up, along = size
        profile = oblong(along / 2, base + low_m - (0.5 if low_m == 0 else 0), base + low_m + up)
        x = x_m + self.ground.aside(z_m)
        self.solids.append(Solid(x, z_m, self.ground.turn(z_m), across / 2, profile, kind, rgb, base))

    def lamps(self, side: int, x_m: float, end_m: float) -> None:
        """Street lamps along one side: masts with an arm over the road, or lanterns."""
        rng, mast = self.rng, self.rng.random() < 0.6
        rgb = linear(rng, (0.25, 0.27, 0.27) if rng.random() < 0.6 else (0.5, 0.52, 0.53), 0.02)
        height = float(rng.uniform(6.0, 8.5) if mast else rng.uniform(3.6, 4.4))
        arm, z, step = float(rng.uniform(1.0, 1.9)), float(rng.uniform(6, 20)), float(rng.uniform(16, 28))
        while z < end_m:
            x = side * x_m
            if mast:
                self.box(x, z, (0.16, 1.1, 0.16), rgb)
                self.box(x, z, (0.1, height, 0.1), rgb)
                self.box(x - side * arm / 2, z, (arm, 0.07, 0.07), rgb, height)
                self.box(x - side * (arm + 0.25), z, (0.65, 0.12, 0.26), rgb, height - 0.02, LAMP)
            else:
                self.box(x, z, (0.09, height, 0.09), rgb)
                self.box(x, z, (0.34, 0.42, 0.34), rgb, height, LAMP)
                self.box(x, z, (0.44, 0.08, 0.44), rgb, height + 0.42)
            z += step * float(rng.uniform(0.95, 1.05))

    def sign(self, x_m: float, z_m: float) -> None:
        """A traffic sign or a board on a pole."""
        rng, rgb = self.rng, linear(self.rng, (0.55, 0.56, 0.57), 0.01)
        self.box(x_m, z_m, (0.07, 2.5, 0.07), rgb)
        size = float(rng.uniform(0.5, 0.75))
        rim = linear(rng, _SIGNS[rng.integers(len(_SIGNS))], 0.02)
        self.box(x_m, z_m - 0.06, (size, size, 0.03), rim, 1.9)
        white = linear(rng, (0.85, 0.85, 0.83), 0.02)
        self.box(x_m, z_m - 0.09, (0.7 * size, 0.7 * size, 0.03), white, 1.9 + 0.15 * size)

    def bin(self, x_m: float, z_m: float) -> None:
        """A wheeled bin or a litter bin with its lid."""
        rgb = linear(self.rng, _BINS[self.rng.integers(len(_BINS))], 0.02)
        size = float(self.rng.uniform(0.45, 0.75))
        self.box(x_m, z_m, (size, 0.95, size), rgb)
        self.box(x_m, z_m, (size + 0.08, 0.09, size + 0.08), (0.6 * rgb[0], 0.6 * rgb[1], 0.6 * rgb[2]), 0.95)

    def cabinet(self, x_m: float, z_m: float) -> None:
        """A telephone or mains cabinet."""
        rgb = linear(self.rng, (0.5, 0.53, 0.5) if self.rng.random() < 0.7 else (0.7, 0.2, 0.15), 0.02)
        self.box(x_m, z_m, (0.45, float(self.rng.uniform(1.0, 1.5)), float(self.rng.uniform(0.6, 1.2))), rgb)

    def crates(self, x_m: float, z_m: float) -> None:
        """A few boxes put down, some on top of others."""
        for k in range(int(self.rng.integers(2, 5))):
            rgb = linear(self.rng, (0.62, 0.5, 0.34) if self.rng.random() < 0.7 else (0.3, 0.42, 0.5), 0.03)
            size = float(self.rng.uniform(0.35, 0.6))
            self.box(x_m, z_m + 0.65 * (k // 2), (size, 0.45, size), rgb, 0.45 * (k % 2))

    def bollards(self, side: int, x_m: float) -> None:
        """A row of bollards along the kerb."""
        rgb = linear(self.rng, (0.25, 0.25, 0.26) if self.rng.random() < 0.6 else (0.8, 0.8, 0.78), 0.02)
        first, step = float(self.rng.uniform(5, 14)), float(self.rng.uniform(1.6, 2.6))
        for k in range(int(self.rng.integers(4, 9))):
            self.box(side * x_m, first + step * k, (0.16, 0.9, 0.16), rgb)

    def things(self, side: int, kerb_m: float, walk_m: float, trees_z_m: list[float]) -> None:
        """Bins, signs, cabinets and crates here and there, by the kerb, but not in a tree, or by the houses."""
        rng = self.rng
        for _ in range(int(rng.integers(1, 7))):
            z = float(4 + 36 * rng.random() ** 1.3)
            if any(abs(z - tree_z) < 0.8 for tree_z in trees_z_m):
                continue
            by_kerb, by_wall = side * (kerb_m + 0.45), side * (kerb_m + walk_m - 0.45)
            kind = rng.integers(6)
            if kind < 2:
                self.bin(by_wall if kind else by_kerb, z)
            elif kind == 2:
                self.cabinet(by_wall, z)
            elif kind == 3:
                self.crates(by_wall, z)
            else:
                self.sign(by_kerb, z)

    def fence(self, side: int, x_m: float, z_m: tuple[float, float], rgb: Rgb, height_m: float, posts: bool) -> None:
        """A wall or, with posts, a fence of planks, in straight pieces that follow the road."""
        z, step = z_m[0], 4.0 if self.ground.aside.bend else 8.0
        while z < z_m[1]:
            along = step / np.cos(self.ground.turn(z + step / 2)) + 0.1
            self.box(side * x_m, z + step / 2, (0.08 if posts else 0.25, height_m, float(along)), rgb)
            if posts:
                self.box(side * x_m, z, (0.14, height_m + 0.12, 0.14), (0.7 * rgb[0], 0.7 * rgb[1], 0.7 * rgb[2]))
            z += step
