"""Processes that read the same shards through one cache, and are killed now and then."""

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from pipeline.format.manifest import Manifest
from pipeline.loading.caching import download
from pipeline.loading.caching.locks import locked
from pipeline.loading.caching.shard_cache import ShardCache
from tests.loading.caching.samples import PART_BYTES, SHARD_BYTES, Source, in_turn

PROCESSES, EPOCHS = 4, 6


def read_epochs(shards: Path, directory: Path, limit_bytes: int, log: Path, seed: int) -> None:
    """Read each shard in its turn, and compare; raises AssertionError."""
    download.HEDGE_UNKNOWN_SEC = 60.0
    manifest, source = Manifest.load(shards), Source(shards, delay_sec=0.0005, log=log)
    cache = ShardCache(source, manifest, directory, limit_bytes, connections=2, part_bytes=PART_BYTES)
    count = len(manifest.shards)
    wholes = [(shards / shard.name).read_bytes() for shard in manifest.shards]
    uses, draw = in_turn(count), random.Random(seed)
    cache.follow(uses)
    for epoch in range(EPOCHS):
        for batch in range(uses.batches):
            cache.at(epoch, batch)
            position = epoch * uses.batches + batch
            number = int((uses(position) == position).argmax())
            for _ in range(4):
                offset = draw.randrange(SHARD_BYTES)
                content = cache.read(manifest.shards[number].name, offset, 100)
                assert content == wholes[number][offset : offset + 100]
    cache.close()


def used_bytes(directory: Path) -> int:
    """All that is in the cache, while nobody changes it."""
    if not directory.exists():
        return 0
    with locked(directory):
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and path.parent != directory)


def main(shards: Path, directory: Path, limit_bytes: int, log: Path, kills: int) -> None:
    """Start the processes, kill some at random moments and start them again, and wait for all."""
    draw, most = random.Random(5), 0

    def start(seed: int) -> int:
        if child := os.fork():
            return child
        code = 1
        with suppress(BaseException):
            read_epochs(shards, directory, limit_bytes, log, seed)
            code = 0
        os._exit(code)

    children = [start(seed) for seed in range(PROCESSES)]
    for kill in range(kills):
        time.sleep(draw.random() * 0.05)
        number = draw.randrange(PROCESSES)
        os.kill(children[number], signal.SIGKILL)
        os.waitpid(children[number], 0)
        most = max(most, used_bytes(directory))
        children[number] = start(100 + kill)
        most = max(most, used_bytes(directory))
    codes = []
    for child in children:
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            most = max(most, used_bytes(directory))
            time.sleep(0.005)
        codes.append(os.waitstatus_to_exitcode(ended[1]))
    most = max(most, used_bytes(directory))
    assert codes == [0] * PROCESSES, codes
    assert 0 < most <= limit_bytes, (most, limit_bytes)
    print("kept", most)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
