import dataclasses

import numpy as np
import pytest

from pipeline.composing.synthetic.raycast import ROAD, Shadows, cast_rays
from pipeline.composing.synthetic.scene import F32, Camera, Curve, Ground, Kind, Scene, Solid, box_profile, f32
from pipeline.composing.synthetic.source import build_scene
from pipeline.composing.synthetic.surfaces import pulse, pulse_train, shade

GRAY = (0.5, 0.5, 0.5)
POST = Solid(2.0, 8.0, 0.0, 0.3, box_profile(0.3, 0.0, 3.0), Kind.PLAIN, GRAY, 0.0)


def lit_scene(to_sun: tuple[float, float, float], *solids: Solid, sun: float = 2.0, lamps: float = 0.0) -> Scene:
    """A level street in clean air with the sun where we want it."""
    scene = build_scene(0, 0)
    camera = Camera(focal_px=200.0, height_m=1.5, pitch_rad=0.1, yaw_rad=0.0, x_m=0.0)
    light = dataclasses.replace(
        scene.light, to_sun=f32(to_sun), sun_rgb=f32([sun] * 3), ambient_rgb=f32([0.2] * 3), lamps=lamps, haze_m=1e6
    )
    ground = Ground(camera, 6.0, Curve(), Curve(), np.inf, (1.0, 1.0, 1.0))
    nothing = np.zeros((0, 4), np.float32)
    paving = dataclasses.replace(scene.paving, cobbles=0.0, lines=(0.0, 0.0, -99.0))
    return dataclasses.replace(
        scene, ground=ground, light=light, solids=solids, balls=nothing, leaf_rgb=nothing[:, :3], paving=paving
    )


def on_ground(scene: Scene, x: float, z: float) -> tuple[float, float]:
    sun, sky = Shadows(scene).on_ground(f32([x]), f32([z]))
    return float(sun[0]), float(sky[0])


def test_shadows_fall_away_from_the_sun_as_long_as_its_height_says() -> None:
    scene = lit_scene(
        (0.6, 0.8, 0.0), POST
    )  # the sun to the right, so the shadow is 3 * 0.6 / 0.8 = 2.25 m to the left
    assert on_ground(scene, 2.0 - 1.5, 8.0)[0] > 0.9
    assert on_ground(scene, 2.0 - 2.8, 8.0)[0] == 0
    assert on_ground(scene, 2.0 + 0.6, 8.0)[0] == 0
    assert on_ground(scene, 2.0 - 1.5, 8.8)[0] == 0
    assert on_ground(lit_scene((0.6, 0.8, 0.0), POST, sun=0.1), 0.5, 8.0)[0] == 0, "no sun, no shadows"


@pytest.mark.parametrize(("x", "z"), [(-24.5, 20.0), (24.5, 20.0), (0.0, 72.5), (0.0, 5000.0), (-1e5, 1.0)])
def test_beyond_the_map_there_are_no_shadows(x: float, z: float) -> None:
    everywhere = dataclasses.replace(POST, half_m=500.0, profile=box_profile(500.0, 0.0, 3.0))
    assert on_ground(lit_scene((0.01, 1.0, 0.0), everywhere), 0.0, 30.0)[0] == 1
    assert on_ground(lit_scene((0.01, 1.0, 0.0), everywhere), x, z) == (0, 0)


def test_it_is_dim_below_a_parked_car_and_nowhere_else() -> None:
    car = Solid(3.0, 20.0, 0.0, 0.9, box_profile(2.2, 0.24, 1.5), Kind.BODY, GRAY, 0.0)
    scene = lit_scene((0.01, 1.0, 0.0), car)
    assert on_ground(scene, 3.0, 20.0)[1] > 0.95
    assert 0 < on_ground(scene, 3.0 - 1.0, 20.0)[1] < 0.9
    assert on_ground(scene, 3.0 - 2.0, 20.0)[1] == 0


def test_a_row_of_houses_hides_the_sun_up_to_its_height() -> None:
    house = Solid(13.0, 30.0, 0.0, 5.0, box_profile(25.0, -4.0, 10.0), Kind.WALL, GRAY, 0.0)  # from x = 8, 10 m high
    shadows = Shadows(lit_scene((0.8, 0.6, 0.0), house))
    heights = f32([0.0, 3.5, 4.5, 9.0])  # at x = 0 a ray to the sun is 6 m higher when it gets there
    x, z = np.zeros(4, np.float32), np.full(4, 30.0, np.float32)
    assert shadows.from_houses(x, heights, z).tolist() == [1, 1, 0, 0]
    assert shadows.from_houses(x, heights, z + 60).tolist() == [0, 0, 0, 0]
    assert Shadows(lit_scene((-0.8, 0.6, 0.0), house)).from_houses(x, heights, z).tolist() == [0, 0, 0, 0]


def road_brightness(scene: Scene) -> tuple[F32, F32, F32]:
    """Brightness of road pixels, and their x and z in metres."""
    depth, surface = cast_rays(scene, 1)
    bright = shade(scene, depth, surface, 1).mean(0)
    road = surface == ROAD
    x, _, z = (depth[road] * plane[road] for plane in scene.ground.camera.rays(1))
    return bright[road], x, z


def test_a_shadow_is_seen_in_the_picture() -> None:
    bright, x, z = road_brightness(lit_scene((0.6, 0.8, 0.0), POST))
    shaded = (np.abs(z - 8.0) < 0.2) & (x > -0.1) & (x < 1.6)
    beside = (np.abs(z - 6.5) < 0.5) & (x > -0.1) & (x < 1.6)
    assert shaded.sum() > 5
    assert bright[shaded].mean() < 0.35 * bright[beside].mean()


def test_street_lamps_light_the_road_below_them_at_dusk() -> None:
    lamp = Solid(2.0, 15.0, 0.0, 0.3, box_profile(0.1, 5.0, 5.1), Kind.LAMP, GRAY, 0.0)
    below: list[float] = []
    for lamps in (0.0, 1.0):
        bright, x, z = road_brightness(lit_scene((0.01, 1.0, 0.0), lamp, sun=0.0, lamps=lamps))
        near, far = np.hypot(x - 2.0, z - 15.0) < 1.5, np.hypot(x - 2.0, z - 60.0) < 15
        below.append(float(bright[near].mean() / bright[far].mean()))
    assert below[0] < 1.6
    assert below[1] > 2 * below[0]


def test_stripes_and_spans_are_the_means_over_a_window() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        x, width, low = rng.uniform(-3, 3), rng.uniform(0.01, 2.5), rng.uniform(0, 0.5)
        high = low + rng.uniform(0.05, 0.5)
        at = x + width * ((np.arange(20_000) + 0.5) / 20_000 - 0.5)
        one, wide = np.array([x], np.float32), np.array([width], np.float32)
        striped = ((at % 1 >= low) & (at % 1 < high)).mean()
        assert pulse_train(one, low, high, wide)[0] == pytest.approx(striped, abs=2e-3)
        spanned = ((at >= low) & (at < high)).mean()
        assert pulse(one, low, high, wide)[0] == pytest.approx(spanned, abs=2e-3)
