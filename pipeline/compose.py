"""Image sets: a car standing on a street, as overlay, mask and depth, written as loose files.

Depth pictures hold *disparity at a fixed scale*: value = round(255 * NEAR_M / depth_m), at most 255; sky is 0. So near
is bright, and depth_m = 255 * NEAR_M / value in every set alike. The car is a plane at the depth of its nearest wheel.
Where its soft edge covers a pixel by half or more (alpha >= SOLID) the pixel's depth is the car's, elsewhere the
street's: two depths must not be blended, for nothing stands between them.
"""

import functools
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.files import whole_folder
from pipeline.synthetic.car import Car, draw_car
from pipeline.synthetic.scene import SIZE_PX
from pipeline.synthetic.street import Street, render_street
from pipeline.workers import Workers

U8 = NDArray[np.uint8]
NEAR_M = 3.0  # what is this near or nearer is white
SOLID = 128
SETS_PER_JOB = 256
LONG_SIDE_PX = (32.0, 140.0)  # a placed car's longer side


@dataclass(frozen=True)
class Recipe:
    """What to make; every file's bytes are a function of these fields and of the ids in its name."""

    sets: int
    seed: int
    streets: int
    cars: int
    quality: int = 90


@dataclass(frozen=True)
class Place:
    """Where a car stands: its rectangle in pixels (`bottom` is where its wheels meet the road) and its depth."""

    left: int
    bottom: int
    width: int
    height: int
    depth_m: float
    mirrored: bool


@dataclass(frozen=True)
class Job:
    """A piece of work: pictures of cars, or a street with some of its sets. The first of these also writes `bg`."""

    recipe: Recipe
    folder: Path
    cars: range = range(0)
    street: int = -1
    sets: range = range(0)


def default_variety(sets: int) -> int:
    """How many streets, and how many cars, suit `sets` sets: 2 sqrt(sets), 10 to 1000, never more than `sets`."""
    return min(sets, max(10, min(1000, round(2 * math.sqrt(sets)))))


def disparity(depth_m: NDArray[np.float32]) -> U8:
    """Depth in metres (inf: sky) to uint8, near bright, at the fixed scale of this module."""
    levels: NDArray[np.float32] = 255 * np.float32(NEAR_M) / depth_m + np.float32(0.5)
    return np.minimum(levels, 255).astype(np.uint8)


def blend(under: U8, over: U8, alpha: U8) -> U8:
    """`over` [H, W, 3] on `under` [H, W, 3] by straight `alpha` [H, W], rounded to the nearest level (halves go up)."""
    a = alpha[..., None].astype(np.uint16)
    # At most 255 * 255 + 127, which fits 16 bits.
    levels: NDArray[np.uint16] = (a * over + (255 - a) * under + 127) // 255
    return levels.astype(np.uint8)


def place(street: Street, car: Car, rng: np.random.Generator, mirrored: bool) -> Place:
    """Stand a car somewhere on the road, wholly in the picture; its depth follows from its size in pixels."""
    camera = street.camera
    room_m = max(0.0, street.road_half_m - car.width_m / 2)
    for attempt in range(200):
        low, high = LONG_SIDE_PX
        # After 100 misses (a steep look at a narrow road) small cars far away always fit.
        long_px = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if attempt < 100 else rng.uniform(8, low)
        x_m = rng.uniform(-room_m, room_m)
        height = max(2, round(long_px * car.height_m / max(car.width_m, car.height_m)))
        width = max(2, round(height * car.width_m / car.height_m))
        depth_m = camera.focal_px * car.height_m / height
        bottom = round(camera.ground_row_px(depth_m))
        left = round(camera.ground_column_px(x_m, depth_m) - width / 2)
        if height <= bottom <= SIZE_PX and 0 <= left <= SIZE_PX - width:
            return Place(left, bottom, width, height, depth_m, mirrored)
    raise AssertionError("the road is out of view; plan_street bounds the camera's pitch and yaw so that it is not")


def compose(street: Street, car: Car, at: Place) -> tuple[U8, U8, U8]:
    """Overlay RGB [H, W, 3], mask [H, W] (the car's alpha) and depth picture [H, W], all uint8.

    The car's colours are multiplied by the street's light, so that a white car is as bright as its surroundings allow.
    """
    picture = Image.fromarray(car.rgba)
    if at.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # Pillow premultiplies RGBA while it resizes: no dark or bright fringe.
    small = np.asarray(picture.resize((at.width, at.height), Image.Resampling.HAMMING))
    colour = np.minimum(small[..., :3] * street.light_rgb + 0.5, 255).astype(np.uint8)
    window = (slice(at.bottom - at.height, at.bottom), slice(at.left, at.left + at.width))
    overlay, depth = street.rgb.copy(), disparity(street.depth_m)
    overlay[window] = blend(overlay[window], colour, small[..., 3])
    mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    mask[window] = small[..., 3]
    depth[mask >= SOLID] = disparity(np.array([at.depth_m], np.float32))[0]
    return overlay, mask, depth


