import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.composing.composer import Composer
from pipeline.format.manifest import Manifest
from tests.samples import files_below, png, smooth_picture, write
from tools.compose import main


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 backgrounds and 3 foregrounds; read only."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(4):
        write(root / "bg" / f"{number}.png", png(smooth_picture(number, size=80)))
    for number in range(3):
        alpha = np.zeros((48, 48, 1), np.uint8)
        alpha[8 : 30 + number, 10:40] = 255
        write(root / "fg" / f"{number}.png", png(np.dstack([smooth_picture(50 + number), alpha])))
    return root


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def photos(folders: Path, *more: Any) -> list[Any]:
    return ["--backgrounds", folders / "bg", "--foregrounds", folders / "fg", "--size", 64, "--workers", 1, *more]


def test_photographs_in_one_line(folders: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "out", *photos(folders))
    assert result.exit_code == 0, result.output
    [line] = result.output.splitlines()
    assert f"{tmp_path / 'out'}: 480 sets of 4 backgrounds and 3 foregrounds, without depth, " in line
    assert len(list((tmp_path / "out" / "fg_bg").rglob("*.jpg"))) == 480


def test_synthetic_in_one_line(tmp_path: Path) -> None:
    result = run(tmp_path / "out", "--synthetic", "--sets", 3, "--streets", 2, "--cars", 2, "--workers", 1)
    assert result.exit_code == 0, result.output
    [line] = result.output.splitlines()
    assert "3 sets of 2 backgrounds and 2 foregrounds, with depth, " in line
    names = set(files_below(tmp_path / "out"))
    assert len(names) == 2 + 2 + 9 + 1
    assert "sources.csv" not in names, "nothing was read"


def test_straight_into_shards(folders: Path, tmp_path: Path) -> None:
    result = run(
        "--shards", tmp_path / "out", "--sets", 50, "--sets-per-shard", 20, "--hard", "--shadow", *photos(folders)
    )
    assert result.exit_code == 0, result.output
    manifest = Manifest.load(tmp_path / "out")
    assert [shard.sets for shard in manifest.shards] == [20, 20, 10]
    with Image.open(tmp_path / "out" / "preview.jpg") as preview:
        assert preview.width == 4 + 3 * 164, "no column of depth"


def test_hard_means_the_originals_jpeg_quality(folders: Path, tmp_path: Path) -> None:
    sizes = {}
    for name, flags in (("plain", ["--hard"]), ("fine", ["--hard", "--quality", 90])):
        assert run(tmp_path / name, "--sets", 6, *photos(folders, *flags)).exit_code == 0
        sizes[name] = sum(map(len, files_below(tmp_path / name / "fg_bg").values()))
    assert sizes["plain"] < 0.7 * sizes["fine"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["out"], 2, "give --backgrounds DIR and --foregrounds DIR, or --synthetic"),
        (["--synthetic"], 2, "give either OUT, for loose files, or --shards DIR"),
        (["out", "--shards", "other", "--synthetic"], 2, "give either OUT, for loose files, or --shards DIR"),
        (["out", "--synthetic", "--backgrounds", "."], 2, "--backgrounds does not go with --synthetic"),
        (["out", "--synthetic", "--min-visible", "0.5"], 2, "--min-visible does not go with --synthetic"),
        (
            ["out", "--backgrounds", ".", "--foregrounds", ".", "--cars", "3"],
            2,
            "--cars does not go with --backgrounds",
        ),
        (["out", "--backgrounds", "."], 2, "give --backgrounds DIR and --foregrounds DIR"),
        (["out", "--synthetic", "--sets", "0"], 2, "--sets"),
        (["out", "--synthetic", "--seed", "-1"], 2, "--seed"),
        (["out", "--synthetic", "--workers", "0"], 2, "--workers"),
        (["out", "--backgrounds", "nowhere", "--foregrounds", "."], 1, "no such folder: nowhere: give one that holds"),
        (
            ["out", "--backgrounds", ".", "--foregrounds", "."],
            1,
            "no picture in .: 1 file (1 without extension): expected files such as *.jpg",
        ),
        (["file", "--synthetic"], 1, "file is a file: give a new or an empty folder"),
        (["file/below", "--synthetic"], 1, "Not a directory: file/below"),
    ],
)
def test_wrong_use_is_one_clear_line(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file", b"")
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert says in result.output.splitlines()[-1]
    assert code == 2 or len(result.output.splitlines()) == 1
    assert files_below(tmp_path) == {"file": b""}


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--scale", 0.5, 0.2], 2, "--scale 0.5 0.2: expected the smaller first"),
        (["--scale", 0, 0.2], 2, "--scale"),
        (["--foreground-level", 9], 2, "--foreground-level needs --background-depth"),
        (["--background-depth", "nowhere"], 1, "no such folder: nowhere: give the one with the backgrounds' depth"),
        (["--sets", 481], 1, "481 sets: 4 backgrounds x 3 foregrounds x 20 placements x 2 (mirrored) make only 480"),
    ],
)
def test_wrong_settings_are_one_clear_line(
    flags: list[Any], code: int, says: str, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("out", *photos(folders, *flags))
    assert result.exit_code == code, result.output
    assert says in result.output.splitlines()[-1]
    assert files_below(tmp_path) == {}


@pytest.mark.parametrize("target", [[], ["--shards"]])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(target: list[str], folders: Path, tmp_path: Path) -> None:
    options = [*photos(folders, "--sets-per-shard", 10, "--placements", 50), "--workers", 2]
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "tools.compose", *target, str(out), *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while len(list(out.glob(".unfinished/[!.a]*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()  # its workers have to find out by themselves
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    assert not (out / "labels.csv").exists()
    changed = run(*target, out, *options, "--seed", 3)
    assert changed.exit_code == 1
    assert "holds an unfinished fgbg-compose with seed 0, now it is 3" in changed.output
    result = run(*target, out, *options)
    assert result.exit_code == 0, result.output
    assert "1,200 sets (" in result.output
    assert run(*target, whole, *options).exit_code == 0
    assert files_below(out) == files_below(whole)


def test_a_source_that_changed_half_way_is_refused(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders, tmp_path / "in")
    made, calls = Composer.compose, []

    def stop(self: Composer, number: int) -> object:
        calls.append(number)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return made(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Composer, "compose", stop)
        stopped = run("--shards", tmp_path / "out", "--sets-per-shard", 10, *photos(tmp_path / "in"))
    assert stopped.exit_code == 1
    assert "interrupted; what is done is kept in" in stopped.output
    (tmp_path / "in" / "bg" / "3.png").replace(tmp_path / "in" / "bg" / "2.png")
    result = run("--shards", tmp_path / "out", "--sets-per-shard", 10, *photos(tmp_path / "in"))
    assert result.exit_code == 1
    assert "holds an unfinished fgbg-compose with backgrounds" in result.output


def test_wide_foregrounds_are_told_of(folders: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "out", *photos(folders, "--scale", 0.5, 1, "--sets", 10))
    assert result.exit_code == 0, result.output
    assert "too wide for the largest --scale: drawn no higher than fits (capped in labels.csv)" in result.output
