import errno
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, load_index
from pipeline.loading.loader import Loader
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.verify.check import CheckOptions, check
from pipeline.verify.merge import merge
from pipeline.verify.repair import repair
from tests.samples import files_below, jpeg, set_paths, smooth_picture, without_depth, write, write_sets
from tests.verify.test_repair import FULL, contents


def part_of(source: Path, target: Path, backgrounds: range, foregrounds: range, codec: str = "jpeg") -> Path:
    """Shards of the sets of some ids, out of the 100 of `source`."""
    for bg in backgrounds:
        write(target / f"bg/bg_{bg:03}.jpg", (source / f"bg/bg_{bg:03}.jpg").read_bytes())
        for fg in foregrounds:
            for path in set_paths(bg, fg, bg * 10 + fg):
                write(target / path, (source / path).read_bytes())
    shards = target.with_name(f"{target.name}-shards")
    pack(target, shards, PackOptions(sets_per_shard=7, workers=1, codec=codec, size=16))
    return shards


@pytest.fixture
def two(source: Path, tmp_path: Path) -> list[Path]:
    """Two shard directories, which share backgrounds 2 and 3."""
    return [
        part_of(source, tmp_path / "one", range(4), range(5)),
        part_of(source, tmp_path / "two", range(2, 6), range(5, 10)),
    ]


def test_all_sets_of_all_sources_are_there(two: list[Path], tmp_path: Path) -> None:
    manifest = merge(two, tmp_path / "all")
    assert manifest.to_json() == Manifest.load(tmp_path / "all").to_json()
    assert (manifest.sets, manifest.foregrounds, len(manifest.backgrounds)) == (40, 10, 6)
    assert check(tmp_path / "all", FULL).damage == []
    assert contents(tmp_path / "all") == contents(two[0]) | contents(two[1])
    tars = [sorted(shards.glob("sets-*.tar")) for shards in (*two, tmp_path / "all")]
    assert [path.read_bytes() for path in tars[2]] == [path.read_bytes() for path in (*tars[0], *tars[1])]
    assert tars[2][0].samefile(tars[0][0])
    assert [path.name for path in tars[2]] == [f"sets-{number:06}.tar" for number in range(6)]


def test_a_merge_loads_as_one_packing_of_all_would(source: Path, tmp_path: Path) -> None:
    parts = [part_of(source, tmp_path / f"{bg}", range(bg, bg + 2), range(10)) for bg in range(0, 6, 2)]
    merge(parts, tmp_path / "merged")
    pack_all = part_of(source, tmp_path / "all", range(6), range(10))
    pictures = []
    for shards in (tmp_path / "merged", pack_all):
        loader = Loader(shards, "all", size=32, threads=1)
        pictures.append({
            loader.key(row): [part[place].numpy().tobytes() for part in (batch.bg, batch.fg_bg, batch.mask)]
            for batch in loader
            for place, row in enumerate(batch.index.tolist())
        })  # fmt: skip
    assert len(pictures[0]) == 60
    assert pictures[0] == pictures[1]
    ours, theirs = Manifest.load(tmp_path / "merged"), Manifest.load(pack_all)
    assert (ours.sizes, ours.backgrounds, ours.backgrounds_sha256) == (
        theirs.sizes, theirs.backgrounds, theirs.backgrounds_sha256
    )  # fmt: skip


def test_planes(two: list[Path], source: Path, tmp_path: Path) -> None:
    parts = [part_of(source, tmp_path / f"{bg}", range(bg, bg + 3), range(bg, bg + 4), "planes") for bg in (0, 4)]
    merge(parts, tmp_path / "all")
    assert check(tmp_path / "all", FULL).damage == []
    assert contents(tmp_path / "all") == contents(parts[0]) | contents(parts[1])
    assert sum(len(batch.index) for batch in Loader(tmp_path / "all", "all", size=16)) == 24
    assert f"{two[0]} has codec jpeg, {parts[0]} has codec planes" in refused([two[0], parts[0]], tmp_path)
    pack(tmp_path / "0", tmp_path / "large", PackOptions(workers=1, codec="planes", size=20))
    expected = f"{parts[1]} has size of planes 16, {tmp_path / 'large'} has size of planes 20"
    assert expected in refused([parts[1], tmp_path / "large"], tmp_path)


def test_keys_of_different_lengths(two: list[Path], tmp_path: Path) -> None:
    source = write_sets(tmp_path / "long", 1, 2)
    for path in [*source.rglob("fg_*")]:
        if path.is_file():
            path.rename(path.with_name(path.name.replace("_00000", "_1230000")))
    pack(source, tmp_path / "long-shards", PackOptions(workers=1))
    merge([two[0], tmp_path / "long-shards"], tmp_path / "all")
    keys = load_index(tmp_path / "all", Manifest.load(tmp_path / "all"))["key"]
    assert (len(np.unique(keys)), keys.dtype.itemsize) == (22, 22)
    assert check(tmp_path / "all", FULL).damage == []


