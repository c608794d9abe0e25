"""The parts of a synthetic street: camera, road, solids, light; `Scene` holds all that a ray can meet.

World axes in metres: x to the right, y up, z along the street; the camera stands at (x_m, height_m, 0). The road is a
strip that may bend and climb; both are functions of z alone, so that a street's cross-section is the same everywhere.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[Any]  # float32 throughout; numpy's stubs would take float32 * float for float64
F64 = NDArray[np.float64]
Rgb = tuple[float, float, float]
Number = TypeVar("Number", float, F32)
SIZE_PX = 224
PAVEMENT_M = 0.13  # height of the kerb
LONG_SIDE_PX = (32.0, 140.0)  # range of a placed foreground's longer side
TOP_M = 3.6  # nothing that belongs to the street hangs lower than this over the road
MAX_FACES = 10


class Kind(IntEnum):
    """What a solid is made of, and so how its surface looks."""

    WALL, PLAIN, HEDGE, BODY, CABIN, WHEEL, LAMP = range(1, 8)


def f32(values: Sequence[Any] | NDArray[Any]) -> F32:
    """Anything that numpy takes, as float32."""
    return np.asarray(values, np.float32)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without roll; the principal point is the picture's centre, pixel (0, 0) spans [0, 1).

    A ray has length 1 along the camera's axis, so the distance found along it *is* the z-depth.
    """

    focal_px: float
    height_m: float
    pitch_rad: float  # positive looks down
    yaw_rad: float  # positive looks right
    x_m: float

    def axes(self) -> F64:
        """Rows: the camera's right, down and forward axes in world coordinates, float64 [3, 3]."""
        sp, cp = np.sin(self.pitch_rad), np.cos(self.pitch_rad)
        sy, cy = np.sin(self.yaw_rad), np.cos(self.yaw_rad)
        return np.array([[cy, 0, -sy], [-sy * sp, -cp, -cy * sp], [sy * cp, -sp, cy * cp]])

    def rays(self, scale: int) -> tuple[F32, F32, F32]:
        """World directions through the centres of `scale` x `scale` cells a pixel, three float32 [H, W]."""
        offset = (((np.arange(SIZE_PX * scale) + 0.5) / scale - SIZE_PX / 2) / self.focal_px).astype(np.float32)
        right, down, forward = self.axes().astype(np.float32)
        x, y, z = (forward[k] + offset[None, :] * right[k] + offset[:, None] * down[k] for k in range(3))
        return x, y, z

    def project(self, points_m: F64) -> F64:
        """World points [N, 3] to (column px, row px, depth m) [N, 3]; only points with depth > 0 are in view."""
        seen = (points_m - [self.x_m, self.height_m, 0.0]) @ self.axes().T
        seen[:, :2] = seen[:, :2] / seen[:, 2:] * self.focal_px + SIZE_PX / 2
        return seen


@dataclass(frozen=True)
class Curve:
    """How far the road has moved sideways, or up, at z: 0 up to `start_m`, then a parabola, then its tangent."""

    bend: float = 0.0  # 1 / m: half the curvature between start_m and end_m
    start_m: float = 0.0
    end_m: float = 1.0

    def __call__(self, z_m: Number) -> Number:
        """Offset at z, in metres."""
        inside = np.clip(z_m - self.start_m, 0, self.end_m - self.start_m)
        offset: Number = self.bend * inside * (inside + 2 * np.maximum(z_m - self.end_m, 0))
        return offset

    def slope(self, z_m: Number) -> Number:
        """Derivative of the offset, metres a metre of z."""
        slope: Number = 2 * self.bend * np.clip(z_m - self.start_m, 0, self.end_m - self.start_m)
        return slope

    def mirrored(self, side: int) -> "Curve":
        """The same curve for side -1, its mirror image for side 1: `intersect` then finds where a ray leaves it."""
        return Curve(-side * self.bend, self.start_m, self.end_m)

    def intersect(self, gap_m: float, slope: F32) -> F32:
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
            root = 2 * gap_at_start / (np.sqrt(slope * slope + 4 * bend * gap_at_start) - slope)
            gap_at_end = gap_m + slope * end - np.float32(self(self.end_m))
            slope_at_end = slope - 2 * bend * (end - start)
            beyond = np.where((gap_at_end >= 0) & (slope_at_end < 0), end - gap_at_end / slope_at_end, never)
            curved = np.where((root >= 0) & (root <= end - start), root + start, beyond)
            z_m: F32 = np.where(gap_at_start <= 0, before, curved)
        return z_m


