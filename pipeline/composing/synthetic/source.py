"""Synthetic streets and foregrounds as a source of pictures, with exact depth: each follows from (seed, number) alone.

A street's `Scene` is drawn at random and ray-cast; a foreground is drawn as polygons. Depth pictures hold *disparity at
a fixed scale*: value = round(255 * NEAR_M / depth_m), at most 255; sky is 0. So near is bright, and depth_m =
255 * NEAR_M / value in every set alike. A foreground is a plane at the depth of its foot.
"""

import functools
import json
import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.composing.stage import Backdrop, Cutout, Place, Stage
from pipeline.composing.synthetic.people import (
    draw_barrier,
    draw_bicycle,
    draw_cart,
    draw_cones,
    draw_motorbike,
    draw_people,
)
from pipeline.composing.synthetic.raycast import FIRST_FACE, cast_rays, make_noise_tile
from pipeline.composing.synthetic.roadside import LANE_M, Furniture, Vegetation, house_across, parked_row, row_of_houses
from pipeline.composing.synthetic.scene import (
    F32,
    SIZE_PX,
    TOP_M,
    Camera,
    Curve,
    Ground,
    Light,
    Paving,
    Scene,
    Solid,
    f32,
    place_on_road,
    random_light,
    vary_colour,
)
from pipeline.composing.synthetic.surfaces import shade
from pipeline.composing.synthetic.vehicles import draw_bus, draw_car, draw_truck

NEAR_M = 3.0  # what is this near or nearer is white
SUPERSAMPLE = 2  # colour rays a pixel, along each axis; depth has one ray, through the pixel's centre
KINDS = {  # what is drawn as a foreground, and how often
    draw_car: 0.6,
    draw_people: 0.1,
    draw_bicycle: 0.06,
    draw_motorbike: 0.06,
    draw_truck: 0.05,
    draw_bus: 0.04,
    draw_cart: 0.03,
    draw_barrier: 0.03,
    draw_cones: 0.03,
}


@dataclass(frozen=True)
class Synthetic:
    """Rendered streets and drawn foregrounds (a `stage.Source`); all follows from these numbers."""

    seed: int
    streets: int
    objects: int

    @property
    def size(self) -> int:
        """Height and width of the sets, pixels: pictures are drawn at one size."""
        return SIZE_PX

    @property
    def has_depth(self) -> bool:
        """Always, and exact."""
        return True

    @property
    def backgrounds(self) -> tuple[str, ...]:
        """Streets have no names."""
        return ("",) * self.streets

    @property
    def foregrounds(self) -> tuple[str, ...]:
        """Nor have foregrounds."""
        return ("",) * self.objects

    def background(self, number: int) -> Backdrop:
        """Render a street; its metadata is its ground."""
        street = render_street(self.seed, number)
        return Backdrop(street.rgb, disparity(street.depth_m), street.ground.to_json())

    def foreground(self, number: int) -> Cutout:
        """Draw a foreground; its metadata is its size in metres."""
        drawn = draw_foreground(self.seed, number)
        return Cutout(drawn.rgba, json.dumps([drawn.width_m, drawn.height_m]))

    def place(self, stage: Stage, bg: int, fg: int, rng: random.Random) -> Place:
        """A random place on the road, with the size that the distance gives, in the street's light."""
        ground_json, size_json = stage.metadata(bg, fg)
        ground, (width_m, height_m) = _read_ground(ground_json), json.loads(size_json)
        left, bottom, width, height, depth_m = place_on_road(ground, width_m, height_m, rng)
        level = int(disparity(np.array([depth_m], np.float32))[0])
        return Place(left, bottom - height, width, height, level, ground.light_rgb)


@functools.lru_cache(maxsize=4096)
def _read_ground(text: str) -> Ground:
    return Ground.from_json(text)


