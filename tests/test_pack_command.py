import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.samples import files_below, set_paths, write, write_sets
from tools.pack import main


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_one_summary_line(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 3)
    (source / set_paths(0, 0, 0)[2]).unlink()
    write(source / set_paths(1, 0, 3)[0], b"")
    write(source / "notes.txt", b"")
    result = run(source, "--shards", tmp_path / "shards", "--workers", 1)
    assert result.exit_code == 0
    [line] = result.output.splitlines()
    assert line.startswith("packed 4 sets on 2 backgrounds into 1 shards, 0.0 MB, ")
    assert "depth gray near bright; left out: 1 incomplete, 1 undecodable; 4 files listed in " in line


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 1, "Error: no such folder: nowhere: give the folder that holds bg/, fg_bg/ and fg_bg_mask/"),
        (["."], 1, "Error: no image sets in .: the folder is empty; expected files such as fg_bg/bg_{bg}/"),
        ([], 2, "Missing argument 'SOURCE'"),
        ([".", "--workers", "0"], 2, "Invalid value for '--workers'"),
        ([".", "--depth-encoding", "jet"], 2, "Invalid value for '--depth-encoding'"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output
    assert code == 2 or len(result.output.splitlines()) == 1
    assert files_below(tmp_path) == {}


def test_a_target_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    write(tmp_path / "file", b"")
    result = run(source, "--shards", tmp_path / "file" / "shards")
    assert result.exit_code == 1
    [line] = result.output.splitlines()
    assert line == f"Error: Not a directory: {tmp_path / 'file' / 'shards'}"


def test_interrupting_it_with_workers_leaves_nothing_behind(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = write_sets(tmp_path_factory.mktemp("many"), 20, 20)  # enough to be in the middle of it
    command = [
        sys.executable,
        "-m",
        "tools.pack",
        str(source),
        "--shards",
        str(tmp_path / "shards"),
        "--sets-per-shard",
        "1",
    ]
    process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("shards/sets-*.tar")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.strip() == "Aborted!"
    assert files_below(tmp_path) == {}
