import numpy as np

from pipeline.composing.synthetic.raycast import FIRST_FACE, ROAD, SKY, cast_rays
from pipeline.composing.synthetic.scene import SIZE_PX, Kind
from pipeline.composing.synthetic.source import build_scene, render_street

STREETS = range(8)


def test_a_street_depends_on_seed_and_number_alone() -> None:
    one, again = render_street(5, 3), render_street(5, 3)
    assert one.rgb.tobytes() == again.rgb.tobytes()
    assert one.depth_m.tobytes() == again.depth_m.tobytes()
    assert one.ground == again.ground
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
        assert street.rgb.std() > 12
        assert 20 < street.ground.reach_m <= 150
        assert 0.1 < min(street.ground.light_rgb) <= max(street.ground.light_rgb) < 1.6
        _, surface = cast_rays(build_scene(7, number), 1)
        assert 0.1 < (surface == ROAD).mean() < 0.75
        assert (surface >= FIRST_FACE).mean() > 0.03
        assert np.isinf(street.depth_m[surface == SKY]).all()
        seen_sky += bool((surface == SKY).any())
    assert seen_sky > 5


def test_at_dusk_lamps_burn_and_it_is_darker() -> None:
    scenes = [build_scene(8, number) for number in range(40)]
    dusk = [scene for scene in scenes if scene.light.lamps > 0]
    assert 2 <= len(dusk) <= 12
    for scene in dusk:
        assert any(solid.kind == Kind.LAMP for solid in scene.solids)
        assert scene.light.lit > 0.3
        day = min(max(other.ground.light_rgb) for other in scenes if other.light.lamps == 0)
        assert max(scene.ground.light_rgb) < day
