import dataclasses

import numpy as np
import pytest

from pipeline.synthetic.raycast import ROAD, SKY, cast
from pipeline.synthetic.scene import SIZE_PX, Box, Camera, Plan, plan_street
from pipeline.synthetic.street import render_street

STREETS = range(6)


def ground_depth_m(camera: Camera, row_px: float) -> float:
    """Depth of the road in a row, from the right triangle of eye, foot and road point; no code of the caster."""
    below_axis_rad = np.arctan((row_px - SIZE_PX / 2) / camera.focal_px)
    distance_m = camera.height_m / np.sin(camera.pitch_rad + below_axis_rad)
    return float(distance_m * np.cos(below_axis_rad))


def slow_depth_m(plan: Plan, row: int, column: int) -> float | None:
    """One ray, float64, slabs: the depth of road or boxes; None where a leaf ball is near the ray or an edge is."""
    camera = plan.camera
    right, down, forward = camera.axes()
    a, b = ((at + 0.5 - SIZE_PX / 2) / camera.focal_px for at in (column, row))
    ray, eye = forward + a * right + b * down, np.array([camera.x_m, camera.height_m, 0.0])
    for *centre, radius in plan.balls.astype(float):
        aside = np.linalg.norm(np.cross(np.array(centre) - eye, ray)) / np.linalg.norm(ray)
        if aside < radius * 1.01:
            return None
    nearest = -eye[1] / ray[1] if ray[1] < 0 else np.inf
    for box in plan.boxes:
        near, far = 0.0, np.inf
        for axis, (low, high) in enumerate((box.x_m, (0.0, box.height_m), box.z_m)):
            enter, leave = sorted(((low - eye[axis]) / ray[axis], (high - eye[axis]) / ray[axis]))
            near, far = max(near, enter), min(far, leave)
        if near > 0 and abs(near - far) / near < 1e-4:
            return None  # grazes an edge, where float32 may fall on either side
        if 0 < near < far:
            nearest = min(nearest, near)
    return float(nearest)


@pytest.mark.parametrize("street", STREETS)
def test_road_depth_is_that_of_the_plane(street: int) -> None:
    plan = plan_street(0, street)
    depth_m, surface = cast(plan, 1)
    rows, columns = np.nonzero(surface == ROAD)
    assert len(rows) > 5000
    expected = np.array([ground_depth_m(plan.camera, row + 0.5) for row in range(SIZE_PX)])
    close = expected[rows] < 500  # beyond, rows near the horizon magnify float32's rounding of the pitch
    np.testing.assert_allclose(depth_m[rows, columns][close], expected[rows][close], rtol=1e-3)
    near = expected[rows] < 30
    np.testing.assert_allclose(depth_m[rows, columns][near], expected[rows][near], rtol=2e-5)


@pytest.mark.parametrize("street", STREETS)
def test_depth_agrees_with_a_slow_reference(street: int) -> None:
    plan = plan_street(1, street)
    depth_m, _ = cast(plan, 1)
    rng, compared = np.random.default_rng(street), 0
    for row, column in rng.integers(0, SIZE_PX, (250, 2)):
        expected = slow_depth_m(plan, row, column)
        if expected is None or (np.isfinite(expected) and expected > 300):
            continue
        compared += 1
        assert depth_m[row, column] == pytest.approx(expected, rel=1e-4), (row, column)
    assert compared > 80


def test_a_wall_across_the_view_is_flat() -> None:
    level = Camera(focal_px=200.0, height_m=1.5, pitch_rad=0.0, yaw_rad=0.0, x_m=0.0)
    wall = Box((-100.0, 100.0), (10.0, 12.0), 100.0, 1, (0.5, 0.5, 0.5))
    plan = dataclasses.replace(plan_street(0, 0), camera=level, boxes=(wall,), balls=np.zeros((0, 4), np.float32))
    depth_m, surface = cast(plan, 1)
    # The wall's foot is seen 200 * 1.5 / 10 = 30 rows below the horizon.
    assert (surface[: 112 + 30] == 2).all()
    assert (surface[112 + 30 :] == ROAD).all()
    assert (depth_m[: 112 + 30] == 10.0).all()


