"""A cache of shards: right bytes whatever happens, and nothing left behind."""

import gc
import logging
import os
import pickle
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.files import ReadFile
from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST, Manifest
from pipeline.loading.caching import download, fetcher, shard_cache
from pipeline.loading.caching.check import check_cache
from pipeline.loading.caching.folder import (
    CachedFile,
    CacheFolder,
    cache_directory,
    require_local,
)
from pipeline.loading.caching.locks import unlock_and_close
from pipeline.loading.caching.shard_cache import ShardCache
from pipeline.loading.shard_reader import ShardReader
from tests.loading.caching.samples import PART_BYTES, SHARD_BYTES, Source, in_turn, settle, write_shards

SHARDS = 8
ROOM = 1 << 20


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", SHARDS)
    return tmp_path / "shards"


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    return Manifest.load(shards)


@pytest.fixture(autouse=True)
def leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fetcher, "PLAN_SHARE", 1.0)
    before = descriptors()
    yield
    if descriptors() > before:
        gc.collect()  # of earlier tests
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fgbg-cache")]
    assert descriptors() <= before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def cache_over(source: Source, manifest: Manifest, directory: Path, limit_bytes: int = ROOM) -> ShardCache:
    return ShardCache(source, manifest, directory, limit_bytes, connections=3, part_bytes=PART_BYTES)


def visible(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))


def used_bytes(directory: Path) -> int:
    used = 0
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # it has come whole, or gone, just now
            used += path.stat().st_size if path.is_file() else 0
    return used


def read_epoch(cache: ShardCache, manifest: Manifest, shards: Path, epoch: int, wait: bool = False) -> int:
    """Read each shard in its turn; how many reads failed. Each that did not gave the right bytes."""
    uses = in_turn(SHARDS)
    first, failures = uses(epoch * uses.batches), 0
    for place, number in sorted(zip((first - epoch * uses.batches).tolist(), range(SHARDS), strict=True)):
        name = manifest.shards[number].name
        whole = (shards / name).read_bytes()
        for batch in (place, place + 1):
            cache.at(epoch, batch)
            if wait:
                settle(lambda: cache.is_idle)
            for offset in (0, 700, 1500, 2900):
                try:
                    content = bytes(cache.read(name, offset, 200))
                except OSError:
                    failures += 1
                    continue
                assert content in (whole[offset : offset + 200], whole[offset : offset + 100])
                failures += len(content) < min(200, SHARD_BYTES - offset)
    return failures


