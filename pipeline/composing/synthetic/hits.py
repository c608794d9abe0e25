"""Where rays ended and what was found there: what the painters of a synthetic street's surfaces are given and give."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.composing.synthetic.camera import F32, vec
from pipeline.composing.synthetic.raycast import FIRST_FACE
from pipeline.composing.synthetic.scene import Plan
from pipeline.composing.synthetic.solid import MAX_FACES


@dataclass(frozen=True)
class Look:
    """Of N hits: linear colour [3, N], light of its own [3, N]."""

    albedo: F32
    glow: F32 | None = None


@dataclass(frozen=True)
class Hits:
    """N ends of rays: surface ids, ray directions and world points (x, y, z), z-depths, and a ray's width there."""

    plan: Plan
    surface: NDArray[np.intp]
    depth_m: F32
    ray: tuple[F32, F32, F32]
    at_m: tuple[F32, F32, F32]
    size_m: F32


class Faces:
    """Hits of solids, in the solids' own terms: u, v, and y over the solid's ground, all in metres, [N]."""

    def __init__(self, hits: Hits) -> None:
        self.hits, self.solids = hits, hits.plan.solids
        self.number, self.face = np.divmod(hits.surface - FIRST_FACE, MAX_FACES)
        table = [(s.x_m, s.z_m, np.cos(s.yaw_rad), np.sin(s.yaw_rad), s.base_m) for s in self.solids]
        x, z, c, s, base = self.of(vec(table))
        dx, dz = hits.at_m[0] - x, hits.at_m[2] - z
        self.u, self.y, self.v = c * dx - s * dz, hits.at_m[1] - base, s * dx + c * dz

    def of(self, table: F32) -> F32:
        """Rows of a table [solids, K] for each hit, as [K, N]."""
        return np.ascontiguousarray(table.T)[:, self.number]

    @cached_property
    def normal(self) -> tuple[F32, F32, F32]:
        """Outward normals in world axes."""
        table = np.zeros((len(self.solids), MAX_FACES, 3))
        for k, solid in enumerate(self.solids):
            table[k, : len(solid.normals)] = solid.normals
        x, y, z = np.ascontiguousarray(vec(table.reshape(-1, 3)).T)[:, self.number * MAX_FACES + self.face]
        return x, y, z