def test_leaves_lie_on_their_balls() -> None:
    plan = next(p for p in (plan_street(0, k) for k in range(20)) if len(p.balls))
    depth_m, surface = cast(plan, 1)
    first = 1 + 3 * len(plan.boxes)
    rows, columns = np.nonzero(surface >= first)
    assert len(rows)
    rays = np.stack(plan.camera.rays(1), -1)[rows, columns]
    points = rays * depth_m[rows, columns, None] + [plan.camera.x_m, plan.camera.height_m, 0]
    ball = plan.balls[surface[rows, columns] - first]
    np.testing.assert_allclose(np.linalg.norm(points - ball[:, :3], axis=1), ball[:, 3], rtol=1e-3)


@pytest.mark.parametrize("street", STREETS)
def test_projection_is_the_inverse_of_the_rays(street: int) -> None:
    camera = plan_street(2, street).camera
    rays = np.stack(camera.rays(1), -1).astype(float)
    seen = camera.project((rays[40::60, 10::70] * 7.0 + [camera.x_m, camera.height_m, 0]).reshape(-1, 3))
    rows, columns = np.meshgrid(np.arange(40, SIZE_PX, 60), np.arange(10, SIZE_PX, 70), indexing="ij")
    expected = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5, np.full(rows.size, 7.0)], 1)
    np.testing.assert_allclose(seen, expected, atol=1e-3)


@pytest.mark.parametrize("street", STREETS)
def test_road_points_are_found_by_row_and_column(street: int) -> None:
    camera = plan_street(3, street).camera
    ((column, row, depth_m),) = camera.project(np.array([[1.3, 0.0, 14.0]]))
    assert camera.ground_row_px(depth_m) == pytest.approx(row)
    assert camera.ground_column_px(1.3, depth_m) == pytest.approx(column)
    assert ground_depth_m(camera, row) == pytest.approx(depth_m)


def test_nothing_stands_on_the_road_or_hangs_low_over_it() -> None:
    # So that a car on the road is never behind anything.
    for street in range(40):
        plan = plan_street(4, street)
        for box in plan.boxes:
            assert min(map(abs, box.x_m)) >= plan.road_half_m or box.z_m[0] > 55
        assert (plan.balls[:, 1] - plan.balls[:, 3] > 2.99).all()
        assert plan.camera.height_m < 2.99
        assert abs(plan.camera.x_m) < plan.road_half_m


def test_a_street_depends_on_seed_and_number_alone() -> None:
    one, again = render_street(5, 3), render_street(5, 3)
    assert one.rgb.tobytes() == again.rgb.tobytes()
    assert one.depth_m.tobytes() == again.depth_m.tobytes()
    for other in (render_street(5, 4), render_street(6, 3)):
        assert np.abs(one.rgb.astype(int) - other.rgb).mean() > 5


def test_a_street_is_a_picture_with_road_walls_and_sky() -> None:
    seen_sky = 0
    for number in STREETS:
        street = render_street(7, number)
        assert street.rgb.shape == (SIZE_PX, SIZE_PX, 3)
        assert street.rgb.dtype == np.uint8
        assert street.depth_m.shape == (SIZE_PX, SIZE_PX)
        assert street.depth_m.dtype == np.float32
        assert street.depth_m.min() > 0.5
        assert street.rgb.std() > 15
        assert 0.1 < street.light_rgb.min() <= street.light_rgb.max() < 1.6
        _, surface = cast(plan_street(7, number), 1)
        assert 0.15 < (surface == ROAD).mean() < 0.75
        assert (surface > 0).mean() > 0.1
        assert np.isinf(street.depth_m[surface == SKY]).all()
        seen_sky += bool((surface == SKY).any())
    assert seen_sky > 3
