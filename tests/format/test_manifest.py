import hashlib
import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

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
    with pytest.raises(ValueError, match="read-only"):  # it is mapped
        index["bg"][0] = 1
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
        ({"format": "\x1b[2J" * 99}, r"is \\\\u001b\[2J.* version 1; this fgbg reads"),
        ({"surprise": 1}, r"has a field that this fgbg does not know \(surprise\); a newer one may .*: update fgbg"),
        ({"a\x1bb": 1}, r"does not know \(a\\x1bb\)"),
        ({"sha256": "0" * 64}, r"damaged \(it has a sha256 of itself\): rebuild it"),
    ],
)
def test_manifests_of_another_kind(changes: dict[str, object], message: str, copy: Path) -> None:
    edit(copy, changes)
    with pytest.raises(InputError, match=message):
        Manifest.load(copy)


WRONG: list[object] = [None, True, 1.5, "a", "\0", {}, [[]], -1, 1 << 31, 1 << 63, 1 << 80]
NAMES = ["../x.tar", "/x.tar", "x\0.tar", "a/b.tar", ".a.tar", "..tar", "a.tar\n", "ä.tar", "a\\b.tar"]
EXTENTS: list[object] = [[], [1], {}, {"min": [1, 1]}, {"min": [2, 1], "max": [1, 1]}, {"min": [1], "max": [1, 2]}]
RIGHT = {("sets", 1 << 31), ("foregrounds", 1 << 31), ("bytes", 1 << 31), ("offset", 1 << 31), ("crc32", 1 << 31)}
"""What of WRONG contradicts nothing in the manifest alone, beside an id of -1."""


@pytest.mark.parametrize(
    ("path", "values"),
    [
        *((path, WRONG) for path in ("sets", "foregrounds", "depth_encoding", "depth_near", "codec", "sizes")),
        *((path, WRONG) for path in ("index_sha256", "backgrounds_sha256", "shards", "backgrounds", "warnings")),
        *((f"shards/1{name}", WRONG) for name in ("", "/name", "/sets", "/bytes", "/sha256")),
        *((f"backgrounds/1{name}", WRONG) for name in ("", "/id", "/offset", "/size", "/crc32")),
        *((f"sizes/{name}", [*WRONG, *EXTENTS]) for name in ("bg", "mask")),
        ("shards/1/name", [*NAMES, "backgrounds.tar", "sets-000000.tar", "x" * 300 + ".tar"]),
        ("backgrounds/1/id", [0]),
    ],
)
def test_a_field_of_another_type_or_out_of_range(path: str, values: list[object], copy: Path) -> None:
    content = json.loads((copy / "manifest.json").read_text())
    *above, last = (int(step) if step.isdigit() else step for step in path.split("/"))
    place = content
    for step in above:
        place = place[step]
    for value in values:
        if any((last, value) == (name, number) for name, number in (*RIGHT, ("id", -1))):
            continue
        place[last] = value
        (copy / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"manifest\.json (is damaged|has codec).*(: rebuild it|: this fgbg)"):
            pytest.fail(f"{path} {value!r} was read: {Manifest.load(copy)}")


NESTED = "[" * 100_000


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00\xff", NESTED, f'{{"sets": {NESTED}', '{"sets": NaN}'])
def test_a_manifest_that_is_none(text: str, copy: Path) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json is damaged .*: rebuild it from the tars"):
        Manifest.load(copy)


def test_a_shard_without_sets(copy: Path) -> None:
    shards = json.loads((copy / "manifest.json").read_text())["shards"]
    edit(copy, {"shards": [*shards, shards[0] | {"name": "sets-000099.tar", "sets": 0}]})
    with pytest.raises(InputError, match=r"manifest\.json is damaged \(sets-000099\.tar has no sets\): rebuild it"):
        Manifest.load(copy)


def test_a_manifest_that_is_too_long_is_not_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.format.manifest.MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(InputError, match=r"has over 0 MiB, which no manifest needs: rebuild it"):
        Manifest.load(copy)