def disparity(depth_m: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Depth in metres (inf: sky) to uint8, near bright, at the fixed scale of this module."""
    levels: NDArray[np.float32] = 255 * np.float32(NEAR_M) / depth_m + np.float32(0.5)
    return np.minimum(levels, 255).astype(np.uint8)


@dataclass(frozen=True)
class Street:
    """A rendered street: uint8 RGB [H, W, 3], float32 z-depth in metres [H, W] (sky: inf), and its road."""

    rgb: NDArray[np.uint8]
    depth_m: F32
    ground: Ground


def render_street(seed: int, street: int) -> Street:
    """Street number `street` of `seed`: the same picture whenever and wherever it is rendered."""
    scene = build_scene(seed, street)
    depth_m, surface = cast_rays(scene, 1)
    fine = _tone_map(scene, shade(scene, *cast_rays(scene, SUPERSAMPLE), SUPERSAMPLE))
    n = SUPERSAMPLE
    total = sum((fine[:, i::n, j::n] for i in range(n) for j in range(n)), np.zeros((3, SIZE_PX, SIZE_PX), np.float32))
    rgb = np.ascontiguousarray((total * np.float32(255 / n**2) + 0.5).astype(np.uint8).transpose(1, 2, 0))
    ground = replace(scene.ground, reach_m=clear_reach_m(scene.ground, depth_m, surface))
    return Street(rgb, depth_m, ground)


def _tone_map(scene: Scene, linear: F32) -> F32:
    """Linear to display RGB in 0..1: saturation, a soft shoulder for highlights, gamma 2."""
    gray = (linear[0] + linear[1] + linear[2]) / 3
    linear = np.maximum(gray + (linear - gray) * np.float32(scene.light.saturation), 0)
    return np.minimum(np.sqrt(linear / np.sqrt(1 + np.float32(0.35) * linear * linear)), 1)


def clear_reach_m(ground: Ground, depth_m: F32, surface: NDArray[np.int16]) -> float:
    """The z up to which nothing is before the road, or before anything up to `TOP_M` above it.

    `depth_m` and `surface` [H, W] are what `cast_rays` found. Of the ground only a crest counts, by its shape: seen at
    a flat angle, one pixel of road is many metres long.
    """
    z = np.geomspace(3, 150, 60)
    x = np.linspace(-ground.road_half_m + 0.05, ground.road_half_m - 0.05, 61)
    grid_z, grid_x, grid_y = (axis.ravel() for axis in np.meshgrid(z, x, np.linspace(0, TOP_M, 9), indexing="ij"))
    points = np.stack([grid_x + ground.centre_x(grid_z), grid_y + ground.elevation(grid_z), grid_z], 1)
    column, row, depth = ground.camera.project(points).T
    inside = (depth > 0) & (column >= 0) & (column < SIZE_PX) & (row >= 0) & (row < SIZE_PX)
    pixel = np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int)
    occluded = inside & (surface[pixel] >= FIRST_FACE) & (depth_m[pixel] < 0.98 * depth)
    eye_m = ground.camera.height_m
    beyond_crest = ground.elevation.intersect(eye_m, f32((ground.elevation(z) - eye_m) / z)) < 0.97 * z
    hidden = occluded.reshape(len(z), -1).any(1) | beyond_crest
    return float(z[np.argmax(hidden)] / 1.08) if hidden.any() else float(z[-1])


@dataclass(frozen=True)
class Foreground:
    """A drawn foreground: straight-alpha uint8 RGBA [H, W, 4] and the metres that H and W measure where it stands.

    The picture's last opaque row is where it touches the ground nearest to us.
    """

    rgba: NDArray[np.uint8]
    width_m: float
    height_m: float


def draw_foreground(seed: int, foreground: int) -> Foreground:
    """Foreground number `foreground` of `seed`: the same picture whenever and wherever it is drawn."""
    rng = np.random.default_rng((seed, 2, foreground))
    draw = list(KINDS)[rng.choice(len(KINDS), p=list(KINDS.values()))]
    sun = np.array([rng.uniform(-0.7, 0.7), rng.uniform(0.5, 0.9), -0.6])
    rgba, metres_px = draw(rng, sun / np.sqrt((sun**2).sum()))
    rgba = _weather(rgba, rng)
    return Foreground(rgba, rgba.shape[1] * metres_px, rgba.shape[0] * metres_px)


def _weather(rgba: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Make flat colours uneven: blotches, grain, and less light near the ground."""
    height, width, _ = rgba.shape
    blotches = Image.fromarray(rng.normal(size=(7, 7)).astype(np.float32))
    blotch = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC))
    altitude = (height - np.arange(height, dtype=np.float32)[:, None]) / (0.4 * height)
    light = 0.76 + 0.24 * np.minimum(altitude, 1) + 0.045 * blotch
    light = light + rng.normal(0, 0.018, (height, width)).astype(np.float32)
    weathered = rgba.copy()
    weathered[..., :3] = np.minimum(rgba[..., :3] * light[..., None], 255)
    return weathered


