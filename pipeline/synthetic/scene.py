"""What stands in a synthetic street: camera, light, boxes and leaf balls, drawn from (seed, street id).

World axes in metres: x to the right, y up, z along the street; the camera stands at (x_m, height_m, 0) and the road
is the plane y = 0. A ray has length 1 along the camera's axis, so the distance found along it *is* the z-depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[Any]  # float32 throughout; numpy's stubs would take float32 * float for float64
SIZE_PX = 224
PAVEMENT_M = 0.13
WALL, PAVEMENT, POST = 1, 2, 3  # kinds of boxes
TILE = 256  # noise tile, texels


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

    def ground_row_px(self, depth_m: float) -> float:
        """The row where the road is `depth_m` away: height = depth * (sin pitch + slope * cos pitch)."""
        slope = (self.height_m / depth_m - np.sin(self.pitch_rad)) / np.cos(self.pitch_rad)
        return float(SIZE_PX / 2 + self.focal_px * slope)

    def ground_column_px(self, x_m: float, depth_m: float) -> float:
        """The column where the road point at `x_m` across the street and `depth_m` away is seen."""
        (right, down, forward), row_px = self.axes(), self.ground_row_px(depth_m)
        reach = forward[0] + (row_px - SIZE_PX / 2) / self.focal_px * down[0]
        return float(SIZE_PX / 2 + self.focal_px * ((x_m - self.x_m) / depth_m - reach) / right[0])


@dataclass(frozen=True)
class Box:
    """An upright box on the ground. Colours are linear RGB; window sizes are fractions of a bay and of a storey."""

    x_m: tuple[float, float]
    z_m: tuple[float, float]
    height_m: float
    kind: int
    rgb: tuple[float, float, float]
    trim_rgb: tuple[float, float, float] = (0.5, 0.5, 0.5)
    bay_m: float = 3.0
    storey_m: float = 3.2
    window: tuple[float, float] = (0.5, 0.55)
    shop: float = 0.0


@dataclass(frozen=True)
class Light:
    """The weather: linear RGB of sun, ambient light and sky, the direction to the sun, and how far one sees."""

    sun_rgb: F32
    ambient_rgb: F32
    zenith_rgb: F32
    horizon_rgb: F32
    to_sun: F32
    haze_m: float
    clouds: float
    lit: float  # share of windows with a lamp on
    saturation: float


@dataclass(frozen=True)
class Plan:
    """What stands in a street. `balls` is float32 [N, 4]: leaf balls, centre and radius in metres."""

    camera: Camera
    light: Light
    boxes: tuple[Box, ...]
    balls: F32
    leaf_rgb: F32
    road_half_m: float
    road_rgb: F32
    cobbles: float
    lines: tuple[float, float, float]  # strength of centre line and edge lines, z of the zebra crossing (m)
    noise: F32  # [TILE, TILE], mean 0, deviation 1, periodic


# (weight, sun, ambient, zenith, horizon, sun elevation range in degrees, haze m, lit windows)
_SKIES = (
    (0.35, (2.1, 1.95, 1.7), (0.42, 0.5, 0.62), (0.1, 0.25, 0.62), (0.55, 0.7, 0.86), (35, 65), 600, 0.0),
    (0.3, (0.15, 0.15, 0.15), (0.8, 0.83, 0.88), (0.5, 0.55, 0.62), (0.8, 0.82, 0.85), (40, 70), 320, 0.06),
    (0.2, (2.2, 1.35, 0.65), (0.34, 0.36, 0.46), (0.16, 0.28, 0.55), (0.95, 0.72, 0.46), (14, 28), 350, 0.1),
    (0.15, (0.1, 0.07, 0.06), (0.2, 0.22, 0.32), (0.05, 0.08, 0.2), (0.45, 0.3, 0.28), (5, 15), 400, 0.4),
)
_WALLS = (  # display RGB families: brick, pastel plaster, stone, concrete
    ((0.55, 0.3, 0.24), (0.48, 0.27, 0.2), (0.62, 0.4, 0.3), (0.42, 0.28, 0.26)),
    ((0.9, 0.82, 0.62), (0.85, 0.66, 0.62), (0.66, 0.76, 0.84), (0.93, 0.92, 0.88), (0.72, 0.8, 0.66), (0.9, 0.7, 0.5)),
    ((0.76, 0.7, 0.6), (0.68, 0.64, 0.58), (0.8, 0.77, 0.7), (0.6, 0.56, 0.5)),
    ((0.5, 0.5, 0.52), (0.62, 0.62, 0.62), (0.4, 0.42, 0.45), (0.72, 0.73, 0.74)),
)


def vec(values: Sequence[Any] | NDArray[Any]) -> F32:
    """Anything that numpy takes, as float32."""
    return np.asarray(values, np.float32)


def _rgb(rng: np.random.Generator, display: tuple[float, ...], spread: float) -> tuple[float, float, float]:
    """A linear colour (display squared) near a display colour."""
    r, g, b = np.clip(np.asarray(display) * rng.uniform(0.85, 1.12) + rng.normal(0, spread, 3), 0.04, 0.97) ** 2
    return float(r), float(g), float(b)


def _light(rng: np.random.Generator) -> Light:
    sky = _SKIES[rng.choice(len(_SKIES), p=[s[0] for s in _SKIES])]
    up, around = np.radians(rng.uniform(*sky[5])), rng.uniform(0, 2 * np.pi)
    to_sun = vec((np.cos(up) * np.sin(around), np.sin(up), np.cos(up) * np.cos(around)))
    exposure = rng.uniform(0.7, 1.15)
    sun, ambient, zenith, horizon = (vec(c) * np.float32(exposure) for c in sky[1:5])
    saturation = float(rng.choice([1.0, 0.75, 0.3], p=[0.6, 0.28, 0.12]))
    haze_m = sky[6] * rng.uniform(0.5, 1.5)
    return Light(sun, ambient, zenith, horizon, to_sun, haze_m, rng.uniform(0, 1), sky[7], saturation)


def _row(rng: np.random.Generator, side: int, front_m: float, end_m: float, storeys: float) -> list[Box]:
    """One row of buildings along the street; `front_m` is the distance of its line from the road's middle."""
    boxes, z = [], float(rng.uniform(-12, -4))
    family = _WALLS[rng.integers(len(_WALLS))]
    while z < end_m:
        width = float(rng.uniform(6, 16))
        near = front_m + float(rng.choice([0.0, rng.uniform(0, 1.2), rng.uniform(1, 4)], p=[0.6, 0.25, 0.15]))
        x = (near, near + 12.0) if side > 0 else (-near - 12.0, -near)
        storey = float(rng.uniform(2.9, 3.7))
        height = storey * max(1.0, round(storeys * rng.uniform(0.6, 1.45))) + float(rng.uniform(0.5, 1.3))
        bay = width / max(1, round(width / rng.uniform(2.0, 3.6)))
        window = (float(rng.uniform(0.36, 0.7)), float(rng.uniform(0.45, 0.66)))
        rgb = _rgb(rng, family[rng.integers(len(family))], 0.03)
        trim = _rgb(rng, (0.85, 0.84, 0.8) if rng.random() < 0.6 else (0.3, 0.3, 0.3), 0.03)
        boxes.append(Box(x, (z, z + width), height, WALL, rgb, trim, bay, storey, window, float(rng.random())))
        z += width + (float(rng.uniform(1.5, 5)) if rng.random() < 0.15 else 0.0)
    return boxes


