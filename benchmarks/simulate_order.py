"""An epoch of many sets on many hosts, by the order and by the planning of caches alone: nothing is downloaded.

`python -m benchmarks.simulate_order` prints the tables of docs/capacity.md: what planning costs each process, how often
shards are downloaded over all hosts, and what a host's cache of some size downloads and gives up, epoch by epoch.
"""

import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.downloads import in_an_epoch
from pipeline.errors import InputError
from pipeline.loading.caching.folder import CacheFolder
from pipeline.loading.caching.plan import NEVER, NextUses, next_fetch
from pipeline.loading.sampler import Sampler
from tools.cli import Command, echo

SHARD_BYTES = 20_000_000
AHEAD_SHARE = 0.125
MOST_BATCHES = 1000
"""Batches of a rank, planned at the beginning of an epoch, of which the costs are the mean."""


COSTS = (
    "order of an epoch, and the first batch",
    "a batch of a rank, mean",
    "next uses of all shards, at the first batch",
    "... at a later one",
    "the choice of a shard to fetch, and of those that go",
    "a look at the cache's folder",
    "memory of all of it, at most, MiB",
)


class Cluster(NamedTuple):
    """What is simulated: data and who reads them."""

    shards: int
    shard_sets: int
    batch_size: int
    window: int
    hosts: int
    ranks: int
    """Of each host."""

    @property
    def world(self) -> int:
        """Ranks of all hosts."""
        return self.hosts * self.ranks

    def sampler(self) -> Sampler:
        """The order, as each process makes it for itself; all sets are in the split."""
        return Sampler(np.full(self.shards, self.shard_sets), self.batch_size, "k", window=self.window)

    def next_uses(self, sampler: Sampler, host: int) -> NextUses:
        """When a host needs each shard next."""
        return NextUses.of_ranks(sampler, range(host * self.ranks, (host + 1) * self.ranks), self.world)


class Walk(NamedTuple):
    """An epoch as one rank, or one host, reads it."""

    sets: NDArray[np.int64]
    """How many of each shard, int64 [shards]."""
    most_open: int
    """Shards that one batch is read from, at most."""
    cpu_sec: float


def walk(cluster: Cluster, rank: int) -> Walk:
    """Plan every batch of an epoch for one rank, and count what it takes of each shard."""
    sampler, sets, most_open, cpu_sec = cluster.sampler(), np.zeros(cluster.shards, np.int64), 0, 0.0
    for number in range(sampler.batches):
        started_sec = time.process_time()
        slices = sampler.batch(0, number, rank, cluster.world)
        cpu_sec += time.process_time() - started_sec
        found = [_shards_of(shards, positions, cluster.shard_sets) for shards, positions in slices]
        for shards, counts in found:
            sets[shards] += counts
        most_open = max(most_open, sum(len(shards) for shards, _ in found))
    return Walk(sets, most_open, cpu_sec)


