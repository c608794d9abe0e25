import functools
import json
import random

import numpy as np
import pytest
from PIL import Image

from pipeline.composing.synthetic.scene import (
    MAX_FACES,
    SIZE_PX,
    Camera,
    Curve,
    Ground,
    Kind,
    Solid,
    box_profile,
    place_on_road,
    vary_colour,
)
from pipeline.composing.synthetic.source import Foreground, Street, build_scene, draw_foreground, render_street

GRAY = (0.5, 0.5, 0.5)
CURVES = [
    Curve(),
    Curve(0.004, 8.0, 30.0),
    Curve(-0.004, 8.0, 30.0),
    Curve(0.001, 20.0, 70.0),
    Curve(-0.011, 3.0, 20.0),
]


@functools.cache
def rendered(street: int) -> Street:
    return render_street(1, street)


@functools.cache
def drawn(foreground: int) -> Foreground:
    return draw_foreground(1, foreground)


@pytest.mark.parametrize("curve", CURVES)
def test_a_curve_is_the_integral_of_its_slope_which_changes_steadily(curve: Curve) -> None:
    z = np.linspace(0, 100, 100_001)
    slope = curve.slope(z)
    steps = (slope[1:] + slope[:-1]) / 2 * np.diff(z)
    np.testing.assert_allclose(curve(z)[1:], np.cumsum(steps), atol=1e-6)
    assert np.abs(np.diff(slope)).max() <= 2 * abs(curve.bend) * 0.0011
    assert (slope[z <= curve.start_m] == 0).all()
    assert np.ptp(slope[z >= curve.end_m]) == 0


@pytest.mark.parametrize("curve", CURVES)
def test_a_line_meets_a_curve_where_it_first_crosses_it(curve: Curve) -> None:
    z = np.linspace(0, 400, 400_001)
    below = curve(z)
    rng, met = np.random.default_rng(0), 0
    for gap_m, slope in zip(rng.uniform(1, 6, 60), rng.uniform(-0.5, 0.15, 60), strict=True):
        over = gap_m + slope * z - below
        expected = z[np.argmax(over <= 0)] if (over <= 0).any() else np.inf
        if abs(over.min()) < 1e-3 * gap_m:
            continue  # grazes it
        got = float(curve.intersect(gap_m, np.array([slope], np.float32))[0])
        assert got == pytest.approx(expected, rel=1e-3, abs=2e-3) or (got > 400 and expected == np.inf)
        met += np.isfinite(expected)
    assert met > 10


def test_a_mirrored_curve_turns_the_other_way_on_the_right() -> None:
    curve = CURVES[1]
    assert curve.mirrored(-1)(50.0) == curve(50.0) == -curve.mirrored(1)(50.0) != 0


@pytest.mark.parametrize("street", range(6))
def test_a_ground_survives_json_exactly_and_is_small(street: int) -> None:
    ground = rendered(street).ground
    text = ground.to_json()
    assert Ground.from_json(text) == ground
    assert Ground.from_json(text).to_json() == text
    assert "\n" not in text
    assert len(json.loads(text)) == 6
    assert len(text) < 1000


@pytest.mark.parametrize("centre_x", CURVES)
@pytest.mark.parametrize("elevation", CURVES[:4])
def test_road_points_are_found_by_their_depth(centre_x: Curve, elevation: Curve) -> None:
    camera = Camera(focal_px=180.0, height_m=1.7, pitch_rad=0.1, yaw_rad=-0.15, x_m=0.8)
    ground = Ground(camera, 4.0, centre_x, elevation, 100.0, (1.0, 1.0, 1.0))
    for x_m, depth_m in ((-3.0, 4.0), (0.0, 11.0), (2.5, 60.0)):
        at = ground.world_point(x_m, ground.z_at_depth(x_m, depth_m))
        assert at[0] - centre_x(at[2]) == pytest.approx(x_m)
        assert at[1] == elevation(at[2])
        assert camera.project(np.array([at]))[0, 2] == pytest.approx(depth_m, rel=1e-6)


@pytest.mark.parametrize("number", range(60))
def test_a_foreground_stands_on_the_road_inside_the_picture_and_nothing_is_before_it(number: int) -> None:
    street, thing = rendered(number % 20), drawn(number)
    ground = street.ground
    at = place_on_road(ground, thing.width_m, thing.height_m, random.Random(number))
    assert at.depth_m == pytest.approx(ground.camera.focal_px * thing.height_m / at.height)
    assert at.width == max(2, round(at.height * thing.width_m / thing.height_m))
    assert 0 <= at.left <= SIZE_PX - at.width
    assert at.height <= at.bottom <= SIZE_PX
    # The road is at its depth between the centres of the rows above and below its foot.
    middle = at.left + at.width // 2
    assert street.depth_m[at.bottom - 1, middle] >= at.depth_m * 0.995
    if at.bottom < SIZE_PX:
        assert street.depth_m[at.bottom, middle] <= at.depth_m * 1.005
    # Nothing of the street is before it, but for the road that its lowest row may touch.
    small = np.asarray(Image.fromarray(thing.rgba).resize((at.width, at.height), Image.Resampling.HAMMING))
    behind = street.depth_m[at.bottom - at.height : at.bottom - 1, at.left : at.left + at.width]
    assert (behind[small[:-1, :, 3] >= 128] >= at.depth_m * 0.97).all()


