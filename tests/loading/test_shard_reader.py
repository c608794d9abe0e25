import copy
import gc
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.storage
from pipeline.errors import InputError
from pipeline.files import ReadFile
from pipeline.loading.shard_reader import Damaged, ShardReader


@pytest.fixture
def store(packed: Path, tmp_path: Path) -> ShardReader:
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    return ShardReader.open(shards)


def folder_of(store: ShardReader) -> Path:
    return Path(str(store.location))


def tar_members(shards: Path, key: str) -> dict[str, bytes]:
    """The files of one set, as `tarfile` finds them: bytes by extension."""
    found = {}
    for path in shards.glob("sets-*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                name, extension = member.name.split(".", 1)
                if name == key:
                    found[extension] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def open_files() -> int:
    gc.collect()  # of tests before, which may have left files to it
    return len(list(Path("/proc/self/fd").iterdir()))


def flip_bit(path: Path, offset: int) -> None:
    """Change one bit of a file in its place: a loader that reads ahead meanwhile sees no shorter file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("part", range(3))
def test_every_flipped_bit_of_a_picture_is_found(part: int, store: ShardReader) -> None:
    index = store.index
    path = folder_of(store) / "sets-000002.tar"
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


def test_a_shard_cut_short_damages_only_what_is_gone(store: ShardReader) -> None:
    index = store.index
    rows = np.flatnonzero(index["shard"] == 1)
    cut = int(index["offset"][rows[8]][1]) + 5
    assert len(store.read(int(rows[-1]))) == 3  # the file is open while it shrinks: a mapping would die here
    os.truncate(folder_of(store) / "sets-000001.tar", cut)
    for row in rows[:8]:
        store.read(int(row))
    with pytest.raises(Damaged, match=r"mask in sets-000001\.tar is cut short"):
        store.read(int(rows[8]))
    with pytest.raises(Damaged, match=r"fg_bg in sets-000001\.tar is cut short"):
        store.read(int(rows[9]))


def test_a_missing_shard_is_named(store: ShardReader) -> None:
    (folder_of(store) / "sets-000000.tar").unlink()
    with pytest.raises(Damaged, match=r"sets-000000\.tar cannot be read \(No such file or directory\)"):
        store.read(0)


def test_a_damaged_background_is_an_error(store: ShardReader) -> None:
    background = store.manifest.backgrounds[4]
    flip_bit(folder_of(store) / "backgrounds.tar", background.offset + 100)
    with pytest.raises(InputError, match=r"backgrounds\.tar: background 4 is damaged"):
        store.read_background(background.id)
    store.close()
    (folder_of(store) / "backgrounds.tar").unlink()
    with pytest.raises(InputError, match=r"backgrounds\.tar cannot be read"):
        store.read_background(background.id)


def test_few_files_are_open_at_once(store: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.storage, "MAX_OPEN_FILES", 2)
    before = open_files()
    for row in range(100):
        store.read(row)
    assert open_files() == before + 2
    store.close()
    assert open_files() == before


@pytest.mark.parametrize("row", [0, 41, 99])
def test_a_set_has_the_parts_of_the_data_or_those_asked_for(row: int, store: ShardReader, bare: Path) -> None:
    def read(store: ShardReader) -> list[bytes]:
        return [bytes(part) for part in store.read(row)]

    members = tar_members(folder_of(store), store.key(row))
    expected = [members["fg_bg.jpg"], members["mask.jpg"], members["depth.jpg"]]
    assert (store.parts, read(store)) == (("fg_bg", "mask", "depth"), expected)
    for asked in (
        ShardReader.open(bare),
        ShardReader.open(bare, depth=False),
        ShardReader.open(folder_of(store), depth=False),
    ):
        assert (asked.parts, read(asked)) == (("fg_bg", "mask"), expected[:2])


def test_depth_that_is_not_asked_for_is_neither_read_nor_checked(
    store: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    offset, size = store.index["offset"][5].tolist(), store.index["size"][5].tolist()
    flip_bit(folder_of(store) / store.shard_name(5), offset[2])
    asked: list[tuple[int, int]] = []

    def pread(file: int, count: int, start: int) -> bytes:
        asked.append((start, count))
        return read(file, count, start)

    read, without_depth = os.pread, ShardReader.open(folder_of(store), depth=False)
    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(Damaged, match="depth in"):
        store.read(5)
    without_depth.read(5)
    assert asked == [(offset[0], offset[2] + size[2] - offset[0]), (offset[0], offset[1] + size[1] - offset[0])]


@pytest.mark.parametrize("row", [0, 41, 99])
def test_the_note_of_a_set_is_its_json(row: int, store: ShardReader, bare: Path) -> None:
    expected: dict[str, Any] = json.loads(tar_members(folder_of(store), store.key(row))["json"])
    assert expected["bg"] == store.index["bg"][row]
    assert store.read_metadata(row) == ShardReader.open(bare).read_metadata(row) == expected
    assert ShardReader.open(folder_of(store), depth=False).read_metadata(row) == expected


def test_a_note_that_is_not_what_was_packed_is_damage(store: ShardReader) -> None:
    path, key = folder_of(store) / store.shard_name(7), store.key(7)
    header = int(store.index["offset"][7, 2]) + int(store.index["size"][7, 2])
    header += -header % 512
    for offset, reason in [(header + 3, "bad checksum"), (header + 512, "Expecting value")]:
        flip_bit(path, offset)
        with pytest.raises(Damaged, match=rf"^{key}: {key}\.json in sets-\d+\.tar is damaged \({reason}"):
            store.read_metadata(7)
        flip_bit(path, offset)
    assert store.read_metadata(7)["bg"] == store.index["bg"][7]


@pytest.mark.parametrize(
    ("size", "reason"), [(b"77777777777", "it has 8,589,934,591 bytes"), (b"\x80" + b"\xff" * 11, "it has ")]
)
def test_a_note_of_absurd_size_is_not_read(size: bytes, reason: str, store: ShardReader) -> None:
    end = int(store.index["offset"][7, 2]) + int(store.index["size"][7, 2])
    with (folder_of(store) / store.shard_name(7)).open("r+b") as file:
        file.seek(end + -end % 512)
        header = bytearray(file.read(512))
        header[124:136] = size.ljust(12, b"\0")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        file.seek(-512, os.SEEK_CUR)
        file.write(header)
    with pytest.raises(Damaged, match=rf"\({reason}"):
        store.read_metadata(7)


@pytest.mark.parametrize(("column", "value"), [("bg", 77), ("fg", 77), ("fg", -1)])
def test_a_note_of_other_ids_is_damage(column: str, value: int, store: ShardReader) -> None:
    rows = np.array(store.index)
    rows[column][5] = value
    with pytest.raises(Damaged, match=r"\(its ids are not those of the index\)"):
        ShardReader(folder_of(store), store.manifest, rows).read_metadata(5)


def test_an_index_that_points_elsewhere_finds_no_note(store: ShardReader) -> None:
    rows = np.array(store.index)
    rows["offset"][0], rows["size"][0] = rows["offset"][1], rows["size"][1]
    with pytest.raises(Damaged, match=r"\(found .*\.json\)"):
        ShardReader(folder_of(store), store.manifest, rows).read_metadata(0)
    os.truncate(folder_of(store) / store.shard_name(1), int(rows["offset"][1, 2]) + 10)
    with pytest.raises(Damaged, match=r"\(empty header\)"):
        store.read_metadata(1)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda reader: pickle.loads(pickle.dumps(reader))])
def test_a_copy_opens_the_files_anew_and_none_is_closed_twice(
    store: ShardReader, copied: Callable[[ShardReader], ShardReader]
) -> None:
    expected = [part.tobytes() for part in store.read(0)]
    before = open_files()
    other = copied(store)
    assert [part.tobytes() for part in other.read(0)] == expected
    assert open_files() > before
    other.close()
    del other
    assert open_files() == before
    assert [part.tobytes() for part in store.read(0)] == expected


def test_an_open_file_itself_is_not_copied(store: ShardReader) -> None:
    with pytest.raises(TypeError, match="two owners would close it twice"):
        copy.copy(ReadFile(folder_of(store) / "sets-000000.tar"))
