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


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_stopped_with_workers_it_goes_on_to_the_same_bytes(
    end: signal.Signals, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = write_sets(tmp_path_factory.mktemp("many"), 20, 20)  # enough to be in the middle of it
    shards, undisturbed = tmp_path / "shards", tmp_path / "undisturbed"
    options = [source, "--sets-per-shard", 1]
    command = [sys.executable, "-m", "tools.pack", *map(str, options), "--shards", str(shards), "--workers", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(list(shards.glob("sets-*.tar"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    if end == signal.SIGINT:
        os.killpg(process.pid, end)  # as a terminal does: to the workers too
    else:
        process.kill()  # the workers have to find out by themselves
    _, errors = process.communicate(timeout=60)  # ends when the workers have let go of the pipe
    assert process.returncode == (1 if end == signal.SIGINT else -end)
    assert "Traceback" not in errors
    if end == signal.SIGINT:
        kept = f"interrupted; what is done is kept in {shards}: the same command continues it"
        assert errors.split() == [*kept.split(), "Aborted!"]
    assert not (shards / "manifest.json").exists()
    done = len(list(shards.glob("sets-*.tar")))
    assert 0 < done < 400
    assert run(*options, "--shards", shards, "--workers", 1).exit_code == 0
    assert run(*options, "--shards", undisturbed, "--workers", 1).exit_code == 0
    assert files_below(shards) == files_below(undisturbed)