def _planting(rng: np.random.Generator, road_half_m: float, walk_m: float) -> tuple[list[Box], list[list[float]]]:
    """Trees (trunk and leaf balls) or lamp posts at the pavements' edge; nothing hangs lower than 3 m over the road."""
    boxes: list[Box] = []
    balls: list[list[float]] = []
    for side in (-1, 1):
        trees, z, step = rng.random() < 0.5, rng.uniform(6, 16), rng.uniform(7, 18)
        while z < 75:
            x = side * (road_half_m + min(0.7, walk_m / 3))
            half = 0.16 if trees else 0.06
            top = rng.uniform(3.6, 4.6) if trees else 5.5
            rgb = _rgb(rng, (0.3, 0.25, 0.2) if trees else (0.25, 0.26, 0.27), 0.02)
            boxes.append(Box((x - half, x + half), (z - half, z + half), top, POST, rgb))
            crown = rng.uniform(1.2, 1.9)
            for _ in range(6 if trees else 0):
                r = crown * rng.uniform(0.55, 0.85)
                off = np.clip(rng.normal(0, 0.42, 3), -0.7, 0.7) * crown
                balls.append([x + off[0], max(top + 0.9 * crown + off[1], 3.0 + r), z + off[2], r])
            z += step * rng.uniform(0.8, 1.25)
    return boxes, balls


