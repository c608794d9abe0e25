"""A loader of shards behind a URL gives what one of a folder gives, whatever the storage, the cache and the disk do."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import InputError
from pipeline.limits import URL_WINDOW
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from pipeline.storage import Url, storage_of
from tests.services.faulty_proxy import Faults, FaultyProxy
from tests.services.fixtures import S3Server, WebFolder

TENTH = Faults(unavailable=0.03, reset=0.03, short=0.02, cut=0.01, stall=0.01, seed=1)
"""10 % of all requests fail."""


def load(shards: Path | Url, **settings: Any) -> Loader:
    options = {"batch_size": 12, "size": 16, "device": "cpu", "threads": 1, "readers": 2}
    return Loader(shards, "all", **{**options, **settings})


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(one.asdict().items(), other.asdict().items(), strict=True)
    return all(name == other_name and torch.equal(part, other) for (name, part), (other_name, other) in pairs)


def put(shards: Path, url: Url) -> None:
    storage = storage_of(url)
    for path in shards.iterdir():
        if path.is_file():
            storage.put(path.name, path)


@pytest.fixture
def bucket(s3: Url, packed: Path) -> Url:
    """The shards in S3."""
    put(packed, s3)
    return s3


@pytest.fixture
def through_faults(s3_server: S3Server, bucket: Url, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    monkeypatch.setattr("pipeline.object_storage.READ_SEC", 0.5)  # a stall is noticed soon
    with FaultyProxy(s3_server.port, TENTH) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("cache_size", ["1GB", "0"])
def test_batches_are_those_of_a_folder_for_any_ranks_and_cache_under_faults(
    world: int, cache_size: str, bucket: Url, packed: Path, through_faults: FaultyProxy, tmp_path: Path
) -> None:
    for rank in range(world):
        shared = {"rank": rank, "world": world, "seed": 3}
        with (
            load(packed, window=URL_WINDOW, **shared) as local,
            load(bucket, cache=tmp_path / "cache", cache_size=cache_size, local_world=world, **shared) as remote,
        ):
            for _ in range(2):
                assert all(same(one, other) for one, other in zip(local, remote, strict=True))
            statistics = remote.cache_statistics
            assert statistics is not None
            assert remote.quarantined == []
            if cache_size == "0":
                assert statistics.hits == 0
    assert through_faults.counts["requests"] > 0
    kept = [path for path in tmp_path.rglob("*.tar") if not path.name.startswith(".")]
    assert bool(kept) == (cache_size != "0")


def test_a_resumed_loader_goes_on_at_a_url_where_one_of_a_folder_was(bucket: Url, packed: Path, tmp_path: Path) -> None:
    with load(packed, window=URL_WINDOW) as local, load(bucket, cache=tmp_path) as remote:
        first = iter(local)
        next(first)
        remote.load_state_dict(local.state_dict())
        assert all(same(one, other) for one, other in zip(first, remote, strict=True))


@pytest.mark.parametrize("cache_size", ["1GB", "0"])
def test_storage_that_is_down_for_long_ends_in_an_error_and_leaves_no_set_out(
    cache_size: str, bucket: Url, packed: Path, through_faults: FaultyProxy, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    for name in ("RETRIES", "FIRST_SEC", "PATIENCE_SEC"):
        monkeypatch.setattr(f"pipeline.object_storage.{name}", 0)
    through_faults.faults = Faults()
    with (
        load(packed, window=URL_WINDOW) as local,
        load(bucket, cache=tmp_path, cache_size=cache_size) as remote,
    ):
        through_faults.faults = Faults(reset=1.0)
        shutil.rmtree(tmp_path)
        with pytest.raises(ConnectionError, match="breaks off"):
            list(remote)
        assert remote.quarantined == []
        through_faults.faults = Faults()
        remote.load_state_dict(remote.state_dict())
        assert all(same(one, other) for one, other in zip(local, remote, strict=True))


def test_a_replaced_shard_is_never_fed(bucket: Url, packed: Path, tmp_path: Path) -> None:
    spoilt = bytearray((packed / "sets-000001.tar").read_bytes())
    for place in range(600, len(spoilt), 700):
        spoilt[place] ^= 1
    storage_of(bucket).put("sets-000001.tar", bytes(spoilt))
    with load(bucket, cache=tmp_path / "cache", max_bad_share=1.0) as remote:
        sets = sum(len(batch.index) for batch in remote)
        assert sets + len(remote.quarantined) == remote.sets
        assert 0 < len(remote.quarantined) <= 16
        assert all("sets-000001.tar" in line for line in remote.quarantined)
    assert not list(tmp_path.rglob("sets-000001.tar"))


def test_a_data_set_that_is_replaced_whole_is_told_from_a_damaged_one(
    bucket: Url, packed: Path, tmp_path: Path
) -> None:
    storage = storage_of(bucket)
    with load(bucket, cache=tmp_path, cache_size="0") as remote:
        for path in packed.glob("sets-*.tar"):
            storage.put(path.name, bytes(path.stat().st_size))
        storage.put("manifest.json", (packed / "manifest.json").read_bytes() + b" ")
        with pytest.raises(InputError, match=f"{bucket} was replaced while it was read: begin a new run"):
            list(remote)
        assert remote.quarantined == []


def test_bit_rot_in_the_cache_heals(bucket: Url, packed: Path, tmp_path: Path) -> None:
    with load(bucket, cache=tmp_path) as first:
        expected = list(first)
    for path in tmp_path.rglob("sets-*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    with load(bucket, cache=tmp_path) as again:
        assert all(same(one, other) for one, other in zip(expected, again, strict=True))
        assert again.quarantined == []


def test_revoked_keys_end_in_a_line_with_the_bucket_and_without_the_key(
    bucket: Url, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "REVOKED")
    with pytest.raises(PermissionError) as caught:
        load(bucket, cache=tmp_path)
    assert bucket.text.removeprefix("s3://") in str(caught.value.strerror)
    assert "REVOKED" not in str(caught.value)


def test_what_only_reads_needs_no_list(web: WebFolder, packed: Path, tmp_path: Path) -> None:
    for path in packed.iterdir():
        if path.is_file():
            shutil.copy(path, web.path)
    with load(web.url, cache=tmp_path / "cache") as remote, load(packed, window=URL_WINDOW) as local:
        assert all(same(one, other) for one, other in zip(local, remote, strict=True))


def test_no_thread_outlives_a_loader(bucket: Url, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with load(bucket, cache=tmp_path) as remote:
        next(iter(remote))
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) <= before


def test_shards_that_are_not_there_are_said_in_one_line(s3: Url, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no shards in s3://.*/nothing: manifest\.json is missing"):
        load(s3 / "nothing", cache=tmp_path)
