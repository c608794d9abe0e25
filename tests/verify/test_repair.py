import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, ShardInfo, load_index
from pipeline.format.tar import Shard, load_shard
from pipeline.loading.loader import Loader
from pipeline.loading.shard_reader import ShardReader
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.verify.check import CheckOptions, check
from pipeline.verify.repair import COMMAND, repair
from pipeline.verify.scan import WIDE
from tests.loading.test_shard_reader import flip_bit
from tests.samples import files_below, without_depth, write_sets

FULL = CheckOptions(decode=True, stock_reader=True, workers=1)
BELONGING = ("index.npy", "manifest.json", "sets-000000.idx", "sets-000004.idx")
Contents = dict[str, list[bytes]]


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def contents(shards: Path) -> Contents:
    """The pictures of every set, by key."""
    store = ShardReader.open(shards)
    return {store.key(row): [bytes(part) for part in store.read(row)] for row in range(store.manifest.sets)}


def names(shards: Path) -> set[str]:
    return {path.name for path in shards.iterdir()}


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40][::-1])


@pytest.mark.parametrize("ruin", [Path.unlink, spoil])
@pytest.mark.parametrize("workers", [1, 2])
def test_of_undamaged_tars_come_the_same_bytes(
    ruin: Callable[[Path], None], workers: int, packed: Path, shards: Path
) -> None:
    for name in BELONGING:
        ruin(shards / name)
    report = repair(shards, "gray", "bright", workers=workers)
    assert (report.damaged, report.unverified) == ([], 7)
    assert files_below(shards) == files_below(packed)


