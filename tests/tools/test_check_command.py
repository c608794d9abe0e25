import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipeline.format.manifest import Manifest, load_index
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.workers import Progress
from tests.loading.test_shard_reader import flip_bit
from tests.samples import files_below
from tests.verify.test_check import restate
from tools.check import main


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "shards"))


@pytest.mark.parametrize("flags", [[], ["--decode"], ["--full"]])
def test_all_is_well(flags: list[str], packed: Path) -> None:
    before = files_below(packed)
    result = run("--shards", packed, "--workers", 1, *flags)
    assert result.exit_code == 0
    [line] = result.output.splitlines()
    assert line.startswith(f"{packed}: all is as it was packed; read 100 sets on 10 backgrounds in 7 shards, ")
    assert files_below(packed) == before


def test_damage_is_named_one_line_each_and_can_be_left_out(shards: Path) -> None:
    rows = load_index(shards, Manifest.load(shards))
    keys = [rows["key"][row].decode() for row in (20, 40)]
    for row, part in ((20, 1), (40, 2)):
        flip_bit(shards / f"sets-{rows['shard'][row]:06}.tar", int(rows["offset"][row, part]) + 400)
    result = run("--shards", shards, "--workers", 1)
    assert result.exit_code == 1
    *lines, summary = result.output.splitlines()
    assert lines == [
        f"sets-000001.tar: {keys[0]}: mask is damaged (CRC differs)",
        f"sets-000002.tar: {keys[1]}: depth is damaged (CRC differs)",
    ]
    assert summary.startswith(f"{shards}: damage found: 2; read 100 sets ")
    result = run("--shards", shards, "--workers", 1, "--repair-index")
    assert result.exit_code == 0
    *lines, summary = result.output.splitlines()
    assert [line.rpartition(" (")[0] for line in lines] == [
        f"left out: sets-000001.tar/{keys[0]}: mask is damaged",
        f"left out: sets-000002.tar/{keys[1]}: depth is damaged",
    ]
    assert summary == (
        f"{shards}: rebuilt index, .idx and manifest of 98 sets in 7 shards; left out: 2; "
        f"the damaged tars are kept as *.tar.damaged"
    )
    assert run("--shards", shards, "--workers", 1).exit_code == 0


def test_a_repair_without_checksums_says_so(packed: Path, shards: Path) -> None:
    for name in ("index.npy", "manifest.json"):
        (shards / name).unlink()
    result = run("--shards", shards, "--repair-index", "--workers", 1)
    assert result.exit_code == 1
    assert "state it, --depth-encoding (gray, " in result.output
    result = run("--shards", shards, "--repair-index", "--depth-encoding", "gray", "--depth-near", "bright")
    assert result.exit_code == 0
    assert "left out: 0; not verified: 7 shards, for want of checksums" in result.output
    assert files_below(shards) == files_below(packed)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--shards", "nowhere"], 1, "Error: no shards in nowhere: manifest.json is missing; make them with fgbg-pack"),
        (
            ["--shards", "nowhere", "--repair-index"],
            1,
            "Error: there are no sets-*.tar in nowhere: nothing can",
        ),
        (["--repair-index", "--full"], 2, "--repair-index decodes every picture by itself"),
        (["--depth-near", "dark"], 2, "--depth-encoding and --depth-near belong to --repair-index"),
        (["--workers", "0"], 2, "Invalid value for '--workers'"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.output
    assert code == 2 or len(result.output.splitlines()) == 1
    assert files_below(tmp_path) == {}


def test_a_damaged_manifest_and_an_unfinished_directory_are_one_line(
    source: Path, shards: Path, tmp_path: Path
) -> None:
    def stop(more: int) -> None:
        if more:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "half", PackOptions(sets_per_shard=16, workers=1), Progress(sets_done=stop))
    (shards / "manifest.json").write_bytes(b"{")
    for folder, why in [
        (shards, "manifest.json is damaged (Input data was truncated"),
        (tmp_path / "half", "half is unfinished: run the same fgbg-pack again, which continues it"),
    ]:
        result = run("--shards", folder)
        assert result.exit_code == 1
        [line] = result.output.splitlines()
        assert why in line
    assert "half is unfinished" in run("--shards", tmp_path / "half", "--repair-index").output


def test_the_cache_is_checked_in_place_of_shards(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    (folder / ("0" * 64)).mkdir(parents=True)
    (folder / ("0" * 64) / "sets-000000.tar").write_bytes(b"of no manifest")
    done = CliRunner().invoke(main, ["--cache", str(folder)])
    assert done.exit_code == 0
    assert done.output == f"{folder}: 0 files (0.00 GB) as packed, 1 file dropped ({'0' * 64}/sets-000000.tar)\n"
    assert CliRunner().invoke(main, ["--cache", str(folder)]).output == f"{folder}: 0 files (0.00 GB) as packed\n"


def test_parts_report_their_own_shards(shards: Path) -> None:
    rows = load_index(shards, Manifest.load(shards))
    flip_bit(shards / "sets-000004.tar", int(rows["offset"][np.flatnonzero(rows["shard"] == 4)[0], 1]) + 400)
    flip_bit(shards / "backgrounds.tar", 600)
    (shards / "sets-000009.tar").write_bytes(b"")
    runs = [run("--shards", shards, "--workers", 1, "--part", f"{number}/3") for number in range(3)]
    assert [result.exit_code for result in runs] == [1, 1, 0]
    first, second, third = ([line.partition(";")[0] for line in result.output.splitlines()] for result in runs)
    assert [line.partition(":")[0] for line in first] == ["sets-000009.tar", "backgrounds.tar", str(shards)]
    assert (first[-1], [line.partition(":")[0] for line in second[:-1]]) == (
        f"{shards}: part 0/3: damage found: 2",
        ["sets-000004.tar"],
    )
    assert third == [f"{shards}: part 2/3: all is as it was packed"]
    assert "; read 32 sets in 2 of 7 shards, " in runs[2].output
    for other in ("--repair-index", "--cache"):
        wrong = run("--shards", shards, "--part", "0/3", other)
        assert (wrong.exit_code, "--part is for checking shards: leave out" in wrong.output) == (2, True)


def test_a_part_sees_sizes_beyond_those_of_the_manifest(shards: Path) -> None:
    manifest = Manifest.load(shards)
    restate(shards, sizes=manifest.sizes | {"mask": {"min": [47, 48], "max": [48, 49]}})
    assert run("--shards", shards, "--workers", 1, "--part", "1/2").exit_code == 0, "other parts may have such masks"
    restate(shards, sizes=manifest.sizes | {"mask": {"min": [48, 49], "max": [48, 49]}})
    result = run("--shards", shards, "--workers", 1, "--part", "1/2")
    assert result.exit_code == 1
    assert result.output.startswith("manifest.json: it has the sizes ")
