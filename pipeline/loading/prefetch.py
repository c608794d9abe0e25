"""Reading ahead in threads, bounded: the files of the next sets, checked; and any iterator, drawn from in a thread."""

import atexit
import functools
import logging
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, compress
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.loading.caching.plan import NextUses
from pipeline.loading.caching.shard_cache import ShardCache
from pipeline.loading.decode import Encoded
from pipeline.loading.sample_cache import SampleCache
from pipeline.loading.sampler import Sampler
from pipeline.loading.shard_reader import Damaged, ShardReader
from pipeline.loading.split import Split
from pipeline.words import plural
from pipeline.workers import drawn_ahead

T = TypeVar("T")
log = logging.getLogger(__name__)
READ_AHEAD = 2
"""Batches that are being read while another is decoded."""
SLOW_READ_SEC = 50e-6
"""Time of a set for which another thread reads along. Files in memory take 10 us, of which threads would make 20."""
STOP_SEC = 5.0
"""Longest wait for a background thread to end: it may hang in a read from storage that does not answer."""


class Quarantine:
    """The sets that are left out, because their bytes are not those that were packed, or cannot be decoded."""

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
                f"{len(self._bad)} of {plural(self._sets, 'set')} (split {self._split}) are damaged, "
                f"at most {self._max_share:.1%} may be; "
                f"{shards.count(worst)} of them in {worst} (the last: {damage}): {damage.remedy}, or allow more"
            )


class Sample(NamedTuple):
    """Which sets are next: one rank's part of a global batch."""

    epoch: int
    rows: NDArray[np.int64]
    """Rows of the index, [N], in the order of the batch."""


@dataclass(frozen=True)
class EncodedBatch:
    """One rank's part of a global batch, read and checked."""

    epoch: int
    rows: NDArray[np.int64]
    """Rows of the index, [N], in the order of the batch; damaged sets are not among them."""
    records: NDArray[np.void]
    """What the index says of them, [N]."""
    slots: NDArray[np.int64]
    """Where each is cached, [N], or -1."""
    encoded: Encoded
    """The files of those that are not."""

    @property
    def missing(self) -> NDArray[np.int64]:
        """The rows of those that `encoded` holds."""
        return self.rows[self.slots < 0]

    def only(self, kept: NDArray[np.bool_]) -> "EncodedBatch":
        """The same with some of its sets alone, bool [N]."""
        if kept.all():
            return self
        encoded = [list(compress(part, kept[self.slots < 0])) for part in self.encoded]
        return EncodedBatch(self.epoch, self.rows[kept], self.records[kept], self.slots[kept], encoded)


class _Pending(NamedTuple):
    """A batch that is being read."""

    sample: Sample
    records: NDArray[np.void]
    slots: NDArray[np.int64]
    reads: list[Future["_Read"]]


class _Read(NamedTuple):
    """What a thread has read."""

    sets: list[list[NDArray[np.uint8]] | Damaged]
    set_sec: float
    """The time that a set took."""


