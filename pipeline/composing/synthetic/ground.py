"""The ground of a synthetic street: how its road runs, rises and falls, and where a foreground may stand on it.

A `Ground` is a few numbers, kept beside the rendered picture, so that nobody need render it again to stand another
foreground there.
"""

import json
import random
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pipeline.composing.synthetic.camera import F32, SIZE_PX, Camera

Number = TypeVar("Number", float, F32)
PAVEMENT_M = 0.13  # how high the kerb is
LONG_SIDE_PX = (32.0, 140.0)  # a standing foreground's longer side
TOP_M = 3.6  # nothing that belongs to the street is lower than this over the road


@dataclass(frozen=True)
class Curve:
    """How far the road has gone aside, or up, at z: nothing up to `start_m`, then a parabola, then its tangent."""

    bend: float = 0.0  # 1 / m: half the curvature between start_m and end_m
    start_m: float = 0.0
    end_m: float = 1.0

    def __call__(self, z_m: Number) -> Number:
        """Offset at z, in metres."""
        inside = np.clip(z_m - self.start_m, 0, self.end_m - self.start_m)
        offset: Number = self.bend * inside * (inside + 2 * np.maximum(z_m - self.end_m, 0))
        return offset

    def slope(self, z_m: Number) -> Number:
        """Metres aside (up) a metre of z."""
        slope: Number = 2 * self.bend * np.clip(z_m - self.start_m, 0, self.end_m - self.start_m)
        return slope

    def mirrored(self, side: int) -> "Curve":
        """The same curve for side -1, its mirror image for side 1: `meet` then tells where the road is left there."""
        return Curve(-side * self.bend, self.start_m, self.end_m)

    def meet(self, gap_m: float, slope: F32) -> F32:
        """The first z > 0 at which a line that starts `gap_m` > 0 above the curve and climbs `slope` meets it, or inf.

        The difference of a line and the curve is convex or concave, so that there is at most one crossing downwards.
        """
        never = np.float32(np.inf)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            before: F32 = np.where(slope < 0, np.float32(-gap_m) / slope, never)
            if self.bend == 0:
                return before
            start, end, bend = np.float32(self.start_m), np.float32(self.end_m), np.float32(self.bend)
            gap_at_start = np.float32(gap_m) + slope * start
            # The root of gap + slope u - bend u^2, without cancellation for a small bend.
            along = 2 * gap_at_start / (np.sqrt(slope * slope + 4 * bend * gap_at_start) - slope)
            gap_at_end, slope_at_end = (
                gap_m + slope * end - np.float32(self(self.end_m)),
                slope - 2 * bend * (end - start),
            )
            beyond = np.where((gap_at_end >= 0) & (slope_at_end < 0), end - gap_at_end / slope_at_end, never)
            curved = np.where((along >= 0) & (along <= end - start), along + start, beyond)
            z_m: F32 = np.where(gap_at_start <= 0, before, curved)
        return z_m


@dataclass(frozen=True)
class Ground:
    """The road of one rendered street, as its camera sees it."""

    camera: Camera
    road_half_m: float
    aside: Curve  # x of the road's middle
    hill: Curve  # y of the road
    reach_m: float  # z up to which nothing of the street hides any of the road, or of `TOP_M` above it
    light_rgb: tuple[float, float, float]  # how a white thing standing there appears, display RGB about 0.3 to 1.1

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Ground":
        """The very ground that `to_json` wrote."""
        got: dict[str, Any] = json.loads(text)
        camera, aside, hill = Camera(**got.pop("camera")), Curve(**got.pop("aside")), Curve(**got.pop("hill"))
        red, green, blue = got.pop("light_rgb")
        return cls(camera=camera, aside=aside, hill=hill, light_rgb=(red, green, blue), **got)

    def point(self, x_m: float, z_m: float) -> tuple[float, float, float]:
        """World point of the road, `x_m` to the right of its middle."""
        return x_m + self.aside(z_m), self.hill(z_m), z_m

    def turn(self, z_m: float) -> float:
        """Which way the road runs at z: 0 along z, positive to the right, in radians."""
        return float(np.arctan(self.aside.slope(z_m)))

    def z_at(self, x_m: float, depth_m: float) -> float:
        """The z at which the road, `x_m` to the right of its middle, is `depth_m` away."""
        camera, (_, _, forward) = self.camera, self.camera.axes()
        z_m = depth_m
        for _ in range(20):  # each makes the error five times smaller at least, as the road climbs and turns slowly
            x, y, _ = self.point(x_m, z_m)
            aside = forward[0] * (x - camera.x_m) + forward[1] * (y - camera.height_m)
            z_m, before_m = float((depth_m - aside) / forward[2]), z_m
            if abs(z_m - before_m) < 1e-6:
                break
        return z_m


class Stand(NamedTuple):
    """Where a foreground stands: its rectangle in pixels, whose lowest row ends at row `bottom`, and its depth."""

    left: int
    bottom: int
    width: int
    height: int
    depth_m: float


def stand(ground: Ground, width_m: float, height_m: float, rng: random.Random) -> Stand:
    """Stand a foreground somewhere on the road, wholly in the picture; its depth follows from its size in pixels.

    Nothing of the street is before it.
    """
    camera, room_m = ground.camera, max(0.0, ground.road_half_m - width_m / 2)
    for attempt in range(400):
        low, high = LONG_SIDE_PX
        # After 200 misses (a steep look at a narrow road) small ones far away always fit.
        long_px = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if attempt < 200 else rng.uniform(8, low)
        x_m = rng.uniform(-room_m, room_m)
        height = max(2, round(long_px * height_m / max(width_m, height_m)))
        width = max(2, round(height * width_m / height_m))
        depth_m = camera.focal_px * height_m / height
        z_m = ground.z_at(x_m, depth_m)
        column, row, _ = camera.project(np.array([ground.point(x_m, z_m)]))[0]
        left, bottom = round(column - width / 2), round(row)
        if z_m <= ground.reach_m and height <= bottom <= SIZE_PX and 0 <= left <= SIZE_PX - width:
            return Stand(left, bottom, width, height, depth_m)
    raise AssertionError("the road is out of view; plan_street bounds pitch, yaw and curves so that it is not")
