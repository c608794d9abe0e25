from pathlib import Path

import numpy as np
import pytest

from pipeline.format.manifest import Manifest, ShardInfo, load_index
from pipeline.format.sample import PARTS
from pipeline.verify.compare import WIDE, Rows, in_tar_order, rows_of_shards, stock_reader_damage, tar_damage
from pipeline.verify.scan import Scan
from pipeline.verify.stored import stored_parts


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
    mixed = index[np.random.default_rng(0).permutation(len(index))]
    for place, rows in enumerate(rows_of_shards(mixed, len(manifest.shards))):
        assert in_tar_order(rows).tobytes() == index[index["shard"] == place].tobytes()


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
