import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.depth import CONVERTED, ENCODINGS, depth_table
from pipeline.format.images import BadImage, decode_gray
from pipeline.packing.depth_files import DepthFiles, recognise_depth_files
from pipeline.packing.depth_holes import Holes
from tests.samples import coloured, jpeg, npy, png, street_depth

LEVELS = street_depth()
WATCHED = Holes(stored=False, value=None, watched=True, zeros_watched=True, why="")


def error(levels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """RMSE in levels."""
    return float(np.sqrt(((levels.astype(float) - expected) ** 2).mean()))


@pytest.mark.parametrize("near", ["bright", "dark"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_a_table_inverts_is_stored_as_it_came(encoding: str, near: str) -> None:
    files = DepthFiles(encoding, near)
    content = jpeg(coloured(LEVELS, encoding))
    picture, note = files.read(content, "decode")
    assert (picture.extension, picture.content, picture.size, note) == ("jpg", content, LEVELS.shape, {})
    assert files.stored == (encoding, near)


@pytest.mark.parametrize("near", ["bright", "dark"])
@pytest.mark.parametrize("encoding", [*ENCODINGS, *CONVERTED])
def test_what_is_converted_is_gray_with_near_bright(encoding: str, near: str) -> None:
    files = DepthFiles(encoding, near, arrays=True)
    assert files.converts
    assert files.stored == ("gray", "bright")
    picture, note = files.read(png(coloured(LEVELS, encoding)), "decode")
    nearness = LEVELS if near == "bright" else 255 - LEVELS
    assert error(decode_gray(picture.content), nearness) < 1.5
    assert note == {}


def test_gray_with_near_bright_is_kept_even_where_others_are_converted() -> None:
    content = jpeg(LEVELS[..., None])
    assert DepthFiles("gray", "bright", arrays=True).read(content, "decode")[0].content == content


@pytest.mark.parametrize("shape", [(64, 256), (1, 1, 64, 256), (64, 256, 1)])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<u2", ">i8"])
def test_arrays_are_scaled_each_by_itself_or_by_one_range(shape: tuple[int, ...], dtype: str) -> None:
    values = np.repeat(np.arange(256.0), 64).reshape(64, 256).astype(dtype)
    content = npy(values.reshape(shape) * np.array(10, dtype))
    by_itself, note = DepthFiles("gray", "bright", arrays=True).read(content, "header")
    assert note == {"depth_range": [0.0, 2550.0]}
    assert by_itself.size == (64, 256)
    assert error(decode_gray(by_itself.content), values.astype(np.uint8)) < 1
    one, note = DepthFiles("gray", "dark", arrays=True, limits=(1000.0, 2000.0)).read(content, "header")
    assert note == {"depth_range": [2000.0, 1000.0]}  # far, near
    expected = np.rint(255 - 255 * np.clip((values.astype(float) - 100) / 100, 0, 1)).astype(np.uint8)
    assert error(decode_gray(one.content), expected) < 1.5


def test_a_flat_array_is_all_far() -> None:
    picture, note = DepthFiles("gray", "bright", arrays=True).read(npy(np.full((16, 16), 7.5, np.float32)), "decode")
    assert note == {"depth_range": [7.5, 7.5]}
    assert not decode_gray(picture.content).any()


def test_infinity_saturates_in_a_range_and_is_refused_without() -> None:
    content = npy(np.where(LEVELS > 99, np.inf, LEVELS).astype(np.float32))
    with pytest.raises(BadImage, match="infinite values: state the range that counts with --depth-range"):
        DepthFiles("gray", "dark", arrays=True).read(content, "decode")
    picture, _ = DepthFiles("gray", "dark", arrays=True, limits=(0.0, 100.0)).read(content, "decode")
    assert decode_gray(picture.content)[LEVELS > 99].mean() < 2  # far, which is black


def test_sixteen_bits() -> None:
    values = (LEVELS.astype(np.uint16) * 7) + 100  # millimetres, a small part of the whole range
    content = png(values)
    assert DepthFiles("gray", "dark").read(content, "decode")[0].content == content
    assert depth_table("gray", "dark")[decode_gray(content)].min() > 240  # which is why one scales them
    picture, note = DepthFiles("gray", "dark", per_image=True).read(content, "decode")
    assert note == {"depth_range": [float(values.max()), float(values.min())]}
    stretched = np.rint(LEVELS * (255 / LEVELS.max())).astype(np.uint8)
    assert error(decode_gray(picture.content), 255 - stretched) < 1.5
    picture, note = DepthFiles("gray", "bright", limits=(100.0, 100.0 + 7 * 255)).read(content, "decode")
    assert note == {"depth_range": [100.0, 1885.0]}
    assert error(decode_gray(picture.content), LEVELS) < 1.5
    # Beside arrays, with no range stated, they keep the whole range of 16 bits.
    picture, note = DepthFiles("gray", "dark", arrays=True).read(png(LEVELS.astype(np.uint16) * 257), "decode")
    assert note == {}
    assert error(decode_gray(picture.content), 255 - LEVELS) < 1.5


def test_bad_files_say_why() -> None:
    for files in (DepthFiles("gray", "bright"), DepthFiles("jet", "bright"), DepthFiles("magma", "dark", arrays=True)):
        with pytest.raises(BadImage, match="JPEG does not decode"):
            files.read(jpeg(coloured(LEVELS, "jet"))[:-300], "decode")
        with pytest.raises(BadImage, match="empty file"):
            files.read(b"", "header")


def test_how_files_are_read_is_told() -> None:
    magma = [("a.jpg", jpeg(coloured(LEVELS, "magma"))), ("b.jpg", jpeg(coloured(255 - LEVELS, "magma")))]
    files, why = recognise_depth_files(magma, 0, "auto", "dark")
    assert files == DepthFiles("magma", "dark", holes=WATCHED, recognised=True)
    assert why.startswith("2 sampled depth maps are magma (mean distance")
    files, why = recognise_depth_files(magma, 0, "jet", "bright")
    assert files == DepthFiles("jet", "bright", holes=WATCHED._replace(zeros_watched=False))
    assert why == "stated to be jet; stored as gray, near bright"
    files, why = recognise_depth_files(magma, 7, "auto", "bright", limits=(0.5, 80.0))
    assert (files.encoding, files.arrays, files.limits, files.stored) == (
        "magma",
        True,
        (0.5, 80.0),
        ("gray", "bright"),
    )
    assert why.endswith("; 7 are numbers (.npy), scaled from 0.5 to 80; stored as gray, near bright")
    files, why = recognise_depth_files([], 7, "auto", "bright")
    assert (files.encoding, files.arrays, files.limits) == ("gray", True, None)
    assert why == "7 are numbers (.npy), scaled each by its smallest and largest value; stored as gray, near bright"


def test_dim_pictures_of_sixteen_bits_are_told() -> None:
    dim, whole = ([("a.png", png(LEVELS.astype(np.uint16) * factor))] for factor in (10, 257))
    files, why = recognise_depth_files(dim, 0, "auto", "bright")
    assert files.stored == ("gray", "bright")
    assert not files.converts
    assert why.endswith(
        "; their 16 bits reach only 2,510 of 65,535: scale them with --depth-range or --depth-per-image"
    )
    assert "16 bits" not in recognise_depth_files(whole, 0, "auto", "bright")[1]
    files, why = recognise_depth_files(dim, 0, "auto", "bright", per_image=True)
    assert files.converts
    assert "; 16 bits are scaled each by its smallest" in why


def test_a_range_without_numbers_is_refused() -> None:
    for scale in ({"per_image": True}, {"limits": (0.0, 1.0)}):
        with pytest.raises(
            InputError, match="all 1 sampled depth maps are pictures of 8 bits: leave out --depth-range"
        ):
            recognise_depth_files([("a.jpg", jpeg(LEVELS[..., None]))], 0, "auto", "bright", **scale)


def test_arrays_of_any_order_and_type_give_the_same_picture() -> None:
    """As MATLAB, HDF5 and half-precision networks leave them."""
    files = DepthFiles("gray", "dark", arrays=True)
    expected, scale = files.read(npy(LEVELS.astype(np.float32)), "decode")
    for dtype in ("<f2", ">f4", "<f8", "u1", "<i2", ">i4", "<u8"):
        for array in (LEVELS.astype(dtype), np.asfortranarray(LEVELS.astype(dtype)[None])):
            assert files.read(npy(array), "decode") == (expected, scale), (dtype, array.shape)


def test_an_array_too_wide_for_a_jpeg_is_named() -> None:
    with pytest.raises(BadImage, match=r"70,000 x 1 pixels of depth are too many for a JPEG"):
        DepthFiles("gray", "bright", arrays=True).read(npy(np.zeros((1, 70_000), np.float32)), "decode")


METRES = np.where(LEVELS < 40, np.nan, 2 + LEVELS / 64).astype(np.float32)
NAN_HOLES = Holes(stored=True, value=None, watched=True, zeros_watched=False, why="")
ZERO_HOLES = NAN_HOLES._replace(value=0.0)


def levels_of(files: DepthFiles, content: bytes) -> tuple[NDArray[np.uint8], dict[str, object]]:
    picture, note = files.read(content, "decode")
    assert picture.extension == "png"
    assert picture.size == LEVELS.shape
    return decode_gray(picture.content), note


@pytest.mark.parametrize("near", ["bright", "dark"])
@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_holes_are_stored_apart_from_every_measured_level(near: str, hole: float) -> None:
    files = DepthFiles("gray", near, arrays=True, holes=NAN_HOLES)
    assert files.stored == ("gray-holes", "bright")
    found, note = levels_of(files, npy(np.where(np.isnan(METRES), hole, METRES)))
    measured = ~np.isnan(METRES)
    low, high = float(np.nanmin(METRES)), float(np.nanmax(METRES))
    assert note["depth_range"] == ([low, high] if near == "bright" else [high, low])  # of what was measured
    assert note["depth_holes"] == round(1 - measured.mean(), 6)
    far_to_near = (METRES - low) / (high - low) if near == "bright" else (high - METRES) / (high - low)
    expected = np.maximum(np.rint(255 * far_to_near[measured].astype(np.float64)), 1)
    assert np.abs(found[measured] - expected).max() <= 1
    assert found[measured].min() == 1  # the farthest
    assert not found[~measured].any()


def test_zeros_of_sixteen_bits_are_holes_with_a_range_and_without() -> None:
    values = np.where(LEVELS < 40, 0, LEVELS.astype(np.uint16) * 257)
    for near in ("bright", "dark"):
        nearness = LEVELS if near == "bright" else 255 - LEVELS
        expected = np.where(LEVELS < 40, 0, np.maximum(nearness, 1))
        for limits in (None, (0.0, 65535.0)):
            files = DepthFiles("gray", near, limits=limits, holes=ZERO_HOLES)
            assert np.array_equal(levels_of(files, png(values.astype(np.uint16)))[0], expected)
    own, note = levels_of(DepthFiles("gray", "bright", per_image=True, holes=ZERO_HOLES), png(values.astype(np.uint16)))
    assert note["depth_range"] == [
        int(LEVELS[LEVELS >= 40].min()) * 257.0,
        int(LEVELS.max()) * 257.0,
    ]  # 0 does not squeeze it
    assert own.max() == 255


def test_any_value_of_eight_bits_may_be_the_hole() -> None:
    files = DepthFiles("gray", "dark", holes=ZERO_HOLES._replace(value=255.0))
    levels = np.where(LEVELS < 40, 255, np.minimum(LEVELS, 254)).astype(np.uint8)
    found, note = levels_of(files, png(levels))
    assert np.array_equal(found, np.where(levels == 255, 0, 255 - levels))
    assert note == {"depth_holes": round((levels == 255).mean(), 6)}


def test_a_jpeg_cannot_tell_a_value_from_its_neighbours() -> None:
    content = jpeg(LEVELS[..., None])
    with pytest.raises(BadImage, match="a JPEG, in which no value is exactly 0: convert such depth to PNG"):
        DepthFiles("gray", "bright", holes=ZERO_HOLES).read(content, "decode")
    found, note = levels_of(DepthFiles("gray", "bright", arrays=True, holes=NAN_HOLES), content)
    assert np.array_equal(found, np.maximum(decode_gray(content), 1))  # beside arrays with NaN: all of it was measured
    assert note == {"depth_holes": 0}
    with pytest.raises(InputError, match=r"a\.jpg is a JPEG, which has no exact values: convert depth to PNG"):
        recognise_depth_files([("a.jpg", content)], 0, "auto", "bright", invalid="zero")
    magma = [("a.png", png(coloured(LEVELS, "magma")))]
    with pytest.raises(InputError, match="depth coloured by magma has no exact values"):
        recognise_depth_files(magma, 0, "auto", "bright", invalid="7")


def test_a_map_without_any_measurement_is_no_depth() -> None:
    for files, content in (
        (DepthFiles("gray", "dark", arrays=True, holes=NAN_HOLES), npy(np.full((8, 8), np.nan))),
        (DepthFiles("gray", "dark", holes=ZERO_HOLES), png(np.zeros((8, 8), np.uint16))),
    ):
        with pytest.raises(BadImage, match="nothing of it was measured"):
            files.read(content, "decode")


def test_holes_that_the_sample_did_not_show_are_named() -> None:
    arrays = DepthFiles("gray", "dark", arrays=True, holes=WATCHED)
    for hole in (np.nan, np.inf):
        with pytest.raises(BadImage, match="the sampled depth maps have none: state --depth-invalid nan"):
            arrays.read(npy(np.where(np.isnan(METRES), hole, METRES)), "decode")
    millimetres = np.where(LEVELS < 40, 0, 9000 - LEVELS.astype(np.int64) * 20)
    for files, content in (
        (arrays, npy(millimetres)),
        (DepthFiles("gray", "dark", holes=WATCHED), png(millimetres.astype(np.uint16))),
        (DepthFiles("gray", "dark", per_image=True, holes=WATCHED), png(millimetres.astype(np.uint16))),
        (DepthFiles("gray", "dark", arrays=True, holes=NAN_HOLES._replace(zeros_watched=True)), npy(millimetres)),
    ):
        with pytest.raises(BadImage, match=r"of it is 0, which looks like no measurement, .*--depth-invalid zero"):
            files.read(content, "decode")
    assert (
        DepthFiles("gray", "dark", arrays=True).read(npy(millimetres), "decode")[0].extension == "jpg"
    )  # stated: none


def test_percentiles_are_the_ends_of_a_maps_own_scale() -> None:
    values = LEVELS.astype(np.float32)
    values[0, :3], values[1, 0] = [1e6, 1e6, -1e6], np.nan
    files = DepthFiles("gray", "bright", arrays=True, percentiles=(1.0, 99.0), holes=NAN_HOLES)
    found, note = levels_of(files, npy(values))
    low, high = np.percentile(values[~np.isnan(values)].astype(np.float64), [1, 99])
    assert note["depth_range"] == [low, high]
    expected = np.maximum(np.rint(255 * np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)), 1)
    assert np.array_equal(found[2:], expected[2:])
    assert found[0, :3].tolist() == [255, 255, 1]
    content = png(LEVELS.astype(np.uint16) * 7 + 100)
    own = DepthFiles("gray", "bright", percentiles=(0.0, 100.0)).read(content, "decode")
    assert own == DepthFiles("gray", "bright", per_image=True).read(content, "decode")


@pytest.mark.parametrize("encoding", [*ENCODINGS, *CONVERTED])
@pytest.mark.parametrize("other", [*ENCODINGS, *CONVERTED])
def test_a_picture_of_another_encoding_than_the_sample_is_named(encoding: str, other: str) -> None:
    files = DepthFiles(encoding, "bright", recognised=True)
    for content in (jpeg(coloured(LEVELS, other), 75), png(coloured(LEVELS, other))):
        if other == encoding:
            assert files.read(content, "decode")[0].size == LEVELS.shape
        else:
            with pytest.raises(BadImage, match=f"it is {other}, the sampled depth maps are {encoding}") as error:
                files.read(content, "decode")
            assert error.value.kind == "other encoding"
        assert DepthFiles(encoding, "bright").read(content, "decode")  # what is stated is believed
        assert files.read(content, "header")  # and what is not decoded, trusted


def test_a_picture_of_one_channel_needs_no_decoding_to_be_another() -> None:
    with pytest.raises(BadImage, match="it is gray, the sampled depth maps are viridis"):
        DepthFiles("viridis", "bright", recognised=True).read(jpeg(LEVELS[..., None]), "header")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(BadImage, match="it is in colours of no map that is known"):
        DepthFiles("gray", "bright", recognised=True).read(png(noise), "decode")
