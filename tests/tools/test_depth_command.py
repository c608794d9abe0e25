import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.resume import UNFINISHED
from tests.networks import slow_network, weighted_sum
from tests.samples import files_below, set_paths, write, write_sets
from tools.depth import main
from tools.pack import main as pack


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def without_depth(source: Path, backgrounds: int = 2, foregrounds: int = 3) -> Path:
    write_sets(source, backgrounds, foregrounds)
    for path in source.rglob("*_disp.jpeg"):
        path.unlink()
    return source


def packed(source: Path, shards: Path) -> Path:
    arguments = [str(source), "--shards", str(shards), "--no-depth", "--sets-per-shard", "2", "--workers", "1"]
    assert CliRunner().invoke(pack, arguments).exit_code == 0
    return shards


def test_one_summary_line(tmp_path: Path) -> None:
    source, model = without_depth(tmp_path / "source"), weighted_sum(tmp_path / "net.onnx")
    result = run(source, "--model", model)
    assert result.exit_code == 0
    [line] = result.output.splitlines()
    assert line.startswith("made 6 depth maps with net.onnx on the CPU, ")
    assert " sets/s, " in line
    assert line.endswith("% of the time inside the model; left out: 0")
    [line] = run(source, "--model", model).output.splitlines()
    assert line == f"{source}: already complete: 6 depth maps of net.onnx"


def test_a_terminal_sees_progress(tmp_path: Path) -> None:
    source, model = without_depth(tmp_path / "source"), weighted_sum(tmp_path / "net.onnx")
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "tools.depth", str(source), "--model", str(model), "--batch-size", "2"]
    result = subprocess.run(command, stderr=end, stdout=subprocess.PIPE, text=True, check=True)
    shown = os.read(terminal, 65536).decode()
    assert result.stdout.startswith("made 6 depth maps")
    assert "scanning: 14 files" in shown
    assert re.search(r"depth .* 6/6 .* [\d,.]+ sets/s", shown)
    os.close(terminal)
    os.close(end)


def test_shards_are_rewritten(tmp_path: Path) -> None:
    shards, model = packed(without_depth(tmp_path / "source"), tmp_path / "bare"), weighted_sum(tmp_path / "net.onnx")
    result = run(shards, "--model", model, "--shards", tmp_path / "shards")
    assert result.exit_code == 0
    assert result.output.startswith("made 6 depth maps with net.onnx on the CPU, ")
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert [shard["sets"] for shard in manifest["shards"]] == [2, 2, 2]


def test_parts_of_shards_are_finished(tmp_path: Path) -> None:
    shards, model = packed(without_depth(tmp_path / "source"), tmp_path / "bare"), weighted_sum(tmp_path / "net.onnx")
    command = [shards, "--model", model, "--shards", tmp_path / "shards"]
    result = run(*command, "--part", "0/1")
    assert result.output.endswith(": part 0/1: wrote 3 of 3 shards; when all parts are written, give --finish\n")
    result = run(*command, "--finish")
    assert (result.exit_code, result.output) == (
        0,
        f"{tmp_path / 'shards'}: 6 sets with depth by net.onnx, from all parts\n",
    )


def test_bad_overlays_are_named_or_left_out(tmp_path: Path) -> None:
    source, model = without_depth(tmp_path / "source"), weighted_sum(tmp_path / "net.onnx")
    overlay = set_paths(1, 0, 3)[0]
    write(source / overlay, b"<html>")
    result = run(source, "--model", model)
    assert result.exit_code == 1
    why = "neither JPEG nor PNG: starts with b'<html>'"
    assert result.output == f"Error: {overlay}: {why}: repair it, or leave such sets out with --skip-bad\n"
    result = run(source, "--model", model, "--skip-bad")
    assert result.exit_code == 0
    assert result.stderr == f"left out: {overlay}: {why}\n"
    assert result.stdout.startswith("made 5 depth maps")
    assert result.stdout.endswith("left out: 1\n")


