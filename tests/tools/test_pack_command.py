import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.samples import files_below, jpeg, set_paths, smooth_picture, soft_disc, write, write_sets
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
    layout, *_, line = result.output.splitlines()
    assert layout.startswith("layout: fg-bg-id (19 of 20 files looked at fit it: 6 fg_bg, 6 mask, 5 depth, 2 bg; ")
    assert line.startswith("packed 4 sets on 2 backgrounds into 1 shard, 0.0 MB, ")
    assert "depth gray near bright; left out: 1 incomplete, 1 undecodable; 6 files listed in " in line


def test_planes_of_a_size(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 3)
    result = run(source, "--shards", tmp_path / "shards", "--workers", 1, "--codec", "planes", "--size", 24)
    assert result.exit_code == 0
    assert "depth gray near bright, planes of 24 x 24 pixels; left out: nothing" in result.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 1, "Error: no such folder: nowhere: give the folder that holds bg/, fg_bg/ and fg_bg_mask/"),
        (["."], 1, "Error: no image sets in .: the folder is empty; expected files such as fg_bg/bg_{bg}/"),
        ([], 2, "Missing argument 'SOURCE...'"),
        ([".", "--size", "64"], 2, "--size is for --codec planes: pictures keep the size that they have"),
        (
            [".", "--part", "8/8"],
            2,
            "Invalid value for '--part': part 8/8: expected I/N with I from 0 to N - 1, as 0/8",
        ),
        ([".", "--part", "0/2", "--finish"], 2, "--finish is for when all parts are written: leave out --part"),
        ([".", "--part", "0/2", "--dry-run"], 2, "--dry-run writes nothing: leave out --part and --finish"),
        ([".", "--workers", "0"], 2, "Invalid value for '--workers'"),
        ([".", "--depth-encoding", "hsv"], 2, "Invalid value for '--depth-encoding'"),
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


def test_a_dry_run_tells_what_would_be_packed_and_writes_nothing(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 3, 4)
    (source / set_paths(0, 0, 0)[2]).unlink()
    write(source / "notes.txt", b"")
    before = files_below(tmp_path)
    result = run(source, "--shards", tmp_path / "shards", "--dry-run")
    assert result.exit_code == 0
    assert files_below(tmp_path) == before
    lines = result.output.splitlines()
    assert lines[0].startswith("layout: fg-bg-id (")
    assert lines[1] == "11 sets join, on 3 backgrounds; left out: 1 incomplete"
    examples = [line for line in lines if line.startswith("  fg_")]
    assert len(examples) == 10 + 2, "ten sets, and two of the problems"
    assert examples[0] == "  fg_001_bg_000_000001: " + ", ".join(["bg/bg_000.jpg", *set_paths(0, 1, 1)])
    assert lines[12] == "problems: 2 incomplete, 1 unknown; no picture was opened, nothing was written"
    assert lines[-1] == "  notes.txt: unknown: fits no part of the layout fg-bg-id"