def _noise(rng: np.random.Generator) -> F32:
    """A periodic tile whose amplitude falls with frequency (1/f), as weathered surfaces have it."""
    f = np.fft.fftfreq(TILE)[:, None] ** 2 + np.fft.rfftfreq(TILE)[None, :] ** 2
    f[0, 0] = np.inf
    tile = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(TILE, TILE))) / np.sqrt(f))
    return vec(tile / tile.std())


def texture(noise: F32, u: F32, v: F32) -> F32:
    """The noise tile at texel coordinates (nearest texel; the supersampled rays smooth it)."""
    texels: F32 = noise[v.astype(np.int32) & (TILE - 1), u.astype(np.int32) & (TILE - 1)]
    return texels


def plan_street(seed: int, street: int) -> Plan:
    """Decide everything about street number `street` of `seed`, without rendering it."""
    rng = np.random.default_rng((seed, 1, street))
    half, walk, end = float(rng.uniform(3.4, 5.8)), float(rng.uniform(1.6, 4.0)), float(rng.uniform(55, 170))
    camera = Camera(
        focal_px=float(SIZE_PX / 2 / np.tan(np.radians(rng.uniform(46, 72)) / 2)),
        height_m=float(rng.uniform(1.35, 2.4)),
        pitch_rad=float(np.radians(rng.uniform(-3, 9))),
        yaw_rad=float(np.radians(np.clip(rng.normal(0, 4), -9, 9))),
        x_m=half * float(rng.uniform(-0.5, 0.5)),
    )
    storeys = float(rng.choice([rng.uniform(1.6, 3), rng.uniform(3, 5.5), rng.uniform(6, 12)], p=[0.35, 0.45, 0.2]))
    boxes = [
        Box((half, 90.0), (-5.0, 2000.0), PAVEMENT_M, PAVEMENT, _rgb(rng, (0.6, 0.59, 0.57), 0.02)),
        Box((-90.0, -half), (-5.0, 2000.0), PAVEMENT_M, PAVEMENT, _rgb(rng, (0.6, 0.59, 0.57), 0.02)),
    ]
    for side in (-1, 1):
        boxes += _row(rng, side, half + walk, end, storeys)
    if rng.random() < 0.6:  # the street ends at a building across
        across = _row(rng, 1, 0.0, 1.0, storeys)[0]
        boxes.append(Box((-14.0, 14.0), (end + 8, end + 20), across.height_m, WALL, across.rgb, across.trim_rgb))
    posts, balls = _planting(rng, half, walk) if rng.random() < 0.75 else ([], [])
    road = _rgb(rng, (0.42, 0.42, 0.43), 0.012)
    lines = (
        float(rng.random() < 0.6),
        float(rng.random() < 0.4),
        float(rng.uniform(7, 22)) if rng.random() < 0.25 else -99.0,
    )
    leaf = vec(_rgb(rng, (0.36, 0.46, 0.2) if rng.random() < 0.75 else (0.62, 0.46, 0.18), 0.04))
    cobbles = float(rng.random() < 0.25)
    ball_array = vec(np.asarray(balls, np.float64).reshape(-1, 4))
    return Plan(camera, _light(rng), (*boxes, *posts), ball_array, leaf, half, vec(road), cobbles, lines, _noise(rng))
