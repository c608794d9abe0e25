import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from benchmarks.peers import LOADERS
from pipeline import devices
from pipeline.format.manifest import Manifest, load_index
from pipeline.installation import install_hint
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from tools import bench, bench_loader, bench_stalls
from tools.bench import main


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


SMALL = ("--rounds", 2, "--batch-size", 32, "--size", 16, "--workers", 1)


def report(result: Result) -> dict[str, Any]:
    """The last line of a command's output."""
    assert result.exit_code == 0, result.output
    read: dict[str, Any] = json.loads(result.output.splitlines()[-1])
    return read


def test_in_a_race_loaders_give_the_same_pictures_and_are_timed(packed: Path, planes: Path, tmp_path: Path) -> None:
    arguments = ("--shards", packed, "--loader", "ours", "--planes", planes, "--cache", "both")
    result = run(*arguments, *SMALL, "--base", "ours-planes", "--chart", tmp_path / "chart.png")
    found = report(result)
    assert found["data"] == {"manifest_sha256": Manifest.load(packed).sha256, "sets": 100}
    assert found["machine"]["gpu"] == "none"
    assert list(found["loaders"]) == ["warm", "cold"]
    for rows in found["loaders"].values():
        assert list(rows) == ["ours", "ours-planes"]
        assert rows["ours"]["difference"] == rows["ours-planes"]["difference"]
        assert rows["ours-planes"]["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
        for row in rows.values():
            assert row["sets_per_sec"]["q1"] <= row["sets_per_sec"]["median"] <= row["sets_per_sec"]["q3"]
            assert row["difference"]["mean"] <= 0.6
            assert 0 <= row["wait_ms"]["p50"] <= row["wait_ms"]["p99"] <= row["wait_ms"]["max"]
            assert row["first_batch_sec"] > 0
            assert row["peak_mib"] > 50
            assert row["device_bytes_a_set"] is None
        pixels = {name: 1e6 * row["megapixels_per_sec"] / row["sets_per_sec"]["median"] for name, row in rows.items()}
        assert pixels == pytest.approx({"ours": 3 * 48 * 48, "ours-planes": 3 * 16 * 16})
        size = np.mean(load_index(packed, Manifest.load(packed))["size"].sum(axis=1))
        assert rows["ours"]["read_bytes_a_set"] >= size * (0.5 if rows is found["loaders"]["warm"] else 0)
    printed = result.output.splitlines()
    assert max(map(len, printed[:-1])) <= 120
    assert "x ours-planes (quartiles)" in result.output
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.width > 1000


def test_data_that_a_loader_refuses_are_one_line(packed: Path, planes: Path) -> None:
    result = run("--shards", packed, "--planes", planes, "--loader", "ours-planes", "--workers", 1)
    assert result.exit_code == 1
    assert "holds planes of 16 x 16 pixels, size 128 was asked for" in result.output
    assert result.output.count("\n") == 1


def test_planes_and_pictures_are_not_mixed_up(packed: Path, planes: Path) -> None:
    result = run("--shards", packed, "--loader", "ours", "--planes", packed)
    assert (result.exit_code, "holds jpeg: give pictures with --shards" in result.output) == (1, True)
    result = run("--shards", planes, "--loader", "ours")
    assert (result.exit_code, "holds planes: give pictures with --shards" in result.output) == (1, True)


def test_our_loaders_are_timed_alone(packed: Path, planes: Path) -> None:
    names = ["ours", "ours-resident", "ours-planes"]
    arguments = ("--shards", packed, "--loader", "ours,ours-resident", "--planes", planes, "--cache", "both")
    result = run(*arguments, *SMALL)
    found = report(result)
    assert found["data"] == {"manifest_sha256": Manifest.load(packed).sha256, "sets": 100}
    assert {cache: list(rows) for cache, rows in found["loaders"].items()} == {
        "warm": names, "cold": ["ours", "ours-planes"]
    }  # fmt: skip
    for rows in found["loaders"].values():
        assert rows["ours"]["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
        for row in rows.values():
            assert row["sets_per_sec"]["q1"] <= row["sets_per_sec"]["median"] <= row["sets_per_sec"]["q3"]
            assert row["first_batch_sec"] > 0
            assert row["peak_mib"] is None  # theirs together is nobody's
    assert "their pictures are not compared with Pillow's" in result.output
    alone = report(run("--shards", packed, "--loader", "ours", *SMALL))
    assert alone["loaders"]["warm"]["ours"]["peak_mib"] > 50


def test_planning_is_measured() -> None:
    found = report(run("--order", 3000, "--window", 2))
    assert found["rows"] == 3000
    assert list(found["plans"]) == ["whole set", "window of 2"]


def test_what_cannot_be_measured_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.race.missing_peer", lambda name: "bring it" if name == "litdata" else None)
    result = run("--shards", "nowhere")
    assert "not measured: ours-planes (give --planes DIR); litdata (bring it)\n" in result.output
    assert "no shards in nowhere" in result.output
    result = run("--shards", "nowhere", "--loader", "ours,litdata")
    assert (result.exit_code, "loader litdata: bring it" in result.output) == (2, True)


REMEDY = "run fgbg-bench from a checkout of the repository, whose folder benchmarks is not installed"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--packing", "sets"], 1, f"Error: --packing is not measured here: {REMEDY}"),
        (["--composing", "photos"], 1, f"Error: --composing is not measured here: {REMEDY}"),
        (["--shards", "nowhere", "--loader", "ours,seed"], 2, f"Error: loader seed: {REMEDY}"),
        (["--shards", "nowhere", "--loader", "ours", "--chart", "x.png"], 1, "Error: --chart is not measured here: "),
    ],
)
def test_what_is_not_installed_is_refused_with_the_remedy(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.output


def test_without_the_benchmarks_our_loaders_are_measured(packed: Path, tmp_path: Path) -> None:
    for package in ("pipeline", "train", "tools"):
        shutil.copytree(bench.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "tools.bench", "--shards", str(packed), *map(str, SMALL)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    first, *_, last = ran.stdout.splitlines()
    peers = "dali-reader, seed, webdataset, streaming, litdata"
    assert first == f"not measured: ours-planes (give --planes DIR); {peers} ({REMEDY})"
    assert list(json.loads(last)["loaders"]["warm"]) == ["ours", "ours-resident"]


def test_an_installed_command_finds_the_benchmarks_of_its_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = [path for path in sys.path if Path(path).resolve() != bench.ROOT]
    monkeypatch.setattr(sys, "path", [*elsewhere])
    assert bench._benchmarks("race", "it").__name__ == "benchmarks.race"
    assert sys.path == [str(bench.ROOT), *elsewhere]  # and so do the processes that it starts


def test_the_options_repeat_what_is_loaded_later() -> None:
    assert [*bench.OURS, *bench.PEERS] == list(LOADERS)
    assert bench.OURS[1:] == (bench_loader.OURS_PLANES, bench_loader.OURS_RESIDENT)
    assert bench.AXES == bench_stalls.AXES
    assert bench.DEVICES == devices.DEVICES
    assert bench_loader.LoadOptions.cache == bench.PEERS_CACHE


def test_stalls_are_measured_for_both_epochs_and_asserted(packed: Path) -> None:
    arguments = ("--shards", packed, "--step", "--model", "unet-4", "--batch-size", 16, "--size", 32, "--workers", 1)
    result = run(*arguments, "--assert-stall-pct", -1000)
    assert result.exit_code == 1
    *_, line, error = result.output.splitlines()
    epochs = json.loads(line)["epochs"]
    assert [(epoch["steps"], epoch["sets"]) for epoch in epochs] == [(4, 64), (4, 64)]
    for epoch in epochs:
        compute_sec = (epoch["compute_before_sec"] + epoch["compute_after_sec"]) / 2
        assert epoch["stall_pct"] == pytest.approx(100 - 100 * compute_sec / epoch["end_to_end_sec"])
    assert error.startswith("Error: epoch 1 stalls ")
    result = run(*arguments, "--batch-size", 65)
    assert (result.exit_code, "the split train of" in result.output, "has 64 sets" in result.output) == (1, True, True)
    result = run(*arguments, "--size", 16)
    assert (result.exit_code, "the network takes a multiple of 16 of at least 32" in result.output) == (1, True)


def test_a_sweep_ends_in_flags(packed: Path) -> None:
    grid = [word for axis in ("threads=1", "prefetch=1,2", "batch-size=16") for word in ("--grid", axis)]
    result = run("--shards", packed, "--sweep", *grid, "--sets", 50, "--rounds", 2, "--size", 16)
    found = report(result)
    assert [entry["prefetch"] for entry in found["sweep"]] == [1, 2]
    flags = f"--threads 1 --prefetch {found['recommended']['prefetch']} --batch-size 16"
    assert result.output.splitlines()[-2].endswith(f": {flags}")
    result = run("--shards", packed, "--sweep", "--grid", "batch-size=101")
    assert (result.exit_code, "batch size 101" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give one of --shards DIR (loaders), --packing SOURCE, --composing PHOTOS and --order"),
        (["--shards", "nowhere", "--loader", "ours,magic"], 2, "no loader called magic: expected some of ours, ours-"),
        (["--shards", "nowhere"], 1, "no shards in nowhere: manifest.json is missing"),
        (["--shards", "nowhere", "--device", "gpu"], 1, "no usable GPU"),
        (["--packing", "nowhere", "--planes", "there"], 2, "--planes goes with --shards"),
        (["--order", "9", "--shards", "nowhere"], 2, "give one of --shards DIR (loaders), --packing"),
        (["--shards", "nowhere", "--window", "9"], 2, "--window goes with --order"),
        (["--packing", "nowhere", "--step"], 2, "--step goes with --shards"),
        (["--shards", "nowhere", "--assert-stall-pct", "1"], 2, "--assert-stall-pct goes with --step"),
        (["--shards", "nowhere", "--grid", "threads=1"], 2, "--grid goes with --sweep"),
        (["--shards", "nowhere", "--step", "--sweep"], 2, "give --step or --sweep, one at a time"),
        (["--shards", "nowhere", "--step", "--planes", "there"], 2, "--planes compares loaders: it does not go with"),
        (["--shards", "nowhere", "--sweep", "--grid", "speed=1"], 2, "no axis called 'speed'"),
        (["--shards", "nowhere", "--loader", "ours-planes"], 2, "loader ours-planes: give --planes DIR"),
        (["--shards", "nowhere", "--loader", "ours", "--base", "seed"], 2, "--base seed is not measured: expected"),
        (["--shards", "nowhere", "--loader", "ours,ours"], 2, "--loader ours,ours names a loader twice"),
        (["--shards", "nowhere", "--loader", "ours", "--chart", "not/here.png"], 1, "no such folder: not"),
        (["--shards", "nowhere", "--loader", "ours-resident", "--cache", "both"], 2, "reads nothing while it is timed"),
        (["--shards", "nowhere", "--step"], 1, "no shards in nowhere: manifest.json is missing"),
        (["--shards", "nowhere", "--sweep"], 1, "no shards in nowhere: manifest.json is missing"),
        (["--packing", "nowhere"], 1, "no such folder: nowhere"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.output


def test_sets_without_depth_are_refused_in_one_line(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "shards", PackOptions(depth=False, workers=1))
    result = run("--shards", tmp_path / "shards", "--loader", "ours")
    assert result.exit_code == 1
    [line] = result.output.splitlines()
    assert "the sets of" in line
    assert line.endswith("have no depth: loaders are compared on sets with it, see fgbg-depth")


def test_without_psutil_there_is_help_and_a_measurement_tells_what_to_install(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    for module in ("tools.measure", "tools.bench_loader"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert "fgbg-compose on PHOTOS" in run("--help").output
    result = run("--shards", packed, "--loader", "ours")
    assert result.exit_code == 1
    assert result.output == f"Error: psutil is missing, which fgbg-bench measures with: {install_hint('bench')}\n"