def pair(recipe: Recipe, number: int) -> tuple[int, int, bool]:
    """(street, car, mirrored) of set `number`.

    Streets own consecutive sets; cars are dealt like a pack shuffled anew after each round, so each gets as many sets
    as any other, give or take one, and its number says nothing about the street's. Odd sets are mirrored.
    """
    deal, card = divmod(number, recipe.cars)
    order = np.random.default_rng((recipe.seed, 3, deal)).permutation(recipe.cars)
    return number * recipe.streets // recipe.sets, int(order[card]), number % 2 == 1


def sets_of_street(recipe: Recipe, street: int) -> range:
    """The numbers of the sets that `pair` gives to `street`."""
    first, last = (-(-b * recipe.sets // recipe.streets) for b in (street, street + 1))
    return range(first, last)


def make_set(recipe: Recipe, street: Street, number: int) -> tuple[U8, U8, U8]:
    """Overlay, mask and depth picture of set `number`, whose street is `street`."""
    _, car_id, mirrored = pair(recipe, number)
    car = _car(recipe.seed, car_id)
    rng = np.random.default_rng((recipe.seed, 4, number))
    return compose(street, car, place(street, car, rng, mirrored))


@functools.lru_cache(maxsize=1024)  # about 50 kB each
def _car(seed: int, car: int) -> Car:
    return draw_car(seed, car)


def _write_gray(path: Path, image: U8, quality: int) -> int:
    data = simplejpeg.encode_jpeg(image[..., None], quality, colorspace="GRAY", colorsubsampling="Gray")
    return path.write_bytes(data)


def _write_colour(path: Path, image: U8, quality: int) -> int:
    return path.write_bytes(simplejpeg.encode_jpeg(image, quality, colorspace="RGB", colorsubsampling="420"))


def _run(job: Job) -> tuple[int, int]:
    """Make a job's files; (bytes written, sets made)."""
    recipe, folder, written = job.recipe, job.folder, 0
    for c in job.cars:
        buffer = io.BytesIO()
        Image.fromarray(_car(recipe.seed, c).rgba).save(buffer, "PNG")
        written += (folder / "fg" / f"fg_{c:03}.png").write_bytes(buffer.getvalue())
    if job.street < 0:
        return written, 0
    b = job.street
    street = render_street(recipe.seed, b)
    if job.sets.start == sets_of_street(recipe, b).start:
        written += _write_colour(folder / "bg" / f"bg_{b:03}.jpg", street.rgb, recipe.quality)
    overlays, masks = folder / "fg_bg" / f"bg_{b:03}", folder / "fg_bg_mask" / f"bg_{b:03}"
    for made in (overlays, masks) if job.sets else ():
        made.mkdir(parents=True, exist_ok=True)
    for i in job.sets:
        overlay, mask, depth = make_set(recipe, street, i)
        stem = f"fg_{pair(recipe, i)[1]:03}_bg_{b:03}"
        written += _write_colour(overlays / f"{stem}_{i:06}.jpg", overlay, recipe.quality)
        written += _write_gray(overlays / f"{stem}_{i:06}_disp.jpeg", depth, recipe.quality)
        written += _write_gray(masks / f"{stem}_mask_{i:06}.jpg", mask, recipe.quality)
    return written, len(job.sets)


def _jobs(recipe: Recipe, folder: Path) -> Iterator[Job]:
    for c in range(0, recipe.cars, 16):
        yield Job(recipe, folder, cars=range(c, min(c + 16, recipe.cars)))
    for b in range(recipe.streets):
        mine = sets_of_street(recipe, b)
        for first in range(mine.start, max(mine.stop, mine.start + 1), SETS_PER_JOB):
            yield Job(recipe, folder, street=b, sets=range(first, min(first + SETS_PER_JOB, mine.stop)))


def write_sets(out: Path, recipe: Recipe, workers: int, progress: Callable[[int], None]) -> int:
    """Write all sets of `recipe` under `out`, which appears only when it is complete; returns the bytes written.

    `progress` is called with the number of sets newly made. Raises `InputError` if `out` is neither new nor an empty
    folder, `OSError` if it cannot be written.
    """
    with whole_folder(out) as folder, Workers(workers) as pool:
        for name in ("bg", "fg", "fg_bg", "fg_bg_mask"):
            (folder / name).mkdir()
        written = 0
        for size, made in pool.map(_run, _jobs(recipe, folder)):
            written += size
            progress(made)
    return written