def refused(sources: list[Path], tmp_path: Path) -> str:
    with pytest.raises(InputError) as error:
        merge(sources, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    return str(error.value)


def test_other_kinds_are_refused_naming_both(two: list[Path], source: Path, tmp_path: Path) -> None:
    bare = without_depth(source, tmp_path / "bare")
    expected = (
        f"{two[0]} has depth encoding gray, {bare} has depth encoding none: only shards of one kind can be merged"
    )
    assert refused([*two, bare], tmp_path).startswith(expected)
    pack(source, tmp_path / "dark", PackOptions(workers=1, depth_near="dark"))
    assert f"has depth near bright, {tmp_path / 'dark'} has depth near dark" in refused(
        [two[0], tmp_path / "dark"], tmp_path
    )


def test_another_picture_under_the_same_id_is_refused(two: list[Path], tmp_path: Path) -> None:
    other = write_sets(tmp_path / "other", 3, 1)
    for path in set_paths(1, 0, 1):
        write(other / path.replace("000001", "000099"), (other / path).read_bytes())
        (other / path).unlink()
    write(other / "bg/bg_001.jpg", jpeg(smooth_picture(77)))
    pack(other, tmp_path / "other-shards", PackOptions(workers=1))
    assert refused([two[0], tmp_path / "other-shards"], tmp_path) == (
        f"background 1 of {tmp_path / 'other-shards'} is another picture than background 1 of {two[0]}: ids have to "
        f"differ where pictures do; pack one of them again under other numbers (--field)"
    )


def test_a_set_that_is_there_twice_is_refused(two: list[Path], source: Path, tmp_path: Path) -> None:
    third = part_of(source, tmp_path / "three", range(3, 4), range(9, 10))
    assert refused([*two, third], tmp_path) == (
        f"1 set is there twice, the first is fg_009_bg_003_000039 (in {two[1]} and {third}): "
        f"take one of these away, or pack it again under other numbers (--field)"
    )
    assert "20 sets are there twice" in refused([two[0], two[0]], tmp_path)
    assert "1 shard directories to merge: give two or more" in refused(two[:1], tmp_path)


def test_sources_that_are_not_whole(two: list[Path], tmp_path: Path) -> None:
    os.truncate(two[1] / "sets-000001.tar", 2000)
    assert "sets-000001.tar has 2,000 bytes, not" in refused(two, tmp_path)
    (two[1] / "index.npy").unlink()
    assert "index.npy is missing" in refused(two, tmp_path)
    assert "no shards in" in refused([two[0], tmp_path / "nowhere"], tmp_path)


def test_a_folder_in_use_is_refused(two: list[Path], tmp_path: Path) -> None:
    before = files_below(two[0])
    with pytest.raises(InputError, match="is not empty"):
        merge(two, two[0])
    assert files_below(two[0]) == before


@pytest.mark.parametrize("links", [True, False])
def test_a_merge_that_is_stopped_is_continued(
    links: bool, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(two, tmp_path / "undisturbed")
    left = 0

    def no_link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def stop(more: int, total: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    for shards in (3, 4):
        left = shards
        with pytest.raises(KeyboardInterrupt):
            merge(two, tmp_path / "stopped", stop)
    with pytest.raises(InputError, match="holds an unfinished fgbg-pack --merge with sources"):
        merge(two[::-1], tmp_path / "stopped")
    merge(two, tmp_path / "stopped")
    assert files_below(tmp_path / "stopped") == files_below(tmp_path / "undisturbed")


def test_what_lies_beside_the_shards_is_joined(
    two: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for shards, line in zip(two, ("fg_bg/a.jpg,incomplete,why\n", "fg_bg/b.jpg,unknown,why\n"), strict=True):
        write(shards / "problems.csv", f"path,kind,why\n{line}".encode())
        write(shards / "labels.csv", f"key,{shards.name[0]},x\n{shards.name},1,-2\n".encode())
    write(two[0] / "sources.csv", b"part,id,file\nbg,0,a.jpg\n")
    merge(two, tmp_path / "all")
    joined = files_below(tmp_path / "all")
    assert joined["problems.csv"] == (
        b"path,kind,why\none-shards/fg_bg/a.jpg,incomplete,why\ntwo-shards/fg_bg/b.jpg,unknown,why\n"
    )
    assert joined["labels.csv"] == b"key,o,x,t\none-shards,1,-2,\ntwo-shards,,-2,1\n"
    assert "sources.csv" not in joined
    [warning] = caplog.messages
    assert re.fullmatch(r"the merged shards have no sources\.csv: .*two-shards/sources\.csv is missing, .*", warning)


def test_a_table_that_is_none_is_not_joined_and_told(
    two: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for shards in two:
        write(shards / "labels.csv", b'key,x\n"' + b"a" * 200_000)
    merge(two, tmp_path / "all")
    assert "labels.csv" not in files_below(tmp_path / "all")
    assert "the merged shards have no labels.csv: one of several labels.csv is no table (" in caplog.text


def test_a_repair_of_the_result_leaves_the_sources_alone(two: list[Path], tmp_path: Path) -> None:
    merge(two, tmp_path / "all")
    before = [files_below(shards) for shards in two]
    (tmp_path / "all" / "index.npy").unlink()
    repair(tmp_path / "all")
    shutil.rmtree(tmp_path / "all")
    assert [files_below(shards) for shards in two] == before
    assert all(check(shards, CheckOptions(workers=1)).damage == [] for shards in two)
