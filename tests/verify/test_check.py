import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, ShardInfo, load_index
from pipeline.format.sample import PARTS
from pipeline.loading.loader import Loader
from pipeline.loading.shard_reader import Damaged, ShardReader
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.verify.check import CheckOptions, check
from pipeline.verify.damage import in_tar_order, rows_of_shards, stock_reader_damage, tar_damage
from pipeline.verify.scan import WIDE, Rows, Scan, stored_parts
from pipeline.workers import Progress
from tests.loading.test_shard_reader import flip_bit
from tests.samples import files_below, without_depth, write, write_sets

FLIPS = 300
QUICK, FULL = CheckOptions(workers=1), CheckOptions(decode=True, stock_reader=True, workers=1)


@pytest.fixture(scope="module", params=["jpeg", "planes"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 sets on 4 backgrounds in 3 shards; read only."""
    folder = tmp_path_factory.mktemp("small")
    options = PackOptions(sets_per_shard=5, workers=1, codec=request.param, size=16)
    pack(write_sets(folder / "source", 4, 3), folder / "shards", options)
    return folder / "shards"


@pytest.fixture
def shards(small: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(small, tmp_path / "shards"))


def damage(shards: Path, options: CheckOptions = QUICK) -> list[str]:
    return check(shards, options).damage


def handed_over(shards: Path) -> dict[str, list[bytes]]:
    """What a loader decodes: for each set that is whole its pictures and its background, by key."""
    store, found = ShardReader.open(shards), {}
    for row in range(store.manifest.sets):
        background = store.read_background(int(store.index["bg"][row]))
        try:
            found[store.key(row)] = [bytes(part) for part in (background, *store.read(row))]
        except Damaged:
            continue
    store.close()
    return found


def loaded(shards: Path) -> dict[str, list[bytes]]:
    """What a loader hands over, by key."""
    loader = Loader(shards, "all", batch_size=4, size=16, threads=1, max_bad_share=1)
    found = {}
    for batch in loader:
        assert batch.depth is not None
        for place, row in enumerate(batch.index.tolist()):
            parts = (batch.bg, batch.fg_bg, batch.mask, batch.depth)
            found[loader.key(row)] = [part[place].numpy().tobytes() for part in parts]
    return found


def packed_files(shards: Path) -> list[Path]:
    endings = (".tar", ".idx", ".npy", ".json")
    return sorted(path for path in shards.iterdir() if path.suffix in endings and not path.name.startswith("."))


def flips(shards: Path, count: int, seed: int) -> Iterator[tuple[Path, int, int]]:
    """(file, byte, bit): the same number in each file, since a large one would get them all."""
    rng = np.random.default_rng(seed)
    files = packed_files(shards)
    for number in range(count):
        path = files[number % len(files)]
        yield path, int(rng.integers(path.stat().st_size)), int(rng.integers(8))


def flip(path: Path, byte: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def owner(small: Path, name: str, byte: int) -> str:
    """Which part of which set, or which background, has a byte of a tar; empty if none has it."""
    manifest = Manifest.load(small)
    for one in manifest.backgrounds:
        if name == "backgrounds.tar" and one.offset <= byte < one.offset + one.size:
            return f"bg_{one.id:03}: bg is damaged"
    for row in load_index(small, manifest):
        if manifest.shards[row["shard"]].name == name:
            for part, offset, size in zip(manifest.members, row["offset"], row["size"], strict=False):
                if offset <= byte < offset + size:
                    return f"{row['key'].decode()}: {part} is damaged"
    return ""


@pytest.mark.parametrize("options", [QUICK, FULL, CheckOptions(workers=2)])
def test_what_was_packed_is_well(options: CheckOptions, packed: Path) -> None:
    report = check(packed, options)
    assert (report.damage, report.manifest.sets) == ([], 100)
    assert report.bytes == sum(path.stat().st_size for path in packed.glob("*.tar"))


@pytest.mark.parametrize("options", [QUICK, FULL])
def test_sets_without_depth_are_well(options: CheckOptions, source: Path, tmp_path: Path) -> None:
    assert damage(without_depth(source, tmp_path / "bare"), options) == []


def test_every_flipped_bit_is_found_and_none_gets_through_a_loader(small: Path, shards: Path) -> None:
    sound = handed_over(small)
    assert len(sound) == 12
    for path, byte, bit in flips(shards, FLIPS, seed=0):
        flip(path, byte, bit)
        try:
            found = damage(shards)
            assert found, (path, byte, bit)
            assert any(owner(small, path.name, byte) in line for line in found), (path, byte, bit, found)
        except InputError:
            assert path.name == "manifest.json"
        try:
            assert handed_over(shards).items() <= sound.items(), (path, byte, bit)
        except InputError:
            assert path.suffix != ".idx"
        flip(path, byte, bit)
    assert files_below(shards) == files_below(small)
    assert damage(shards) == damage(shards, FULL) == []


def test_a_loader_hands_over_what_was_packed_or_nothing(small: Path, shards: Path) -> None:
    sound = loaded(small)
    left_out = 0
    for path, byte, bit in flips(shards, 60, seed=1):
        flip(path, byte, bit)
        try:
            found = loaded(shards)
            assert found.items() <= sound.items(), (path, byte, bit)
            left_out += len(sound) - len(found)
        except InputError:
            assert path.suffix in (".npy", ".json") or path.name == "backgrounds.tar"
        flip(path, byte, bit)
    assert left_out > 0


def test_any_number_of_workers_finds_the_same(shards: Path) -> None:
    for number in range(3):
        flip_bit(shards / f"sets-{number:06}.tar", 700)
    one, two = damage(shards), damage(shards, CheckOptions(workers=2))
    assert one == two
    assert [line.partition(":")[0] for line in one] == [f"sets-{number:06}.tar" for number in range(3)]


def key_of(shards: Path, shard: int, place: int) -> str:
    rows = load_index(shards, Manifest.load(shards))
    return str(rows["key"][rows["shard"] == shard][place].decode())


def test_a_damaged_header_is_named_after_its_set(shards: Path) -> None:
    rows = load_index(shards, Manifest.load(shards))
    row = rows[rows["shard"] == 1][2]
    key = row["key"].decode()
    members = Manifest.load(shards).members
    for missing, offset in zip(members, row["offset"], strict=False):
        flip_bit(shards / "sets-000001.tar", int(offset) - 500)
        expected = f"no {missing} there; expected {', '.join(members)}, json"
        assert damage(shards) == [f"sets-000001.tar: {key}: {expected}"]
        flip_bit(shards / "sets-000001.tar", int(offset) - 500)
    flip_bit(shards / "backgrounds.tar", 3)
    assert damage(shards) == ["backgrounds.tar: bg_000: the tar header at byte 0 is damaged"]


def test_the_only_set_of_a_shard_is_named(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "shards", PackOptions(sets_per_shard=1, workers=1))
    flip_bit(tmp_path / "shards" / "sets-000004.tar", 3)
    key = key_of(tmp_path / "shards", 4, 0)
    assert damage(tmp_path / "shards") == [f"sets-000004.tar: {key}: no fg_bg there; expected fg_bg, mask, depth, json"]


def test_a_truncated_tar(shards: Path) -> None:
    rows = load_index(shards, Manifest.load(shards))
    path = shards / "sets-000001.tar"
    content = path.read_bytes()
    row = rows[rows["shard"] == 1][4]
    for length in (
        len(content) - 1,
        len(content) - 1024,
        int(row["offset"][1]) + 9,
        int(row["offset"][0]) - 512,
        700,
        0,
    ):
        path.write_bytes(content[:length])
        found = damage(shards)
        assert found
        if length < len(content) - 1024:
            assert any(row["key"].decode() in line for line in found) or "none of its 5 sets" in found[0]
    path.unlink()
    assert damage(shards)[0] == ("sets-000001.tar: it cannot be read (No such file or directory); it held 5 sets")


@pytest.mark.parametrize("name", ["backgrounds.tar", "index.npy", "sets-000001.idx", "manifest.json"])
def test_missing_files_are_named(name: str, shards: Path) -> None:
    (shards / name).unlink()
    if name == "manifest.json":
        with pytest.raises(InputError, match=r"manifest\.json is missing"):
            damage(shards)
    else:
        [line] = damage(shards)
        assert f"{name}: it cannot be read" in line or f"{name} is missing" in line


def test_swapped_shards(shards: Path) -> None:
    (shards / "sets-000000.tar").rename(shards / "other")
    (shards / "sets-000001.tar").rename(shards / "sets-000000.tar")
    (shards / "other").rename(shards / "sets-000001.tar")
    another = "it holds none of its 5 sets: it is another tar, or all of it is damaged"
    found = damage(shards)
    assert [line for line in found if ".tar" in line.partition(":")[0]] == [
        f"sets-000000.tar: {another}",
        f"sets-000001.tar: {another}",
    ]
    assert len(found) == 4  # and both .idx


def test_a_stale_idx_and_a_stray_shard(shards: Path) -> None:
    shutil.copy(shards / "sets-000000.idx", shards / "sets-000001.idx")
    shutil.copy(shards / "sets-000000.tar", shards / "sets-000007.tar")
    assert damage(shards) == [
        "sets-000007.tar: it belongs to no shard of the manifest",
        "sets-000001.idx: it is not that of its tar, from line 2 on",
    ]


def test_files_of_another_packing(shards: Path, source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "other", PackOptions(sets_per_shard=5, workers=1))
    shutil.copy(tmp_path / "other" / "index.npy", shards)
    [line] = damage(shards)
    assert "index.npy does not belong to the manifest" in line


def restate(shards: Path, **changes: object) -> None:
    """Change the manifest as no damage would: it is well-formed."""
    content = json.loads((shards / "manifest.json").read_text()) | changes
    (shards / "manifest.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def test_counts_and_sizes_of_the_manifest_are_compared(shards: Path) -> None:
    manifest = Manifest.load(shards)
    sizes = manifest.sizes | {manifest.members[0]: {"min": [48, 48], "max": [49, 48]}}
    wrong: list[tuple[dict[str, object], str]] = [
        ({"foregrounds": 4}, "index.npy: it has 3 foregrounds, the manifest 4"),
        ({"sets": 13}, "manifest.json: it has 13 sets, and 12 in its shards"),
        (
            {"sizes": sizes},
            "manifest.json: it has the sizes ",
        ),
    ]
    for changes, found in wrong:
        restate(shards, **changes)
        assert any(line.startswith(found) for line in damage(shards)), changes
        restate(shards, sets=12, foregrounds=3, sizes=manifest.sizes)
    assert damage(shards) == []
    (shards / "manifest.json").write_text((shards / "manifest.json").read_text().replace("[\n", "[ \n"))
    assert damage(shards) == ["manifest.json: it is not as it was written (other blanks, order or spelling)"]


def test_no_set_gets_the_background_of_another(shards: Path) -> None:
    backgrounds = json.loads((shards / "manifest.json").read_text())["backgrounds"]
    restate(shards, backgrounds=[one | {"id": 2 if one["id"] == 3 else one["id"]} for one in backgrounds])
    for read in (ShardReader.open, damage):
        with pytest.raises(InputError, match=r"is damaged \(two backgrounds have one id\): rebuild it from the tars"):
            read(shards)
    restate(shards, backgrounds=[one | {"id": 7 if one["id"] == 3 else one["id"]} for one in backgrounds])
    with pytest.raises(InputError, match="has no background 3, which sets need"):
        ShardReader.open(shards)
    assert any("has no background 3" in line for line in damage(shards))
    assert any("bg_007: it is in the index, and not in the tar" in line for line in damage(shards))


def test_a_picture_that_was_packed_broken_is_found_by_decoding(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    path = next((copy / "fg_bg" / "bg_003").glob("*_disp.jpeg"))
    content = path.read_bytes()
    write(path, content[: len(content) // 2] + content[-2:])
    pack(copy, tmp_path / "shards", PackOptions(verify="header", workers=1))
    assert damage(tmp_path / "shards") == []
    [line] = damage(tmp_path / "shards", CheckOptions(decode=True, workers=1))
    assert f"{path.stem.removesuffix('_disp')}: depth is damaged (JPEG does not decode" in line


def test_an_unfinished_directory_is_one_line(source: Path, tmp_path: Path) -> None:
    def stop(more: int) -> None:
        if more:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "s", PackOptions(sets_per_shard=16, workers=1), Progress(sets_done=stop))
    with pytest.raises(InputError, match="is unfinished: run the same fgbg-pack again, which continues it"):
        check(tmp_path / "s", QUICK)


@pytest.fixture
def shard(packed: Path) -> tuple[Path, Rows, ShardInfo]:
    manifest = Manifest.load(packed)
    rows = rows_of_shards(load_index(packed, manifest), len(manifest.shards))
    return packed / manifest.shards[2].name, rows[2].astype(WIDE), manifest.shards[2]


def seen(shard: tuple[Path, Rows, ShardInfo], rows: Rows) -> tuple[list[str], list[str]]:
    """What differs for us, and for the stock reader."""
    scan = Scan(shard[0], stored_parts("jpeg", PARTS), "header")
    return tar_damage(scan, shard[2], rows, PARTS), list(stock_reader_damage(shard[0], rows, PARTS))


def test_rows_are_dealt_to_their_shards(packed: Path) -> None:
    manifest = Manifest.load(packed)
    index = load_index(packed, manifest)
    for place, rows in enumerate(rows_of_shards(index, len(manifest.shards))):
        assert in_tar_order(rows).tobytes() == index[index["shard"] == place].tobytes()
        assert np.shares_memory(rows, index)
    assert place == len(manifest.shards) - 1


def test_the_order_of_rows_does_not_matter(shard: tuple[Path, Rows, ShardInfo]) -> None:
    assert seen(shard, shard[1][::-1]) == ([], [])


def test_a_row_that_says_something_else(shard: tuple[Path, Rows, ShardInfo]) -> None:
    key = shard[1]["key"][5].decode()
    offset, size = int(shard[1]["offset"][5, 1]), int(shard[1]["size"][5, 1])
    for name, column, ours, theirs in [
        ("crc32", 1, "mask is damaged (CRC differs)", "webdataset sees another mask"),
        ("size", 1, f"mask is at {offset:,} and has {size:,} bytes; the index has {offset:,} and {size + 1:,}",
         "webdataset sees another mask"),
        ("offset", 1, f"mask is at {offset:,} and has {size:,} bytes; the index has {offset + 1:,} and {size:,}", ""),
        ("bg", None, f"its json has bg {shard[1]['bg'][5]}, the index {shard[1]['bg'][5] + 1}",
         "webdataset sees another json"),
    ]:  # fmt: skip
        rows = shard[1].copy()
        rows[name][5 if column is None else (5, column)] += 1
        assert seen(shard, rows) == ([f"{key}: {ours}"], [f"{key}: {theirs}"] if theirs else [])


def test_a_set_without_a_row_and_a_row_without_a_set(shard: tuple[Path, Rows, ShardInfo]) -> None:
    first, last = shard[1]["key"][[0, -1]].tolist()
    ours, theirs = seen(shard, shard[1][:-1])
    assert ours == [f"{last.decode()}: it is in the tar, and has no row in the index"]
    assert theirs == [f"{last.decode()}: webdataset sees it where the index has another set, or none"]
    more = np.concatenate([shard[1], shard[1][-1:]])
    more["key"][-1], more["offset"][-1] = b"more", more["offset"][-1] + 99999
    ours, theirs = seen(shard, more)
    assert ours == ["more: it is in the index, and not in the tar"]
    assert theirs == ["webdataset sees 16 sets in it, the index 17"]
    assert first.decode() not in "".join(ours)
