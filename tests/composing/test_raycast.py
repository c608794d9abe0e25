import dataclasses
import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.composing.synthetic.raycast import (
    FIRST_FACE,
    KERB,
    NOISE_PX,
    ROAD,
    SKY,
    WALK,
    bilinear_texture,
    cast_rays,
    first_ball_id,
    make_noise_tile,
    texture,
)
from pipeline.composing.synthetic.roadside import Vegetation
from pipeline.composing.synthetic.scene import (
    PAVEMENT_M,
    SIZE_PX,
    TOP_M,
    Camera,
    Curve,
    Ground,
    Kind,
    Scene,
    Solid,
    box_profile,
)
from pipeline.composing.synthetic.source import build_scene, clear_reach_m

NOISE = make_noise_tile(np.random.default_rng(0))
STREETS = range(8)
LEVEL = Camera(focal_px=200.0, height_m=1.5, pitch_rad=0.0, yaw_rad=0.0, x_m=0.0)
STEP_M, FAR_M = 0.01, 45.0


@functools.cache
def planned(street: int) -> Scene:
    return build_scene(1, street)


STRAIGHT = Curve()


def empty(camera: Camera = LEVEL, centre_x: Curve = STRAIGHT, elevation: Curve = STRAIGHT) -> Scene:
    """A street without anything on it."""
    scene = build_scene(0, 0)
    ground = Ground(camera, 4.0, centre_x, elevation, np.inf, (1.0, 1.0, 1.0))
    nothing = np.zeros((0, 4), np.float32)
    return dataclasses.replace(
        scene, ground=ground, solids=(), balls=nothing, leaf_rgb=nothing[:, :3], kerb_m=(4.0, 5.0), grass_m=(9.0, 9.0)
    )


def ray_of(scene: Scene, row: float, column: float) -> NDArray[np.float64]:
    right, down, forward = scene.ground.camera.axes()
    a, b = ((at + 0.5 - SIZE_PX / 2) / scene.ground.camera.focal_px for at in (column, row))
    return np.asarray(forward + a * right + b * down)