def build_scene(seed: int, street: int) -> Scene:
    """Decide everything about street number `street` of `seed`, without rendering it."""
    rng = np.random.default_rng((seed, 1, street))
    half_m, end_m = float(rng.uniform(3.4, 5.4)), float(rng.uniform(55, 150))
    light = random_light(rng)
    camera = _random_camera(rng, half_m)
    ground = Ground(camera, half_m, _random_bend(rng), _random_hill(rng), np.inf, light.white_rgb)
    storeys = float(rng.choice([rng.uniform(1.6, 3), rng.uniform(3, 5.5), rng.uniform(6, 12)], p=[0.4, 0.45, 0.15]))
    vegetation, furniture = Vegetation(rng, ground), Furniture(rng, ground)
    left, right = (_build_side(rng, light, vegetation, furniture, side, end_m, storeys) for side in (-1, 1))
    solids = [*left.solids, *right.solids]
    if not (left.is_open or right.is_open) and rng.random() < 0.5:  # the street ends at a building across
        solids.append(house_across(rng, ground, end_m + 14, storeys))
    return Scene(
        ground=ground,
        light=light,
        solids=(*solids, *furniture.solids, *vegetation.trunks),
        balls=f32(np.asarray(vegetation.balls, np.float64).reshape(-1, 4)),
        leaf_rgb=f32(np.asarray(vegetation.leaf_rgb, np.float64).reshape(-1, 3)),
        paving=_random_paving(rng),
        kerb_m=(left.kerb_m, right.kerb_m),
        grass_m=(left.grass_m, right.grass_m),
        noise=make_noise_tile(rng),
    )


class _Side(NamedTuple):
    """One side of a street: houses and parked vehicles, where the kerb is and where grass begins."""

    solids: list[Solid]
    is_open: bool
    kerb_m: float
    grass_m: float


def _build_side(
    rng: np.random.Generator,
    light: Light,
    vegetation: Vegetation,
    furniture: Furniture,
    side: int,
    end_m: float,
    storeys: float,
) -> _Side:
    """Build and furnish one side; trees go to `vegetation`, the rest of what stands on the pavement to `furniture`."""
    ground = furniture.ground
    walk_m, parking = float(rng.uniform(1.6, 4.0)), rng.random() < 0.45
    kerb_m = ground.road_half_m + (LANE_M if parking else 0.0)
    front_m = kerb_m + walk_m
    open_share = 0.3 if storeys < 5 else 0.08
    use = str(rng.choice(["houses", "detached", "open"], p=[0.75 - open_share, 0.25, open_share]))
    solids: list[Solid] = []
    if use == "open":
        vegetation.park(side, front_m)
    elif use == "detached":
        solids += row_of_houses(rng, ground, side, front_m + 0.1, end_m, min(storeys, 2.4), detached=True)
    else:
        solids += row_of_houses(rng, ground, side, front_m + 0.1, end_m, storeys, detached=False)
    if use != "houses":
        _build_border(rng, furniture, vegetation, side, front_m)
    if parking:
        solids += parked_row(rng, ground, side, min(end_m, 60))
    has_trees = rng.random() < (0.5 if use == "houses" else 0.35)
    if has_trees:
        vegetation.row(side, kerb_m + min(0.7, walk_m / 3), 70)
    if light.lamps > 0 or (not has_trees and rng.random() < 0.75):
        furniture.lamps(side, kerb_m + 0.45, 65)
    if rng.random() < 0.2:
        furniture.bollards(side, kerb_m + 0.3)
    furniture.scatter(side, kerb_m, walk_m, [trunk.z_m for trunk in vegetation.trunks])
    return _Side(solids, use == "open", kerb_m, front_m if use == "open" else 500.0)


