import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from click.testing import CliRunner

import pipeline.compose
from pipeline.compose import (
    NEAR_M,
    SOLID,
    Place,
    Recipe,
    blend,
    compose,
    default_variety,
    disparity,
    make_set,
    pair,
    place,
    sets_of_street,
    write_sets,
)
from pipeline.errors import InputError
from pipeline.synthetic.car import Car, draw_car
from pipeline.synthetic.scene import SIZE_PX
from pipeline.synthetic.street import Street, render_street
from tools.compose import main

SMALL = Recipe(sets=7, seed=3, streets=2, cars=3)


@pytest.fixture(scope="module")
def street() -> Street:
    return render_street(0, 2)


@functools.cache
def rendered(street: int) -> Street:
    return render_street(1, street)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def write(out: Path, recipe: Recipe = SMALL, workers: int = 1) -> dict[str, bytes]:
    done: list[int] = []
    written_bytes = write_sets(out, recipe, workers, done.append)
    files = files_of(out)
    assert sum(done) == recipe.sets
    assert written_bytes == sum(map(len, files.values()))
    return files


def test_blend_is_within_half_a_level_of_exact() -> None:
    over, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for under in (0, 1, 77, 128, 255):
        a = alpha.astype(float) / 255
        exact = a * over + (1 - a) * under
        got = blend(np.full((256, 256, 1), under, np.uint8), over[..., None], alpha)[..., 0]
        assert np.abs(got - exact).max() <= 0.5


def test_disparity_is_near_bright_at_a_fixed_scale() -> None:
    depth_m = np.array([0.5 * NEAR_M, NEAR_M, 2 * NEAR_M, 10 * NEAR_M, np.inf], np.float32)
    assert disparity(depth_m).tolist() == [255, 255, 128, 26, 0]


@pytest.mark.parametrize("number", range(25))
def test_a_car_stands_on_the_road_inside_the_picture(number: int) -> None:
    street, car = rendered(number % 5), draw_car(1, number)
    at = place(street, car, np.random.default_rng(number), mirrored=False)
    assert at.depth_m == pytest.approx(street.camera.focal_px * car.height_m / at.height)
    assert at.width == round(at.height * car.width_m / car.height_m)
    assert 0 <= at.left <= SIZE_PX - at.width
    assert at.height <= at.bottom <= SIZE_PX
    # The road is at the car's depth between the centres of the rows above and below its wheels.
    middle = at.left + at.width // 2
    assert street.depth_m[at.bottom - 1, middle] >= at.depth_m * 0.999
    if at.bottom < SIZE_PX:
        assert street.depth_m[at.bottom, middle] <= at.depth_m * 1.001
    # Nothing of the street is before the car, but for the road that its lowest row may touch.
    mask = compose(street, car, at)[1]
    mask[at.bottom - 1] = 0
    assert (street.depth_m[mask >= SOLID] >= at.depth_m * 0.97).all()


@pytest.mark.parametrize("number", range(8))
def test_a_set_is_what_its_parts_say(number: int) -> None:
    recipe = Recipe(sets=8, seed=1, streets=1, cars=5)
    street = rendered(0)
    overlay, mask, depth = make_set(recipe, street, number)
    assert overlay.shape == (*mask.shape, 3) == (*depth.shape, 3) == (SIZE_PX, SIZE_PX, 3)
    assert (overlay[mask == 0] == street.rgb[mask == 0]).all()
    far = disparity(street.depth_m)
    assert (depth[mask < SOLID] == far[mask < SOLID]).all()
    assert len(np.unique(depth[mask >= SOLID])) == 1
    assert (mask == 255).sum() > 100
    car = draw_car(1, pair(recipe, number)[1])
    at = place(street, car, np.random.default_rng((1, 4, number)), mirrored=False)
    assert depth[mask >= SOLID][0] == disparity(np.array(at.depth_m, np.float32))


