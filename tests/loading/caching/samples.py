"""Small shards, and sources of them that count, are slow, or fail."""

import hashlib
import random
import threading
import time
from errno import ECONNRESET
from pathlib import Path

import msgspec
import numpy as np

from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST, Manifest, ShardInfo
from pipeline.loading.caching.plan import NextUses
from pipeline.loading.sampler import Turns
from pipeline.storage import Folder

SHARD_BYTES, PART_BYTES = 3000, 1024


def write_shards(folder: Path, count: int, seed: int = 0) -> Manifest:
    """Tars of random bytes in name, an index and backgrounds likewise, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    names = [*(f"sets-{number:06}.tar" for number in range(count)), INDEX, BACKGROUNDS]
    hashes = {}
    for name in names:
        content = draw.randbytes(SHARD_BYTES)
        (folder / name).write_bytes(content)
        hashes[name] = hashlib.sha256(content).hexdigest()
    extent = {"min": [1, 1], "max": [1, 1]}
    manifest = Manifest(
        sets=count,
        foregrounds=1,
        depth_encoding="none",
        depth_near="bright",
        sizes=dict.fromkeys(("bg", "fg_bg", "mask"), extent),
        shards=[ShardInfo(name, 1, SHARD_BYTES, hashes[name]) for name in names[:count]],
        backgrounds=[],
        backgrounds_sha256=hashes[BACKGROUNDS],
        index_sha256=hashes[INDEX],
    )
    manifest.save(folder)
    return msgspec.structs.replace(manifest, sha256=hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest())


class Source(Folder):
    """A folder whose reads are counted, and go wrong as they are told to."""

    def __init__(self, location: Path, *, faults: float = 0.0, delay_sec: float = 0.0, log: Path | None = None) -> None:
        super().__init__(location)
        self.faults, self.delay_sec, self.log = faults, delay_sec, log
        self.asked: list[tuple[str, int, int]] = []
        self.stuck = threading.Event()
        self.stuck.set()
        self._draw = random.Random(1)

    def read(self, name: str, offset: int, size: int) -> bytes:
        self.asked.append((name, offset, size))
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{name} {offset} {size}\n")
        self.stuck.wait(60)
        if self.delay_sec:
            time.sleep(self.delay_sec)
        fault = self._draw.random()
        if fault < self.faults / 2:
            raise ConnectionResetError(ECONNRESET, "reset", name)
        content = super().read(name, offset, size)
        return content[: size // 2] if fault < self.faults else content

    def parts(self) -> list[tuple[str, int, int]]:
        """What was asked for to be cached."""
        return [asked for asked in self.asked if asked[2] in (PART_BYTES, SHARD_BYTES % PART_BYTES)]


def in_turn(shards: int, batches_a_shard: int = 2) -> NextUses:
    """A plan that uses one shard after the other, in another order in each epoch."""

    def turns(epoch: int) -> Turns:
        first = np.random.default_rng(epoch).permutation(shards) * batches_a_shard
        return Turns(first, first + batches_a_shard - 1)

    return NextUses(turns, shards * batches_a_shard)


def settle(is_idle: object, most_sec: float = 20.0) -> None:
    """Wait until a cache has fetched what it may."""
    deadline = time.monotonic() + most_sec
    assert callable(is_idle)
    while not is_idle():
        assert time.monotonic() < deadline
        time.sleep(0.001)