def is_solid(scene: Scene, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the world points [N, 3] are in the ground or in a solid; polygons by their corners, no planes."""
    x, y, z = points.T
    offset = x - scene.ground.centre_x(z)
    raised = (offset < -scene.kerb_m[0]) | (offset > scene.kerb_m[1])
    inside: NDArray[np.bool_] = y < scene.ground.elevation(z) + PAVEMENT_M * raised
    for solid in scene.solids:
        dx, dz = x - solid.x_m, z - solid.z_m
        u = dx * np.cos(solid.yaw_rad) - dz * np.sin(solid.yaw_rad)
        v = dx * np.sin(solid.yaw_rad) + dz * np.cos(solid.yaw_rad)
        within = np.abs(u) < solid.half_m
        if within.any():
            for (v0, y0), (v1, y1) in zip(solid.profile, solid.profile[1:] + solid.profile[:1], strict=True):
                within &= (v1 - v0) * (y - y0) - (y1 - y0) * (v - v0) > 0
            inside |= within
    return inside


def slow_depth_m(scene: Scene, row: int, column: int) -> float | None:
    """One ray, a step at a time: the depth at which it is first inside of anything; None where leaves are near it."""
    camera = scene.ground.camera
    ray, eye = ray_of(scene, row, column), np.array([camera.x_m, camera.height_m, 0.0])
    for *centre, radius in scene.balls.astype(float):
        aside = np.linalg.norm(np.cross(np.array(centre) - eye, ray)) / np.linalg.norm(ray)
        if aside < radius * 1.01:
            return None
    along = np.arange(STEP_M, FAR_M, STEP_M)
    inside = is_solid(scene, eye + along[:, None] * ray)
    return float(along[np.argmax(inside)]) if inside.any() else np.inf


@pytest.mark.parametrize("street", STREETS)
def test_depth_agrees_with_a_slow_reference(street: int) -> None:
    scene = planned(street)
    depth_m, surface = cast_rays(scene, 1)
    rng, compared, corners = np.random.default_rng(street), 0, 0
    for row, column in rng.integers(0, SIZE_PX, (70, 2)):
        expected = slow_depth_m(scene, row, column)
        if expected is None:
            continue
        compared += 1
        got = float(depth_m[row, column])
        if expected == np.inf:
            assert got > FAR_M - 2 * STEP_M
        elif got < expected - 2 * STEP_M:  # the steps went over a corner that the ray cuts, shorter than a step
            corners += 1
        else:
            assert got == pytest.approx(expected, rel=1e-4, abs=1.1 * STEP_M), (row, column, surface[row, column])
    assert compared > 25
    assert corners <= 1


def test_streets_of_the_reference_are_of_all_kinds() -> None:
    scenes = [planned(street) for street in STREETS]
    for curve in ("centre_x", "elevation"):
        bends = [getattr(scene.ground, curve).bend for scene in scenes]
        assert 0 in bends
        assert any(bends)
    kinds = {solid.kind for scene in scenes for solid in scene.solids}
    assert {Kind.WALL, Kind.PLAIN, Kind.BODY, Kind.LAMP} <= kinds


@pytest.mark.parametrize("pitch_rad", [-0.05, 0.0, 0.15])
def test_level_road_depth_is_that_of_the_plane(pitch_rad: float) -> None:
    camera = dataclasses.replace(LEVEL, pitch_rad=pitch_rad, yaw_rad=0.1)
    depth_m, surface = cast_rays(empty(camera), 1)
    rows, columns = np.nonzero(surface == ROAD)
    assert len(rows) > 5000
    # The right triangle of eye, foot and road point; no code of the caster.
    below_axis_rad = np.arctan((np.arange(SIZE_PX) + 0.5 - SIZE_PX / 2) / camera.focal_px)
    with np.errstate(divide="ignore"):
        expected = camera.height_m / np.sin(pitch_rad + below_axis_rad) * np.cos(below_axis_rad)
    near = expected[rows] < 30
    np.testing.assert_allclose(depth_m[rows, columns][near], expected[rows][near], rtol=2e-5)
    assert np.isinf(depth_m[surface == SKY]).all()


@pytest.mark.parametrize("bend", [0.004, -0.004])
def test_the_ground_is_found_on_its_curves(bend: float) -> None:
    scene = empty(dataclasses.replace(LEVEL, yaw_rad=-0.05), Curve(bend, 5.0, 40.0), Curve(-0.2 * bend, 10.0, 50.0))
    depth_m, surface = cast_rays(scene, 1)
    x, y, z = (depth_m * plane for plane in scene.ground.camera.rays(1))
    hit = np.isfinite(depth_m) & (z < 200)
    x, up, surface = x[hit] - scene.ground.centre_x(z[hit]), y[hit] + 1.5 - scene.ground.elevation(z[hit]), surface[hit]
    assert set(np.unique(surface)) >= {ROAD, WALK}
    assert np.isin(surface, [KERB, KERB + 1]).sum() > 20
    np.testing.assert_allclose(up[surface == ROAD], 0, atol=2e-3)
    np.testing.assert_allclose(up[surface == WALK], PAVEMENT_M, atol=2e-3)
    assert ((x > -4) & (x < 5))[surface == ROAD].all()
    assert ((x <= -4) | (x >= 5))[surface == WALK].all()
    for label, edge in ((KERB, -4.0), (KERB + 1, 5.0)):
        np.testing.assert_allclose(x[surface == label], edge, atol=2e-3)
        assert ((up[surface == label] > -1e-3) & (up[surface == label] < PAVEMENT_M + 1e-3)).all()


def test_a_wall_across_the_view_is_flat() -> None:
    wall = Solid(0.0, 11.0, 0.0, 100.0, box_profile(1.0, 0.0, 100.0), Kind.WALL, (0.5, 0.5, 0.5), 0.0)
    depth_m, surface = cast_rays(dataclasses.replace(empty(), solids=(wall,)), 1)
    # The wall's foot is seen 200 * 1.5 / 10 = 30 rows below the horizon.
    road = slice(112 - 70, 112 + 70)  # without the raised pavements
    assert (surface[: 112 + 30, road] == FIRST_FACE + 2 + 3).all()
    assert (surface[112 + 30 :, road] == ROAD).all()
    np.testing.assert_allclose(depth_m[: 112 + 30, road], 10.0, rtol=1e-6)


def test_what_is_over_the_eye_is_seen_from_below_and_hides_nothing_beside_it() -> None:
    plate = Solid(0.0, 10.0, 0.0, 1.0, box_profile(1.0, 3.5, 3.6), Kind.PLAIN, (0.5, 0.5, 0.5), 0.0)
    depth_m, surface = cast_rays(dataclasses.replace(empty(), solids=(plate,)), 1)
    rows, columns = np.nonzero(surface >= FIRST_FACE)
    # From 200 * 2 / 11 = 36 rows over the horizon (its far edge) to 200 * 2.1 / 9 = 47 (its near edge's top).
    assert (112 - rows.max(), 112 - rows.min()) == (37, 47)
    assert (columns.min(), columns.max()) == (112 - 22, 112 + 21)
    below = surface == FIRST_FACE + 2
    assert below.sum() > 200
    np.testing.assert_allclose(depth_m[below], (200 * 2 / (112 - np.nonzero(below)[0] - 0.5)), rtol=1e-4)


@pytest.mark.parametrize("bend", [0.01, 0.0, -0.01])
def test_the_reach_ends_where_a_house_in_a_bend_hides_the_road(bend: float) -> None:
    scene = empty(centre_x=Curve(bend, 6.0, 40.0))
    house = Solid(10.5, 14.0, 0.0, 5.0, box_profile(4.0, -1.0, 9.0), Kind.WALL, (0.5, 0.5, 0.5), 0.0)
    scene = dataclasses.replace(scene, solids=(house,))
    reach_m = clear_reach_m(scene.ground, *cast_rays(scene, 1))

    def hidden(z_m: float) -> bool:
        """Whether anything is between the eye and some point over the road at z."""
        eye, along = np.array([0.0, 1.5, 0.0]), np.linspace(0.05, 0.95, 400)[:, None]
        for x_m in np.linspace(-4, 4, 33):
            x, y, z = scene.ground.world_point(float(x_m), z_m)
            at = np.array([x, y + 2.5, z])
            if is_solid(scene, eye + along * (at - eye)).any():
                return True
        return False

    assert not any(hidden(z) for z in np.linspace(3, reach_m, 60))
    assert hidden(1.25 * reach_m) == (bend > 0)
    assert (reach_m > 100) == (bend <= 0)


def test_leaves_lie_on_their_balls() -> None:
    seen = 0
    for street in STREETS:
        scene = planned(street)
        depth_m, surface = cast_rays(scene, 1)
        rows, columns = np.nonzero(surface >= first_ball_id(scene))
        rays = np.stack(scene.ground.camera.rays(1), -1)[rows, columns]
        points = rays * depth_m[rows, columns, None] + [scene.ground.camera.x_m, scene.ground.camera.height_m, 0]
        ball = scene.balls[surface[rows, columns] - first_ball_id(scene)]
        off_m = np.abs(np.linalg.norm(points - ball[:, :3], axis=1) - ball[:, 3])
        assert off_m.max(initial=0) < 5e-3  # float32 squares the distance of small far balls
        assert (off_m < 5e-4).sum() >= 0.9 * len(rows)
        seen += len(rows)
    assert seen > 1000


@pytest.mark.parametrize("street", STREETS)
def test_projection_is_the_inverse_of_the_rays(street: int) -> None:
    camera = planned(street).ground.camera
    rays = np.stack(camera.rays(1), -1).astype(float)
    seen = camera.project((rays[40::60, 10::70] * 7.0 + [camera.x_m, camera.height_m, 0]).reshape(-1, 3))
    rows, columns = np.meshgrid(np.arange(40, SIZE_PX, 60), np.arange(10, SIZE_PX, 70), indexing="ij")
    expected = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5, np.full(rows.size, 7.0)], 1)
    np.testing.assert_allclose(seen, expected, atol=1e-3)


def test_nothing_stands_on_the_road_or_hangs_low_over_it() -> None:
    for street in range(24):
        scene = build_scene(4, street)
        ground = scene.ground
        middle = np.stack([ground.centre_x(z := np.arange(2.0, 60.0, 0.4)), ground.elevation(z), z], 1)
        assert max(zs.z_m for zs in scene.solids) > 20
        for x_m in np.linspace(-ground.road_half_m + 0.01, ground.road_half_m - 0.01, 15):
            for y_m in (0.05, 0.5, 1.5, TOP_M):
                points = middle + np.array([x_m, y_m, 0])
                assert not is_solid(scene, points[points[:, 1] > ground.elevation(points[:, 2])]).any()
        for x, y, z_m, radius in scene.balls.astype(float):
            over_road = abs(x - ground.centre_x(z_m)) - radius < ground.road_half_m
            assert not over_road or y - radius - ground.elevation(z_m) > TOP_M
        assert ground.camera.height_m < TOP_M
        assert abs(ground.camera.x_m) < ground.road_half_m


def test_vegetation_lifts_leaves_over_the_road() -> None:
    scene = empty()
    vegetation = Vegetation(np.random.default_rng(0), scene.ground)
    for kind in ("broad", "round", "poplar", "conifer"):
        vegetation.tree(kind, 4.3, 20.0, 1.2)
    lowest = [y - r for x, y, _, r in vegetation.balls if abs(x) - r < 4.0]
    assert len(lowest) > 10
    assert min(lowest) > TOP_M


def test_noise_has_mean_0_deviation_1_and_no_seam() -> None:
    assert NOISE.shape == (NOISE_PX, NOISE_PX)
    assert NOISE.dtype == np.float32
    assert abs(NOISE.mean()) < 1e-4
    assert NOISE.std() == pytest.approx(1, abs=1e-4)
    inside = np.abs(np.diff(NOISE, axis=0)).mean()
    assert np.abs(NOISE[0] - NOISE[-1]).mean() < 1.3 * inside


def test_texture_is_periodic_and_its_bilinear_version_goes_through_it() -> None:
    u, v = np.meshgrid(np.arange(-5, 300, 7, dtype=np.float32), np.arange(0, 600, 11, dtype=np.float32))
    assert (texture(NOISE, u, v) == texture(NOISE, u + NOISE_PX, v + 2 * NOISE_PX)).all()
    np.testing.assert_allclose(bilinear_texture(NOISE, u, v), texture(NOISE, u, v), atol=1e-6)
    between = bilinear_texture(NOISE, u + np.float32(0.5), v)
    np.testing.assert_allclose(between, (texture(NOISE, u, v) + texture(NOISE, u + 1, v)) / 2, atol=1e-5)
