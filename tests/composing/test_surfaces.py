import dataclasses

import numpy as np
import pytest

from pipeline.composing.synthetic.camera import F32, Camera, vec
from pipeline.composing.synthetic.ground import Curve, Ground
from pipeline.composing.synthetic.raycast import ROAD, cast
from pipeline.composing.synthetic.scene import Plan, plan_street
from pipeline.composing.synthetic.shadow import Shadows
from pipeline.composing.synthetic.solid import BODY, LAMP, PLAIN, WALL, Solid, oblong
from pipeline.composing.synthetic.surfaces import shade

GRAY = (0.5, 0.5, 0.5)
POST = Solid(2.0, 8.0, 0.0, 0.3, oblong(0.3, 0.0, 3.0), PLAIN, GRAY, 0.0)


def lit_plan(to_sun: tuple[float, float, float], *solids: Solid, sun: float = 2.0, lamps: float = 0.0) -> Plan:
    """A level street in clean air with the sun where we want it."""
    plan = plan_street(0, 0)
    camera = Camera(focal_px=200.0, height_m=1.5, pitch_rad=0.1, yaw_rad=0.0, x_m=0.0)
    light = dataclasses.replace(
        plan.light, to_sun=vec(to_sun), sun_rgb=vec([sun] * 3), ambient_rgb=vec([0.2] * 3), lamps=lamps, haze_m=1e6
    )
    ground = Ground(camera, 6.0, Curve(), Curve(), np.inf, (1.0, 1.0, 1.0))
    nothing = np.zeros((0, 4), np.float32)
    paving = dataclasses.replace(plan.paving, cobbles=0.0, lines=(0.0, 0.0, -99.0))
    return dataclasses.replace(
        plan, ground=ground, light=light, solids=solids, balls=nothing, leaf_rgb=nothing[:, :3], paving=paving
    )


def on_ground(plan: Plan, x: float, z: float) -> tuple[float, float]:
    sun, sky = Shadows(plan).on_ground(vec([x]), vec([z]))
    return float(sun[0]), float(sky[0])


def test_shadows_fall_away_from_the_sun_as_long_as_its_height_says() -> None:
    plan = lit_plan((0.6, 0.8, 0.0), POST)  # the sun to the right, so the shadow is 3 * 0.6 / 0.8 = 2.25 m to the left
    assert on_ground(plan, 2.0 - 1.5, 8.0)[0] > 0.9
    assert on_ground(plan, 2.0 - 2.8, 8.0)[0] == 0
    assert on_ground(plan, 2.0 + 0.6, 8.0)[0] == 0
    assert on_ground(plan, 2.0 - 1.5, 8.8)[0] == 0
    assert on_ground(lit_plan((0.6, 0.8, 0.0), POST, sun=0.1), 0.5, 8.0)[0] == 0, "no sun, no shadows"


@pytest.mark.parametrize(("x", "z"), [(-24.5, 20.0), (24.5, 20.0), (0.0, 72.5), (0.0, 5000.0), (-1e5, 1.0)])
def test_beyond_the_map_there_are_no_shadows(x: float, z: float) -> None:
    everywhere = dataclasses.replace(POST, half_m=500.0, profile=oblong(500.0, 0.0, 3.0))
    assert on_ground(lit_plan((0.01, 1.0, 0.0), everywhere), 0.0, 30.0)[0] == 1
    assert on_ground(lit_plan((0.01, 1.0, 0.0), everywhere), x, z) == (0, 0)


def test_it_is_dim_below_a_parked_car_and_nowhere_else() -> None:
    car = Solid(3.0, 20.0, 0.0, 0.9, oblong(2.2, 0.24, 1.5), BODY, GRAY, 0.0)
    plan = lit_plan((0.01, 1.0, 0.0), car)
    assert on_ground(plan, 3.0, 20.0)[1] > 0.95
    assert 0 < on_ground(plan, 3.0 - 1.0, 20.0)[1] < 0.9
    assert on_ground(plan, 3.0 - 2.0, 20.0)[1] == 0


def test_a_row_of_houses_hides_the_sun_up_to_its_height() -> None:
    house = Solid(13.0, 30.0, 0.0, 5.0, oblong(25.0, -4.0, 10.0), WALL, GRAY, 0.0)  # from x = 8, 10 m high
    shadows = Shadows(lit_plan((0.8, 0.6, 0.0), house))
    heights = vec([0.0, 3.5, 4.5, 9.0])  # at x = 0 a ray to the sun is 6 m higher when it gets there
    x, z = np.zeros(4, np.float32), np.full(4, 30.0, np.float32)
    assert shadows.of_houses(x, heights, z).tolist() == [1, 1, 0, 0]
    assert shadows.of_houses(x, heights, z + 60).tolist() == [0, 0, 0, 0]
    assert Shadows(lit_plan((-0.8, 0.6, 0.0), house)).of_houses(x, heights, z).tolist() == [0, 0, 0, 0]


def road_brightness(plan: Plan) -> tuple[F32, F32, F32]:
    """Brightness of road pixels, and their x and z in metres."""
    depth, surface = cast(plan, 1)
    bright = shade(plan, depth, surface, 1).mean(0)
    road = surface == ROAD
    x, _, z = (depth[road] * plane[road] for plane in plan.ground.camera.rays(1))
    return bright[road], x, z


def test_a_shadow_is_seen_in_the_picture() -> None:
    bright, x, z = road_brightness(lit_plan((0.6, 0.8, 0.0), POST))
    shaded = (np.abs(z - 8.0) < 0.2) & (x > -0.1) & (x < 1.6)
    beside = (np.abs(z - 6.5) < 0.5) & (x > -0.1) & (x < 1.6)
    assert shaded.sum() > 5
    assert bright[shaded].mean() < 0.35 * bright[beside].mean()


def test_street_lamps_light_the_road_below_them_at_dusk() -> None:
    lamp = Solid(2.0, 15.0, 0.0, 0.3, oblong(0.1, 5.0, 5.1), LAMP, GRAY, 0.0)
    below: list[float] = []
    for lamps in (0.0, 1.0):
        bright, x, z = road_brightness(lit_plan((0.01, 1.0, 0.0), lamp, sun=0.0, lamps=lamps))
        near, far = np.hypot(x - 2.0, z - 15.0) < 1.5, np.hypot(x - 2.0, z - 60.0) < 15
        below.append(float(bright[near].mean() / bright[far].mean()))
    assert below[0] < 1.6
    assert below[1] > 2 * below[0]
