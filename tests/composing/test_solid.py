import numpy as np
import pytest

from pipeline.composing.synthetic.scene import plan_street
from pipeline.composing.synthetic.solid import MAX_FACES, PLAIN, Solid, linear, oblong

GRAY = (0.5, 0.5, 0.5)


def test_planes_of_a_box_are_its_sides() -> None:
    box = Solid(2.0, 9.0, 0.0, 1.5, oblong(4.0, 0.5, 3.0), PLAIN, GRAY, 0.0)
    assert sorted(map(tuple, box.planes.tolist())) == sorted(
        [(-1, 0, 0, 1.5), (1, 0, 0, 1.5), (0, -1, 0, -0.5), (0, 0, 1, 4.0), (0, 1, 0, 3.0), (0, 0, -1, 4.0)]
    )
    assert box.corners.min(0).tolist() == [0.5, 0.5, 5.0]
    assert box.corners.max(0).tolist() == [3.5, 3.0, 13.0]


def test_yaw_turns_v_from_z_towards_x() -> None:
    turned = Solid(0.0, 0.0, np.pi / 2, 1.0, oblong(5.0, 0.0, 2.0), PLAIN, GRAY, 0.0)
    np.testing.assert_allclose(turned.corners.max(0), [5, 2, 1])
    np.testing.assert_allclose(turned.normals[2 + 1], [1, 0, 0], atol=1e-12)  # the edge at +v


@pytest.mark.parametrize("street", range(12))
def test_every_solid_of_a_street_is_the_hull_of_its_corners(street: int) -> None:
    """Each corner lies in all half-spaces, on three planes or more: so the profile is convex and counterclockwise."""
    for solid in plan_street(2, street).solids:
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
    rgb = np.array([linear(np.random.default_rng(k), (0.5, 0.5, 0.5), 0.0) for k in range(20)])
    assert (np.abs(np.sqrt(rgb) - 0.5) <= 0.076).all()
    assert len(np.unique(rgb)) == 20