def test_the_feet_of_what_is_narrower_than_the_road_are_on_it() -> None:
    for number in range(12):
        ground, rng = rendered(number).ground, random.Random(number)
        right, down, forward = ground.camera.axes()
        for _ in range(20):
            at = place_on_road(ground, 4.4, 1.5, rng)
            for column in (at.left, at.left + at.width):
                a, b = (np.array([column, at.bottom]) - SIZE_PX / 2) / ground.camera.focal_px
                x, _, z = at.depth_m * (forward + a * right + b * down) + [ground.camera.x_m, 0, 0]
                # A pixel and a half, as left, width and bottom are rounded, and the turn of the road.
                tolerance_m = 1.5 * at.depth_m / ground.camera.focal_px + 0.35 * abs(ground.centre_x.slope(z))
                assert abs(x - ground.centre_x(z)) <= ground.road_half_m + tolerance_m


def test_a_stand_depends_on_ground_size_and_dice_alone() -> None:
    ground = rendered(0).ground
    again = Ground.from_json(ground.to_json())
    one, same, other = (place_on_road(g, 4.0, 1.5, random.Random(s)) for g, s in ((ground, 1), (again, 1), (ground, 2)))
    assert one == same != other


def test_what_a_hill_hides_is_out_of_reach() -> None:
    hidden = 0
    for number in range(20):
        ground = rendered(number).ground
        camera = ground.camera
        for z_m in np.linspace(3, ground.reach_m, 40):
            along = np.linspace(0.01, 0.95, 200)
            line = camera.height_m + (ground.elevation(float(z_m)) - camera.height_m) * along
            assert (line > ground.elevation(z_m * along) - 0.02).all()
        hidden += ground.elevation.bend < 0 and ground.reach_m < 100
    assert hidden > 1


def test_planes_of_a_box_are_its_sides() -> None:
    box = Solid(2.0, 9.0, 0.0, 1.5, box_profile(4.0, 0.5, 3.0), Kind.PLAIN, GRAY, 0.0)
    assert sorted(map(tuple, box.planes.tolist())) == sorted(
        [(-1, 0, 0, 1.5), (1, 0, 0, 1.5), (0, -1, 0, -0.5), (0, 0, 1, 4.0), (0, 1, 0, 3.0), (0, 0, -1, 4.0)]
    )
    assert box.corners.min(0).tolist() == [0.5, 0.5, 5.0]
    assert box.corners.max(0).tolist() == [3.5, 3.0, 13.0]


def test_yaw_turns_v_from_z_towards_x() -> None:
    turned = Solid(0.0, 0.0, np.pi / 2, 1.0, box_profile(5.0, 0.0, 2.0), Kind.PLAIN, GRAY, 0.0)
    np.testing.assert_allclose(turned.corners.max(0), [5, 2, 1])
    np.testing.assert_allclose(turned.normals[2 + 1], [1, 0, 0], atol=1e-12)  # the edge at +v


@pytest.mark.parametrize("street", range(12))
def test_every_solid_of_a_street_is_the_hull_of_its_corners(street: int) -> None:
    """Each corner lies in all half-spaces, on three planes or more: so the profile is convex and counterclockwise."""
    for solid in build_scene(2, street).solids:
        assert len(solid.planes) == len(solid.profile) + 2 <= MAX_FACES
        c, s = np.cos(solid.yaw_rad), np.sin(solid.yaw_rad)
        x, y, z = (solid.corners - [solid.x_m, 0, solid.z_m]).T
        local = np.stack([c * x - s * z, y, s * x + c * z], 1)
        outside = local @ solid.planes[:, :3].T - solid.planes[:, 3]
        assert outside.max() < 1e-9
        assert ((np.abs(outside) < 1e-9).sum(1) >= 3).all()
        np.testing.assert_allclose(np.linalg.norm(solid.normals, axis=1), 1)
        # The same planes in world axes hold the same corners.
        inward = (solid.corners.mean(0) - solid.corners) @ solid.normals.T
        assert (inward.min(0) < 0).all()


def test_a_linear_colour_is_the_square_of_one_near() -> None:
    rgb = np.array([vary_colour(np.random.default_rng(k), (0.5, 0.5, 0.5), 0.0) for k in range(20)])
    assert (np.abs(np.sqrt(rgb) - 0.5) <= 0.076).all()
    assert len(np.unique(rgb)) == 20
