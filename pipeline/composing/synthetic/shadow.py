"""Where the sun of a synthetic street does not get to, and where it is dim below things."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.composing.synthetic.camera import F32
from pipeline.composing.synthetic.scene import Plan
from pipeline.composing.synthetic.solid import BODY, HEDGE, WALL, WHEEL, Solid

CELLS_M = 10  # cells a metre of the map of shadows on the ground
HALF_WIDTH_M, LENGTH_M = 24, 72
_STEPS_M = 4  # steps a metre of the skyline


class Shadows:
    """Shadows of houses on everything, from the height of their row, and of all else on the ground, from a map."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.sun = plan, plan.light.to_sun.astype(float)
        self.line_m, self.roof_m = self._skyline()
        sunny = float(plan.light.sun_rgb[0]) > 0.5
        self.sunlit = self._map(1, [s for s in plan.solids if s.kind != WALL] if sunny else [], sunny)
        self.open = self._map(4, [s for s in plan.solids if s.kind in (BODY, HEDGE, WHEEL)], balls=False, flat=True)

    def _skyline(self) -> tuple[float, F32]:
        """Distance of the row of houses on the sun's side from the road's middle, and its height along z."""
        fronts, roof = [], np.zeros(1024, np.float32)
        for solid in self.plan.solids:
            reach = np.abs(solid.corners[:, 0] - self.plan.ground.aside(solid.corners[:, 2]))
            on_sun_side = (solid.x_m - self.plan.ground.aside(solid.z_m)) * self.sun[0] > 0
            if solid.kind == WALL and on_sun_side:
                fronts.append(reach.min())
                z = solid.corners[:, 2]
                low, high = (max(0, int((end + 20) * _STEPS_M)) for end in (z.min(), z.max()))
                roof[low:high] = max(y for _, y in solid.profile) - solid.base_m
        return float(np.median(fronts)) if fronts else 50.0, roof

    def of_houses(self, x: F32, y: F32, z: F32) -> F32:
        """1 where the row of houses on the sun's side hides the sun, 0 where it does not; soft over half a metre."""
        ground, sun = self.plan.ground, self.sun.astype(np.float32)
        x, y = x - ground.aside(z), y - ground.hill(z)
        way = np.maximum((np.sign(sun[0]) * np.float32(self.line_m) - x) / sun[0], 0)
        at = np.clip((z + way * sun[2] + 20) * _STEPS_M, 0, 1023).astype(np.int32)
        shade: F32 = np.clip((self.roof_m[at] - y - way * sun[1]) * 2 + 0.5, 0, 1) * (way > 0.3)
        return shade

    def _map(self, blur: int, solids: list[Solid], balls: bool, flat: bool = False) -> Image.Image:
        """Everything's shadow on the ground, seen from above; `flat`: only where things stand."""
        ground, slant = self.plan.ground, np.zeros(2) if flat else self.sun[[0, 2]] / self.sun[1]
        image = Image.new("L", (2 * HALF_WIDTH_M * CELLS_M, LENGTH_M * CELLS_M))
        draw = ImageDraw.Draw(image)

        for solid in solids:
            corners = solid.corners
            up = np.maximum(corners[:, 1] - solid.base_m, 0)[:, None]
            at = (corners[:, [0, 2]] - up * slant + [HALF_WIDTH_M, 0]) * CELLS_M
            n = len(solid.profile)
            faces = [list(range(n)), list(range(n, 2 * n))]
            faces += [[k, (k + 1) % n, n + (k + 1) % n, n + k] for k in range(n)]
            for face in faces:
                draw.polygon([(float(x), float(z)) for x, z in at[face]], fill=255)
        for x, y, z, r in self.plan.balls.astype(float) if balls else ():
            up = y - ground.hill(z)
            cx, cz = (np.array([x, z]) - up * slant + [HALF_WIDTH_M, 0]) * CELLS_M
            size = 0.9 * r * CELLS_M
            draw.ellipse([cx - size, cz - size, cx + size, cz + size], fill=225)
        return image.filter(ImageFilter.BoxBlur(blur)) if solids or balls else image

    def on_ground(self, x: F32, z: F32) -> tuple[F32, F32]:
        """Shares of sunlight and of sky light that things standing in the street keep from its ground."""
        column, row = ((x + HALF_WIDTH_M) * CELLS_M).astype(np.int32), (z * CELLS_M).astype(np.int32)
        inside = (column >= 0) & (column < 2 * HALF_WIDTH_M * CELLS_M) & (row >= 0) & (row < LENGTH_M * CELLS_M)
        at = np.where(inside, row, 0), np.where(inside, column, 0)
        sun, sky = (np.asarray(image)[at] * (inside * np.float32(1 / 255)) for image in (self.sunlit, self.open))
        return sun, sky