def _shards_of(
    shards: NDArray[np.int64], positions: NDArray[np.int64], shard_sets: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The shards that a slice of a batch takes sets of, and how many of each."""
    counts = np.bincount(positions // shard_sets, minlength=len(shards))
    taken = np.flatnonzero(counts)
    return shards[taken], counts[taken]


class CachedEpoch(NamedTuple):
    """Shards that one host downloads in an epoch, and gives up."""

    needed: int
    downloads: int
    again: int
    """Those of the downloads that had been there before."""
    evictions: int


def cached_epochs(
    cluster: Cluster, shares: Sequence[float], epochs: int, host: int = 0
) -> Iterator[tuple[CachedEpoch, ...]]:
    """What a host's cache does in each epoch, for each of its sizes, a share of all shards.

    What is needed last goes first (`NextUses`), and nothing is kept that is needed later than all else that is there.
    """
    sampler = cluster.sampler()
    next_uses = cluster.next_uses(sampler, host)
    caches = [_Cache(cluster.shards, int(share * cluster.shards)) for share in shares]
    for epoch in range(epochs):
        needed = np.zeros(cluster.shards, np.bool_)
        for number in range(sampler.batches):
            slices = sampler.batch(
                epoch, number, host, cluster.hosts
            )  # a host's ranks have what one in their place had
            used = np.unique(np.concatenate([_shards_of(*piece, cluster.shard_sets)[0] for piece in slices]))
            needed[used] = True
            for cache in caches:
                cache.use(used, lambda: next_uses(epoch * sampler.batches + number + 1))  # noqa: B023 - called at once
        yield tuple(cache.take_counts(int(np.count_nonzero(needed))) for cache in caches)


class _Cache:
    def __init__(self, shards: int, room: int) -> None:
        self._room, self._held = room, 0
        self._there, self._known = np.zeros(shards, np.bool_), np.zeros(shards, np.bool_)
        self._counts = np.zeros(3, np.int64)

    def use(self, shards: NDArray[np.int64], next_uses: Callable[[], NDArray[np.int64]]) -> None:
        """Read a batch from these shards, and keep of all that is there what is needed next."""
        new = shards[~self._there[shards]]
        if not new.size:
            return
        self._counts += len(new), int(np.count_nonzero(self._known[new])), 0
        self._there[new] = self._known[new] = True
        self._held += len(new)
        if (excess := self._held - self._room) > 0:
            held = np.flatnonzero(self._there)
            victims = held[np.argpartition(next_uses()[held], len(held) - excess)[len(held) - excess :]]
            self._there[victims] = False
            self._held -= excess
            self._counts[2] += excess

    def take_counts(self, needed: int) -> CachedEpoch:
        """What was counted since this was asked before."""
        counts, self._counts = self._counts, np.zeros(3, np.int64)
        return CachedEpoch(needed, *counts.tolist())


class PlanCosts(NamedTuple):
    """What a process pays for planning, CPU milliseconds."""

    first_batch: float
    batch: float
    next_uses: float
    """At the first batch of an epoch."""
    next_uses_later: float
    choice: float
    """One choice of what to fetch, and for what."""
    listing: float
    """One look at the cache's folder."""
    peak_mib: float
    """Memory that Python and NumPy had at most for all of it."""


def plan_costs(cluster: Cluster, share: float) -> PlanCosts:
    """Plan the beginning of an epoch for rank 0, with a cache of a `share` of all shards that is full; time all parts.

    It is done three times: once for what is imported then, once for its time, and once for its memory. The cache's
    files are empty, in a folder that TMPDIR says.
    """
    with tempfile.TemporaryDirectory(prefix="fgbg-simulation-") as directory:
        folder = _full_folder(Path(directory), cluster.shards, int(share * cluster.shards))
        _plan(cluster, folder)
        costs_ms = _plan(cluster, folder)
        tracemalloc.start()
        _plan(cluster, folder)
        peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
    return PlanCosts._make([*costs_ms, peak_mib])


def _name(number: int) -> str:
    return f"sets-{number:06}.tar"


def _full_folder(directory: Path, shards: int, there: int) -> CacheFolder:
    """A cache folder that holds shards, as far as their names go."""
    folder = CacheFolder(directory, "0" * 64, shards * SHARD_BYTES, lambda: b"{}")
    folder.folder.mkdir()
    for number in range(there):
        folder.path(_name(number)).touch()
    with folder.listed():
        return folder


def _plan(cluster: Cluster, folder: CacheFolder) -> list[float]:
    costs_ms = list[float]()

    def timed(times: int, call: Callable[[int], object]) -> None:
        started_sec = time.process_time()
        for number in range(times):
            call(number)
        costs_ms.append((time.process_time() - started_sec) / times * 1000)

    sampler = cluster.sampler()
    next_uses, sizes = cluster.next_uses(sampler, 0), np.full(cluster.shards, SHARD_BYTES)
    timed(1, lambda number: sampler.batch(0, number, 0, cluster.world))
    timed(min(MOST_BATCHES, sampler.batches), lambda number: sampler.batch(0, number, 0, cluster.world))
    timed(1, next_uses)
    timed(10, next_uses)
    uses, there = next_uses(0), np.zeros(cluster.shards, np.bool_)
    with folder.listed() as listing:
        there[[number for number in range(cluster.shards) if _name(number) in listing.complete]] = True
    ahead_bytes = int(AHEAD_SHARE * np.count_nonzero(there) * SHARD_BYTES)
    timed(10, lambda _: next_fetch((uses < NEVER) & ~there, there, uses, sizes, 0, 0, ahead_bytes))
    timed(3, lambda _: _look(folder))
    return costs_ms


def _look(folder: CacheFolder) -> None:
    with folder.listed():
        pass


@click.command(cls=Command)
@click.option("--sets", type=click.IntRange(1), default=100_000_000, show_default=True, help="Sets of the split.")
@click.option("--shard-sets", type=click.IntRange(1), default=1000, show_default=True, help="Sets a shard.")
@click.option("--hosts", type=click.IntRange(1), default=8, show_default=True, help="Hosts.")
@click.option("--ranks", type=click.IntRange(1), default=8, show_default=True, help="Ranks of each.")
@click.option("--batch-size", type=click.IntRange(1), default=16_384, show_default=True, help="Sets a global batch.")
@click.option("--window", type=click.IntRange(1), default=64, show_default=True, help="Shards read at a time.")
@click.option("--epochs", type=click.IntRange(1), default=8, show_default=True, help="Epochs of the cache.")
@click.option("--caches", default="5,12.5,25,50,100", show_default=True, metavar="PERCENTS",
              help="Room of a host's cache, in percent of all shards.")  # fmt: skip
def main(
    sets: int, shard_sets: int, hosts: int, ranks: int, batch_size: int, window: int, epochs: int, caches: str
) -> None:
    """Print what planning costs a process, what all hosts download in an epoch, and what a host's cache gives up."""
    cluster = Cluster(-(-sets // shard_sets), shard_sets, batch_size, window, hosts, ranks)
    if cluster.world > batch_size:
        raise InputError(f"{cluster.world} ranks: expected at most one a set of a batch, {batch_size}")
    shares = [float(percent) / 100 for percent in caches.split(",")]
    _print_costs(cluster, shares)
    _print_walk(cluster)
    _print_caches(cluster, shares, epochs)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    echo("", f"memory of this process, at most: {peak_mib:,.0f} MiB")


def _print_costs(cluster: Cluster, shares: Sequence[float]) -> None:
    costs = [plan_costs(cluster, share) for share in shares]
    echo("| CPU ms; cache, full | " + _percents(shares) + " |", "|---" * (1 + len(shares)) + "|")
    for title, values in zip(COSTS, zip(*costs, strict=True), strict=True):
        echo(f"| {title} | " + " | ".join(f"{value:,.3g}" for value in values) + " |")


def _percents(shares: Sequence[float]) -> str:
    return " | ".join(f"{share * 100:g} %" for share in shares)


def _print_walk(cluster: Cluster) -> None:
    """Walk an epoch as all ranks, one after the other."""
    taken, cpu_sec, most_open = np.zeros(cluster.shards, np.int64), 0.0, 0
    for rank in range(cluster.world):
        sets, opened, rank_sec = walk(cluster, rank)
        taken, cpu_sec, most_open = taken + sets, cpu_sec + rank_sec, max(most_open, opened)
    if (taken != cluster.shard_sets).any():
        raise InputError("the ranks together did not take every set once")
    total = cluster.shards * cluster.shard_sets
    sampler = cluster.sampler()
    downloads = [in_an_epoch(sampler, cluster.shards, hosts) for hosts in range(1, cluster.hosts + 1)]
    echo(
        "",
        f"all {cluster.world} ranks take each of {total:,} sets once, a rank from at most {most_open} shards a batch; "
        f"planning takes {cpu_sec / cluster.world:.2f} CPU s a rank and epoch; "
        f"{cluster.hosts} hosts download the data {downloads[-1]:.3f} times, fewer at most {max(downloads):.3f}",
    )


def _print_caches(cluster: Cluster, shares: Sequence[float], epochs: int) -> None:
    echo("", f"one host of {cluster.hosts}, shards: downloads (those that had been there before), evictions", "")
    echo("| epoch; cache | needed | " + _percents(shares) + " |", "|---" * (2 + len(shares)) + "|")
    for number, epoch in enumerate(cached_epochs(cluster, shares, epochs)):
        cells = (f"{found.downloads:,} ({found.again:,}), {found.evictions:,}" for found in epoch)
        echo(f"| {number + 1} | {epoch[0].needed:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