def test_flags_and_the_json_beside_the_model(tmp_path: Path) -> None:
    model, beside = weighted_sum(tmp_path / "net.onnx", ("h", "w")), tmp_path / "net.json"
    settings = {"size": [24, 32], "mean": [0.5, 0.5, 0.5], "std": [1, 2, 4], "near": "low", "range": [-1, 1]}
    flags = ["--size", 24, 32, "--mean", 0.5, 0.5, 0.5, "--std", 1, 2, 4, "--near", "low", "--range", -1, 1]
    beside.write_text(json.dumps(settings))
    assert run(without_depth(tmp_path / "json"), "--model", model).exit_code == 0
    beside.write_text(json.dumps(settings | {"size": [8, 8], "near": "high", "range": None, "mean": [0, 0, 0]}))
    assert run(without_depth(tmp_path / "flags"), "--model", model, *flags).exit_code == 0
    beside.unlink()
    assert run(without_depth(tmp_path / "only-flags"), "--model", model, *flags).exit_code == 0
    by_json = files_below(tmp_path / "json")
    assert files_below(tmp_path / "flags") == files_below(tmp_path / "only-flags") == by_json
    made_with = json.loads(by_json["depth.json"])
    assert {name: made_with[name] for name in settings} == settings
    beside.write_text(json.dumps(settings))
    assert run(tmp_path / "json", "--model", model, "--per-image-range", "--overwrite").exit_code == 0
    assert json.loads((tmp_path / "json" / "depth.json").read_text())["range"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--model", "net.onnx"], 1, "Error: no such folder: nowhere: give the folder that holds bg/"),
        (["source", "--model", "no.onnx"], 1, "Error: no such file: no.onnx: give a network in ONNX format"),
        (["source", "--model", "net.onnx", "--size", "9", "9"], 1, "not of size [9, 9]"),
        (["source", "--model", "net.onnx", "--std", "1", "0", "1"], 1, "std above 0"),
        (["source", "--model", "net.onnx", "--shards", "new"], 1, "Error: source is no shard directory"),
        (["bare", "--model", "net.onnx"], 1, "Error: bare is a shard directory: say where to rewrite it to, --shards"),
        (["bare", "--model", "net.onnx", "--shards", "bare"], 1, "Error: bare is not empty"),
        (["bare", "--model", "net.onnx", "--shards", "new", "--overwrite"], 1, "Error: --overwrite is for folders"),
        (["source"], 2, "Missing option '--model'"),
        (["source", "--model", "net.onnx", "--range", "0", "1", "--per-image-range"], 2, "exclude each other"),
        (["source", "--model", "net.onnx", "--near", "bright"], 2, "Invalid value for '--near'"),
        (["source", "--model", "net.onnx", "--quality", "101"], 2, "Invalid value for '--quality'"),
    ],
)
def test_wrong_input_is_one_line_and_changes_nothing(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    packed(without_depth(Path("source")), Path("bare"))
    weighted_sum(Path("net.onnx"))
    before = files_below(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.output
    assert code == 2 or len(result.output.splitlines()) == 1
    assert files_below(tmp_path) == before


# On one core, so that there is time to be killed on any machine.
ON_ONE_CORE = (
    "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); import tools.depth; tools.depth.main()"
)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_killed_run_is_continued_to_the_same_bytes(kind: str, tmp_path: Path) -> None:
    model = slow_network(tmp_path / "net.onnx")
    killed, undisturbed = (without_depth(tmp_path / name, 4, 5) for name in ("killed", "undisturbed"))
    python = [sys.executable, "-c", ON_ONE_CORE]
    flags = ["--model", str(model), "--batch-size", "1", "--workers", "1"]
    commands, pieces = [[*python, str(killed), *flags], [*python, str(undisturbed), *flags]], "fg_bg/*/*_disp.jpeg"
    if kind == "shards":
        bare, killed, undisturbed = packed(killed, tmp_path / "bare"), tmp_path / "new", tmp_path / "shards"
        commands, pieces = [[*python, str(bare), *flags, "--shards", str(to)] for to in (killed, undisturbed)], "*.tar"
    for before in (2, 4):  # killed twice
        process = subprocess.Popen(commands[0])
        deadline = time.monotonic() + 60
        while len(list(killed.glob(pieces))) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert (killed / UNFINISHED).is_dir()
    assert "were done before" in subprocess.run(commands[0], check=True, capture_output=True, text=True).stdout
    subprocess.run(commands[1], check=True)
    assert files_below(killed) == files_below(undisturbed)
    assert not (killed / UNFINISHED).exists()