@pytest.mark.parametrize("name", BELONGING)
def test_what_is_left_of_the_manifest_tells_the_depth(name: str, packed: Path, shards: Path) -> None:
    text = (shards / name).read_bytes()
    (shards / name).write_bytes(text[: len(text) // 2] if name != "manifest.json" else text[:-9])
    repair(shards)
    assert files_below(shards) == files_below(packed)


@pytest.mark.parametrize("near", ["bright", "dark"])
def test_sets_without_depth(near: str, source: Path, tmp_path: Path) -> None:
    shards = without_depth(source, tmp_path / "bare")
    before = files_below(shards)
    for name in BELONGING:
        (shards / name).unlink()
    repair(shards)
    assert files_below(shards) == before


@pytest.mark.parametrize("depth", [True, False])
def test_planes(depth: bool, source: Path, tmp_path: Path) -> None:
    shards = tmp_path / "planes"
    pack(source, shards, PackOptions(sets_per_shard=16, workers=1, codec="planes", size=24, depth=depth))
    before = files_below(shards)
    for name in BELONGING:
        (shards / name).unlink()
    repair(shards)
    assert files_below(shards) == before
    key, name, offsets = places(shards, 20)
    flip_bit(shards / name, offsets[0] + 30)
    assert [problem.path for problem in repair(shards).damaged] == [f"{name}/{key}"]
    assert check(shards, FULL).damage == []


def test_an_encoding_that_nothing_tells_is_asked_for(shards: Path) -> None:
    (shards / "manifest.json").unlink()
    before = files_below(shards)
    with pytest.raises(InputError, match=r"no longer tells how depth is encoded.* state it, --depth-encoding"):
        repair(shards)
    assert files_below(shards) == before
    repair(shards, "magma", "dark")
    assert (Manifest.load(shards).depth_encoding, Manifest.load(shards).depth_near) == ("magma", "dark")


def places(packed: Path, row: int) -> tuple[str, str, list[int]]:
    """Key, tar and offsets of a set."""
    manifest = Manifest.load(packed)
    of_set = load_index(packed, manifest)[row]
    return of_set["key"].decode(), manifest.shards[of_set["shard"]].name, of_set["offset"].tolist()


def test_damaged_sets_are_left_out_by_name(packed: Path, shards: Path) -> None:
    sound, lost = contents(packed), set()
    for row, place in [(20, 100), (22, 20_000), (40, -500)]:  # a picture's middle, the next set or so, a header
        _, name, offsets = places(packed, row)
        flip_bit(shards / name, offsets[1] + place if place < 1000 else offsets[0] + 600)
        lost.add(places(packed, row)[0])
    damaged = {name: (shards / name).read_bytes() for name in ("sets-000001.tar", "sets-000002.tar")}
    report = repair(shards)
    assert {problem.path.partition("/")[2] for problem in report.damaged} - {""} == lost
    assert contents(shards) == {key: parts for key, parts in sound.items() if key not in lost}
    assert check(shards, FULL).damage == []
    assert report.unverified == 0
    for name, content in damaged.items():
        assert (shards / f"{name}.damaged").read_bytes() == content
    listed = (shards / "problems.csv").read_text()
    assert all(f"/{key},damaged," in listed for key in lost)
    assert sum(len(batch.index) for batch in Loader(shards, "all", size=16)) == 97
    before = files_below(shards)
    assert repair(shards).damaged == []  # of what was mended nothing more is left out, and nothing forgotten
    assert files_below(shards) == before


def test_damage_that_only_fills_a_block_costs_no_set(packed: Path, shards: Path) -> None:
    _, name, offsets = places(packed, 20)
    end = offsets[1] - 512 - 1
    assert (shards / name).read_bytes()[end] == 0
    flip_bit(shards / name, end)
    assert len(check(shards, CheckOptions(workers=1)).damage) == 1
    assert repair(shards).damaged == []
    (shards / f"{name}.damaged").unlink()
    assert files_below(shards) == files_below(packed)


def test_a_json_that_no_checksum_covers_is_not_called_verified(packed: Path, shards: Path) -> None:
    _, name, offsets = places(packed, 20)
    content = (shards / name).read_bytes()
    place = content.index(b'{"bg": ', offsets[2])
    (shards / name).write_bytes(content[:place] + content[place:].replace(b'": ', b'" :', 1))
    report = repair(shards)
    assert (report.damaged, report.unverified) == ([], 1)


@pytest.mark.parametrize("note", [b"5", b"null", b"[]", b"{", b"[" * 60])
def test_a_json_that_is_no_object_costs_its_set(note: bytes, packed: Path, shards: Path) -> None:
    key, name, offsets = places(packed, 0)
    content = (shards / name).read_bytes()
    place = content.index(b'{"bg": ', offsets[2])
    end = content.index(b"}", place) + 1
    (shards / name).write_bytes(content[:place] + note.ljust(end - place)[: end - place] + content[end:])
    assert [problem.path for problem in repair(shards).damaged] == [f"{name}/{key}"]


def test_a_set_whose_background_is_damaged_is_left_out(packed: Path, shards: Path) -> None:
    flip_bit(shards / "backgrounds.tar", Manifest.load(packed).backgrounds[4].offset + 300)
    report = repair(shards)
    assert report.damaged[0].path == "backgrounds.tar/bg_004"
    assert len(report.damaged) == 11
    manifest = Manifest.load(shards)
    assert (manifest.sets, [one.id for one in manifest.backgrounds]) == (90, [0, 1, 2, 3, 5, 6, 7, 8, 9])
    assert check(shards, FULL).damage == []


def test_a_truncated_and_a_missing_tar(packed: Path, shards: Path) -> None:
    _, _, offsets = places(packed, 20)
    content = (shards / "sets-000001.tar").read_bytes()
    (shards / "sets-000001.tar").write_bytes(content[: offsets[1] + 20])
    (shards / "sets-000002.tar").write_bytes(b"")
    (shards / "sets-000003.tar").unlink()
    (shards / "index.npy").unlink()
    report = repair(shards)
    assert [problem.path for problem in report.damaged if "/" not in problem.path] == [
        "sets-000001.tar", "sets-000002.tar", "sets-000003.tar",
    ]  # fmt: skip
    manifest = Manifest.load(shards)
    assert [(info.name, info.sets) for info in manifest.shards] == [
        ("sets-000000.tar", 16), ("sets-000001.tar", 4), ("sets-000004.tar", 16), ("sets-000005.tar", 16),
        ("sets-000006.tar", 4),
    ]  # fmt: skip
    assert check(shards, FULL).damage == []
    assert contents(shards).items() <= contents(packed).items()


def test_a_repair_that_is_stopped_is_continued(
    packed: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each step that writes, again and again, it ends as one that was not."""
    for row in (3, 20, 40):
        _, name, offsets = places(packed, row)
        flip_bit(shards / name, offsets[2] + 50)
    flip_bit(shards / "backgrounds.tar", Manifest.load(packed).backgrounds[4].offset + 300)
    spoil(shards / "sets-000001.tar")
    undisturbed = Path(shutil.copytree(shards, tmp_path / "undisturbed"))
    expected = repair(undisturbed)
    left, replace = 0, Path.replace

    def replace_or_stop(path: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_or_stop)
    report, stops = None, 0
    while not report:
        left = stops = stops + 1
        with suppress(KeyboardInterrupt):
            report = repair(shards)
    assert stops > 10
    assert report.damaged == expected.damaged
    assert files_below(shards) == files_below(undisturbed)


def test_a_set_in_two_tars_is_refused(shards: Path) -> None:
    shutil.copy(shards / "sets-000001.tar", shards / "sets-000009.tar")
    key = places(shards, 16)[0]
    with pytest.raises(
        InputError, match=rf"{key} is in sets-000001\.tar and in sets-000009\.tar: take one of them away"
    ):
        repair(shards)
    (shards / "sets-000009.tar").unlink()
    repair(shards)


def test_nothing_to_repair(packed: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there are no sets-\*\.tar in .*: nothing can be rebuilt"):
        repair(tmp_path / "nowhere")
    (shards / "backgrounds.tar").unlink()
    before = files_below(shards)
    with pytest.raises(InputError, match=r"backgrounds\.tar cannot be read \(No such file or directory\), and nothing"):
        repair(shards)
    assert files_below(shards) == before


def test_keys_of_any_length(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 3, 2)
    for path in sorted(source.rglob("*bg_002_*")):
        if path.is_file():
            path.rename(path.with_name(path.name.replace("_00000", "_1230000")))
    pack(source, tmp_path / "shards", PackOptions(sets_per_shard=2, workers=1))
    before = files_below(tmp_path / "shards")
    (tmp_path / "shards" / "manifest.json").unlink()
    repair(tmp_path / "shards", "gray", "bright")
    assert files_below(tmp_path / "shards") == before
    assert np.load(tmp_path / "shards" / "index.npy").dtype["key"].itemsize == 22
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["sets"] == 6


@pytest.mark.parametrize("key", [b"bg_x", b"abc", b"\xff", b"bg_99999999999"])
def test_records_of_something_else_are_refused_or_made_again(key: bytes, packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "shards"))
    records = folder / ".unfinished"
    records.mkdir()
    (records / "arguments.json").write_text(json.dumps({"command": COMMAND, "depth": [None, None]}))
    rows = np.zeros(1, WIDE)
    rows["key"] = key
    for name, record, parts in (("backgrounds.tar", "backgrounds.npz", 1), ("sets-000000.tar", "sets-000000.npz", 2)):
        path = folder / name
        info = ShardInfo(name, 1, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        Shard(info, rows, np.ones((2, parts, 2), int), Counter(), []).save(records / record)
        if key == b"\xff":
            assert load_shard(records / record, folder) is None
        else:
            with pytest.raises(InputError, match=r"unfinished holds no records of a repair: remove it"):
                repair(folder)
        (records / record).unlink(missing_ok=True)
        records.mkdir(exist_ok=True)
        (records / "arguments.json").write_text(json.dumps({"command": COMMAND, "depth": [None, None]}))
