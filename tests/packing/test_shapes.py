"""Parts of another shape than their overlay: left out by name, cropped around the middle, or stretched, as stated."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.format.images import Picture, decode_gray, decode_rgb
from pipeline.format.manifest import Manifest, load_index
from pipeline.loading.shard_reader import ShardReader
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import PackSummary, pack
from pipeline.packing.shapes import crop_box, cropped, orientation, same_shape
from tests.samples import jpeg, overlay, png, set_paths, smooth_picture, write, write_sets


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((224, 224), (256, 256), True),
        ((375, 1242), (188, 621), True),  # half of it, rounded up
        ((375, 1242), (187, 621), True),  # and down
        ((375, 1242), (192, 640), True),  # as networks take it: less than a pixel off in each side
        ((480, 640), (640, 480), False),
        ((1080, 1920), (384, 672), False),
        ((96, 96), (96, 288), False),
        ((100, 100), (100, 97), False),
        ((1000, 1000), (1000, 999), True),
        ((2, 3), (200, 300), True),
    ],
)
def test_a_shape_is_a_ratio_up_to_rounding(one: tuple[int, int], other: tuple[int, int], same: bool) -> None:
    assert same_shape(one, other) == same_shape(other, one) == same


def test_every_rounding_of_a_smaller_size_is_the_same_shape() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        size = rng.integers(20, 2000, 2)
        smaller = size * rng.uniform(0.05, 1)
        for rounded in (np.floor(smaller), np.ceil(smaller), np.rint(smaller)):
            height, width = np.maximum(rounded.astype(int), 1).tolist()
            assert same_shape((height, width), (int(size[0]), int(size[1])))


def test_a_crop_is_the_largest_around_the_middle() -> None:
    assert crop_box((96, 288), (48, 48)) == (96, 0, 192, 96)
    assert crop_box((300, 100), (50, 100)) == (0, 125, 100, 175)
    assert crop_box((5, 9), (500, 500)) == (2, 0, 7, 5)
    wide = smooth_picture(0, 3, 60)[:20]
    square = cropped(Picture("png", png(wide), (20, 60)), (48, 48))
    assert (square.extension, square.size) == ("png", (20, 20))
    assert (decode_rgb(square.content) == wide[:, 20:40]).all()
    whole = Picture("png", png(wide), (20, 60))
    assert cropped(whole, (40, 120)) is whole
    deep = np.arange(60, dtype=np.uint16).reshape(1, 60).repeat(20, axis=0) * 1000
    part = cropped(Picture("png", png(deep), (20, 60)), (48, 48))
    assert (np.asarray(Image.open(io.BytesIO(part.content))) == deep[:, 20:40]).all(), "16 bits stay"


def wide_background(bg: int) -> bytes:
    """The background of `write_sets` in the middle of a picture three times as wide."""
    middle = smooth_picture(bg)
    return jpeg(np.concatenate([middle[:, ::-1], middle, middle[:, ::-1]], axis=1), 95)


def packed(source: Path, shards: Path, **options: object) -> PackSummary:
    return pack(source, shards, PackOptions(workers=1, **options))  # type: ignore[arg-type]


def test_some_sets_of_other_shape_are_left_out_by_name(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 4, 2)
    write(source / "bg/bg_003.jpg", wide_background(3))
    write(source / set_paths(0, 1, 1)[2], jpeg(smooth_picture(9, 1)[:20]))
    summary = packed(source, tmp_path / "shards")
    assert (summary.manifest.sets, summary.manifest.warnings) == (5, [])
    assert summary.left_out["mismatch"] == 3
    with (tmp_path / "shards" / "problems.csv").open(newline="") as file:
        found = {path: why for path, kind, why in csv.reader(file) if kind == "mismatch"}
    remedy = "pixels: of another shape; make them alike, or pack with --fit crop or --fit stretch"
    assert found == {
        set_paths(0, 1, 1)[2]: f"depth is 48 x 20, its overlay 48 x 48 {remedy}",
        set_paths(3, 0, 6)[0]: f"background 3 is 144 x 48, its overlay 48 x 48 {remedy}",
        set_paths(3, 1, 7)[0]: f"background 3 is 144 x 48, its overlay 48 x 48 {remedy}",
    }


@pytest.mark.parametrize("codec", ["jpeg", "planes"])
def test_most_sets_of_other_shape_end_it_and_a_crop_fits_them(codec: str, tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 3)
    for bg in range(2):
        write(source / f"bg/bg_{bg:03}.jpg", wide_background(bg))
    shards = tmp_path / "shards"
    with pytest.raises(InputError, match=r"^6 of 6 sampled sets .* different shape: bg/bg_000.jpg is 144 x 48.*--fit"):
        packed(source, shards, codec=codec)
    with pytest.raises(InputError, match=r"no usable set in .*: 6 mismatch; .*--fit crop"):
        packed(source, shards, codec=codec, accept_suspicious=True)
    manifest = packed(source, shards, codec=codec, fit="crop").manifest
    assert manifest.warnings == []
    assert manifest.conversions == [
        "fit: backgrounds and depth of another shape were cropped around their middle to their overlays' shape"
    ]
    assert manifest.sets == 6
    if codec == "jpeg":
        assert manifest.sizes["bg"] == {"min": [48, 48], "max": [48, 48]}
        reader = ShardReader(shards, manifest, load_index(shards, manifest))
        for bg in range(2):
            stored = decode_rgb(reader.read_background(bg).tobytes()).astype(int)
            assert np.abs(stored - smooth_picture(bg)).mean() < 4


def test_depth_is_cropped_with_its_colours(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 1, 2)
    for fg in range(2):
        scalar = smooth_picture(fg, 1, 96)[:48, :, 0]
        path = source / set_paths(0, fg, fg)[2]
        path.unlink()
        write(path.with_suffix(".png"), png(scalar))
    shards = tmp_path / "shards"
    manifest = packed(source, shards, fit="crop").manifest
    reader = ShardReader(shards, manifest, load_index(shards, manifest))
    for row, key in enumerate(reader.index["key"]):
        scalar = smooth_picture(int(key[3:6]), 1, 96)[:48, :, 0]
        assert (decode_gray(reader.read(row)[2].tobytes()) == scalar[:, 24:72]).all()


def test_stretched_parts_are_stored_as_they_came(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 1, 2)
    small = np.asarray(Image.fromarray(smooth_picture(0)).resize((48, 20)))
    write(source / "bg/bg_000.jpg", jpeg(small))
    manifest = packed(source, tmp_path / "shards", fit="stretch").manifest
    assert manifest.conversions == [
        "fit: backgrounds and depth of another shape were stored as they came, and load stretched"
    ]
    assert manifest.sizes["bg"] == {"min": [20, 48], "max": [20, 48]}
    assert Manifest.load(tmp_path / "shards").conversions == manifest.conversions


def test_one_shape_at_other_resolutions_passes(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 1, 2)
    write(source / "bg/bg_000.jpg", jpeg(np.asarray(Image.fromarray(smooth_picture(0)).resize((25, 24)))))
    write(source / set_paths(0, 1, 1)[2], jpeg(smooth_picture(0, 1, 20)))
    summary = packed(source, tmp_path / "shards")
    assert (summary.manifest.sets, summary.problems, summary.manifest.conversions) == (2, 0, [])


def turned(picture: bytes, by: int) -> bytes:
    """A JPEG whose pixels are turned, and whose EXIF orientation says so."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = by
    with Image.open(io.BytesIO(picture)) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def test_a_part_that_exif_turns_is_told(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 2)
    for bg in range(2):
        write(source / f"bg/bg_{bg:03}.jpg", turned(jpeg(smooth_picture(bg)), 6))
    told = (
        r"backgrounds look turned or mirrored .*EXIF orientation of the overlay is 1, of the background 6; pictures are"
    )
    with pytest.raises(InputError, match=told):
        packed(source, tmp_path / "shards")
    for bg in range(2):
        write(source / f"bg/bg_{bg:03}.jpg", turned(jpeg(smooth_picture(bg)[:30]), 6))
    with pytest.raises(InputError, match=r"bg_000.jpg is 30 x 48.*of another shape; its EXIF orientation is 6, pict"):
        packed(source, tmp_path / "shards")
    assert orientation(jpeg(overlay(0, 0))) == 1
    assert orientation(b"no picture") == 1
