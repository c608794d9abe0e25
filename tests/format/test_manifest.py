import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, load_index, save_index, shards_between
from pipeline.verify.repair import repair


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def edit(folder: Path, changes: dict[str, object]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | changes))


def test_the_manifest_survives_its_file(packed: Path) -> None:
    manifest = Manifest.load(packed)
    assert manifest.to_json() == (packed / "manifest.json").read_text()
    assert len(manifest.sha256) == 64
    assert "time" not in manifest.to_json()
    assert str(packed) not in manifest.to_json()


def test_the_index_tells_where_every_byte_is(packed: Path) -> None:
    index = load_index(packed, Manifest.load(packed))
    assert isinstance(index, np.memmap)
    shard, offset, size = index["shard"][50], index["offset"][50], index["size"][50]
    content = (packed / f"sets-{shard:06}.tar").read_bytes()
    assert [content[start : start + 3] for start in offset] == [b"\xff\xd8\xff"] * 3
    assert [content[start + length - 2 : start + length] for start, length in zip(offset, size, strict=True)] == (
        [b"\xff\xd9"] * 3
    )


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no shards in .*manifest\.json is missing; make them with fgbg-pack"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "is fgbg-shards version 2; this fgbg reads fgbg-shards version 1"),
        ({"format": "tfrecord"}, "is tfrecord version 1; this fgbg reads"),
        ({"depth_encoding": "octarine"}, "depth octarine .* cannot read that"),
        ({"codec": "wavelets"}, "codec wavelets, .* cannot read that"),
        ({"shards": [{"name": "a"}]}, r"manifest\.json is damaged"),
        ({"surprise": 1}, r"manifest\.json is damaged"),
        ({"sets": "many"}, r"manifest\.json is damaged \(a number of sets is none\): rebuild it"),
        ({"sets": -1}, r"manifest\.json is damaged \(a number of sets is none\): rebuild it"),
    ],
)
def test_manifests_of_another_kind(changes: dict[str, object], message: str, copy: Path) -> None:
    edit(copy, changes)
    with pytest.raises(InputError, match=message):
        Manifest.load(copy)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00\xff"])
def test_a_manifest_that_is_none(text: str, copy: Path) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json is damaged .*: rebuild it from the tars"):
        Manifest.load(copy)


def test_an_index_from_elsewhere(copy: Path) -> None:
    manifest = Manifest.load(copy)
    (copy / "index.npy").write_bytes((copy / "index.npy").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"index\.npy does not belong to the manifest beside it"):
        load_index(copy, manifest)
    (copy / "index.npy").unlink()
    with pytest.raises(InputError, match=r"index\.npy is missing"):
        load_index(copy, manifest)


def shard_sets(folder: Path, changes: dict[int, int]) -> dict[str, object]:
    """The manifest's list of shards, with the number of sets of some of them changed by so many."""
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    return {"shards": [one | {"sets": one["sets"] + changes.get(place, 0)} for place, one in enumerate(shards)]}


@pytest.mark.parametrize("block", [1, 10, 1 << 16])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"has 99 sets, 100 in its shards and 100 in index\.npy: rebuild it"),
        ({3: 1}, r"has 100 sets, 101 in its shards and 100 in index\.npy: rebuild it"),
        ({0: 16, 1: -16}, r"has set 16 of index\.npy in shard 0, index\.npy has it in shard 1: rebuild it"),
        ({2: -1, 3: 1}, r"has set 47 of index\.npy in shard 3, index\.npy has it in shard 2: rebuild it"),
        ({5: 1, 6: -1}, r"has set 96 of index\.npy in shard 5, index\.npy has it in shard 6: rebuild it"),
    ],
)
def test_counts_by_which_rows_would_not_be_found(
    changes: dict[int, int], message: str, block: int, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.format.manifest.BLOCK", block)
    sound = (copy / "manifest.json").read_bytes()
    edit(copy, shard_sets(copy, changes) if changes else {"sets": 99})
    with pytest.raises(InputError, match=message):
        load_index(copy, Manifest.load(copy))
    repair(copy)
    assert (copy / "manifest.json").read_bytes() == sound
    load_index(copy, Manifest.load(copy))


def test_an_index_that_was_cut_and_hashed_again(copy: Path) -> None:
    manifest = Manifest.load(copy)
    digest = save_index(copy, 99, [np.array(load_index(copy, manifest)[:99])])
    edit(copy, {"index_sha256": digest})
    with pytest.raises(InputError, match=r"has 100 sets, 100 in its shards and 99 in index\.npy"):
        load_index(copy, Manifest.load(copy))


@pytest.mark.parametrize("block", [1, 10, 1 << 16])
def test_a_background_that_only_the_last_set_needs(block: int, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.format.manifest.BLOCK", block)
    rows = np.array(load_index(copy, Manifest.load(copy)))
    rows["bg"][-1] = 77
    edit(copy, {"index_sha256": save_index(copy, len(rows), [rows])})
    with pytest.raises(InputError, match=r"manifest\.json has no background 77, which sets need: rebuild it"):
        load_index(copy, Manifest.load(copy))


@given(sets=st.lists(st.integers(0, 4), min_size=1, max_size=9), first=st.integers(0, 40), rows=st.integers(1, 12))
def test_the_shards_between_are_all_that_have_rows_there(sets: list[int], first: int, rows: int) -> None:
    bounds = np.cumsum([0, *sets])
    found = range(len(sets))[shards_between(bounds, first, first + rows)]
    for shard, (start, end) in enumerate(pairwise(bounds.tolist())):
        if set(range(start, end)) & set(range(first, first + rows)):
            assert shard in found
        elif start < end:
            assert shard not in found
