"""Pictures in other formats than JPEG and PNG: they become PNG with the same pixels, or are refused by name."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from pipeline.composing.photos import find_pictures as find_photos
from pipeline.composing.photos import read_background
from pipeline.format.images import EXTENSIONS, MAX_PIXELS, BadImage, as_stored, check_picture, decode_gray, decode_rgb
from pipeline.loading.loader import Loader
from pipeline.packing.encode_planes import PlaneRasterizer, batches_of
from pipeline.packing.finalize import read_problems
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from tests.png_files import with_wrong_checksum
from tests.samples import jpeg, png, set_paths, smooth_picture, write, write_sets

RGB = Image.fromarray(smooth_picture(0))
GRAY = RGB.convert("L")
ALPHA = Image.merge("RGBA", [*RGB.split(), GRAY])
INDEXED = RGB.quantize(16)
DEEP = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28


def saved(picture: Image.Image, kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


LOSSLESS: Mapping[str, tuple[Image.Image, bytes]] = {
    "webp": (RGB, saved(RGB, "WEBP", lossless=True)),
    "webp with alpha": (ALPHA, saved(ALPHA, "WEBP", lossless=True, exact=True)),
    "tif": (RGB, saved(RGB, "TIFF")),
    "tif, deflated": (RGB, saved(RGB, "TIFF", compression="tiff_adobe_deflate")),
    "tif, gray": (GRAY, saved(GRAY, "TIFF")),
    "tif, 16 bits": (Image.fromarray(DEEP), saved(Image.fromarray(DEEP), "TIFF")),
    "tif, palette": (INDEXED, saved(INDEXED, "TIFF")),
    "tif, 1 bit": (GRAY.convert("1").convert("L"), saved(GRAY.convert("1"), "TIFF")),
    "tif, gray with alpha": (ALPHA.convert("LA"), saved(ALPHA.convert("LA"), "TIFF")),
    "bmp": (RGB, saved(RGB, "BMP")),
    "bmp, gray": (GRAY, saved(GRAY, "BMP")),
    "gif": (INDEXED, saved(INDEXED, "GIF")),
    "ppm": (RGB, saved(RGB, "PPM")),
    "pgm": (GRAY, saved(GRAY, "PPM")),
    "pgm, 16 bits": (Image.fromarray(DEEP), b"P5 48 48 65535\n" + DEEP.astype(">u2").tobytes()),
    "jp2": (RGB, saved(RGB, "JPEG2000")),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_they_become_png_with_the_same_pixels(kind: str) -> None:
    picture, content = LOSSLESS[kind]
    stored, repair = as_stored(content)
    assert (repair, check_picture(content).content, as_stored(content)) == ("", stored, (stored, ""))
    with Image.open(io.BytesIO(stored)) as found:
        assert found.format == "PNG"
        assert (found.mode in ("P", "RGB")) == (picture.mode in ("P", "RGB"))
        assert np.array_equal(np.asarray(found.convert("RGBA")), np.asarray(picture.convert("RGBA")))
        if picture.mode == "I;16":
            assert np.array_equal(np.asarray(found), DEEP)
        if picture.mode == "P":  # what classes a mask has is told by its indices
            assert found.mode == "P"
    assert np.array_equal(decode_gray(stored), decode_gray(content))
    assert np.array_equal(decode_rgb(stored), decode_rgb(content))


def test_a_lossy_one_becomes_what_it_decodes_to() -> None:
    for kind in ("WEBP", "AVIF") if features.check("avif") else ("WEBP",):
        content = saved(RGB, kind, quality=80)
        with Image.open(io.BytesIO(content)) as image:
            assert np.array_equal(decode_rgb(as_stored(content)[0]), np.asarray(image))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (saved(RGB, "GIF", save_all=True, append_images=[GRAY]), r"GIF is animated or has pages \(2 frames\)"),
        (saved(RGB, "TIFF", save_all=True, append_images=[GRAY]), r"TIFF is animated or has pages \(2 frames\)"),
        (saved(RGB.convert("CMYK"), "TIFF"), r"TIFF does not decode: its values \(CMYK\) do not fit a PNG"),
        (saved(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), r"its values \(F\) .* save depth as \.npy"),
        (saved(Image.fromarray(np.full((9, 9), -1, np.int32)), "TIFF"), r"its values \(I\) do not fit"),
        (saved(RGB, "BMP")[:-500], "BMP does not decode"),
        (saved(RGB, "TIFF")[:100], "TIFF does not decode"),
        (saved(RGB, "WEBP")[:40], "WebP does not decode"),
        (b"GIF89a", "GIF does not decode: its header is damaged"),
        (b"BM" + bytes(60), "BMP does not decode"),
        (b"P6 99999 99999 255\n", "more|pixels.*make it smaller"),
        (b"v/1\x01" + bytes(60), "OpenEXR pictures are not read: convert to PNG, or depth to .npy"),
        (b"\0\0\0\x18ftypheic", "HEIC pictures are not read"),
        (b"\xff\x0a" + bytes(60), "JPEG XL pictures are not read"),
        (b"8BPS" + bytes(60), "Photoshop pictures are not read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "neither JPEG nor PNG: starts with"),  # Pillow would run Ghostscript on it
    ],
)
def test_what_is_not_read_is_refused_by_name(content: bytes, why: str) -> None:
    with pytest.raises(BadImage, match=why):
        check_picture(content)


def test_a_data_set_of_many_formats_is_packed_as_one_of_png(tmp_path: Path) -> None:
    kinds = {".webp": "WEBP", ".tif": "TIFF", ".bmp": "BMP", ".gif": "GIF", ".PPM": "PPM", ".jp2": "JPEG2000"}
    plain, mixed = write_sets(tmp_path / "plain", 2, 6), write_sets(tmp_path / "mixed", 2, 6)
    for number, path in enumerate(sorted(plain.rglob("*.jp*g"))):
        other = (mixed / path.relative_to(plain)).with_suffix(list(kinds)[number % len(kinds)])
        picture = Image.open(path).convert("L" if "mask" in path.name or "_disp" in path.name else "RGB")
        picture = picture.quantize() if other.suffix == ".gif" else picture
        (mixed / path.relative_to(plain)).unlink()
        path.unlink()
        write(
            path.with_suffix(".png"), png(np.asarray(picture.convert("RGB" if picture.mode == "P" else picture.mode)))
        )
        write(other, saved(picture, kinds[other.suffix], lossless=True))
    for source in (plain, mixed):
        pack(source, tmp_path / f"{source.name}.shards", PackOptions(workers=1))
    assert not read_problems(tmp_path / "mixed.shards" / "problems.csv")
    by_png, by_others = (loaded(tmp_path / f"{name}.shards") for name in ("plain", "mixed"))
    assert by_png.keys() == by_others.keys()
    assert len(by_png) == 12
    assert all(
        np.abs(by_png[key].astype(int) - by_others[key]).max() <= 1 for key in by_png
    )  # a palette's gray is rounded anew


def loaded(shards: Path) -> dict[str, NDArray[np.uint8]]:
    with Loader(shards, "all", batch_size=4, size=48, device="cpu") as loader:
        return {
            loader.key(row): np.concatenate(
                [part[place] for part in (batch.bg, batch.fg_bg, batch.mask, batch.depth) if part is not None]
            )
            for batch in loader
            for place, row in enumerate(batch.index.tolist())
        }


def test_a_jpeg_or_png_is_taken_before_a_copy_in_another_format(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 2)
    pack(source, tmp_path / "before", PackOptions(workers=1))
    for path in [*source.rglob("*.jpg"), *source.rglob("*.jpeg")]:
        write(path.with_suffix(".webp"), b"no picture at all")
    pack(source, tmp_path / "after", PackOptions(workers=1))
    for name in ("sets-000000.tar", "backgrounds.tar", "index.npy"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_a_repaired_picture_is_told_of_and_kept(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 2)
    for path in (set_paths(0, 1, 1)[1], "bg/bg_001.jpg"):
        gray = decode_gray((source / path).read_bytes())
        (source / path).unlink()
        write((source / path).with_suffix(".png"), with_wrong_checksum(png(gray), b"IDAT"))
    summary = pack(source, tmp_path / "shards", PackOptions(workers=1))
    assert (summary.manifest.sets, summary.repaired) == (4, 2)
    found = [problem for problem in read_problems(tmp_path / "shards" / "problems.csv") if problem.kind == "repaired"]
    assert [problem.path for problem in found] == [
        "bg/bg_001.png",
        str(Path(set_paths(0, 1, 1)[1]).with_suffix(".png")),
    ]
    assert all("the checksum of an IDAT chunk differs; all of its pixels are there" in problem.why for problem in found)
    assert len(loaded(tmp_path / "shards")) == 4


def test_photographs_may_be_of_every_format_that_is_read(tmp_path: Path) -> None:
    for kind, (_, content) in LOSSLESS.items():
        if f".{kind}" in EXTENSIONS:
            write(tmp_path / f"a.{kind}", content)
    names = find_photos(tmp_path)
    assert len(names) == 7
    for name in names:
        picture, _ = LOSSLESS[name.rpartition(".")[2]]
        assert np.array_equal(read_background(tmp_path / name, 48), np.asarray(picture.convert("RGB")))


def test_no_more_pixels_than_one_picture_may_have_are_decoded_at_once() -> None:
    pixels = [1, MAX_PIXELS, 60_000_000, 40_000_000, 1, 5, 5]
    assert list(batches_of(range(7), pixels, 3)) == [[0], [1], [2, 3], [4, 5, 6]]
    assert list(batches_of([], [])) == []


def test_every_jpeg_is_the_luma_that_it_stores() -> None:
    rasterizer = PlaneRasterizer({"x": None}, 48)
    content = jpeg(smooth_picture(3))
    adobe = b"\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00\x00"
    files = [
        *(saved(RGB, "JPEG", subsampling=how, quality=95) for how in ("4:4:4", "4:2:2", "4:2:0")),
        *(saved(RGB, "JPEG", keep_rgb=True, progressive=progressive) for progressive in (False, True)),
        saved(GRAY, "JPEG"),
        saved(RGB, "JPEG", progressive=True),
        saved(RGB, "JPEG", icc_profile=bytes(100_000)),
        saved(RGB, "JPEG", restart_marker_blocks=2),
        content[:2] + adobe + content[20:],  # three components, said to be RGB
    ]
    for file in files:
        [planes] = rasterizer.rasterize([[check_picture(file)]])
        assert isinstance(planes, np.ndarray)
        assert np.abs(planes[0].astype(int) - decode_gray(file)).max() <= 1