def test_fields_that_came_later_are_written_only_where_they_say_something(packed: Path, copy: Path) -> None:
    plain = Manifest.load(packed)
    assert plain.optional == {}
    warned = msgspec.structs.replace(plain, warnings=["9 of 16 masks look inverted"])
    warned.save(copy)
    found = Manifest.load(copy)
    assert found.optional == {"warnings": ["9 of 16 masks look inverted"]}
    assert msgspec.structs.replace(found, warnings=[]).to_json() == plain.to_json()
    repair(copy)
    assert Manifest.load(copy).to_json() == warned.to_json()


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
        ({0: 15, 1: -15}, r"has set 16 of index\.npy in shard 0, index\.npy has it in shard 1: rebuild it"),
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


def restate_index(folder: Path, rows: NDArray[np.void]) -> None:
    """Write these rows, and a manifest that has their hash: as no damage would, but someone."""
    edit(folder, {"index_sha256": save_index(folder, len(rows), [rows])})


@pytest.mark.parametrize("row", [0, 57, 99])
@pytest.mark.parametrize(
    ("field", "column", "value", "message"),
    [
        *(
            ("offset", column, value, "cannot lie")
            for column in (0, 1, 2)
            for value in (-512, 0, 1 << 40, (1 << 63) - 1)
        ),
        *(("size", column, value, "cannot lie") for column in (0, 1, 2) for value in (-1, (1 << 31) - 1)),
        ("fg", None, -2, "cannot lie"),
        ("shard", None, -1, "in shard -1"),
        ("bg", None, -5, "has no background -5"),
        *(("key", None, key, "a key that no set has") for key in (b"", b"a/b", b"a\x1bb", b"a\0b", b"\xff", b"..")),
    ],
)
def test_a_row_that_leads_elsewhere(
    field: str, column: int | None, value: object, message: str, row: int, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.format.manifest.BLOCK", 10)
    rows = np.array(load_index(copy, Manifest.load(copy)))
    rows[field][row if column is None else (row, column)] = value
    restate_index(copy, rows)
    with pytest.raises(InputError, match=rf"manifest\.json .*{message}.*: rebuild it"):
        load_index(copy, Manifest.load(copy))


def test_sets_without_depth_have_nothing_in_its_column(bare: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bare, tmp_path / "shards"))
    rows = np.array(load_index(folder, Manifest.load(folder)))
    rows["offset"][3, 2] = 512
    restate_index(folder, rows)
    with pytest.raises(InputError, match=r"in which set 3 of index\.npy cannot lie"):
        load_index(folder, Manifest.load(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows["key"],
        lambda rows: rows[:, None],
        lambda rows: np.asfortranarray(np.stack([rows, rows])),
        lambda rows: rows.astype(rows.dtype.newbyteorder(">")),
        lambda rows: np.array([None]),
        lambda rows: np.zeros(0),
    ],
)
def test_an_array_of_another_kind_is_no_index(
    change: Callable[[NDArray[np.void]], NDArray[np.generic]], copy: Path
) -> None:
    np.save(copy / "index.npy", change(np.array(load_index(copy, Manifest.load(copy)))))
    edit(copy, {"index_sha256": hashlib.sha256((copy / "index.npy").read_bytes()).hexdigest()})
    with pytest.raises(InputError, match=r"index\.npy is no index of this format: copy it again, or rebuild"):
        load_index(copy, Manifest.load(copy))


@pytest.mark.parametrize(
    "header", [b"(" * 900, b"\x93NUMPY\x01\x00\xff\xff", b"{'descr': '|S24', 'shape': (1,), }" * 20]
)
def test_a_header_is_compared_and_not_evaluated(header: bytes, copy: Path) -> None:
    (copy / "index.npy").write_bytes(header)
    edit(copy, {"index_sha256": hashlib.sha256(header).hexdigest()})
    with pytest.raises(InputError, match=r"is no index of"):
        load_index(copy, Manifest.load(copy))


def test_an_index_that_is_far_too_long_is_not_read(copy: Path) -> None:
    os.truncate(copy / "index.npy", 1 << 40)
    with pytest.raises(InputError, match=r"index\.npy does not belong to the manifest"):
        load_index(copy, Manifest.load(copy))
