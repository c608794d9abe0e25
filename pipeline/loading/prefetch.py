"""The reader: which sets come next, and their bytes, read and checked by threads ahead of who asks for them."""

import logging
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.loading.decode import Encoded
from pipeline.loading.sample_cache import SampleCache
from pipeline.loading.sampler import Sampler
from pipeline.loading.shard_reader import Damaged, ShardReader
from pipeline.loading.split import Split

log = logging.getLogger(__name__)
AHEAD = 2
"""Batches that are being read while another is decoded."""
SLOW_READ_SEC = 50e-6
"""Time of a set for which another thread reads along. Files in memory take 10 us, of which threads would make 20."""


class Quarantine:
    """The sets that are left out, because their bytes are not those that were packed."""

    def __init__(self, split: str, sets: int, max_share: float) -> None:
        self._split, self._sets, self._max_share = split, sets, max_share
        self._bad: dict[int, Damaged] = {}

    def __len__(self) -> int:
        return len(self._bad)

    @property
    def found(self) -> list[str]:
        """What is wrong with each set, its key first."""
        return [str(damage) for damage in self._bad.values()]

    def leave_out(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of these rows of the index that are not known to be damaged."""
        return rows[~np.isin(rows, list(self._bad))] if self._bad else rows

    def add(self, row: int, damage: Damaged) -> None:
        """Leave a set out; raise `InputError` if these are too many."""
        if row not in self._bad:
            self._bad[row] = damage
            log.warning("left out %s", damage)
        if len(self._bad) > self._max_share * self._sets:
            shards = [bad.shard for bad in self._bad.values()]
            worst = max(sorted(set(shards)), key=shards.count)
            raise InputError(
                f"{len(self._bad)} of {self._sets:,} sets (split {self._split}) are damaged, "
                f"at most {self._max_share:.1%} may be; "
                f"{shards.count(worst)} of them in {worst} (the last: {damage}): copy it again, or allow more"
            )


@dataclass(frozen=True)
class EncodedBatch:
    """One rank's share of a global batch."""

    epoch: int
    rows: NDArray[np.int64]
    """Rows of the index, [N], in the order of the batch; damaged sets are not among them."""
    records: NDArray[np.void]
    """What the index says of them, [N]."""
    slots: NDArray[np.int64]
    """Where each is resident, [N], or -1."""
    encoded: Encoded
    """The files of those that are not."""

    @property
    def missing(self) -> NDArray[np.int64]:
        """The rows of those that `encoded` holds."""
        return self.rows[self.slots < 0]


class _Asked(NamedTuple):
    """A share that is being read."""

    epoch: int
    rows: NDArray[np.int64]
    records: NDArray[np.void]
    slots: NDArray[np.int64]
    reads: list[Future["_Read"]]


class _Read(NamedTuple):
    """What a thread has read."""

    sets: list[list[NDArray[np.uint8]] | Damaged]
    set_sec: float
    """The time that a set took."""


class PrefetchReader:
    """The shares of one rank, batch after batch and epoch after epoch."""

    def __init__(
        self,
        store: ShardReader,
        order: Sampler,
        split: Split,
        quarantine: Quarantine,
        resident: SampleCache | None,
        rank: int,
        world: int,
        threads: int,
    ) -> None:
        self._store, self._order, self._split, self._quarantine = store, order, split, quarantine
        self._resident, self._rank, self._world, self._threads = resident, rank, world, threads
        self._at_once = threads

    @property
    def all_resident(self) -> bool:
        """Whether there is nothing left to read."""
        return self._resident is not None and self._resident.kept == self._order.count - len(self._quarantine)

    def shares(self, epoch: int, number: int) -> Generator[EncodedBatch, None, None]:
        """Yield from batch `number` of `epoch` on, without end.

        Only where all sets may be resident after an epoch it ends there: more would be read ahead in vain. Raises
        `InputError` if too many sets are damaged.
        """
        pool, ahead = ThreadPoolExecutor(self._threads, "fgbg-read"), deque[_Asked]()
        try:
            while number < self._order.batches:
                ahead.append(self._ask(epoch, number, pool))
                number += 1
                if number == self._order.batches and (self.all_resident or not self._resident_soon()):
                    epoch, number = epoch + 1, 0
                if len(ahead) > AHEAD:
                    yield self._collect(ahead.popleft())
            while ahead:
                yield self._collect(ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _resident_soon(self) -> bool:
        return self._resident is not None and (self._resident.holds_all or not self._resident.settled)

    def _ask(self, epoch: int, number: int, pool: ThreadPoolExecutor) -> _Asked:
        self._store.check_index()
        rows = self._quarantine.leave_out(self._split.rows(self._order.batch(epoch, number, self._rank, self._world)))
        slots = self._resident.slots(rows) if self._resident else np.full(len(rows), -1)
        records = self._store.records(rows)
        missing = records[slots < 0]
        share = -(-len(missing) // self._at_once) or 1
        parts = [missing[start : start + share] for start in range(0, len(missing), share)]
        return _Asked(epoch, rows, records, slots, [pool.submit(self._read, part) for part in parts])

    def _read(self, records: NDArray[np.void]) -> _Read:
        started_sec = time.perf_counter()
        sets = self._store.read_records(records)
        return _Read(sets, (time.perf_counter() - started_sec) / len(sets))

    def _collect(self, asked: _Asked) -> EncodedBatch:
        reads = [read.result() for read in asked.reads]
        if reads:  # the slower the storage answers, the more it is asked at once
            slowest_sec = max(read.set_sec for read in reads)
            self._at_once = min(self._threads, 1 + int(slowest_sec / SLOW_READ_SEC))
        good, encoded = np.ones(len(asked.rows), np.bool_), Encoded([] for _ in self._store.members)
        found = chain.from_iterable(read.sets for read in reads)
        for position, parts in zip(np.flatnonzero(asked.slots < 0).tolist(), found, strict=True):
            if isinstance(parts, Damaged):
                self._quarantine.add(int(asked.rows[position]), parts)
                good[position] = False
            else:
                for part, content in zip(encoded, parts, strict=True):
                    part.append(content)
        return EncodedBatch(asked.epoch, asked.rows[good], asked.records[good], asked.slots[good], encoded)
