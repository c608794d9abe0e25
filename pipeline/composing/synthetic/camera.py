"""The camera of a synthetic street: pixels to rays, points to pixels.

World axes in metres: x to the right, y up, z along the street; the camera stands at (x_m, height_m, 0). A ray has
length 1 along the camera's axis, so the distance found along it *is* the z-depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[Any]  # float32 throughout; numpy's stubs would take float32 * float for float64
SIZE_PX = 224


def vec(values: Sequence[Any] | NDArray[Any]) -> F32:
    """Anything that numpy takes, as float32."""
    return np.asarray(values, np.float32)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without roll; the principal point is the picture's centre, pixel (0, 0) spans [0, 1)."""

    focal_px: float
    height_m: float
    pitch_rad: float  # positive looks down
    yaw_rad: float  # positive looks right
    x_m: float

    def axes(self) -> NDArray[np.float64]:
        """Rows: the camera's right, down and forward axes in world coordinates, float64 [3, 3]."""
        sp, cp = np.sin(self.pitch_rad), np.cos(self.pitch_rad)
        sy, cy = np.sin(self.yaw_rad), np.cos(self.yaw_rad)
        return np.array([[cy, 0, -sy], [-sy * sp, -cp, -cy * sp], [sy * cp, -sp, cy * cp]])

    def rays(self, scale: int) -> tuple[F32, F32, F32]:
        """World directions through the centres of `scale` x `scale` cells a pixel, three float32 [H, W]."""
        at = (((np.arange(SIZE_PX * scale) + 0.5) / scale - SIZE_PX / 2) / self.focal_px).astype(np.float32)
        right, down, forward = self.axes().astype(np.float32)
        x, y, z = (forward[k] + at[None, :] * right[k] + at[:, None] * down[k] for k in range(3))
        return x, y, z

    def project(self, points_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """World points [N, 3] to (column px, row px, depth m) [N, 3]; only points with depth > 0 are in view."""
        seen = (points_m - [self.x_m, self.height_m, 0.0]) @ self.axes().T
        seen[:, :2] = seen[:, :2] / seen[:, 2:] * self.focal_px + SIZE_PX / 2
        return seen
