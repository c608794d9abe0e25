import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

import train.predict
from pipeline.resume import UNFINISHED
from tests.samples import files_below, jpeg, png, smooth_picture, write
from tests.tools.test_train_command import one_line_error, printed
from tools.predict import main
from train.checkpoint import load, load_run, save, weights
from train.predict import Pair

SIZE = 32  # of SMALL
KINDS = ("mask.png", "depth.png", "depth-colour.png", "side-by-side.png")


def predict(run: Path, background: Path, overlay: Path, out: Path, *flags: str) -> Result:
    arguments = [str(run), "--background", str(background), "--overlay", str(overlay), "--out", str(out)]
    return CliRunner().invoke(main, [*arguments, "--device", "cpu", *flags])


def gray(seed: int) -> NDArray[np.uint8]:
    return smooth_picture(seed, 1)[:SIZE, :SIZE, 0].copy()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A background and an overlay of the run's size."""
    paths = tmp_path / "bg.png", tmp_path / "o.png"
    for seed, path in enumerate(paths):
        write(path, png(gray(seed)))
    return paths


def opened(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def test_of_pictures_of_its_size_the_files_hold_what_the_network_says(
    trained: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "predicted 1 pair " in printed(predict(trained, *pair, out))
    assert sorted(files_below(out)) == sorted(f"o.{kind}" for kind in KINDS)
    run = load_run(trained, "best", torch.device("cpu"))
    with torch.no_grad():
        mask_logits, depth = run.network(*(torch.from_numpy(gray(seed))[None, None] for seed in range(2)))
    mask = opened(out / "o.mask.png")
    assert mask.dtype == np.uint8
    assert mask.shape == (SIZE, SIZE)
    assert np.ptp(mask) > 0
    assert np.abs(mask - mask_logits.sigmoid().numpy()[0, 0] * 255).max() < 0.51
    assert np.abs(opened(out / "o.depth.png") - depth.numpy()[0, 0] * 65535).max() < 1
    assert opened(out / "o.depth-colour.png").shape == (SIZE, SIZE, 3)


def test_with_tta_the_files_hold_the_mean_over_the_mirror(
    trained: Path, mask_alone: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    told = printed(predict(trained, *pair, tmp_path / "out", "--tta"))
    assert "predicted 1 pair with " in told
    assert " (step 4; TTA) into " in told
    network = load_run(trained, "best", torch.device("cpu")).network
    bg, fg_bg = (torch.from_numpy(gray(seed))[None, None] for seed in range(2))
    with torch.no_grad():
        mask_logits, depth = network(bg, fg_bg)
        mirrored_logits, mirrored_depth = network(bg.flip(3), fg_bg.flip(3))
    mask = (mask_logits.sigmoid() + mirrored_logits.sigmoid().flip(3)).numpy()[0, 0] / 2
    assert np.abs(opened(tmp_path / "out/o.mask.png") - mask * 255).max() < 0.51
    expected = (depth + mirrored_depth.flip(3)).numpy()[0, 0] / 2 * 65535
    assert np.abs(opened(tmp_path / "out/o.depth.png") - expected).max() < 1
    assert np.abs(depth.numpy()[0, 0] * 65535 - expected).max() > 10, "a symmetric network shows nothing"
    printed(predict(mask_alone, *pair, tmp_path / "alone", "--tta"))
    assert sorted(files_below(tmp_path / "alone")) == ["o.mask.png", "o.side-by-side.png"]


def test_colour_alpha_depth_of_bits_and_orientation_change_nothing(
    trained: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    background, plain = pair
    pixels = gray(1)
    turned, orientation = io.BytesIO(), Image.Exif()
    orientation[0x0112] = 6
    Image.fromarray(pixels).save(turned, "PNG", exif=orientation)
    alpha = gray(7)
    pictures = {
        "colour": png(np.repeat(pixels[..., None], 3, axis=2)),
        "alpha": png(np.dstack([pixels, pixels, pixels, alpha])),
        "deep": png(pixels.astype(np.uint16) * 257),
        "turned": turned.getvalue(),
    }
    for name, content in pictures.items():
        write(tmp_path / f"all/{name}.png", content)
    printed(predict(trained, background, plain, tmp_path / "expected"))
    printed(predict(trained, background, tmp_path / "all", tmp_path / "out"))
    expected = opened(tmp_path / "expected/o.depth.png").astype(int)
    for name in pictures:
        found = opened(tmp_path / f"out/{name}.depth.png").astype(int)
        assert np.abs(found - expected).max() <= 2, name  # of 65535: another batch sums in another order


@pytest.mark.parametrize(("height", "width"), [(70, 50), (20, 90)])
def test_files_have_the_size_of_the_overlay(trained: Path, tmp_path: Path, height: int, width: int) -> None:
    for name, scale in (("bg", 2), ("o", 1)):
        picture = Image.fromarray(smooth_picture(3)).resize((scale * width, scale * height))
        write(tmp_path / f"{name}.jpg", jpeg(np.asarray(picture)))
    printed(predict(trained, tmp_path / "bg.jpg", tmp_path / "o.jpg", tmp_path / "out"))
    for kind in KINDS[:3]:
        assert opened(tmp_path / "out" / f"o.{kind}").shape[:2] == (height, width)


def test_folders_in_batches_give_what_pairs_one_by_one_give(trained: Path, source: Path, tmp_path: Path) -> None:
    for bg in (0, 3, 9):
        shutil.copytree(source / f"fg_bg/bg_{bg:03}", tmp_path / f"fg_bg/bg_{bg:03}")
    template = tmp_path / "fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}.jpg"
    text = printed(predict(trained, source / "bg/bg_{bg}.jpg", template, tmp_path / "out", "--batch-size", "7"))
    assert "predicted 30 pairs" in text
    for bg, fg in ((0, 0), (3, 7), (9, 9)):
        name = f"bg_{bg:03}/fg_{fg:03}_bg_{bg:03}_{bg * 10 + fg:06}"
        single = tmp_path / f"{bg}"
        printed(predict(trained, source / f"bg/bg_{bg:03}.jpg", source / f"fg_bg/{name}.jpg", single))
        alone, together = (
            opened(path) for path in (next(single.glob("*.mask.png")), tmp_path / f"out/{name}.mask.png")
        )
        assert np.abs(alone.astype(int) - together).max() <= 1


def test_a_run_without_depth_writes_masks_alone(mask_alone: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    printed(predict(mask_alone, *pair, tmp_path / "out"))
    assert sorted(files_below(tmp_path / "out")) == ["o.mask.png", "o.side-by-side.png"]


def test_a_stopped_command_is_continued_by_the_same(
    trained: Path, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write(tmp_path / f"many/{number}.png", png(gray(10 + number)))
    given = (trained, pair[0], tmp_path / "many")
    flags = ("--batch-size", "2")
    printed(predict(*given, tmp_path / "whole", *flags))
    whole, out, written = train.predict.write_files, tmp_path / "out", list[str]()

    def stopped(folder: Path, pair: Pair, *rest: object) -> None:
        if pair.name == "3" and not written:
            raise KeyboardInterrupt
        whole(folder, pair, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(train.predict, "write_files", stopped)
        result = predict(*given, out, *flags)
    assert result.exit_code == 1
    assert "the same command continues it" in result.output
    assert {"0.mask.png", "1.mask.png"} < set(files_below(out))
    assert not list(out.glob("3.*"))
    assert not list(out.rglob("*.partial"))
    assert "with pictures" in one_line_error(predict(trained, pair[0], pair[1], out))
    assert "with tta" in one_line_error(predict(*given, out, *flags, "--tta"))

    def counted(folder: Path, pair: Pair, *rest: object) -> None:
        written.append(pair.name)
        whole(folder, pair, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(train.predict, "write_files", counted)
        printed(predict(*given, out, *flags))
    assert sorted(written) == ["2", "3", "4"]
    assert files_below(out) == files_below(tmp_path / "whole")
    assert not (out / UNFINISHED).exists()


BAD = {
    "text.png": (b"no picture", "neither JPEG nor PNG"),
    "empty.png": (b"", "empty file"),
    "cut.png": (png(gray(3))[:-30], "PNG does not decode"),
    "cut.jpg": (jpeg(smooth_picture(3)[:SIZE, :SIZE])[:-30], "JPEG does not decode"),
    "small.png": (png(gray(3)[:-8]), "is 32 x 24 pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_one_line_that_names_it_and_leaves_nothing(
    trained: Path, pair: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    write(tmp_path / "all/a.png", png(gray(3)))
    write(tmp_path / "all" / name, BAD[name][0])
    line = one_line_error(predict(trained, pair[0], tmp_path / "all", tmp_path / "out"))
    assert str(tmp_path / "all" / name) in line
    assert BAD[name][1] in line
    assert not (tmp_path / "out").exists()


def test_damage_that_shows_late_leaves_nothing(trained: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    content = bytearray(png(gray(3)))
    content[len(content) // 2] ^= 255  # header and end mark are whole
    write(tmp_path / "all/a.png", png(gray(3)))
    write(tmp_path / "all/z.png", bytes(content))
    line = one_line_error(predict(trained, pair[0], tmp_path / "all", tmp_path / "out", "--batch-size", "1"))
    assert str(tmp_path / "all/z.png") in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", [[], ["--tta"]])
@pytest.mark.parametrize("head", ["mask_head", "depth_head"])
def test_a_network_of_no_numbers_is_one_line(
    trained: Path, pair: tuple[Path, Path], tmp_path: Path, head: str, flag: list[str]
) -> None:
    checkpoint = load(trained / "best.pt")
    weights(checkpoint)[f"{head}.mix.0.weight"].fill_(3e38)
    save(tmp_path / "best.pt", checkpoint)
    line = one_line_error(predict(tmp_path, *pair, tmp_path / "out", *flag))
    assert f"{tmp_path / 'best.pt'}: the network predicts values that are no numbers; predict with another" in line
    assert not (tmp_path / "out").exists()


def test_other_sizes_are_refused_with_both(trained: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    write(tmp_path / "wide.jpg", jpeg(smooth_picture(3)[:20, :SIZE]))
    line = one_line_error(predict(trained, pair[0], tmp_path / "wide.jpg", tmp_path / "out"))
    assert f"{pair[0]} is 32 x 32 pixels, {tmp_path / 'wide.jpg'} is 32 x 20 pixels" in line


def test_a_background_of_another_shape_is_cropped_or_stretched_as_stated(trained: Path, tmp_path: Path) -> None:
    middle = smooth_picture(3)[:SIZE, :SIZE]
    wide = np.concatenate([middle[:, ::-1], middle, middle[:, ::-1]], axis=1)
    stretched = np.asarray(Image.fromarray(wide).resize((SIZE, SIZE), Image.Resampling.BOX))
    overlay = smooth_picture(4)[:SIZE, :SIZE]
    for name, content in {"wide": wide, "middle": middle, "stretched": stretched, "o": overlay}.items():
        write(tmp_path / f"{name}.png", png(np.ascontiguousarray(content)))

    def mask(background: str, *flags: str) -> NDArray[np.int64]:
        out = tmp_path / f"{background}{''.join(flags)}"
        printed(predict(trained, tmp_path / f"{background}.png", tmp_path / "o.png", out, *flags))
        return opened(out / "o.mask.png").astype(int)

    plain = mask("middle")
    assert (mask("wide", "--fit", "crop") == plain).all()
    assert (mask("middle", "--fit", "crop") == plain).all()
    assert np.abs(mask("wide", "--fit", "stretch") - mask("stretched")).mean() < 3
    assert "or give --fit crop or --fit stretch" in one_line_error(
        predict(trained, tmp_path / "wide.png", tmp_path / "o.png", tmp_path / "out")
    )


def test_other_bad_input_is_one_line(trained: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no such file" in one_line_error(predict(trained, pair[0], tmp_path / "none.png", out))
    assert "expected a run" in one_line_error(predict(tmp_path / "none", *pair, out))
    assert "give another --out" in one_line_error(predict(trained, pair[0], tmp_path, out))
    assert not out.exists()
    write(out / "mine.txt", b"")
    assert "is not empty" in one_line_error(predict(trained, *pair, out))
    assert files_below(out) == {"mine.txt": b""}


def test_the_original_pairs_of_two_sizes(trained: Path, s15: Path, tmp_path: Path) -> None:
    overlays = s15 / "fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}.jpg"
    printed(predict(trained, s15 / "bg/bg_{bg}.jpg", overlays, tmp_path / "out"))
    masks = list((tmp_path / "out").rglob("*.mask.png"))
    assert len(masks) == 4
    assert {opened(mask).shape for mask in masks} == {(256, 256)}


def test_the_network_may_be_behind_a_url(trained: Path, bucket: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(trained, bucket / "run")
    pictures = ["--background", str(pair[0]), "--overlay", str(pair[1]), "--device", "cpu"]
    told = printed(CliRunner().invoke(main, ["s3://bucket/run", *pictures, "--out", str(tmp_path / "remote")]))
    assert "predicted 1 pair with s3://bucket/run/best.pt (step 4) into" in told
    printed(predict(trained, *pair, tmp_path / "local"))
    assert files_below(tmp_path / "remote") == files_below(tmp_path / "local")
