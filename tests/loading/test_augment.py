import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import pipeline.loading.augment
from pipeline.errors import InputError
from pipeline.loading.augment import DRAWS, LIMITS, NOISE_STARTS, OFF, Augmentation, Augmenter, draw, mix, noise_fields
from pipeline.loading.batch import Batch
from pipeline.loading.sampler import _mix
from tests.samples import smooth_picture

PLANES = ("bg", "fg_bg", "mask", "depth")
EVERYTHING = Augmentation(crop=0.7, noise=10, shift=2)
MASK_64 = 2**64 - 1


def only(**on: float) -> Augmentation:
    return Augmentation(**(OFF | on))


RECIPES = {
    "everything": EVERYTHING,
    "mirror": only(mirror=0.5),
    "crop": only(crop=0.7),
    "brightness": only(brightness=0.3),
    "contrast": only(contrast=0.3),
    "noise": only(noise=10),
    "shift": only(shift=2),
    "all but crop": replace(EVERYTHING, crop=1),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_batch(sets: int = 37, height: int = 13, width: int = 21, first: int = 0) -> Batch:
    """Noise, of odd sides and number, so that no vector unit gets whole registers."""
    rng = np.random.default_rng(sets)
    bg, fg_bg, mask, depth = torch.from_numpy(rng.integers(0, 256, (4, sets, 1, height, width), dtype=np.uint8))
    return Batch(bg, fg_bg, mask, depth, torch.arange(first, first + sets))


def alike_batch(picture: NDArray[np.uint8], sets: int) -> Batch:
    """Sets whose four planes are all one picture, uint8 [H, W]."""
    plane = torch.from_numpy(picture)[None, None].repeat(sets, 1, 1, 1)
    return Batch(plane, plane.clone(), plane.clone(), plane.clone(), torch.arange(sets))


def take(batch: Batch, places: list[int]) -> Batch:
    return Batch(**{name: plane[places] for name, plane in batch.asdict().items()})


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in (*PLANES, "index"))


def augmented(batch: Batch, recipe: Augmentation, seed: int = 5, epoch: int = 3) -> Batch:
    return Augmenter(recipe, seed, "cpu")(batch, epoch)


# The same thing again, one pixel at a time, in exact integers and float64.


