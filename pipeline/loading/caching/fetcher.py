"""The threads that bring files into the cache: what the order needs next, in parts, ahead and bounded in bytes."""

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import REMEDIES, InputError
from pipeline.loading.caching.download import PAUSE_SEC, Download, LeftOut, PartTimes
from pipeline.loading.caching.folder import CachedFile, CacheFolder, Listing
from pipeline.loading.caching.plan import NEVER, NextUses, next_fetch
from pipeline.loading.caching.statistics import Meter
from pipeline.storage import Content, Storage

log = logging.getLogger(__name__)
LAG_BATCHES = 8
"""Another rank of this host may be so many batches behind: what was in use then is not given up."""
HEDGE_THREADS = 2
"""Beside the connections, for parts that are asked for again: all connections may be stuck."""
LOOK_SEC = 0.25
"""Time after which it is looked again for parts that take too long."""
PLAN_SEC = 0.5
"""Time after which it is looked again what other processes have done."""
PLAN_SHARE = 0.02
"""Of the time that may go into looking, where it finds nothing to do."""
REST_SEC = 5.0
"""Time after which it is looked again where all that the order needs is there, unless a read finds that it is not."""
SLOW_PLAN_SEC = 0.1
"""For each that looking takes, as many more parts are begun at once as there are connections, to twice as many."""
OTHERS_SEC = 120.0
"""Time in which nothing came of a file that another process downloads, after which it is not waited for."""
EXTRAS = 2
"""Files beside the shards, the last: index.npy and backgrounds.tar."""
CLOSE_SEC = 5.0
"""Longest wait for the threads to end: one may be in a request that is not answered."""


