import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import tools.peers
from pipeline.index import Manifest
from pipeline.loader import Loader
from pipeline.packing.pack import PackOptions, pack
from tests.samples import png, smooth_picture, write
from tools.bench import main
from tools.measure import first_shards, spread
from tools.peers import Loaded, LoadOptions, ours


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the closing of files to the collector
def test_all_loaders_give_the_same_pictures_and_are_timed(packed: Path) -> None:
    result = run("--shards", packed, "--rounds", 2, "--batch-size", 32, "--size", 16, "--workers", 1)
    assert result.exit_code == 0, result.output
    report = json.loads(result.output.splitlines()[-1])
    assert set(report["loaders"]) == {"ours", "dali-reader", "seed", "webdataset"}
    assert report["sets"] == 100
    assert report["machine"]["gpu"] == "none"
    for row in report["loaders"].values():
        assert row["sets_per_sec"]["q1"] <= row["sets_per_sec"]["median"] <= row["sets_per_sec"]["q3"]
        assert row["difference"]["mean"] <= 0.6
    assert report["loaders"]["seed"]["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert "x seed (quartiles)" in result.output


class Wrong:
    """Our loader with a fault."""

    fault = ""

    def __init__(self, shards: Path, options: LoadOptions) -> None:
        self._batches = ours(shards, options)

    def __iter__(self) -> Iterator[Loaded]:
        for batch in self._batches:
            masks, keys = batch.pictures["mask"], batch.keys()
            if self.fault == "paired by position":
                yield batch._replace(pictures={**batch.pictures, "mask": masks.roll(1, 0)})
            elif self.fault == "one set twice":
                yield batch._replace(keys=functools.partial(list, [keys[0], *keys[:-1]]))
            else:
                yield batch._replace(pictures={**batch.pictures, "depth": 255 - batch.pictures["depth"]})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("paired by position", "loader wrong: the pictures differ by"),
        ("one set twice", "loader wrong: an epoch gave 100 sets, 96 of them different; the shards hold 100"),
        ("depth upside down", "loader wrong: the pictures differ by"),
    ],
)
def test_a_loader_that_is_wrong_is_not_timed(
    fault: str, message: str, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "fault", fault)
    monkeypatch.setitem(tools.peers.LOADERS, "wrong", Wrong)
    result = run("--shards", packed, "--loader", "wrong", "--batch-size", 32, "--size", 16, "--workers", 1)
    assert result.exit_code == 1
    assert message in result.output


def test_planes_are_measured_beside_their_pictures(packed: Path, planes: Path) -> None:
    arguments = ("--shards", packed, "--rounds", 2, "--batch-size", 32, "--size", 16, "--workers", 1)
    result = run(*arguments, "--loader", "ours", "--planes", planes)
    assert result.exit_code == 0, result.output
    report = json.loads(result.output.splitlines()[-1])
    assert list(report["loaders"]) == ["ours", "ours-planes"]
    assert report["loaders"]["ours"]["difference"] == report["loaders"]["ours-planes"]["difference"]
    result = run(*arguments, "--loader", "ours", "--planes", packed)
    assert (result.exit_code, "holds jpeg: give pictures with --shards" in result.output) == (1, True)
    result = run("--shards", planes)
    assert (result.exit_code, "holds planes: give pictures with --shards" in result.output) == (1, True)


def test_part_of_the_shards_is_a_data_set_of_its_own(packed: Path) -> None:
    with first_shards(packed, 20) as folder:
        assert Manifest.load(folder).sets == 32  # two shards of 16
        rows = [row for batch in Loader(folder, "all", 8, 16, threads=1) for row in batch.index.tolist()]
    assert sorted(rows) == list(range(32))
    assert not folder.exists()


def test_packing_beside_shard_writer(source: Path) -> None:
    result = run("--packing", source, "--rounds", 2, "--workers", 1)
    assert result.exit_code == 0, result.output
    report = json.loads(result.output.splitlines()[-1])
    ours = {"ours (verify header)", "ours (verify decode)"}
    assert set(report["packing"]) == {*ours, "webdataset.ShardWriter", "tar cf"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give one of --shards DIR (loaders), --packing SOURCE and --composing PHOTOS"),
        (["--shards", "nowhere", "--loader", "ours,magic"], 2, "no loader called magic: expected some of ours, dali-"),
        (["--shards", "nowhere"], 1, "no shards in nowhere: manifest.json is missing"),
        (["--shards", "nowhere", "--device", "gpu"], 1, "no usable GPU"),
        (["--packing", "nowhere", "--planes", "there"], 2, "--planes goes with --shards"),
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


def test_spread_is_median_and_quartiles() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == {"q1": 2.0, "median": 3.0, "q3": 4.0}


def test_sets_without_depth_are_refused_in_one_line(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "shards", PackOptions(depth=False, workers=1))
    result = run("--shards", tmp_path / "shards")
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
    assert result.exit_code == 0, result.output
    report = json.loads(result.output.splitlines()[-1])
    ours, loose, original, floor = report["composing"].values()
    assert original["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert 20 < ours["peak_mib"] < 2000
    assert "peak_mib" not in floor
    assert loose["sets_per_sec"]["median"] > 0
