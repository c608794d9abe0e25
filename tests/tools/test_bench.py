import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.format.manifest import Manifest, load_index
from pipeline.loading.loader import Loader
from pipeline.packing.pack import PackOptions, pack
from tests.samples import png, smooth_picture, write
from tools.bench import main
from tools.benchmark.contest import all_names, decoded_pixels, device_bytes
from tools.benchmark.reference import Difference, first_shards
from tools.benchmark.seat import Judged, Seat
from tools.peers.loaders import LOADERS
from tools.peers.options import LoadOptions


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


def test_loaders_give_the_same_pictures_and_are_timed(packed: Path, planes: Path, tmp_path: Path) -> None:
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
        assert rows["ours"]["read_bytes_a_set"] >= size * (1 if rows is found["loaders"]["warm"] else 0)
    printed = result.output.splitlines()
    assert max(map(len, printed[:-1])) <= 120
    assert "x ours-planes (quartiles)" in result.output
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.width > 1000


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the closing of files to the collector
def test_the_peers_pass_the_comparison(packed: Path, tmp_path: Path) -> None:
    for name in ("dali-reader", "seed", "webdataset"):
        judged = Seat(LOADERS[name], packed, packed, LoadOptions(32, 16, "cpu", 1, cache=tmp_path)).judge()
        assert judged.difference.mean <= 0.6


def test_a_loader_that_refuses_its_data_is_named(packed: Path, planes: Path) -> None:
    result = run("--shards", packed, "--planes", planes, "--loader", "ours-planes", "--workers", 1)
    assert result.exit_code == 1
    assert result.output.startswith("Error: loader ours-planes: ")
    assert "holds planes of 16 x 16 pixels, size 128 was asked for" in result.output
    assert result.output.count("\n") == 1


def test_planes_and_pictures_are_not_mixed_up(packed: Path, planes: Path) -> None:
    result = run("--shards", packed, "--loader", "ours", "--planes", packed)
    assert (result.exit_code, "holds jpeg: give pictures with --shards" in result.output) == (1, True)
    result = run("--shards", planes, "--loader", "ours")
    assert (result.exit_code, "holds planes: give pictures with --shards" in result.output) == (1, True)


def test_planning_is_measured() -> None:
    found = report(run("--order", 3000, "--window", 2))
    assert found["rows"] == 3000
    assert list(found["plans"]) == ["whole set", "window of 2"]


def test_what_cannot_be_measured_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.benchmark.contest.missing_peer", lambda name: "bring it" if name == "litdata" else None)
    result = run("--shards", "nowhere")
    assert "not measured: ours-planes (give --planes DIR); litdata (bring it)\n" in result.output
    assert "no shards in nowhere" in result.output
    result = run("--shards", "nowhere", "--loader", "ours,litdata")
    assert (result.exit_code, "loader litdata: bring it" in result.output) == (2, True)


def test_bytes_to_the_device_are_those_that_cross(packed: Path) -> None:
    options = LoadOptions(32, 16, "gpu", 1)
    judged = Judged(Difference(0, 0, 0), 100, 48.0 * 48, 3 * 48.0 * 48, 1234.0)
    crossing = {name: device_bytes(name, packed, judged, options) for name in LOADERS}
    encoded = float(np.mean(load_index(packed, Manifest.load(packed))["size"].sum(axis=1)))
    assert crossing["dali-reader"] == encoded
    assert crossing["ours"] == encoded + 16
    assert crossing["ours-resident"] == 16
    assert crossing["seed"] == crossing["webdataset"] == 1234
    assert device_bytes("ours-planes", packed, judged, options) == 3 * 16 * 16 + 16
    assert device_bytes("ours", packed, judged, replace(options, device="cpu")) is None


def test_pixels_are_counted_as_stored_where_they_are_decoded() -> None:
    judged = Judged(Difference(0, 0, 0), 100, 10.0, 30.0, 0.0)
    pixels = {name: decoded_pixels(name, judged, 4) for name in all_names()}
    assert pixels["ours-resident"] is None
    assert pixels["ours-planes"] == 3 * 4 * 4
    assert pixels["seed"] == 40
    assert {pixels[name] for name in ("ours", "dali-reader", "webdataset", "streaming", "litdata")} == {30}


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


def test_part_of_the_shards_is_a_data_set_of_its_own(packed: Path) -> None:
    with first_shards(packed, 20) as folder:
        assert Manifest.load(folder).sets == 32  # two shards of 16
        rows = [
            row for batch in Loader(folder, "all", batch_size=8, size=16, threads=1) for row in batch.index.tolist()
        ]
    assert sorted(rows) == list(range(32))
    assert not folder.exists()


def test_packing_beside_shard_writer(source: Path) -> None:
    result = run("--packing", source, "--rounds", 2, "--workers", 1)
    found = report(result)
    ours = {"ours (verify header)", "ours (verify decode)"}
    assert set(found["packing"]) == {*ours, "webdataset.ShardWriter", "tar cf"}


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


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_composing_is_measured_beside_the_originals_way(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "bg" / f"{number}.png", png(smooth_picture(number)))
        alpha = np.zeros((48, 48, 1), np.uint8)
        alpha[8:40, 8:40] = 255
        write(tmp_path / "fg" / f"{number}.png", png(np.dstack([smooth_picture(9 + number), alpha])))
    result = run("--composing", tmp_path, "--sets", 10, "--rounds", 2)
    ours, loose, original, floor = report(result)["composing"].values()
    assert original["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert 20 < ours["peak_mib"] < 2000
    assert "peak_mib" not in floor
    assert loose["sets_per_sec"]["median"] > 0