def slow_mix(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK_64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK_64
    return value ^ (value >> 31)


def slow_stream(text: str, number: int) -> int:
    """The output of a SplitMix64 before its `number`-th step from the key of a text."""
    start = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return slow_mix((start + number * 0x9E3779B97F4A7C15) & MASK_64)


def slow_draws(row: int, seed: int, epoch: int) -> list[float]:
    start = slow_stream(f"augment/{seed}/{epoch}", row)
    outputs = [slow_mix((start + step * 0x9E3779B97F4A7C15) & MASK_64) for step in range(1, DRAWS + 1)]
    return [(output >> 40) / 2**24 for output in outputs]


def slow_noise(field: int, place: int, seed: int) -> float:
    total = sum(slow_stream(f"noise/{seed}", 2 * place + field).to_bytes(8, "little"))
    return (total - 1020) / math.sqrt(8 * (256**2 - 1) / 12)


def slow_pixel(picture: NDArray[np.uint8], y: float, x: float) -> float:
    """Bilinear, pixel centres at whole numbers, the edge repeated."""
    height, width = picture.shape
    top, left = int(np.floor(y)), int(np.floor(x))
    value = 0.0
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, weight in ((left, left + 1 - x), (left + 1, x - left)):
            value += row_weight * weight * picture[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
    return value


def slow_augment(batch: Batch, place: int, by: Augmentation, seed: int, epoch: int) -> dict[str, NDArray[np.float64]]:
    """The planes of one set, float64 [H, W], not rounded."""
    mirror, side, left, top, right, down, *exposures = slow_draws(int(batch.index[place]), seed, epoch)
    height, width = batch.bg.shape[2:]
    kept = 1 - (1 - by.crop) * side
    crop_left, crop_top = width * (1 - kept) * left, height * (1 - kept) * top
    planes = {}
    for field, name in enumerate(PLANES):
        picture, result = getattr(batch, name)[place, 0].numpy(), np.empty((height, width))
        move_right, move_down = ((2 * far - 1) * by.shift if name == "bg" else 0 for far in (right, down))
        for row in range(height):
            for column in range(width):
                x, y = column + move_right + 0.5, row + move_down + 0.5
                x = width - x if mirror < by.mirror else x
                level = slow_pixel(picture, crop_top + kept * y - 0.5, crop_left + kept * x - 0.5)
                if name in ("bg", "fg_bg"):
                    bright, contrast, noise, start = exposures[4 * field : 4 * field + 4]
                    level = 127.5 + (1 + by.contrast * (2 * contrast - 1)) * (level - 127.5)
                    level *= 1 + by.brightness * (2 * bright - 1)
                    at = int(start * NOISE_STARTS) + row * width + column
                    level += by.noise * (2 * noise - 1) * slow_noise(field, at, seed) if by.noise else 0
                result[row, column] = min(max(level, 0), 255)
        planes[name] = result
    return planes


@each_recipe
def test_every_pixel_is_what_the_slow_reference_says(recipe: Augmentation) -> None:
    batch = random_batch(8, 9, 14, first=1000)
    result = augmented(batch, recipe)
    for place in range(8):
        for name, expected in slow_augment(batch, place, recipe, 5, 3).items():
            # Rounded, in float32: half a level, and a little for positions that are no exact fractions.
            assert np.abs(getattr(result, name)[place, 0].numpy() - expected).max() < 0.5 + 0.01


@each_recipe
def test_a_set_is_changed_alike_in_any_batch(
    recipe: Augmentation, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    batch = random_batch()
    expected = augmented(batch, recipe)
    backwards = list(reversed(range(37)))
    assert equal(take(augmented(take(batch, backwards), recipe), backwards), expected)
    augmenter = Augmenter(recipe, 5, "cpu")
    for place in range(37):
        assert equal(augmenter(take(batch, [place]), 3), take(expected, [place]))
    for count in (1, 3):
        torch.set_num_threads(count)
        assert equal(augmented(batch, recipe), expected)
    for chunk in (1, 5 * 13 * 21, 10**9):
        monkeypatch.setattr(pipeline.loading.augment, "CHUNK_PIXELS", chunk)
        assert equal(augmented(batch, recipe), expected)


@each_recipe
def test_the_result_is_new_and_looks_like_a_batch(recipe: Augmentation) -> None:
    batch = random_batch()
    before = batch.head(37)
    result = augmented(batch, recipe)
    assert equal(batch, before)
    assert result.index is batch.index
    for name in PLANES:
        plane, source = getattr(result, name), getattr(batch, name)
        assert (plane.dtype, plane.shape, plane.is_contiguous()) == (torch.uint8, source.shape, True)
        assert plane.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()
    without = augmented(replace(batch, depth=None), recipe)
    assert without.depth is None
    assert equal(replace(without, depth=result.depth), result)


def test_nothing_on_and_no_sets_give_the_batch_back() -> None:
    batch = random_batch()
    assert augmented(batch, only()) is batch
    empty = take(batch, [])
    assert augmented(empty, EVERYTHING) is empty


@each_recipe
def test_seed_epoch_and_row_each_tell_sets_apart(recipe: Augmentation) -> None:
    batch = random_batch()
    expected = augmented(batch, recipe)
    for other in (
        augmented(batch, recipe, seed=6),
        augmented(batch, recipe, epoch=4),
        replace(augmented(replace(batch, index=batch.index + 37), recipe), index=batch.index),
    ):
        assert not equal(other, expected)
    assert equal(augmented(batch, recipe, seed=-(2**70)), augmented(batch, recipe, seed=-(2**70)))


def test_mirroring_is_exact() -> None:
    batch = random_batch(400)
    flipped = augmented(batch, only(mirror=1))
    assert all(torch.equal(getattr(flipped, name), getattr(batch, name).flip(3)) for name in PLANES)
    result, mirrored = augmented(batch, only(mirror=0.25)), 0
    for place in range(400):
        one = take(result, [place])
        mirrored += equal(one, take(flipped, [place]))
        assert equal(one, take(flipped, [place])) != equal(one, take(batch, [place]))
    assert 75 < mirrored < 125  # 100 expected, standard deviation 9


def test_what_one_kind_of_change_draws_does_not_depend_on_the_others() -> None:
    batch = alike_batch(np.full((8, 8), 100, np.uint8), 50)
    alone = augmented(batch, only(brightness=0.3))
    assert equal(augmented(batch, only(brightness=0.3, crop=0.5, mirror=0.5, shift=3)), alone)


def test_geometry_is_the_same_for_all_planes() -> None:
    batch = alike_batch(smooth_picture(1, 1)[..., 0], 50)
    result = augmented(batch, only(mirror=0.5, crop=0.7))
    assert not torch.equal(result.bg, batch.bg)
    assert all(torch.equal(getattr(result, name), result.bg) for name in PLANES)
    shifted = augmented(batch, only(mirror=0.5, crop=0.7, shift=2))
    assert torch.equal(shifted.fg_bg, result.fg_bg)
    assert not torch.equal(shifted.bg, result.bg)
    exposed = augmented(batch, replace(EVERYTHING, shift=0))
    assert not torch.equal(exposed.fg_bg, exposed.bg)
    assert all(torch.equal(getattr(exposed, name), getattr(result, name)) for name in ("mask", "depth"))


def ramp(size: int) -> NDArray[np.uint8]:
    """Levels that rise by 4 a column."""
    return np.tile(np.arange(size, dtype=np.uint8) * 4, (size, 1))


def inner(plane: torch.Tensor) -> NDArray[np.float64]:
    """Pictures without a border of 8 pixels, float64 [N, H - 16, W - 16]."""
    return plane[:, 0, 8:-8, 8:-8].numpy().astype(np.float64)


def assert_fills(values: NDArray[np.float64], least: float, most: float, *, slack: float) -> None:
    """Values lie in a range, but for the rounding of levels, and are spread evenly over it."""
    assert least - slack <= values.min()
    assert values.max() <= most + slack
    shares = np.histogram(values, 4, (least, most))[0] / len(values)
    assert np.abs(shares - 0.25).max() < 0.08, shares


def test_ranges_are_kept_and_filled_and_independent() -> None:
    sets = 1000
    level = alike_batch(np.full((24, 24), 100, np.uint8), sets)
    bright = augmented(level, only(brightness=0.3))
    dark = augmented(level, only(contrast=0.4))
    columns = alike_batch(ramp(48), sets)
    rows = alike_batch(np.ascontiguousarray(ramp(48).T), sets)
    for name in ("bg", "fg_bg"):
        assert_fills(inner(getattr(bright, name))[:, 0, 0], 70, 130, slack=0.5)
        assert_fills(inner(getattr(dark, name))[:, 0, 0], 127.5 - 27.5 * 1.4, 127.5 - 27.5 * 0.6, slack=0.5)

    right = (inner(augmented(columns, only(shift=3)).bg) - inner(columns.bg)).mean(axis=(1, 2)) / 4
    down = (inner(augmented(rows, only(shift=3)).bg) - inner(rows.bg)).mean(axis=(1, 2)) / 4
    cropped_columns, cropped_rows = (inner(augmented(each, only(crop=0.5)).mask) for each in (columns, rows))
    kept = (cropped_columns[:, 0, -1] - cropped_columns[:, 0, 0]) / (4 * 31)
    kept_rows = (cropped_rows[:, -1, 0] - cropped_rows[:, 0, 0]) / (4 * 31)
    assert np.abs(kept - kept_rows).max() < 0.02
    assert_fills(right, -3, 3, slack=0.1)
    assert_fills(down, -3, 3, slack=0.1)
    assert_fills(kept, 0.5, 1, slack=0.02)
    # The middle of the crop, as a share of the room that it has.
    places = [
        (cropped[:, 15:17, 15:17].mean(axis=(1, 2)) / 4 - 23.5) / 24 for cropped in (cropped_columns, cropped_rows)
    ]
    left, top = (place[kept < 0.9] / (1 - kept[kept < 0.9]) for place in places)
    assert_fills(left, -1, 1, slack=0.1)
    assert_fills(top, -1, 1, slack=0.1)

    numbers = [inner(getattr(batch, name))[:, 0, 0] for batch in (bright, dark) for name in ("bg", "fg_bg")]
    correlations = np.corrcoef([*numbers, right, down, kept])
    assert np.abs(correlations - np.eye(7)).max() < 0.1  # standard deviation 0.03
    assert abs(np.corrcoef(left, top)[0, 1]) < 0.1


def test_noise_is_white_and_of_even_strength_and_independent() -> None:
    batch = alike_batch(np.full((32, 32), 128, np.uint8), 500)
    result = augmented(batch, only(noise=20))
    fields = [getattr(result, name)[:, 0].numpy() - 128.0 for name in ("bg", "fg_bg")]
    for noise in fields:
        deviation = noise.std(axis=(1, 2))
        assert_fills(deviation, 0, 20, slack=1.5)
        assert np.abs(noise.mean(axis=(1, 2)) / np.maximum(deviation, 1)).max() < 5 / 32  # standard deviation 1 / 32
        for axis in (1, 2):
            lagged = (noise * np.roll(noise, 1, axis)).mean(axis=(1, 2)) / np.maximum(deviation, 1) ** 2
            assert abs(lagged.mean()) < 0.01
    strong = (fields[0].std(axis=(1, 2)) > 2) & (fields[1].std(axis=(1, 2)) > 2)
    across = [
        np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(*(f[strong] for f in fields), strict=True)
    ]
    assert np.abs(across).max() < 5 / 32
    assert abs(np.mean(across)) < 0.01


def test_a_field_of_noise_is_nearly_normal() -> None:
    field = noise_fields(1, 100_000, torch.device("cpu"))
    assert torch.equal(noise_fields(1, 1000, torch.device("cpu")), field[:, :1000])  # whatever size pictures have
    values = field.double().numpy().ravel()
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values**3).mean()) < 0.03
    assert abs((values**4).mean() - 2.85) < 0.05
    assert 3.5 < np.abs(values).max() < 4.9


def test_mixing_is_that_of_the_order() -> None:
    values = np.random.default_rng(1).integers(0, 2**64, 1000, dtype=np.uint64)
    mixed = mix(torch.from_numpy(values.view(np.int64))).numpy().view(np.uint64)
    assert np.array_equal(mixed, _mix(values.copy()))
    assert [slow_mix(int(value)) for value in values] == mixed.tolist()


def test_draws_are_uniform_and_strangers() -> None:
    rows = 40_000
    draws = np.concatenate([draw(torch.arange(rows), 0, epoch).double().numpy() for epoch in (0, 1)])
    assert draws.min() >= 0
    assert draws.max() < 1
    for numbers in draws:
        counts = np.histogram(numbers, 64, (0, 1))[0]
        expected = rows / 64
        assert 20 < ((counts - expected) ** 2 / expected).sum() < 130  # chi square, 63 +- 11
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.025  # neighbours; standard deviation 0.005
    assert np.abs(np.corrcoef(draws) - np.eye(2 * DRAWS)).max() < 0.025


def test_draws_are_frozen() -> None:
    # Golden: a run resumed under a later version must see the pictures that it would have seen.
    drawn = draw(torch.tensor([0, 399_999]), 7, 2)[[0, DRAWS - 1]] * 2**24
    assert drawn.tolist() == [[13602377, 11167634], [11695378, 15194221]]


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [-0.01, float("nan"), float("inf"), 1e6])
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^augmentation: {name} is {value}, expected .* turns it off") as error:
        Augmentation(**{name: value})
    assert "\n" not in str(error.value)