@dataclass(frozen=True)
class Ground:
    """The road of one rendered street, as its camera sees it.

    It is a few numbers, kept beside the rendered picture, so that foregrounds can be placed without rendering again.
    """

    camera: Camera
    road_half_m: float
    centre_x: Curve  # x of the road's centre line
    elevation: Curve  # y of the road
    reach_m: float  # z up to which nothing of the street hides any of the road, or of `TOP_M` above it
    light_rgb: Rgb  # how a white object standing there appears, display RGB about 0.3 to 1.1

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Ground":
        """The very ground that `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        camera = Camera(**fields.pop("camera"))
        centre_x, elevation = Curve(**fields.pop("centre_x")), Curve(**fields.pop("elevation"))
        red, green, blue = fields.pop("light_rgb")
        return cls(camera=camera, centre_x=centre_x, elevation=elevation, light_rgb=(red, green, blue), **fields)

    def world_point(self, x_m: float, z_m: float) -> tuple[float, float, float]:
        """World coordinates of the road's point `x_m` to the right of its centre line."""
        return x_m + self.centre_x(z_m), self.elevation(z_m), z_m

    def heading_rad(self, z_m: float) -> float:
        """Direction of the road at z: 0 along z, positive to the right."""
        return float(np.arctan(self.centre_x.slope(z_m)))

    def z_at_depth(self, x_m: float, depth_m: float) -> float:
        """The z at which the road, `x_m` to the right of its centre line, has the z-depth `depth_m`."""
        camera, (_, _, forward) = self.camera, self.camera.axes()
        z_m = depth_m
        for _ in range(20):  # each makes the error five times smaller at least, as the road climbs and turns slowly
            x, y, _ = self.world_point(x_m, z_m)
            lateral = forward[0] * (x - camera.x_m) + forward[1] * (y - camera.height_m)
            z_m, previous_m = float((depth_m - lateral) / forward[2]), z_m
            if abs(z_m - previous_m) < 1e-6:
                break
        return z_m


@dataclass(frozen=True)
class Solid:
    """An upright convex profile, extruded sideways. Window sizes are fractions of a bay and of a storey.

    Its own axes are u (along the extrusion), y (up, in world metres) and v (the profile's other axis); unturned, u is
    the world's x and v its z. Face 0 looks to -u, face 1 to +u, face 2 + k belongs to the profile's edge k.
    """

    x_m: float
    z_m: float
    yaw_rad: float  # positive turns v from z towards x
    half_m: float  # it reaches this far along u
    profile: tuple[tuple[float, float], ...]  # (v, y), convex, counterclockwise with v to the right and y up
    kind: Kind
    rgb: Rgb  # linear
    base_m: float  # y of the ground that it stands on
    trim_rgb: Rgb = (0.5, 0.5, 0.5)
    bay_m: float = 3.0
    storey_m: float = 3.2
    window: tuple[float, float] = (0.5, 0.55)
    shop: float = 0.0
    eave_m: float = 0.0  # height of its walls, or of its waist, over base_m
    length_m: float = 0.0  # of the vehicle that it is part of
    glass: float = 1.0  # share of a cabin that has windows, from its front

    @cached_property
    def planes(self) -> F64:
        """Outward normal (u, y, v) and offset of every face: inside is normal . point <= offset; float64 [F, 4]."""
        corners = np.array(self.profile)
        v, y = (np.roll(corners, -1, 0) - corners).T
        edges = np.stack([np.zeros(len(corners)), -v, y], 1) / np.hypot(v, y)[:, None]
        offset = edges[:, 1] * corners[:, 1] + edges[:, 2] * corners[:, 0]
        sides = np.array([(-1.0, 0, 0, self.half_m), (1.0, 0, 0, self.half_m)])
        return np.concatenate([sides, np.column_stack([edges, offset])])

    @cached_property
    def normals(self) -> F64:
        """Outward normals in world axes, float64 [F, 3]."""
        u, y, v = self.planes[:, :3].T
        c, s = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        return np.stack([u * c + v * s, y, v * c - u * s], 1)

    @cached_property
    def corners(self) -> F64:
        """World points of which it is the convex hull, float64 [2 * edges, 3]."""
        v, y = np.array(self.profile * 2).T
        u = np.repeat([-self.half_m, self.half_m], len(self.profile))
        c, s = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        return np.stack([self.x_m + u * c + v * s, y, self.z_m + v * c - u * s], 1)


def box_profile(half_v: float, low: float, top: float) -> tuple[tuple[float, float], ...]:
    """The profile of a box."""
    return (-half_v, low), (half_v, low), (half_v, top), (-half_v, top)


