import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline.format.images
from pipeline.composing.photos import find_pictures, hash_pictures, read_background, read_foreground
from pipeline.errors import InputError
from pipeline.format.images import BadImage
from tests.samples import smooth_picture, write

PICTURE = smooth_picture(5, size=64)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    buffer = io.BytesIO()
    image.save(buffer, path.suffix[1:].replace("jpg", "jpeg"), **options)
    write(path, buffer.getvalue())
    return path


def cut_out(height: int = 30, width: int = 50, margin: int = 7) -> Image.Image:
    """An ellipse of some colours, with empty margins whose colour is a bright trap."""
    y, x = np.mgrid[0 : height + 2 * margin, 0 : width + 2 * margin]
    inside = ((x - margin - width / 2 + 0.5) / (width / 2)) ** 2 + ((y - margin - height / 2 + 0.5) / (height / 2)) ** 2
    rgba = np.full((*inside.shape, 4), 255, np.uint8)
    rgba[..., :3] = [60, 120, 30]
    rgba[..., 3] = np.where(inside <= 1, 255, 0)
    rgba[inside > 1, :3] = 255
    return Image.fromarray(rgba)


def test_pictures_are_found_in_natural_order_below_and_by_extension(tmp_path: Path) -> None:
    for name in ("b10.jpg", "b9.PNG", "a/c.webp", "notes.txt", "Thumbs.db", ".hidden/x"):
        write(tmp_path / name, b"")
    assert find_pictures(tmp_path) == ("a/c.webp", "b9.PNG", "b10.jpg")


def test_no_pictures_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder: .*nowhere: give one that holds pictures"):
        find_pictures(tmp_path / "nowhere")
    write(tmp_path / "notes.txt", b"")
    with pytest.raises(InputError, match=r"no picture in .*: expected files such as \*\.jpg"):
        find_pictures(tmp_path)


def test_the_hash_is_of_names_and_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", b"1")
    one = hash_pictures(tmp_path, ("a.jpg",))
    assert one == hash_pictures(tmp_path, ("a.jpg",))
    write(tmp_path / "b.jpg", b"1")
    assert one != hash_pictures(tmp_path, ("b.jpg",))
    write(tmp_path / "a.jpg", b"2")
    assert one != hash_pictures(tmp_path, ("a.jpg",))


@pytest.mark.parametrize(
    ("name", "image", "tolerance"),
    [
        ("a.jpg", Image.fromarray(PICTURE), 3),
        ("a.png", Image.fromarray(PICTURE), 0),
        ("cmyk.jpg", Image.fromarray(PICTURE).convert("CMYK"), 6),
        ("palette.png", Image.fromarray(PICTURE).quantize(256), 12),
        ("palette.gif", Image.fromarray(PICTURE).quantize(256), 12),
        ("a.webp", Image.fromarray(PICTURE), 8),
        ("a.tiff", Image.fromarray(PICTURE), 0),
        ("rgba.png", Image.fromarray(PICTURE).convert("RGBA"), 0),
    ],
)
def test_any_format_and_mode_is_read(name: str, image: Image.Image, tolerance: float, tmp_path: Path) -> None:
    read = read_background(save(tmp_path / name, image), 64)
    assert read.shape == (64, 64, 3)
    assert np.abs(read.astype(int) - PICTURE).mean() <= tolerance


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    read = read_background(save(tmp_path / "deep.png", deep), 64)
    assert (read == PICTURE[..., :1]).all()


def test_other_sizes_are_cropped_around_the_middle_and_resized(tmp_path: Path) -> None:
    wide = Image.fromarray(np.pad(PICTURE, ((0, 0), (40, 40), (0, 0)))).resize((288, 128), Image.Resampling.BICUBIC)
    read = read_background(save(tmp_path / "wide.png", wide), 64)
    assert np.abs(read[:, 2:-2].astype(int) - PICTURE[:, 2:-2]).mean() < 2


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter
    read = read_background(save(tmp_path / "a.jpg", Image.fromarray(PICTURE), exif=exif), 64)
    assert np.abs(read.astype(int) - np.rot90(PICTURE, -1)).mean() < 4


def test_a_bad_background_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still = Image.fromarray(PICTURE)
    animated = save(tmp_path / "a.gif", still, save_all=True, append_images=[Image.fromarray(PICTURE[::-1])])
    with pytest.raises(BadImage, match=r"animated or has pages \(2 frames\)"):
        read_background(animated, 64)
    whole = save(tmp_path / "a.jpg", still).read_bytes()
    write(tmp_path / "cut.jpg", whole[: len(whole) // 2])
    write(tmp_path / "none.jpg", b"not a picture")
    for name, why in (("cut.jpg", "does not decode"), ("none.jpg", "neither JPEG nor PNG")):
        with pytest.raises(BadImage, match=why):
            read_background(tmp_path / name, 64)
    monkeypatch.setattr(pipeline.format.images, "MAX_PIXELS", 4000)
    with pytest.raises(BadImage, match="64 x 64 pixels, at most 0 million"):
        read_background(tmp_path / "a.jpg", 64)


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    save(tmp_path / "bomb.png", Image.new("1", (30_000, 20_000)))
    with pytest.raises(BadImage, match=r"30000 x 20000 pixels|exceeds limit"):
        read_background(tmp_path / "bomb.png", 64)


def test_foregrounds_are_trimmed_to_their_content(tmp_path: Path) -> None:
    rgba = read_foreground(save(tmp_path / "a.png", cut_out()), 100)
    assert (rgba == np.asarray(cut_out())[7:-7, 7:-7]).all()


def test_dust_is_no_content(tmp_path: Path) -> None:
    dusty = np.array(cut_out())
    dusty[0, 0, 3] = 5
    assert read_foreground(save(tmp_path / "a.png", Image.fromarray(dusty)), 100).shape == (30, 50, 4)


def test_large_foregrounds_are_brought_down_without_a_fringe(tmp_path: Path) -> None:
    rgba = read_foreground(save(tmp_path / "a.png", cut_out(300, 500)), 60)
    assert rgba.shape == (60, 100, 4)
    soft = (rgba[..., 3] > 8) & (rgba[..., 3] < 250)
    assert soft.any()
    assert np.abs(rgba[soft][:, :3].astype(int) - [60, 120, 30]).max() <= 16, (
        "the margin's white must not shine through"
    )


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (Image.fromarray(PICTURE), r"no alpha channel \(RGB\): expected a cut-out, such as a PNG"),
        (Image.fromarray(PICTURE).convert("RGBA"), "no transparent pixel in its alpha channel"),
        (Image.new("RGBA", (20, 20)), "wholly transparent"),
    ],
)
def test_a_foreground_without_alpha_says_so(image: Image.Image, why: str, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=why):
        read_foreground(save(tmp_path / "a.png", image), 100)


def test_palette_transparency_is_alpha(tmp_path: Path) -> None:
    palette = cut_out().quantize(16)
    rgba = read_foreground(save(tmp_path / "a.png", palette), 100)
    assert rgba.shape == (30, 50, 4)
    assert (rgba[15, 25] == [60, 120, 30, 255]).all()