def test_limits_themselves_are_allowed_and_work() -> None:
    batch = random_batch(5)
    for end in (0, 1):
        settings: dict[str, Any] = {name: limits[end] for name, limits in LIMITS.items()}
        assert augmented(batch, Augmentation(**settings)).bg.shape == batch.bg.shape


@pytest.mark.gpu
@each_recipe
def test_the_gpu_gives_the_same_without_waiting(recipe: Augmentation) -> None:
    batch = random_batch(300)
    on_gpu = Batch(**{name: plane.cuda() for name, plane in batch.asdict().items()})
    augmenter = Augmenter(recipe, 5, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = augmenter(on_gpu, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = augmented(batch, recipe)
    for name in PLANES:
        difference = getattr(result, name).cpu().int() - getattr(expected, name).int()
        assert difference.abs().max() <= 1
        assert (difference != 0).float().mean() < 0.01


def with_holes(batch: Batch) -> Batch:
    """The same with a hole of 3 x 4 pixels and single ones."""
    assert batch.depth is not None
    depth = batch.depth.clamp(min=1)
    depth[..., 2:5, 3:7] = 0
    depth[torch.rand(depth.shape, generator=torch.Generator().manual_seed(2)) < 0.05] = 0
    return replace(batch, depth=depth, depth_valid=depth > 0)


@each_recipe
def test_holes_move_with_the_depth_and_mix_into_nothing(recipe: Augmentation) -> None:
    batch = with_holes(random_batch())
    assert batch.depth is not None
    found = augmented(batch, recipe)
    assert found.depth is not None
    assert found.depth_valid is not None
    assert torch.equal(found.depth_valid, found.depth > 0)
    plain = augmented(random_batch(), recipe)
    assert all(torch.equal(getattr(found, name), getattr(plain, name)) for name in ("bg", "fg_bg", "mask"))
    flat = augmented(replace(batch, depth=batch.depth.clamp(max=1) * 200), recipe).depth
    assert flat is not None
    assert set(flat.flatten().tolist()) == {0, 200}
    # Resampled as the other planes are: a picture of 0 and 255 tells of which share of a pixel was measured.
    share = augmented(replace(batch, depth=batch.depth.clamp(max=1) * 255, depth_valid=None), recipe).depth
    assert share is not None
    assert (
        torch.equal(found.depth_valid, share >= 128)
        or ((share - 127.5).abs()[found.depth_valid != (share >= 128)] < 1).all()
    )


def test_sets_with_holes_are_augmented_alike_in_any_batch() -> None:
    batch = with_holes(random_batch())
    whole, some = augmented(batch, EVERYTHING), augmented(take(batch, [3, 20]), EVERYTHING)
    assert equal(some, take(whole, [3, 20]))
    assert some.depth_valid is not None