def test_overlay_is_the_float_blend_of_its_parts(street: Street) -> None:
    """At its own size a car is not resized, so that mask and colours can be foretold to a level."""
    for number in range(6):
        car = draw_car(9, number)
        height, width, _ = car.rgba.shape
        for mirrored in (False, True):
            overlay, mask, _ = compose(street, car, Place(20, 200, width, height, 9.0, mirrored))
            rgba = car.rgba[:, ::-1] if mirrored else car.rgba
            window = (slice(200 - height, 200), slice(20, 20 + width))
            assert (mask[window] == rgba[..., 3]).all()
            assert mask.sum() == rgba[..., 3].sum()
            a = rgba[..., 3:] / 255.0
            lit = np.minimum(rgba[..., :3] * street.light_rgb, 255)
            expected = a * lit + (1 - a) * street.rgb[window]
            assert np.abs(overlay[window] - expected).max() <= 1.0


def test_edges_have_no_fringe(street: Street) -> None:
    gray = dataclasses.replace(street, rgb=np.full_like(street.rgb, 200), light_rgb=np.ones(3, np.float32))
    rgba = draw_car(0, 0).rgba.copy()
    rgba[rgba[..., 3] > 0, :3] = 200
    overlay, mask, _ = compose(gray, Car(rgba, 4.0, 2.0), Place(50, 150, 61, 33, 9.0, False))
    assert ((mask > 0) & (mask < 255)).any()
    # A car of the street's own colour vanishes, whatever colour lies under its transparent pixels.
    assert np.abs(overlay.astype(int) - 200).max() <= 2


@pytest.mark.parametrize(("sets", "streets", "cars"), [(400, 40, 40), (1000, 63, 50), (7, 2, 3), (30, 100, 7)])
def test_sets_are_spread_evenly(sets: int, streets: int, cars: int) -> None:
    recipe = Recipe(sets, 1, streets, cars)
    pairs = np.array([pair(recipe, i) for i in range(sets)])
    for ids, kinds in ((pairs[:, 0], streets), (pairs[:, 1], cars)):
        counts = np.bincount(ids, minlength=kinds)
        assert len(counts) == kinds
        assert counts.max() - counts.min() <= 1
    assert pairs[:, 2].sum() == sets // 2
    numbers = [i for b in range(streets) for i in sets_of_street(recipe, b)]
    assert numbers == list(range(sets))
    assert all(pairs[i, 0] == b for b in range(streets) for i in sets_of_street(recipe, b))


def test_streets_cars_and_mirroring_are_independent() -> None:
    recipe = Recipe(8000, 2, 100, 100)
    street, car, mirrored = np.array([pair(recipe, i) for i in range(recipe.sets)]).T
    assert np.abs(np.corrcoef([street, car, mirrored]) - np.eye(3)).max() < 0.04
    # 8000 of 10,000 pairs drawn at random would hit about 5,500 different ones; a modular rule hits few or all.
    assert 5000 < len(set(zip(street.tolist(), car.tolist(), strict=True))) < 7500
    for shift in range(100):
        assert ((street + shift) % 100 == car).mean() < 0.03


def test_default_variety_grows_with_the_root() -> None:
    assert [default_variety(n) for n in (1, 9, 20, 400, 4000, 400_000)] == [1, 9, 10, 40, 126, 1000]