def _build_border(
    rng: np.random.Generator, furniture: Furniture, vegetation: Vegetation, side: int, x_m: float
) -> None:
    """What divides gardens or a park from the pavement: a hedge, a fence, a low wall, or nothing."""
    kind = str(rng.choice(["hedge", "fence", "wall", "none"]))
    start_m, end_m = float(rng.uniform(1, 12)), float(rng.uniform(30, 70))
    if kind == "hedge":
        z = start_m
        while z < end_m:
            furniture.solids.append(vegetation.hedge(side * (x_m + 0.5), z, 2.1))
            z += 4.0 if rng.random() < 0.9 else 7.0
    elif kind == "fence":
        planks = vary_colour(rng, ((0.9, 0.9, 0.88), (0.5, 0.4, 0.3), (0.3, 0.32, 0.3))[rng.integers(3)], 0.03)
        furniture.fence(side, x_m + 0.2, (start_m, end_m), planks, float(rng.uniform(0.9, 1.5)), posts=True)
    elif kind == "wall":
        brick = vary_colour(rng, ((0.52, 0.32, 0.26), (0.68, 0.66, 0.62))[rng.integers(2)], 0.03)
        furniture.fence(side, x_m + 0.2, (start_m, end_m), brick, float(rng.uniform(0.5, 1.2)), posts=False)


def _random_camera(rng: np.random.Generator, half_m: float) -> Camera:
    """A camera on the road, about as high as a driver's eyes, looking along it."""
    return Camera(
        focal_px=float(SIZE_PX / 2 / np.tan(np.radians(rng.uniform(46, 72)) / 2)),
        height_m=float(rng.uniform(1.35, 2.4)),
        pitch_rad=float(np.radians(rng.uniform(-3, 9))),
        yaw_rad=float(np.radians(np.clip(rng.normal(0, 4), -9, 9))),
        x_m=half_m * float(rng.uniform(-0.5, 0.5)),
    )


def _random_bend(rng: np.random.Generator) -> Curve:
    """A road that turns aside by up to 30 degrees, or not at all."""
    if rng.random() < 0.55:
        return Curve()
    radius, turn, start = rng.uniform(45, 160), rng.uniform(0.12, 0.55), rng.uniform(3, 22)
    sign = float(rng.choice([-1.0, 1.0]))
    return Curve(sign / (2 * float(radius)), float(start), float(start + turn * radius))


def _random_hill(rng: np.random.Generator) -> Curve:
    """A road that goes on level, climbs or falls by up to 10 %."""
    if rng.random() < 0.5:
        return Curve()
    grade, start, length = rng.uniform(0.02, 0.1), rng.uniform(5, 22), rng.uniform(20, 60)
    sign = float(rng.choice([-1.0, 1.0], p=[0.4, 0.6]))
    return Curve(sign * float(grade / (2 * length)), float(start), float(start + length))


def _random_paving(rng: np.random.Generator) -> Paving:
    lines = (
        float(rng.random() < 0.6),
        float(rng.random() < 0.4),
        float(rng.uniform(7, 22)) if rng.random() < 0.25 else -99.0,
    )
    grass = (0.36, 0.44, 0.2) if rng.random() < 0.7 else (0.5, 0.46, 0.27)
    road = vary_colour(rng, (0.42, 0.42, 0.43), 0.012)
    walk, lawn = vary_colour(rng, (0.6, 0.59, 0.57), 0.02), vary_colour(rng, grass, 0.03)
    return Paving(road, walk, lawn, float(rng.random() < 0.2), lines)