class Fetcher:
    """Threads over a source and a cache folder. They start when something is asked for, and end with `close`."""

    def __init__(
        self,
        source: Storage,
        folder: CacheFolder,
        files: Sequence[CachedFile],
        meter: Meter,
        connections: int,
        part_bytes: int,
        ahead_bytes: int,
    ) -> None:
        self._source, self._folder, self._meter = source, folder, meter
        self._connections, self._part_bytes, self._ahead_bytes = connections, part_bytes, ahead_bytes
        self._files = list(files)
        self._numbers = {file.name: number for number, file in enumerate(files)}
        self._sizes = np.array([file.size for file in files], np.int64)
        self._state = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._downloads: dict[str, Download] = {}
        self._under_way = 0
        self._part_times = PartTimes()
        self._uses: NextUses | None = None
        self._position = 0
        self._demanded: dict[str, None] = {}
        self._left_out = LeftOut()
        self._fetched: set[str] = set()
        self._told: set[str] = set()
        self._planned: _Planned | None = None
        self._is_planning = self._has_all = False
        self._plan_at = self._rest_until = self._paused_until = self._plan_sec = 0.0

    def follow(self, uses: NextUses | None, position: int) -> None:
        """Fetch what is next from `position` on, ahead; with None only what is demanded."""
        with self._state:
            self._uses, self._position, self._planned = uses, position, None
            self._wake()

    def at(self, position: int) -> None:
        """What is before `position` was asked for."""
        with self._state:
            if position != self._position:
                self._position, self._plan_at = position, min(self._plan_at, self._rest_until)
                self._state.notify()

    def demand(self, file: CachedFile) -> None:
        """Fetch a file, if no plan knows of it."""
        number = self._numbers[file.name]
        with self._state:
            is_shard, planned = number < len(self._files) - EXTRAS, self._planned
            known = self._uses is not None and (planned is None or planned.next_uses[number] < NEVER)
            if not (is_shard and known):
                if len(self._demanded) < self._connections:
                    self._demand(file)
            elif self._has_all:  # another process has given it up
                self._has_all = False
                self._wake()

    def fetch(self, file: CachedFile) -> None:
        """Fetch a file now, and return when it is there, or will not be."""
        with self._state:
            self._demand(file)
            while file.name in self._demanded and not self._stopped:
                if file.name not in self._downloads and self._folder.idle_sec(file.name) > OTHERS_SEC:
                    del self._demanded[file.name]
                else:
                    self._state.wait(PLAN_SEC)

    def _demand(self, file: CachedFile) -> None:
        is_new = file.name not in self._demanded
        if is_new and not self._stopped and time.monotonic() >= self._paused_until:
            number = self._numbers[file.name]
            self._files[number], self._sizes[number] = file, file.size
            self._demanded[file.name] = None
            self._wake()

    def is_needed(self, name: str) -> bool:
        """Whether a file is needed now, or soon."""
        plan = self._planned
        return plan is not None and plan.next_uses[self._numbers[name]] <= plan.position + LAG_BATCHES

    def downloading(self, name: str) -> Download | None:
        """A file that is on its way through this process."""
        return self._downloads.get(name)

    def distrust(self, name: str) -> None:
        """A file was damaged: what has come of it is not read before it is verified, and if it is again, left out."""
        if download := self._downloads.get(name):
            download.trusted = False
        with self._state:
            self._left_out.wrong(name)
            self._wake()

    @property
    def is_idle(self) -> bool:
        """Whether all that the plan allows now is there."""
        with self._state:
            if self._under_way or self._is_planning or self._downloads or self._demanded:
                return False
            is_planned = self._planned is not None and self._planned.position == self._position
            return self._uses is None or (self._plan_at > 0.0 and (is_planned or self._has_all))

    def close(self) -> None:
        """End the threads, and remove what is under way."""
        atexit.unregister(self.close)
        with self._state:
            self._stopped = True
            self._state.notify_all()
        deadline = time.monotonic() + CLOSE_SEC
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        for download in list(self._downloads.values()):
            self._abandon(download)

    def forget(self) -> None:
        """In a child that was forked, where the threads are not: let go of descriptors; the parent goes on."""
        atexit.unregister(self.close)
        self._stopped = True
        for download in self._downloads.values():
            download.forget()
        self._downloads = {}
        self._folder.forget()

    def _wake(self) -> None:
        self._plan_at = 0.0
        if not self._threads and not self._stopped:
            atexit.register(self.close)
            for number in range(self._connections + HEDGE_THREADS):
                # A daemon, lest the interpreter wait at its exit for a request that is not answered.
                thread = threading.Thread(target=self._work, name=f"fgbg-cache-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._state.notify_all()

    def _work(self) -> None:
        while True:
            with self._state:
                while (task := self._task()) is None:
                    if self._stopped:
                        return
                    self._state.wait(self._idle_sec())
            task()

    def _idle_sec(self) -> float | None:
        """Until it is looked again for parts that take too long, or at what others did; for good where nothing is."""
        if self._uses is None and not self._demanded and not self._downloads:
            return None
        plan_sec = max(self._plan_at, self._paused_until) - time.monotonic()
        return plan_sec if plan_sec > 0 and (plan_sec < LOOK_SEC or not self._downloads) else LOOK_SEC

    def _task(self) -> Callable[[], None] | None:
        """What to do next: a part of a download, the beginning of another, a part that takes too long once more."""
        if self._stopped:
            return None
        downloads = list(self._downloads.values())
        if self._under_way < self._connections:
            for download in downloads:
                if (number := download.take()) is not None:
                    return self._begun(download, number)
            is_due = time.monotonic() >= max(self._plan_at, self._paused_until)
            if is_due and not self._is_planning and (self._uses is not None or self._demanded):
                self._is_planning, self._plan_at = True, time.monotonic() + PLAN_SEC
                return self._plan
        for download in downloads:
            if (number := download.take(self._part_times.longest_sec)) is not None:
                return self._begun(download, number)
        return None

    def _begun(self, download: Download, number: int) -> Callable[[], None]:
        self._under_way += 1
        return lambda: self._fetch_part(download, number)

    def _fetch_part(self, download: Download, number: int) -> None:
        """Ask for a part, and keep it."""
        name, (first, size) = download.file.name, download.extent(number)
        started_sec, content = time.monotonic(), None
        try:
            with suppress(OSError, InputError):  # who reads in ranges is told
                content = self._source.read(name, first, size)
        finally:
            with self._state:
                self._under_way -= 1
        try:
            self._keep(download, number, content, time.monotonic() - started_sec)
        except OSError as error:
            self._abandon(download)
            self._pause(error)
        with self._state:
            self._state.notify_all()

    def _keep(self, download: Download, number: int, content: Content | None, part_sec: float) -> None:
        name, size = download.file.name, download.extent(number)[1]
        self._meter.requested(len(content) if content is not None else 0)
        if content is None or len(content) != size:
            if download.failed(number):
                self._abandon(download)
                with self._state:
                    self._left_out.failed(name)
            return
        is_first = download.store(number, content)
        if not is_first or name in self._fetched:
            self._meter.refetched(size)
        if is_first:
            self._part_times.add(part_sec)
            if download.is_complete:
                self._complete(download)

    def _complete(self, download: Download) -> None:
        """Let a verified file appear; one that came with another hash is fetched once more."""
        if (descriptor := download.claim()) is None:
            return
        name, is_right = download.file.name, download.is_right
        try:
            (self._folder.finish if is_right else self._folder.abandon)(download.file, descriptor)
        except BaseException:
            self._folder.abandon(download.file, descriptor)
            raise
        finally:
            download.close()
            with self._state:
                self._ended(download)
                self._fetched.add(name)
                if is_right:
                    self._demanded.pop(name, None)
                else:
                    self._left_out.wrong(name)

    def _abandon(self, download: Download) -> None:
        if (descriptor := download.claim()) is not None:
            self._folder.abandon(download.file, descriptor)
            download.close()
        with self._state:
            self._ended(download)

    def _ended(self, download: Download) -> None:
        self._plan_at = 0.0
        if self._downloads.get(download.file.name) is download:  # once its file was gone, another may have begun
            del self._downloads[download.file.name]

    def _pause(self, error: Exception) -> None:
        """Cache nothing for a while, since the cache folder failed."""
        why = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError) and error.errno and why == os.strerror(error.errno):
            remedy = REMEDIES.get(error.errno, "give --cache another folder")
            why = f"{why}: {remedy.partition(', then run')[0]}"  # it is tried again by itself
        with self._state:
            self._paused_until = time.monotonic() + PAUSE_SEC
            self._demanded.clear()
            is_new, self._told = why not in self._told, self._told | {why}
        if is_new and not self._stopped:
            log.warning("nothing is cached in %s for now: %s", self._folder.directory, why)

    def _plan(self) -> None:
        """Begin to download what is needed next, as far as there is room for it."""
        with self._state:
            uses, position = self._uses, self._position
        started_sec, begun = time.monotonic(), 0
        try:
            with self._folder.listed() as listing:
                begun = self._begin(listing, uses, position)
                self._meter.evicted(listing.evicted)
        except (OSError, InputError) as error:
            self._pause(error)
        finally:
            now = time.monotonic()
            with self._state:
                self._is_planning = False
                self._plan_sec = now - started_sec
                self._rest_until = 0.0 if begun else now + self._plan_sec / PLAN_SHARE
                if self._has_all and self._plan_at:
                    self._plan_at = self._rest_until = now + REST_SEC
                self._state.notify_all()

    def _begin(self, listing: Listing, uses: NextUses | None, position: int) -> int:
        """Begin as many downloads as keep the connections busy until it is looked again; how many."""
        next_uses, kept = np.full(len(self._files), NEVER), np.zeros(len(self._files), np.bool_)
        if uses is not None:
            planned = uses(position)
            next_uses[: len(planned)] = planned
            kept[: len(planned)] = uses(max(0, position - LAG_BATCHES)) < position
        next_uses[-EXTRAS:] = -1  # whoever reads needs them all the time
        wanted = (next_uses < NEVER) & (next_uses >= 0)
        with self._state:
            demanded, left_out = list(self._demanded), self._left_out.names()
            parts_left = sum(download.left() for download in self._downloads.values())
        wanted[self._indices(demanded)] = True
        wanted[self._indices(left_out)] = False
        there = self._indices(listing.complete)
        has_all = wanted.sum() == wanted[there].sum()
        wanted[there] = wanted[self._indices(listing.partial)] = False
        evictable = np.zeros(len(self._files), np.bool_)
        evictable[there] = ~kept[there]
        begun, found = 0, None
        enough = self._connections * (2 + int(self._plan_sec / SLOW_PLAN_SEC))
        while parts_left < enough and not self._stopped:
            room = self._folder.room(listing)
            found = next_fetch(wanted & (self._sizes > 0), evictable, next_uses, self._sizes, position, room,
                               self._ahead_bytes)  # fmt: skip
            if found is None:
                break
            file, victims = self._files[found.number], [self._files[victim].name for victim in found.victims]
            download = Download(file, self._folder.begin(listing, file, victims), self._part_bytes)
            with self._state:
                self._downloads[file.name] = download
            wanted[found.number] = evictable[found.victims] = False
            parts_left, begun = parts_left + download.parts, begun + 1
        with self._state:
            self._planned, self._has_all = _Planned(position, next_uses), has_all
            for name in demanded:
                if name in listing.complete or (found is None and name not in listing.partial):
                    self._demanded.pop(name, None)  # it is there, or has no room
        return begun

    def _indices(self, names: Iterable[str]) -> NDArray[np.int64]:
        return np.array([self._numbers[name] for name in names if name in self._numbers], np.int64)


class _Planned(NamedTuple):
    position: int
    next_uses: NDArray[np.int64]
