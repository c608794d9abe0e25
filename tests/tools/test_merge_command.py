from pathlib import Path

import pytest

from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.verify.check import CheckOptions, check
from tests.samples import files_below, write_sets
from tests.tools.test_pack_command import run
from tests.verify.test_merge import part_of


@pytest.fixture
def two(source: Path, tmp_path: Path) -> list[Path]:
    return [part_of(source, tmp_path / f"{bg}", range(bg, bg + 2), range(3)) for bg in (0, 2)]


def test_one_summary_line(two: list[Path], tmp_path: Path) -> None:
    result = run("--merge", *two, "--shards", tmp_path / "all")
    assert result.exit_code == 0
    assert result.output == "merged 2 shard directories: 12 sets on 4 backgrounds in 2 shards\n"
    assert check(tmp_path / "all", CheckOptions(workers=1)).damage == []


def test_flags_of_packing_are_refused(two: list[Path], tmp_path: Path) -> None:
    for flag in (["--seed", 0], ["--no-depth"], ["--depth-near", "dark"], ["--codec", "planes"]):
        result = run("--merge", *two, "--shards", tmp_path / "all", *flag)
        assert result.exit_code == 2
        assert f"--merge joins shards as they are: leave out {flag[0]}" in result.output
    assert not (tmp_path / "all").exists()


def test_what_cannot_be_joined_is_one_line(two: list[Path], tmp_path: Path) -> None:
    for sources, why in [(two[:1], "give two or more"), ([two[0], two[0]], "6 sets are there twice")]:
        result = run("--merge", *sources, "--shards", tmp_path / "all")
        assert result.exit_code == 1
        [line] = result.output.splitlines()
        assert why in line


def test_a_second_packing_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    sources = [write_sets(tmp_path / name, 2, 2) for name in ("one", "two")]
    pack(sources[0], tmp_path / "shards", PackOptions(workers=1))
    before = files_below(tmp_path / "shards")
    for source, code, told in zip(sources[::-1], (1, 0), ("or remove it", "already complete: "), strict=True):
        result = run(source, "--shards", tmp_path / "shards", "--workers", 1)
        assert result.exit_code == code
        assert told in result.output
    assert files_below(tmp_path / "shards") == before
