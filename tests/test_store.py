import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import pipeline.store
from pipeline.errors import InputError
from pipeline.store import Damaged, Store


@pytest.fixture
def store(packed: Path, tmp_path: Path) -> Store:
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    return Store.open(shards)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def flip_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", range(3))
def test_every_flipped_bit_of_a_picture_is_found(part: int, store: Store) -> None:
    index = store.index
    path = store.shards / "sets-000002.tar"
    row = int(np.flatnonzero(index["shard"] == 2)[3])
    start, size = int(index["offset"][row][part]), int(index["size"][row][part])
    for offset in np.linspace(start, start + size - 1, 40).astype(int):
        flip_bit(path, offset)
        with pytest.raises(Damaged) as damage:
            store.read(row)
        assert str(damage.value) == (
            f"{store.key(row)}: {('fg_bg', 'mask', 'depth')[part]} in sets-000002.tar is damaged (CRC differs)"
        )
        flip_bit(path, offset)
    assert len(store.read(row)) == 3


def test_a_shard_cut_short_damages_only_what_is_gone(store: Store) -> None:
    index = store.index
    rows = np.flatnonzero(index["shard"] == 1)
    cut = int(index["offset"][rows[8]][1]) + 5
    assert len(store.read(int(rows[-1]))) == 3  # the file is open while it shrinks: a mapping would die here
    os.truncate(store.shards / "sets-000001.tar", cut)
    for row in rows[:8]:
        store.read(int(row))
    with pytest.raises(Damaged, match=r"mask in sets-000001\.tar is cut short"):
        store.read(int(rows[8]))
    with pytest.raises(Damaged, match=r"fg_bg in sets-000001\.tar is cut short"):
        store.read(int(rows[9]))


def test_a_missing_shard_is_named(store: Store) -> None:
    (store.shards / "sets-000000.tar").unlink()
    with pytest.raises(Damaged, match=r"sets-000000\.tar cannot be read \(No such file or directory\)"):
        store.read(0)


def test_a_damaged_background_is_an_error(store: Store) -> None:
    background = store.manifest.backgrounds[4]
    flip_bit(store.shards / "backgrounds.tar", background.offset + 100)
    with pytest.raises(InputError, match=r"backgrounds\.tar: background 4 is damaged"):
        store.read_background(background.id)
    store.close()
    (store.shards / "backgrounds.tar").unlink()
    with pytest.raises(InputError, match=r"backgrounds\.tar cannot be read"):
        store.read_background(background.id)


def test_few_files_are_open_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.store, "MAX_OPEN_FILES", 2)
    before = open_files()
    for row in range(100):
        store.read(row)
    assert open_files() == before + 2
    store.close()
    assert open_files() == before
