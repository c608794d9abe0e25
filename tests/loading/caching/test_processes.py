"""Several processes at one cache: one download of a shard, the limit at any moment, nothing left by the killed."""

import subprocess
import sys
from pathlib import Path

from pipeline.format.manifest import MANIFEST, Manifest
from pipeline.loading.caching.check import check_cache
from pipeline.loading.caching.shard_cache import ShardCache
from tests.commands import ROOT
from tests.loading.caching.samples import PART_BYTES, SHARD_BYTES, Source, in_turn, settle, write_shards

SHARDS = 12


def crowd(tmp_path: Path, held: int, kills: int) -> Path:
    """Let processes read shards of which so many fit; the cache folder."""
    write_shards(tmp_path / "shards", SHARDS)
    limit = held * SHARD_BYTES + (tmp_path / "shards" / MANIFEST).stat().st_size
    places = [tmp_path / "shards", tmp_path / "cache", limit, tmp_path / "log", kills]
    command = [sys.executable, "-m", "tests.loading.caching.crowd", *map(str, places)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return tmp_path / "cache"


def test_a_shard_is_downloaded_once_a_host(tmp_path: Path) -> None:
    crowd(tmp_path, SHARDS, kills=0)
    lines = (tmp_path / "log").read_text().splitlines()
    parts = [line for line in lines if int(line.split()[2]) > 100]
    assert len(parts) == len(set(parts)) == SHARDS * 3


def test_the_limit_holds_and_all_finish_while_processes_are_killed(tmp_path: Path) -> None:
    directory = crowd(tmp_path, 5, kills=30)
    assert not check_cache(directory).dropped
    manifest = Manifest.load(tmp_path / "shards")
    cache = ShardCache(Source(tmp_path / "shards"), manifest, directory, 1 << 20, part_bytes=PART_BYTES)
    cache.follow(in_turn(SHARDS))
    settle(lambda: cache.is_idle)
    cache.close()
    assert not list((directory / manifest.sha256).glob(".*.partial"))