def test_templates_flags_and_files_state_a_layout(tmp_path: Path) -> None:
    for n in range(8):
        for name in (f"over/{n}.jpg", f"m/x{n}y.jpg"):
            write(tmp_path / "source" / name, jpeg(soft_disc(n)))
    for bg in range(2):
        write(tmp_path / "source" / f"bg/{bg}.jpg", jpeg(smooth_picture(bg)))
    source = tmp_path / "source"
    stated = ["--overlay", "over/{n}.jpg", "--mask", "m/x{n}y", "--field", "bg=n//4", "--field", "id=n", "--no-depth",
              "--accept-suspicious"]  # fmt: skip
    result = run(source, "--shards", tmp_path / "flags", *stated)
    assert result.exit_code == 0, result.output
    assert "packed 8 sets on 2 backgrounds" in result.output
    toml = 'overlay = "over/{n}"\nmask = "m/x{n}y"\n[fields]\nbg = "n // each"\nid = "n"\n[constants]\neach = 4\n'
    write(tmp_path / "mine.toml", toml.encode())
    result = run(
        source, "--shards", tmp_path / "file", "--layout", tmp_path / "mine.toml", "--no-depth", "--accept-suspicious"
    )
    assert result.exit_code == 0, result.output
    assert files_below(tmp_path / "flags") == files_below(tmp_path / "file")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--layout", "hope"], 1, "no layout called 'hope': expected one of fg-bg-id, "),
        (["--layout", "gone.toml"], 1, "No such file or directory: gone.toml"),
        (["--overlay", "a/{bg}"], 1, "layout custom has no template for mask"),
        (["--overlay", "a/{id}", "--mask", "b/{id}"], 1, "nothing in the overlay's name tells its background"),
        (["--overlay", "a/{bg", "--mask", "b/{bg}"], 1, "template 'a/{bg': expected a path"),
        (["--overlay", "a/{bg}", "--mask", "b/{bg}"], 1, "has no depth: pack without (--no-depth), or tell"),
        (["--field", "bg"], 2, "'bg' is not NAME=FORMULA"),
        (["--counts", "3"], 2, "counts '3': expected BACKGROUNDSxFOREGROUNDSxPLACEMENTSxMIRRORED"),
    ],
)
def test_a_wrong_layout_is_one_line(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "source" / "a" / "1.jpg", b"")
    write(tmp_path / "source" / "b" / "1.jpg", b"")
    result = run("source", *arguments)
    assert result.exit_code == code
    assert message in result.output
    assert code == 2 or len(result.output.splitlines()) == 1
    assert not (tmp_path / "shards").exists()


def test_a_target_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    write(tmp_path / "file", b"")
    result = run(source, "--shards", tmp_path / "file" / "shards")
    assert result.exit_code == 1
    [line] = result.output.splitlines()
    assert line == f"Error: Not a directory: {tmp_path / 'file' / 'shards'}: check the path: a part of it is a file"


@pytest.fixture(scope="module")
def a_set_a_shard(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packing that was never stopped."""
    shards = tmp_path_factory.mktemp("undisturbed") / "shards"
    assert run(source, "--sets-per-shard", 1, "--shards", shards, "--workers", 1).exit_code == 0
    return shards


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_stopped_with_workers_it_goes_on_to_the_same_bytes(
    end: signal.Signals, source: Path, a_set_a_shard: Path, tmp_path: Path
) -> None:
    shards, options = tmp_path / "shards", [source, "--sets-per-shard", 1]  # enough to be in the middle of it
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
    assert 0 < done < 100
    assert run(*options, "--shards", shards, "--workers", 1).exit_code == 0
    assert files_below(shards) == files_below(a_set_a_shard)


def test_parts_and_the_finish_are_one_line_each(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    how = (write_sets(tmp_path / "source", 2, 3), "--shards", shards, "--workers", 1, "--sets-per-shard", 4)
    then = "when all parts are written, give --finish\n"
    rate, line = run(*how, "--part", "0/3").output.splitlines(keepends=True)
    assert (rate.startswith("packed 4 sets, "), rate.endswith(" sets/s; left out: nothing\n")) == (True, True)
    assert line == f"{shards}: part 0/3: wrote 1 of 2 shards; {then}"
    assert run(*how, "--part", "0/3").output == f"{shards}: part 0/3: already complete, 1 of 2 shards; {then}"
    assert run(*how, "--part", "2/3").output == f"{shards}: part 2/3: nothing to do, there are 2 shards; {then}"
    missing = run(*how, "--finish")
    assert missing.exit_code == 1
    assert missing.output == (
        f"Error: {shards}: 1 of 2 shards are missing, of part 1 (I of --part I/3): "
        "wait for them, or give them again, then --finish\n"
    )
    assert run(*how, "--part", "1/3").exit_code == 0
    assert "packed 6 sets on 2 backgrounds into 2 shards, 0.0 MB, from all parts" in run(*how, "--finish").output
    complete = f"{shards}: already complete: 6 sets on 2 backgrounds in 2 shards\n"
    assert [run(*how, *last).output for last in (("--finish",), ("--part", "0/3"), ())] == 3 * [complete]