class PrefetchReader:
    """The encoded batches of one rank, batch after batch and epoch after epoch."""

    def __init__(
        self,
        shards: ShardReader,
        sampler: Sampler,
        split: Split,
        quarantine: Quarantine,
        cache: SampleCache | None,
        rank: int,
        world: int,
        local_world: int,
        threads: int,
    ) -> None:
        self._shards, self._sampler, self._split, self._quarantine = shards, sampler, split, quarantine
        self._cache, self._rank, self._world, self._threads = cache, rank, world, threads
        self._threads_at_once = threads
        self._uses: NextUses | None = None
        if isinstance(shards.storage, ShardCache) and sampler.shuffle:  # others read each shard once
            ranks = range(first := rank - rank % local_world, min(first + local_world, world))
            self._uses = NextUses.of_ranks(sampler, ranks, world)

    @property
    def all_cached(self) -> bool:
        """Whether there is nothing left to read."""
        return self._cache is not None and self._cache.kept == self._sampler.count - len(self._quarantine)

    def samples(self, epoch: int, step: int) -> Iterator[Sample]:
        """What comes from batch `step` of `epoch` on, epoch after epoch.

        Ends after an epoch if the next one may be served from the cache, for which files would be read in vain.
        """
        while True:
            for number in range(step, self._sampler.batches):
                self._follow(epoch, number)
                slices = self._sampler.batch(epoch, number, self._rank, self._world)
                self._shards.check_index()
                yield Sample(epoch, self._quarantine.leave_out(self._split.rows(slices)))
            if not self.all_cached and self._cached_soon:
                return
            epoch, step = epoch + 1, 0

    def _follow(self, epoch: int, number: int) -> None:
        """Let a cache of the shards know what is read next."""
        cache = self._shards.storage
        if self._uses and isinstance(cache, ShardCache):
            if cache.uses is not self._uses:
                cache.follow(self._uses, epoch, number)
            cache.at(epoch, number)

    @property
    def _cached_soon(self) -> bool:
        return self._cache is not None and (self._cache.holds_all or not self._cache.settled)

    def read(self, samples: Iterator[Sample]) -> Generator[EncodedBatch, None, None]:
        """Read the files of these sets in threads, READ_AHEAD batches ahead, and compare their checksums.

        Raises `InputError` if too many sets are damaged.
        """
        pool = ThreadPoolExecutor(self._threads, "fgbg-read")
        try:
            for pending in drawn_ahead((self._begin(sample, pool) for sample in samples), READ_AHEAD):
                yield self._finish(pending)
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, sample: Sample, pool: ThreadPoolExecutor) -> _Pending:
        rows = sample.rows
        slots = self._cache.slots(rows) if self._cache else np.full(len(rows), -1)
        records = self._shards.records(rows)
        missing = records[slots < 0]
        share = -(-len(missing) // self._threads_at_once) or 1
        parts = [missing[start : start + share] for start in range(0, len(missing), share)]
        return _Pending(sample, records, slots, [pool.submit(self._read_records, part) for part in parts])

    def _read_records(self, records: NDArray[np.void]) -> _Read:
        started_sec = time.perf_counter()
        sets = self._shards.read_records(records)
        return _Read(sets, (time.perf_counter() - started_sec) / len(sets))

    def _finish(self, pending: _Pending) -> EncodedBatch:
        (epoch, rows), records, slots, futures = pending
        reads = [future.result() for future in futures]
        if reads:  # the slower the storage answers, the more it is asked at once
            slowest_sec = max(read.set_sec for read in reads)
            self._threads_at_once = min(self._threads, 1 + int(slowest_sec / SLOW_READ_SEC))
        good, encoded = np.ones(len(rows), np.bool_), Encoded([] for _ in self._shards.members)
        found = chain.from_iterable(read.sets for read in reads)
        for position, parts in zip(np.flatnonzero(slots < 0).tolist(), found, strict=True):
            if isinstance(parts, Damaged):
                self._quarantine.add(int(rows[position]), parts)
                good[position] = False
            else:
                for part, content in zip(encoded, parts, strict=True):
                    part.append(content)
        return EncodedBatch(epoch, rows[good], records[good], slots[good], encoded)


class _End(NamedTuple):
    """End marker; `error` is what the source raised, if anything."""

    error: BaseException | None


class BackgroundIterator(Generic[T]):
    """Iterate it for what `source` yields, of which at most `depth` items wait; what `source` raises comes through.

    The source runs, and is closed, in a thread of its own. That ends with `close`, when this object is let go (the
    thread holds no reference to it), and when the interpreter exits.
    """

    def __init__(self, source: Generator[T, None, None], depth: int) -> None:
        self._items: SimpleQueue[T | _End] = SimpleQueue()
        self._room = threading.Semaphore(depth)
        stopped = threading.Event()
        # A daemon, lest the interpreter wait for it before it has told it, at exit, to end.
        thread = threading.Thread(
            target=_draw, args=(source, self._items, self._room, stopped), name="fgbg-ahead", daemon=True
        )
        self._stop = functools.partial(_stop, stopped, self._room, thread)
        atexit.register(self._stop)  # the last to be registered is the first to be called: before DALI shuts down
        thread.start()

    def __iter__(self) -> "BackgroundIterator[T]":
        return self

    def __next__(self) -> T:
        item = self._items.get()
        if isinstance(item, _End):
            self._items.put(item)  # whoever asks again is told again
            raise item.error or StopIteration
        self._room.release()
        return item

    def close(self) -> None:
        """End the thread and close the source; what waited is lost."""
        atexit.unregister(self._stop)
        self._stop()

    def __del__(self) -> None:
        if hasattr(self, "_stop"):  # or it was interrupted while it was made
            self.close()


def _draw(
    source: Generator[T, None, None],
    items: "SimpleQueue[T | _End]",
    room: threading.Semaphore,
    stopped: threading.Event,
) -> None:
    end = _End(None)
    try:
        while True:
            room.acquire()
            if stopped.is_set():
                break
            items.put(next(source))
    except StopIteration:
        pass
    except BaseException as error:
        end = _End(error)
    finally:
        source.close()
        items.put(end)


def _stop(stopped: threading.Event, room: threading.Semaphore, thread: threading.Thread) -> None:
    stopped.set()
    room.release()
    # The collector runs in any thread; and an interrupt may have come before this one was started.
    if thread.is_alive() and thread is not threading.current_thread():
        thread.join(STOP_SEC)
