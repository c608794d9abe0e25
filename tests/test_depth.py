import matplotlib
import numpy as np
import pytest

from pipeline.depth import colour_map, depth_table, recognise_encoding
from pipeline.errors import InputError
from pipeline.images import decode_gray, decode_rgb
from tests.samples import jpeg, smooth_picture


def test_gray_tables() -> None:
    assert depth_table("gray", "bright").tolist() == list(range(256))
    assert depth_table("gray", "dark").tolist() == list(range(255, -1, -1))


def test_magma_table_inverts_the_colour_map_through_jpeg() -> None:
    scalar = smooth_picture(1, channels=1, size=128)[..., 0]
    colours = np.rint(colour_map("magma")[scalar]).astype(np.uint8)
    decoded = depth_table("magma", "bright")[decode_gray(jpeg(colours, quality=75))]
    error = (decoded.astype(float) - scalar) / 255
    assert np.sqrt((error**2).mean()) < 0.01  # PEERS: 0.005; gray taken as it is: 0.08
    assert np.array_equal(depth_table("magma", "dark"), 255 - depth_table("magma", "bright"))


def test_encodings_are_recognised() -> None:
    scalar = smooth_picture(1, channels=1)
    gray = decode_rgb(jpeg(scalar))
    magma = decode_rgb(jpeg(np.rint(colour_map("magma")[scalar[..., 0]]).astype(np.uint8), quality=75))
    assert recognise_encoding([("a", gray)]) == "gray"
    assert recognise_encoding([("a", magma), ("b", magma)]) == "magma"
    with pytest.raises(InputError, match="a is gray, b is magma"):
        recognise_encoding([("a", gray), ("b", magma)])


@pytest.mark.parametrize("name", ["viridis", "jet", "hsv"])
def test_other_colours_are_refused_by_name(name: str) -> None:
    scalar = smooth_picture(1, channels=1)[..., 0]
    colours = (255 * matplotlib.colormaps[name](scalar)[..., :3]).astype(np.uint8)
    with pytest.raises(InputError, match=r"map\.jpg is neither gray nor colour-mapped by magma"):
        recognise_encoding([("map.jpg", decode_rgb(jpeg(colours)))])