def test_layout_and_pictures(tmp_path: Path) -> None:
    files = write(tmp_path / "out")
    expected = {f"bg/bg_{b:03}.jpg" for b in range(2)} | {f"fg/fg_{c:03}.png" for c in range(3)}
    for i in range(7):
        b, c, _ = pair(SMALL, i)
        expected.add(f"fg_bg/bg_{b:03}/fg_{c:03}_bg_{b:03}_{i:06}.jpg")
        expected.add(f"fg_bg/bg_{b:03}/fg_{c:03}_bg_{b:03}_{i:06}_disp.jpeg")
        expected.add(f"fg_bg_mask/bg_{b:03}/fg_{c:03}_bg_{b:03}_mask_{i:06}.jpg")
    assert set(files) == expected
    for name, data in files.items():
        if not name.startswith("fg/"):
            height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
            assert (height, width) == (SIZE_PX, SIZE_PX)
            assert (colour == "Gray") == ("_mask_" in name or "_disp" in name)
    street, c = render_street(3, 1), pair(SMALL, 5)[1]
    overlay, mask, depth = make_set(SMALL, street, 5)
    stem = f"bg_001/fg_{c:03}_bg_001"
    for name, made, tolerance in (
        (f"fg_bg/{stem}_000005.jpg", overlay, 4.0),
        (f"fg_bg/{stem}_000005_disp.jpeg", depth, 1.5),
        (f"fg_bg_mask/{stem}_mask_000005.jpg", mask, 1.0),
        ("bg/bg_001.jpg", street.rgb, 4.0),
    ):
        read = simplejpeg.decode_jpeg(files[name], "RGB" if made.ndim == 3 else "GRAY").reshape(made.shape)
        assert np.abs(read.astype(int) - made).mean() < tolerance, name


def test_bytes_do_not_depend_on_workers_but_on_the_seed(tmp_path: Path) -> None:
    one = write(tmp_path / "one")
    assert one == write(tmp_path / "two", workers=2)
    other = write(tmp_path / "other", dataclasses.replace(SMALL, seed=4))
    assert not set(one.values()) & set(other.values())


def test_many_sets_of_a_street_are_cut_into_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path / "whole")
    monkeypatch.setattr(pipeline.compose, "SETS_PER_JOB", 2)
    assert whole == write(tmp_path / "cut")


def test_streets_without_sets_are_written_too(tmp_path: Path) -> None:
    files = write(tmp_path / "out", Recipe(sets=1, seed=0, streets=3, cars=2))
    assert sorted(name for name in files if name.startswith("bg/")) == [f"bg/bg_{b:03}.jpg" for b in range(3)]
    assert len(files) == 3 + 2 + 3


def test_an_empty_folder_is_filled_and_others_are_left_alone(tmp_path: Path) -> None:
    empty, full, file = tmp_path / "empty", tmp_path / "full", tmp_path / "file"
    empty.mkdir()
    write(empty)
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    file.write_text("keep")
    for out, found in ((full, "is not empty"), (file, "is a file")):
        with pytest.raises(InputError, match=f"{found}.*: give a new or an empty folder"):
            write_sets(out, SMALL, 1, lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]
    assert files_of(full) == {"mine.txt": b"keep"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_run_leaves_nothing(tmp_path: Path, error: BaseException, workers: int) -> None:
    def fail(made: int) -> None:
        if made:
            raise error

    with pytest.raises((KeyboardInterrupt, OSError)):
        write_sets(tmp_path / "out", SMALL, workers, fail)
    assert not list(tmp_path.iterdir())


def test_command(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, [str(tmp_path / "out"), "--synthetic", "--sets", "3", "--workers", "1"])
    assert run.exit_code == 0, run.output
    assert len(run.output.splitlines()) == 1
    assert "3 sets of 3 streets and 3 cars" in run.output
    assert len(files_of(tmp_path / "out")) == 3 + 3 + 9


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["new"], 2, "add --synthetic"),
        (["new", "--synthetic", "--sets", "0"], 2, "--sets"),
        (["new", "--synthetic", "--sets", "-3"], 2, "--sets"),
        (["new", "--synthetic", "--seed", "-1"], 2, "--seed"),
        (["new", "--synthetic", "--workers", "0"], 2, "--workers"),
        (["file", "--synthetic"], 1, "is a file: give a new or an empty folder"),
        (["file/below", "--synthetic"], 1, "file"),
    ],
)
def test_wrong_use_is_one_clear_line(tmp_path: Path, flags: list[str], code: int, says: str) -> None:
    (tmp_path / "file").write_text("")
    run = CliRunner().invoke(main, [str(tmp_path / flags[0]), *flags[1:]])
    assert run.exit_code == code, run.output
    assert says in run.output.splitlines()[-1]
    assert code == 2 or len(run.output.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
