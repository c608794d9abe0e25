"""Pictures that the world has, good and bad, and places that cannot be written to."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import train.predict
from pipeline.errors import InputError
from pipeline.resume import UNFINISHED
from tests.samples import files_below, jpeg, png, smooth_picture, write
from tests.tools.test_predict_command import opened, predict
from tests.tools.test_train_command import one_line_error, printed
from tools.outputs import require_file, require_writable
from train.predict import Pair

PIXELS = smooth_picture(1)


@pytest.fixture
def background(tmp_path: Path) -> Path:
    write(tmp_path / "bg.png", png(PIXELS))
    return tmp_path / "bg.png"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(PIXELS), "PNG", exif=exif)


def animated(kind: str) -> bytes:
    image = Image.fromarray(PIXELS)
    return encoded(image, kind, save_all=True, append_images=[image.rotate(90)])


def depth_of(run: Path, background: Path, content: bytes, name: str) -> NDArray[np.uint8]:
    folder = background.parent / name
    write(folder / f"{name}.png", content)
    printed(predict(run, background, folder / f"{name}.png", folder / "out"))
    return opened(folder / "out" / f"{name}.depth.png").astype(int)


PLAIN = Image.fromarray(PIXELS)
PALETTE = PLAIN.quantize(16)
BIT = PLAIN.convert("1")
SAME = {  # a picture, and another way to say it
    "palette": (encoded(PALETTE.convert("RGB"), "PNG"), encoded(PALETTE, "PNG")),
    "palette, one colour clear": (encoded(PALETTE.convert("RGB"), "PNG"), encoded(PALETTE, "PNG", transparency=3)),
    "one bit": (encoded(BIT.convert("L"), "PNG"), encoded(BIT, "PNG")),
    "gray with alpha": (encoded(PLAIN.convert("L"), "PNG"), encoded(PLAIN.convert("LA"), "PNG")),
    "animated": (png(PIXELS), animated("PNG")),
    "turned": (png(PIXELS), turned()),
    "Straße 街": (png(PIXELS), png(PIXELS)),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_a_file_holds_counts_not_how(trained: Path, background: Path, name: str) -> None:
    write(background, png(smooth_picture(2)))
    plain, other = (depth_of(trained, background, content, f"{name}{n}") for n, content in enumerate(SAME[name]))
    assert np.ptp(plain) > 0
    assert np.abs(other - plain).max() <= 700  # of 65535: some grays round to the next of 256 levels


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (20_000, 12)])
def test_of_any_size_mask_and_depth_have_that_of_the_overlay(
    trained: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    for name, seed in (("bg", 1), ("o", 2)):
        write(tmp_path / f"{name}.png", encoded(Image.fromarray(smooth_picture(seed)).resize(size), "PNG"))
    printed(predict(trained, tmp_path / "bg.png", tmp_path / "o.png", tmp_path / "out"))
    for kind in ("mask", "depth", "depth-colour"):
        with Image.open(tmp_path / f"out/o.{kind}.png") as image:
            assert image.size == size


def test_pictures_of_many_sizes_go_together(trained: Path, tmp_path: Path) -> None:
    sizes = {"a": (40, 30), "b": (200, 150), "c": (33, 77), "d": (1, 1)}
    for seed, (name, size) in enumerate(sizes.items()):
        for part in ("bg", "o"):
            image = Image.fromarray(smooth_picture(2 * seed + (part == "o"))).resize(size)
            write(tmp_path / part / f"{name}.png", encoded(image, "PNG"))
    printed(predict(trained, tmp_path / "bg", tmp_path / "o", tmp_path / "out"))
    for name, (width, height) in sizes.items():
        single = tmp_path / f"single-{name}"
        printed(predict(trained, tmp_path / f"bg/{name}.png", tmp_path / f"o/{name}.png", single))
        together, alone = (opened(folder / f"{name}.mask.png").astype(int) for folder in (tmp_path / "out", single))
        assert together.shape == (height, width)
        assert np.abs(together - alone).max() <= 1


BAD = {
    "cmyk.jpg": (encoded(PLAIN.convert("CMYK"), "JPEG"), "four colours (CMYK): convert it to RGB or gray"),
    "a.gif": (animated("GIF"), "GIF is animated or has pages (2 frames), not a still picture"),
    "a.webp": (animated("WEBP"), "WebP is animated or has pages (2 frames), not a still picture"),
    "gif-called.jpg": (animated("GIF"), "GIF is animated or has pages (2 frames), not a still picture"),
    "a.exr": (b"v/1\x01" + bytes(99), "OpenEXR pictures are not read: convert to PNG"),
    "zeros.png": (bytes(1000), "neither JPEG nor PNG"),
    "nothing.jpg": (b"", "empty file"),
    "header-alone.jpg": (encoded(PLAIN, "JPEG")[:20], "JPEG does not decode"),
    "header-alone.png": (png(PIXELS)[:20], "PNG does not decode"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_for_us_is_one_line_that_names_it(
    trained: Path, background: Path, tmp_path: Path, name: str
) -> None:
    content, message = BAD[name]
    path = tmp_path / name
    write(path, content)
    line = one_line_error(predict(trained, background, path, tmp_path / "out"))
    assert str(path) in line
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_picture_that_pillow_takes_for_an_attack_is_refused_before(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    write(path, jpeg(np.zeros((9_000, 20_000, 1), np.uint8)))
    line = one_line_error(predict(trained, path, path, tmp_path / "out"))
    assert line.strip() == f"Error: {path}: 20000 x 9000 pixels, at most 100 million: make it smaller"
    assert not (tmp_path / "out").exists()


def test_folders_called_like_pictures_are_folders(trained: Path, background: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    assert "x.jpg: the folder is empty: expected a picture" in one_line_error(
        predict(trained, background, tmp_path / "x.jpg", tmp_path / "out")
    )
    write(tmp_path / "many/one.png", png(PIXELS))
    (tmp_path / "many/two.jpg").mkdir()
    assert "predicted 1 pair " in printed(predict(trained, background, tmp_path / "many", tmp_path / "out"))


def test_what_is_no_file_is_not_waited_for(trained: Path, background: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    line = one_line_error(predict(trained, background, tmp_path / "fifo.png", tmp_path / "out"))
    assert f"{tmp_path / 'fifo.png'}: no such file or folder" in line


def test_a_file_that_cannot_be_read_is_named(
    trained: Path, background: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "mine.png", png(PIXELS))
    whole = os.open

    def refused(path: str, *rest: int, **more: object) -> int:
        if str(path).endswith("mine.png"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return whole(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refused)
    line = one_line_error(predict(trained, background, tmp_path / "mine.png", tmp_path / "out"))
    assert f"{tmp_path / 'mine.png'}: cannot be read (Permission denied)" in line
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_the_same_command_continues(
    trained: Path, background: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write(tmp_path / f"many/{number}.png", png(smooth_picture(10 + number)))
    given, whole = (trained, background, tmp_path / "many"), train.predict.write_files

    def full(folder: Path, pair: Pair, *rest: object) -> None:
        if pair.name == "1":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "1.mask.png"))
        whole(folder, pair, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(train.predict, "write_files", full)
        line = one_line_error(predict(*given, tmp_path / "out", "--batch-size", "1"))
    assert f"No space left on device: {tmp_path / 'out/1.mask.png'}" in line
    assert "the same command continues it" in line
    assert {"0.mask.png"} < {name for name in files_below(tmp_path / "out") if not name.startswith(UNFINISHED)}
    printed(predict(*given, tmp_path / "out", "--batch-size", "1"))
    printed(predict(*given, tmp_path / "expected", "--batch-size", "1"))
    assert files_below(tmp_path / "out") == files_below(tmp_path / "expected")


def test_an_out_that_cannot_be_written_is_one_line(
    trained: Path, background: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "file", b"mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert f"{tmp_path / 'file'} is a file: give a folder" in one_line_error(
            predict(trained, background, background, out)
        )
    assert (tmp_path / "file").read_bytes() == b"mine"
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write anywhere
    line = one_line_error(predict(trained, background, background, tmp_path / "out"))
    assert f"{tmp_path} cannot be written to: give another folder" in line


def test_places_for_results_are_looked_at_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "file", b"mine")
    require_writable(tmp_path / "new" / "folder")
    require_file(tmp_path / "new" / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file is a file: give a folder"):
            require_writable(place)
    with pytest.raises(InputError, match="is a folder: give the name of a file"):
        require_file(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write anywhere
    with pytest.raises(InputError, match="cannot be written to"):
        require_writable(tmp_path / "new")
