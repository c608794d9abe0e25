"""How often hosts download a shard, by the order alone: no storage is read, no network used.

`python -m benchmarks.downloads` prints both tables of docs/loading.md: what an epoch in lanes downloads over all hosts,
and what later epochs download again where a part of the shards stays in each host's cache.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from pipeline.loading.caching.plan import NEVER, NextUses
from pipeline.loading.sampler import Sampler
from tools.cli import Command, echo

HOSTS, SHARDS = (1, 2, 3, 4, 7, 8, 16, 32, 64), (20, 100, 400, 10_000)
CACHING_HOSTS, CACHED_SHARDS, SHARES = (1, 2, 8), 400, (0.25, 0.5, 0.75)
KNOWN_EPOCHS = 3
"""Epochs after the last that is counted, which the best possible cache knows of."""


class Downloads(NamedTuple):
    """What is downloaded again in an epoch over all hosts, as a share of the shards, after the first epoch."""

    recent: float
    """Where the shard goes that was used least recently (LRU)."""
    next_use: float
    """Where the shard goes whose next use `NextUses` finds to be last, and none is kept that is needed later."""
    best: float
    """The least that is possible (L. A. Belady's MIN), found from the batches themselves and not from `turns`."""


def in_an_epoch(sampler: Sampler, shards: int, hosts: int) -> float:
    """Downloads of an epoch over all hosts, a shard, where each keeps a shard from its first to its last use."""
    return sum(np.count_nonzero(sampler.turns(0, host, hosts).last >= 0) for host in range(hosts)) / shards


def with_cache(sampler: Sampler, sizes: NDArray[np.int64], hosts: int, share: float, epochs: int) -> Downloads:
    """The same in the epochs 1 .. epochs - 1, where the cache of each host has room for a `share` of the shards."""
    room, found = int(share * len(sizes)), np.zeros(3)
    for host in range(hosts):
        uses = list(_uses(sampler, sizes, epochs + KNOWN_EPOCHS, host, hosts))
        counted = uses[: epochs * sampler.batches]
        turns = NextUses(partial(sampler.turns, rank=host, world=hosts), sampler.batches)
        misses = _recent(counted, room), _by_next_use(counted, room, turns), _by_next_use(counted, room, _known(uses))
        found += [sum(of_policy[sampler.batches :]) for of_policy in misses]
    return Downloads(*(found / len(sizes) / (epochs - 1)).tolist())


def _uses(
    sampler: Sampler, sizes: NDArray[np.int64], epochs: int, host: int, hosts: int
) -> Iterator[NDArray[np.int64]]:
    """The shards that a host reads from, for each batch of these epochs."""
    for batch in range(epochs * sampler.batches):
        pieces = [
            np.unique(shards[np.searchsorted(np.cumsum(sizes[shards]), positions, "right")])
            for shards, positions in sampler.batch(*divmod(batch, sampler.batches), host, hosts)
        ]
        yield np.unique(np.concatenate(pieces)) if pieces else np.empty(0, np.int64)


def _recent(uses: list[NDArray[np.int64]], room: int) -> list[int]:
    """How many shards LRU downloads for each batch."""
    kept, misses = dict[int, None](), []
    for batch in uses:
        shards = dict.fromkeys(batch.tolist())
        misses.append(len(shards.keys() - kept))
        kept = dict.fromkeys(shard for shard in kept if shard not in shards) | shards
        kept = dict.fromkeys(list(kept)[-room:])
    return misses


def _by_next_use(uses: list[NDArray[np.int64]], room: int, next_uses: Callable[[int], NDArray[np.int64]]) -> list[int]:
    """How many shards are downloaded for each batch if those stay that are needed next.

    `next_uses` finds in which batch, counted over all epochs, each shard is needed at or after a batch.
    """
    kept, misses = np.empty(0, np.int64), []
    for number, batch in enumerate(uses):
        candidates = np.union1d(kept, batch)
        misses.append(len(candidates) - len(kept))
        kept = candidates
        if len(kept) > room:
            kept = kept[np.argsort(next_uses(number + 1)[kept], kind="stable")[:room]]
    return misses


def _known(uses: list[NDArray[np.int64]]) -> Callable[[int], NDArray[np.int64]]:
    """The next uses as the batches themselves have them; to be asked in ascending order."""
    of_shard = defaultdict[int, list[int]](list)
    for number in reversed(range(len(uses))):
        for shard in uses[number].tolist():
            of_shard[shard].append(number)

    def next_uses(batch: int) -> NDArray[np.int64]:
        found = np.full(max(of_shard) + 1, NEVER)
        for shard, numbers in of_shard.items():
            while numbers and numbers[-1] < batch:
                numbers.pop()
            if numbers:
                found[shard] = numbers[-1]
        return found

    return next_uses


@click.command(cls=Command)
@click.option("--batch-size", type=click.IntRange(1), default=512, show_default=True, help="Sets a batch.")
@click.option("--shard-sets", type=click.IntRange(1), default=1000, show_default=True, help="Sets a shard.")
@click.option("--window", type=click.IntRange(1), default=64, show_default=True, help="Shards read at a time.")
@click.option("--epochs", type=click.IntRange(2), default=8, show_default=True, help="Epochs with a cache.")
def main(batch_size: int, shard_sets: int, window: int, epochs: int) -> None:
    """Print how often hosts download a shard in an epoch, by hosts, and by the size of a cache in later epochs."""
    echo("| hosts | " + " | ".join(f"{shards:,} shards" for shards in SHARDS) + " |")
    echo("|---" * (1 + len(SHARDS)) + "|")
    for hosts in HOSTS:
        found = []
        for shards in SHARDS:
            sizes = np.append(np.full(shards - 1, shard_sets), -(-shard_sets // 2))
            found.append(f"{in_an_epoch(Sampler(sizes, batch_size, 'k', window=window), shards, hosts):.2f}")
        echo(f"| {hosts} | {' | '.join(found)} |")
    echo("")
    echo(f"| hosts | cache of a host, of {CACHED_SHARDS} shards | LRU | next use | best possible |")
    echo("|---|---|---|---|---|")
    sizes = np.full(CACHED_SHARDS, shard_sets)
    for hosts in CACHING_HOSTS:
        for share in SHARES:
            again = with_cache(Sampler(sizes, batch_size, "k", window=window), sizes, hosts, share, epochs)
            echo(f"| {hosts} | {share:.0%} | {' | '.join(f'{part:.0%}' for part in again)} |")


if __name__ == "__main__":
    main()
