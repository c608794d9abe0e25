from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.depth import (
    CONVERTED,
    ENCODINGS,
    HOLE_COLOUR,
    LUMA,
    WITH_HOLES,
    Recognised,
    colour_holes,
    colour_map,
    depth_table,
    recognise_encoding,
    scalar_of_colours,
)
from pipeline.format.images import decode_gray, decode_rgb
from tests.samples import coloured, jpeg, smooth_picture, street_depth

MAPS = (*ENCODINGS[1:], *CONVERTED)


def sample(*encodings: str, levels: NDArray[np.uint8] | None = None) -> list[tuple[str, NDArray[np.uint8]]]:
    """Depth pictures through JPEG at quality 75, called by number and encoding."""
    chosen = street_depth() if levels is None else levels
    made = enumerate(encodings)
    return [(f"{number}-{encoding}.jpg", decode_rgb(jpeg(coloured(chosen, encoding), 75))) for number, encoding in made]


def test_gray_tables() -> None:
    assert depth_table("gray", "bright").tolist() == list(range(256))
    assert depth_table("gray", "dark").tolist() == list(range(255, -1, -1))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables_exist_because_luma_never_decreases(encoding: str) -> None:
    if encoding != "gray":
        assert all(low < high for low, high in pairwise(colour_map(encoding) @ LUMA))
    assert np.array_equal(depth_table(encoding, "dark"), 255 - depth_table(encoding, "bright"))


@pytest.mark.parametrize("encoding", CONVERTED)
def test_maps_that_are_converted_could_have_no_table(encoding: str) -> None:
    assert any(low > high for low, high in pairwise(colour_map(encoding) @ LUMA))


@pytest.mark.parametrize("quality", [75, 95])
@pytest.mark.parametrize("encoding", [*ENCODINGS, *CONVERTED])
def test_every_map_is_inverted_through_jpeg(encoding: str, quality: int) -> None:
    # The tolerance that pipeline/format/depth.py states: RMSE, and the share of pixels within 16 levels.
    scalar = street_depth(224)
    stored = jpeg(coloured(scalar, encoding), quality)
    if encoding in CONVERTED:
        decoded = scalar_of_colours(decode_rgb(stored), encoding)
        rmse, within = (6.0, 0.99) if quality == 75 else (3.5, 0.99)
    else:
        decoded = depth_table(encoding, "bright")[decode_gray(stored)]
        rmse, within = (2.0, 0.998) if quality == 75 else (1.2, 0.999)
    error = decoded.astype(float) - scalar
    assert np.sqrt((error**2).mean()) < rmse
    assert (np.abs(error) <= 16).mean() >= within


@pytest.mark.parametrize("encoding", CONVERTED)
def test_smooth_depth_comes_back_by_colour_as_by_a_table(encoding: str) -> None:
    scalar = smooth_picture(1, channels=1, size=128)[..., 0]
    error = scalar_of_colours(decode_rgb(jpeg(coloured(scalar, encoding), 75)), encoding).astype(float) - scalar
    assert np.sqrt((error**2).mean()) < 2


@pytest.mark.parametrize("encoding", CONVERTED)
def test_nearest_colours_are_the_nearest(encoding: str) -> None:
    # Beside the slow way: the distance to all 256 colours, luma at its full and chroma at half its weight.
    colours = np.random.default_rng(0).integers(0, 256, (500, 1, 3), dtype=np.uint8)
    axes = np.array([LUMA, [-0.084368, -0.165632, 0.25], [0.25, -0.209344, -0.040656]])
    middles = (colours // 4 * 4 + 1.5) @ axes.T  # the table tells apart every fourth level
    distances = np.linalg.norm(middles - colour_map(encoding) @ axes.T, axis=2)
    found = distances[np.arange(500), scalar_of_colours(colours, encoding)[:, 0]]
    assert np.allclose(found, distances.min(axis=1), atol=0.5)


@pytest.mark.parametrize("encoding", MAPS)
def test_maps_are_recognised(encoding: str) -> None:
    found = recognise_encoding(sample(encoding, encoding))
    assert (found.encoding, found.pictures) == (encoding, 2)
    assert found.distance < 5 < found.runner_up_distance
    assert f"are {encoding} (mean distance {found.distance:.1f} of 255; the next nearest map is" in str(found)
    # A quarter of the range still tells it; reversed, it is the same map.
    narrow = recognise_encoding(sample(encoding, levels=street_depth() // 4))
    assert narrow.encoding == recognise_encoding(sample(encoding, levels=255 - street_depth())).encoding == encoding


def test_gray_is_recognised() -> None:
    found = recognise_encoding(sample("gray"))
    assert (found.encoding, found.runner_up) == ("gray", "")
    assert str(Recognised("gray", 7, 0.04)) == "7 sampled depth maps are gray (channels differ by 0.0 of 255)"


def test_a_black_picture_is_of_any_map_that_has_black() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    assert recognise_encoding([("black.jpg", black), *sample("magma")]).encoding == "magma"


def test_what_could_be_two_maps_is_refused() -> None:
    dark = np.full((16, 16), 12, np.uint8) + np.arange(16, dtype=np.uint8) // 2  # magma and inferno begin alike
    message = r"could be (magma|inferno) \(mean distance .* or (magma|inferno) .*: state which with --depth-encoding"
    with pytest.raises(InputError, match=message):
        recognise_encoding([("dark.png", coloured(dark, "magma"))])


def test_pictures_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match=r"different ways \(0-gray\.jpg is gray, 1-magma\.jpg is magma\)"):
        recognise_encoding(sample("gray", "magma"))
    with pytest.raises(InputError, match=r"different ways \(1-jet\.jpg is jet, 0-turbo\.jpg is turbo\)"):
        recognise_encoding(sample("turbo", "jet", "jet"))


@pytest.mark.parametrize("name", ["hsv", "cividis", "coolwarm", "hot"])
def test_other_colours_are_refused_by_name(name: str) -> None:
    colours = (255 * matplotlib.colormaps[name](street_depth())[..., :3]).astype(np.uint8)
    with pytest.raises(
        InputError, match=r"depth map map\.jpg is neither gray nor coloured by magma, .*--depth-encoding"
    ):
        recognise_encoding([("map.jpg", decode_rgb(jpeg(colours))), *sample("magma")])


def test_the_original_is_magma(s15: Path) -> None:
    pictures = [(path.name, decode_rgb(path.read_bytes())) for path in sorted(s15.rglob("*_disp.jpeg"))]
    assert recognise_encoding(pictures).encoding == "magma"


@pytest.mark.parametrize(("most", "stray"), [("gray", "magma"), ("magma", "gray"), ("turbo", "viridis")])
def test_a_stray_in_a_sample_of_many_is_left_to_be_named(most: str, stray: str) -> None:
    found = recognise_encoding(sample(*[most] * 15, stray))
    assert (found.encoding, found.pictures) == (most, 15)
    with pytest.raises(InputError, match="encoded in different ways"):
        recognise_encoding(sample(*[most] * 12, *[stray] * 4))


def test_holes_are_shown_in_a_colour_of_their_own() -> None:
    shown = colour_holes(np.array([[0, 1], [128, 255]], np.uint8))
    assert shown.tolist() == [[list(HOLE_COLOUR), [1] * 3], [[128] * 3, [255] * 3]]
    assert depth_table(WITH_HOLES, "bright").tolist() == list(range(256))