def vary_colour(rng: np.random.Generator, display: tuple[float, ...], spread: float) -> Rgb:
    """A random linear colour (display squared) near a display colour."""
    r, g, b = np.clip(np.asarray(display) * rng.uniform(0.85, 1.12) + rng.normal(0, spread, 3), 0.04, 0.97) ** 2
    return float(r), float(g), float(b)


@dataclass(frozen=True)
class Light:
    """Weather and hour: linear RGB of sun, ambient light and sky, the direction to the sun, the range of visibility."""

    sun_rgb: F32
    ambient_rgb: F32
    zenith_rgb: F32
    horizon_rgb: F32
    to_sun: F32
    haze_m: float
    clouds: float
    lit: float  # share of windows with a lamp on
    lamps: float  # brightness of street lamps
    saturation: float

    @property
    def white_rgb(self) -> Rgb:
        """How a white object standing on the road appears, display RGB."""
        white = self.ambient_rgb * 0.9 + self.sun_rgb * (0.55 * max(0.25, float(self.to_sun[1])))
        red, green, blue = (float(v) for v in np.sqrt(white + self.lamps * f32((0.1, 0.075, 0.045))))
        return red, green, blue


# (weight, sun, ambient, zenith, horizon, sun elevation range in degrees, haze m, lit windows, street lamps)
_SKIES = (
    (0.36, (2.1, 1.95, 1.7), (0.42, 0.5, 0.62), (0.1, 0.25, 0.62), (0.55, 0.7, 0.86), (30, 65), 700, 0.0, 0.0),
    (0.30, (0.15, 0.15, 0.15), (0.8, 0.83, 0.88), (0.5, 0.55, 0.62), (0.8, 0.82, 0.85), (40, 70), 350, 0.05, 0.0),
    (0.20, (2.2, 1.35, 0.65), (0.34, 0.36, 0.46), (0.16, 0.28, 0.55), (0.95, 0.72, 0.46), (14, 28), 450, 0.06, 0.0),
    (0.14, (0.03, 0.02, 0.02), (0.13, 0.15, 0.22), (0.02, 0.04, 0.13), (0.36, 0.2, 0.17), (5, 15), 500, 0.42, 1.0),
)


def random_light(rng: np.random.Generator) -> Light:
    """Day, overcast, low sun or dusk."""
    sky = _SKIES[rng.choice(len(_SKIES), p=[s[0] for s in _SKIES])]
    elevation, azimuth = np.radians(rng.uniform(*sky[5])), rng.uniform(0, 2 * np.pi)
    to_sun = f32((np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)))
    exposure = rng.uniform(0.7, 1.15)
    sun, ambient, zenith, horizon = (f32(c) * np.float32(exposure) for c in sky[1:5])
    saturation = float(rng.choice([1.0, 0.75, 0.3], p=[0.6, 0.28, 0.12]))
    haze_m = sky[6] * rng.uniform(0.5, 1.5)
    return Light(sun, ambient, zenith, horizon, to_sun, haze_m, rng.uniform(0, 1), sky[7], sky[8], saturation)


@dataclass(frozen=True)
class Paving:
    """How the ground looks. `lines`: strength of centre line and edge lines, z of the zebra crossing (m)."""

    road_rgb: Rgb
    walk_rgb: Rgb
    grass_rgb: Rgb
    cobbles: float
    lines: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """All that a ray can meet. `balls`, of leaves, is float32 [N, 4], centre and radius in metres.

    `kerb_m` and `grass_m` are distances from the road's centre line, on the left and on the right.
    """

    ground: Ground
    light: Light
    solids: tuple[Solid, ...]
    balls: F32
    leaf_rgb: F32  # [N, 3], linear
    paving: Paving
    kerb_m: tuple[float, float]
    grass_m: tuple[float, float]
    noise: F32  # [NOISE_PX, NOISE_PX], mean 0, deviation 1, periodic


class RoadPlacement(NamedTuple):
    """Where a foreground stands: its rectangle in pixels, whose lowest row ends at row `bottom`, and its depth."""

    left: int
    bottom: int
    width: int
    height: int
    depth_m: float


def place_on_road(ground: Ground, width_m: float, height_m: float, rng: random.Random) -> RoadPlacement:
    """A random place for a foreground on the road, wholly in the picture; its depth follows from its size in pixels.

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
        z_m = ground.z_at_depth(x_m, depth_m)
        column, row, _ = camera.project(np.array([ground.world_point(x_m, z_m)]))[0]
        left, bottom = round(column - width / 2), round(row)
        if z_m <= ground.reach_m and height <= bottom <= SIZE_PX and 0 <= left <= SIZE_PX - width:
            return RoadPlacement(left, bottom, width, height, depth_m)
    raise AssertionError("the road is out of view; build_scene bounds pitch, yaw and curves so that it is not")