def test_what_fits_is_fetched_once(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    source = Source(shards)
    cache = cache_over(source, manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    for epoch in range(3):
        assert read_epoch(cache, manifest, shards, epoch, wait=True) == 0
    counted = cache.statistics()
    assert sorted(source.asked) == sorted(set(source.parts()))
    assert len(source.asked) == SHARDS * 3 == counted.requests
    assert (counted.misses, counted.refetched_bytes, counted.evictions) == (0, 0, 0)
    assert counted.source_bytes == SHARDS * SHARD_BYTES
    assert str(counted).startswith("cache: 100.0% of 192 reads, 0.00 GB; from the source 0.00 GB in 24 requests")
    cache.close()
    names = {path.relative_to(tmp_path / "cache" / manifest.sha256).as_posix() for path in visible(tmp_path / "cache")}
    assert names == {MANIFEST, *(shard.name for shard in manifest.shards)}
    assert check_cache(tmp_path / "cache")[::2] == (SHARDS + 1, [])


@pytest.mark.parametrize("held", [0, 1, 2, 4, 7, 8])
def test_every_size_gives_the_right_bytes_within_the_limit(
    held: int, shards: Path, manifest: Manifest, tmp_path: Path
) -> None:
    source, limit = Source(shards), held * SHARD_BYTES + len((shards / MANIFEST).read_bytes()) if held else 0
    cache = cache_over(source, manifest, tmp_path / "cache", limit)
    cache.follow(in_turn(SHARDS))
    for epoch in range(3):
        assert read_epoch(cache, manifest, shards, epoch) == 0
        assert used_bytes(tmp_path / "cache") <= limit
    cache.close()
    assert held or not (tmp_path / "cache").exists()


@pytest.mark.parametrize("limit", [1, 500, SHARD_BYTES])
def test_a_limit_below_all_caches_nothing(limit: int, shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    cache = cache_over(Source(shards), manifest, tmp_path / "cache", limit)
    cache.follow(in_turn(SHARDS))
    assert read_epoch(cache, manifest, shards, 0) == 0
    cache.close()
    assert used_bytes(tmp_path / "cache") <= limit


def test_half_a_cache_fetches_half_again(
    shards: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "LAG_BATCHES", 0)
    source, limit = Source(shards), SHARDS // 2 * SHARD_BYTES + len((shards / MANIFEST).read_bytes())
    cache = cache_over(source, manifest, tmp_path / "cache", limit)
    cache.follow(in_turn(SHARDS))
    assert read_epoch(cache, manifest, shards, 0, wait=True) == 0
    before = cache.statistics()
    for epoch in range(1, 5):
        read_epoch(cache, manifest, shards, epoch, wait=True)
    counted = cache.statistics()
    assert counted.misses == 0
    assert counted.source_bytes - before.source_bytes <= 4 * (SHARDS // 2 + 1) * SHARD_BYTES
    cache.close()


def test_faults_of_the_source_reach_no_byte(
    shards: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MOST_FAILURES", 100)  # after three in a row, a shard is left alone for a while
    cache = cache_over(Source(shards, faults=0.1), manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    for epoch in range(3):
        read_epoch(cache, manifest, shards, epoch, wait=True)
    assert read_epoch(cache, manifest, shards, 3) == 0, "all is cached by now, and nothing asks the source"
    cache.close()
    for path in visible(tmp_path / "cache"):
        assert path.read_bytes() == (shards / path.name).read_bytes()


def test_a_source_that_answers_again_is_cached_again(
    shards: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PAUSE_SEC", 0.01)
    source = Source(shards, faults=2.0)
    cache = cache_over(source, manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    settle(lambda: len(source.asked) > 3 * 3 * 3)
    assert not list((tmp_path / "cache").rglob("*.tar"))
    source.faults = 0.0
    assert read_epoch(cache, manifest, shards, 0) == 0
    settle(lambda: len(list((tmp_path / "cache").rglob("*.tar"))) == SHARDS)
    cache.close()


def test_a_download_that_is_given_up_leaves_the_next_of_its_file_alone(
    shards: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandon = CacheFolder.abandon

    def abandon_slowly(folder: CacheFolder, file: CachedFile, descriptor: int) -> None:
        abandon(folder, file, descriptor)
        time.sleep(0.02)  # in which another thread begins the next

    monkeypatch.setattr(CacheFolder, "abandon", abandon_slowly)
    monkeypatch.setattr(download, "PAUSE_SEC", 0.0)
    source = Source(shards, faults=2.0)
    cache = cache_over(source, manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    settle(lambda: len(source.asked) > 200)
    source.faults = 0.0
    settle(lambda: len(list((tmp_path / "cache").rglob("*.tar"))) == SHARDS)
    cache.close()


def test_without_a_plan_what_is_read_is_cached_while_there_is_room(
    shards: Path, manifest: Manifest, tmp_path: Path
) -> None:
    limit = 2 * SHARD_BYTES + len((shards / MANIFEST).read_bytes())
    cache = cache_over(Source(shards), manifest, tmp_path / "cache", limit)
    for shard in manifest.shards:
        assert cache.read(shard.name, 0, 50) == (shards / shard.name).read_bytes()[:50]
        settle(lambda: cache.is_idle)
    assert len(visible(tmp_path / "cache")) == 3
    assert cache.statistics().evictions == 0
    cache.close()


def test_ctrl_c_does_not_wait_for_what_is_fetched_at_once(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    source = Source(shards)
    cache = cache_over(source, manifest, tmp_path / "cache")
    source.stuck.clear()
    main, release = threading.main_thread().ident, threading.Timer(10.0, source.stuck.set)
    assert main

    def interrupt() -> None:
        settle(lambda: source.asked)
        signal.pthread_kill(main, signal.SIGINT)

    release.start()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        cache.fetch(INDEX, BACKGROUNDS)
    assert not source.stuck.is_set(), "it has waited"
    release.cancel()
    source.stuck.set()
    thread.join()
    cache.close()


def test_index_and_backgrounds_are_fetched_and_verified(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    source = Source(shards)
    cache = cache_over(source, manifest, tmp_path / "cache")
    cache.fetch(INDEX, BACKGROUNDS)
    asked = len(source.asked)
    for name in (INDEX, BACKGROUNDS, INDEX):
        assert bytes(cache.map(name)) == (shards / name).read_bytes()
    assert len(source.asked) == asked == 6
    with pytest.raises(ValueError, match="bytes"):
        cache.map(INDEX, (shards / INDEX).stat().st_size - 1)
    local = tmp_path / "cache" / manifest.sha256 / INDEX
    local.write_bytes(bytes(SHARD_BYTES))
    assert bytes(cache.map(INDEX)) == (shards / INDEX).read_bytes()
    assert local.read_bytes() == (shards / INDEX).read_bytes()
    cache.close()
    small = cache_over(source, manifest, tmp_path / "cache2", 100)
    assert bytes(small.map(INDEX)) == (shards / INDEX).read_bytes()
    small.close()
    assert not visible(tmp_path / "cache2")


def test_backgrounds_are_cached_as_they_are_read(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    cache = cache_over(Source(shards), manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    settle(lambda: cache.is_idle)
    for offset in (0, 1500):
        assert cache.read(BACKGROUNDS, offset, 300) == (shards / BACKGROUNDS).read_bytes()[offset : offset + 300]
        settle(lambda: cache.is_idle)
    assert (cache.statistics().hits, cache.statistics().misses) == (1, 1)
    cache.close()


def test_what_is_evicted_is_not_held_open(
    shards: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "LAG_BATCHES", 0)
    limit = 3 * SHARD_BYTES + len((shards / MANIFEST).read_bytes())
    cache = cache_over(Source(shards), manifest, tmp_path / "cache", limit)
    cache.follow(in_turn(SHARDS))
    read_epoch(cache, manifest, shards, 0, wait=True)
    cache.at(1, 0)
    settle(lambda: cache.is_idle)
    cache.at(1, 1)
    assert cache.statistics().evictions >= SHARDS - 3
    assert 0 < len(cache._open_files) <= 3
    cache.close()


def test_a_disk_that_fills_up_means_ranges(
    shards: Path, manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mount: not allowed here")
    try:
        cache = cache_over(Source(shards), manifest, disk / "cache")
        cache.follow(in_turn(SHARDS))
        assert read_epoch(cache, manifest, shards, 0) == 0
        settle(lambda: caplog.records)
        cache.close()
        assert 1 < len(visible(disk)) < SHARDS
        assert not list(disk.rglob("*.partial"))
    finally:
        subprocess.run(["umount", disk], check=True)
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing is cached in {disk / 'cache'} for now: No space left on device: make room there, or give "
        "a folder on another disk"
    ]


def test_another_hash_is_asked_for_once_more_and_then_left_out(
    shards: Path, manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = manifest.shards[0].name
    (shards / name).write_bytes(bytes(SHARD_BYTES))
    source = Source(shards)
    cache = cache_over(source, manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    read_all(cache, manifest, shards)
    cache.at(1, 0)
    assert cache.is_idle, "all that is ever fetched is there: no look at each batch"
    cache.close()
    assert sorted(asked for asked in source.parts() if asked[0] == name) == sorted(
        2 * [(name, 0, 1024), (name, 1024, 1024), (name, 2048, 952)]
    )
    assert name not in [path.name for path in visible(tmp_path / "cache")]
    assert len(visible(tmp_path / "cache")) == SHARDS
    [said] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith(f"{name} is again not what the manifest says")


def read_all(cache: ShardCache, manifest: Manifest, shards: Path) -> None:
    for batch in range(2 * SHARDS):
        cache.at(0, batch)
        settle(lambda: cache.is_idle)


def test_what_is_dropped_comes_from_the_source_and_again(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    source = Source(shards)
    cache = cache_over(source, manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    read_all(cache, manifest, shards)
    name = manifest.shards[0].name
    local = tmp_path / "cache" / manifest.sha256 / name
    local.write_bytes(bytes(SHARD_BYTES))
    threads = ThreadPoolExecutor(2)
    assert cache.read(name, 0, 10) == threads.submit(cache.read, name, 0, 10).result() == bytes(10)
    assert not cache.drop(manifest.shards[1].name)
    assert cache.drop(name)
    assert threads.submit(cache.drop, name).result(), "it has read the same"
    threads.shutdown()
    assert cache.read(name, 0, 10) == (shards / name).read_bytes()[:10]
    assert not cache.drop(name), "that was the source's"
    cache.at(1, 0)
    settle(lambda: cache.is_idle)
    for batch in range(2 * SHARDS):
        cache.at(1, batch)
        settle(lambda: cache.is_idle)
    assert local.read_bytes() == (shards / name).read_bytes()
    cache.close()


def test_a_file_cut_short_is_read_from_the_source(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    cache = cache_over(Source(shards), manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    read_all(cache, manifest, shards)
    name = manifest.shards[0].name
    os.truncate(tmp_path / "cache" / manifest.sha256 / name, 1000)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: cache.read(name, 900, 300), range(8)))
    assert found == [(shards / name).read_bytes()[900:1200]] * 8
    assert cache._started()._left_out.names() == [], "it was damaged once, however many have seen it"
    cache.close()


def test_a_damaged_file_that_is_dropped_while_it_is_opened_is_not_kept_open(
    shards: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_over(Source(shards), manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    read_all(cache, manifest, shards)
    name = manifest.shards[0].name
    os.truncate(tmp_path / "cache" / manifest.sha256 / name, 1000)
    cache._open_files.clear()

    def drop_meanwhile(*arguments: Any) -> Any:
        file = ReadFile(*arguments)
        cache._drop(name, 0)
        return file

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.loading.caching.shard_cache.ReadFile", drop_meanwhile)
        assert cache.read(name, 900, 300) == (shards / name).read_bytes()[900:1200]
    settle(lambda: cache.is_idle)
    assert cache.read(name, 900, 300) == (shards / name).read_bytes()[900:1200]
    assert cache._started()._left_out.names() == []
    cache.close()


def test_a_folder_that_may_not_be_looked_into_is_passed_over(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    with closing(cache_over(Source(shards), manifest, tmp_path / ("n" * 300))) as cache:
        cache.fetch(INDEX)
        read_all(cache, manifest, shards)
        assert cache.statistics().hits == 0


def test_a_part_that_takes_too_long_is_asked_for_again(
    shards: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "HEDGE_UNKNOWN_SEC", 0.02)
    monkeypatch.setattr(fetcher, "LOOK_SEC", 0.01)

    class Stalling(Source):
        """Its first three requests get no answer until they are let go."""

        def read(self, name: str, offset: int, size: int) -> bytes:
            if len(self.asked) < 3:
                self.asked.append((name, offset, size))
                let_go.wait(60)
            return super().read(name, offset, size)

    let_go = threading.Event()
    source = Stalling(shards)
    cache = cache_over(source, manifest, tmp_path / "cache")
    name = manifest.shards[0].name
    cache._started().demand(cache._by_name[name])
    local = tmp_path / "cache" / manifest.sha256 / name
    settle(local.exists)
    assert local.read_bytes() == (shards / name).read_bytes()
    let_go.set()
    settle(lambda: cache.is_idle)
    assert cache.statistics().refetched_bytes == SHARD_BYTES
    cache.close()


def test_what_is_on_its_way_is_read_as_it_comes(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    source = Source(shards)
    source.stuck.clear()
    cache = cache_over(source, manifest, tmp_path / "cache")
    name = manifest.shards[0].name
    cache._started().demand(cache._by_name[name])
    settle(lambda: cache._started().downloading(name) is not None)
    threading.Timer(0.05, source.stuck.set).start()
    assert cache.read(name, 1000, 100) == (shards / name).read_bytes()[1000:1100]
    assert (cache.statistics().hits, cache.statistics().misses) == (1, 0)
    cache.close()


def test_a_download_that_hangs_holds_up_one_read_alone(
    shards: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "WAIT_SEC", 0.2)

    class Hanging(Source):
        def read(self, name: str, offset: int, size: int) -> bytes:
            if size >= 952:
                self.stuck.wait(60)
            return super(Source, self).read(name, offset, size)

    source = Hanging(shards)
    source.stuck.clear()
    cache = cache_over(source, manifest, tmp_path / "cache")
    name = manifest.shards[0].name
    cache._started().demand(cache._by_name[name])
    settle(lambda: cache._started().downloading(name) is not None)
    for offset in range(20):
        assert cache.read(name, offset, 10) == (shards / name).read_bytes()[offset : offset + 10]
    assert (cache.statistics().hits, cache.statistics().misses) == (0, 20)
    assert 0.2 <= sum(cache._meter._waits_sec) < 2.0, "each of them would have waited 0.2"
    threading.Timer(0.05, source.stuck.set).start()
    cache.close()


def test_a_full_disk_means_ranges(
    shards: Path, manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache = cache_over(Source(shards), manifest, tmp_path / "cache")
    resource.setrlimit(resource.RLIMIT_FSIZE, (SHARD_BYTES - 1, hard))
    try:
        cache.follow(in_turn(SHARDS))
        assert read_epoch(cache, manifest, shards, 0) == 0
        settle(lambda: caplog.records)
        cache.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in visible(tmp_path / "cache")] == [MANIFEST]
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing is cached in {tmp_path / 'cache'} for now: File too large: no larger file is allowed there: see "
        "ulimit -f, or give a folder on another file system"
    ]


def test_a_directory_that_cannot_be_one_means_ranges(
    shards: Path, manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    cache = cache_over(Source(shards), manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    assert read_epoch(cache, manifest, shards, 0) == 0
    assert bytes(cache.map(INDEX)) == (shards / INDEX).read_bytes()
    settle(lambda: caplog.records)
    cache.close()
    assert "nothing is cached in" in caplog.text


def test_a_directory_that_vanishes_is_made_again(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    cache = cache_over(Source(shards), manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    read_all(cache, manifest, shards)
    (tmp_path / "cache").rename(tmp_path / "gone")
    read_epoch(cache, manifest, shards, 1)
    read_epoch(cache, manifest, shards, 2, wait=True)
    cache.close()
    assert visible(tmp_path / "cache")


def test_close_ends_what_is_under_way_and_begins_anew(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    source = Source(shards, delay_sec=0.05)
    cache = cache_over(source, manifest, tmp_path / "cache")
    before = threading.active_count()
    for _ in range(2):
        cache.follow(in_turn(SHARDS))
        settle(lambda: len(source.asked) > 0)
        cache.close()
        assert threading.active_count() == before
        assert not list((tmp_path / "cache" / manifest.sha256).glob(".*.partial"))
    assert cache.read(manifest.shards[0].name, 0, 5) == (shards / manifest.shards[0].name).read_bytes()[:5]
    cache.close()


def test_what_is_let_go_is_closed(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    cache = cache_over(Source(shards), manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    del cache
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fgbg-cache")]


def test_downloads_of_the_killed_are_removed(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / manifest.sha256
    folder.mkdir(parents=True)
    stale = folder / f".{manifest.shards[0].name}.partial"
    stale.write_bytes(bytes(SHARD_BYTES))
    cache = cache_over(Source(shards), manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    read_all(cache, manifest, shards)
    cache.close()
    assert not list(folder.glob(".*.partial"))
    assert check_cache(tmp_path / "cache").files == SHARDS + 1


def test_a_copy_is_another_cache(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    cache = cache_over(Source(shards), manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    copy = pickle.loads(pickle.dumps(cache))
    name = manifest.shards[0].name
    assert copy.read(name, 0, 10) == cache.read(name, 0, 10) == (shards / name).read_bytes()[:10]
    assert copy._options == cache._options
    cache.close()
    copy.close()


def test_a_forked_child_reads_and_leaves_the_parent_alone(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    source = Source(shards)
    source.stuck.clear()
    cache = cache_over(source, manifest, tmp_path / "cache")
    cache.follow(in_turn(SHARDS))
    settle(lambda: len(source.asked) >= 3)
    name = manifest.shards[0].name
    if not (child := os.fork()):
        source.stuck.set()
        right = cache.read(name, 0, 10) == (shards / name).read_bytes()[:10]
        cache.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    source.stuck.set()
    read_all(cache, manifest, shards)
    assert cache.statistics().refetched_bytes == 0
    cache.close()
    assert check_cache(tmp_path / "cache").files == SHARDS + 1


def test_data_sets_that_are_not_in_use_go_first(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    others = []
    for seed in (1, 2):
        other = tmp_path / f"other{seed}"
        others.append(write_shards(other, 3, seed))
        cache = cache_over(Source(other), others[-1], tmp_path / "cache")
        for shard in others[-1].shards:
            cache._started().fetch(cache._by_name[shard.name])
        cache.close()
    os.utime(tmp_path / "cache" / others[1].sha256 / ".in-use", (1, 1))
    limit = used_bytes(tmp_path / "cache") + 3 * SHARD_BYTES
    mine = cache_over(Source(shards), manifest, tmp_path / "cache", limit)
    for shard in manifest.shards[:4]:
        mine._started().fetch(mine._by_name[shard.name])
    left = [len(list((tmp_path / "cache" / other.sha256).glob("*.tar"))) for other in others]
    assert left[0] == 3
    assert left[1] < 3
    assert used_bytes(tmp_path / "cache") <= limit
    mine.close()


def test_data_sets_in_use_share_the_room(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    other = write_shards(tmp_path / "other", 8, 1)
    limit = 8 * SHARD_BYTES + sum((folder / MANIFEST).stat().st_size for folder in (shards, tmp_path / "other"))
    first = cache_over(Source(tmp_path / "other"), other, tmp_path / "cache", limit)
    second = cache_over(Source(shards), manifest, tmp_path / "cache", limit)
    for cache in (first, second, first):
        for shard in cache.manifest.shards:
            cache._started().fetch(cache._by_name[shard.name])
        assert used_bytes(tmp_path / "cache") <= limit
    left = [len(list((tmp_path / "cache" / one.sha256).glob("*.tar"))) for one in (other, manifest)]
    assert left == [4, 4]
    first.close()
    second.close()


def test_checking_drops_what_is_wrong(shards: Path, manifest: Manifest, tmp_path: Path) -> None:
    cache = cache_over(Source(shards), manifest, tmp_path / "cache")
    for shard in manifest.shards:
        cache._started().fetch(cache._by_name[shard.name])
    cache.close()
    local = tmp_path / "cache" / manifest.sha256 / manifest.shards[2].name
    content = local.read_bytes()
    local.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (local.parent / "unknown").write_text("what is this")
    report = check_cache(tmp_path / "cache")
    assert report.dropped == [f"{manifest.sha256}/{local.name}", f"{manifest.sha256}/unknown"]
    assert not local.exists()
    assert str(report).startswith("8 files (0.00 GB) as packed, 2 files dropped (")
    assert str(check_cache(tmp_path / "cache")) == "8 files (0.00 GB) as packed"
    with pytest.raises(InputError, match=r"there is no cache in .*: give the folder"):
        check_cache(tmp_path / "nowhere")


def test_the_cache_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/me")
    assert cache_directory() == Path("/scratch/me/fgbg")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_directory() == cache_directory("~/.cache/fgbg") == Path("/home/me/.cache/fgbg")
    with pytest.raises(InputError, match="the cache folder s3://bucket/a is a URL: give --cache a folder"):
        cache_directory("s3://bucket/a")
    with pytest.raises(InputError, match=f"the cache folder {__file__} is a file"):
        cache_directory(__file__)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "lustre", "9p", "ceph"])
def test_a_network_file_system_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 254:0 / / rw - ext4 /dev/root rw\n"
        f"30 22 0:40 / {tmp_path}/a\\040home rw,relatime shared:1 - {kind} server:/home rw\n"
        f"31 30 0:41 / {tmp_path}/a\\040home/scratch rw - xfs /dev/sdb rw\n"
    )
    with pytest.raises(InputError, match=rf"network file system \({kind}\): give --cache a folder on a local disk"):
        require_local(tmp_path / "a home" / "cache" / "fgbg", mounts)
    require_local(tmp_path / "a home" / "scratch" / "fgbg", mounts)
    require_local(tmp_path / "a homely place", mounts)
    require_local(tmp_path, tmp_path / "no proc here")


@pytest.mark.parametrize("limit", [0, 10**9])
def test_all_backgrounds_are_read_at_once_and_a_damaged_one_is_told(packed: Path, tmp_path: Path, limit: int) -> None:
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    source, manifest = Source(shards), Manifest.load(shards)
    ids = [background.id for background in manifest.backgrounds]
    expected = [part.tobytes() for part in ShardReader.open(shards).read_backgrounds(ids)]
    reader = ShardReader.open(ShardCache(source, manifest, tmp_path / "cache", limit), manifest)
    assert [part.tobytes() for part in reader.read_backgrounds(ids)] == expected
    assert len([name for name, _, _ in source.asked if name == BACKGROUNDS]) <= 1
    reader.close()
    content = bytearray((shards / BACKGROUNDS).read_bytes())
    content[manifest.backgrounds[1].offset] ^= 1
    (shards / BACKGROUNDS).write_bytes(content)
    spoilt = ShardReader.open(ShardCache(Source(shards), manifest, tmp_path / "other", limit), manifest)
    with pytest.raises(InputError, match=f"background {ids[1]} is damaged"):
        spoilt.read_backgrounds(ids)
    spoilt.close()


@pytest.mark.parametrize("hangs", [False, True])
def test_what_another_process_downloads_is_waited_for_unless_it_hangs(
    shards: Path, manifest: Manifest, tmp_path: Path, hangs: bool
) -> None:
    content = (shards / INDEX).read_bytes()
    source, other = Source(shards), CacheFolder(tmp_path / "cache", manifest.sha256, ROOM, lambda: b"{}")
    file = CachedFile(INDEX, len(content), manifest.index_sha256)
    with other.listed() as listing:
        descriptor = other.begin(listing, file, ())
    [partial] = (tmp_path / "cache").rglob("*.partial")
    if hangs:
        os.utime(partial, (0, time.time() - fetcher.OTHERS_SEC - 1))
    cache = cache_over(source, manifest, tmp_path / "cache")
    with ThreadPoolExecutor(1) as pool:
        mapped = pool.submit(cache.map, INDEX)
        if not hangs:
            time.sleep(0.05)
            assert not mapped.done()
            os.pwrite(descriptor, content, 0)
            other.finish(file, descriptor)
        found = mapped.result()
    assert bytes(found) == content
    assert isinstance(found, bytes) == hangs
    unlock_and_close(descriptor)
    other.leave()
    cache.close()
