"""Shards of another storage on the local disk: read from there where they are, in ranges from the source where not.

    source = storage_of("s3://bucket/shards")
    shards = ShardCache(source, manifest, cache_directory(), limit_bytes=100 * 10**9)
    shards.follow(NextUses(turns, batches), epoch, batch)    # the order: what is fetched ahead, and what goes first
    shards.at(epoch, batch)                                  # as the reader goes on
    shards.read("sets-000123.tar", offset, size)             # as of any storage
    shards.drop("sets-000123.tar")                           # a checksum was wrong: the next read is of the source
    print(shards.statistics()); shards.close()

Nothing of the cache is ever an error to who reads: a miss, a full disk, a folder that was removed only mean that the
source is read. All processes of a host share the directory, see `folder`.
"""

import hashlib
import mmap
import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock, local
from typing import Any

from pipeline.files import ReadFile, map_file
from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST, Manifest
from pipeline.loading.caching.fetcher import Fetcher
from pipeline.loading.caching.folder import CachedFile, CacheFolder, require_local
from pipeline.loading.caching.plan import NextUses
from pipeline.loading.caching.statistics import CacheStatistics, Meter
from pipeline.regular_files import open_regular
from pipeline.storage import MAX_OPEN_FILES, Content, Stat, Storage, require_at_most

CONNECTIONS = 8
"""Parts that are asked for at once: one connection at 30 ms gives 63 MB/s, eight 290."""
PART_BYTES = 8 << 20
AHEAD_SHARE = 0.125
"""Of the limit, what may be there ahead of its use: with a quarter as many shards are fetched as without any ahead."""
WAIT_SEC = 1.0
"""Longest wait for a part of a shard that is on its way, before its set is asked for alone."""


class ShardCache(Storage):
    """A storage whose files named by a manifest are kept in a directory of this machine; threads may share it.

    A copy, what is unpickled, and what a forked child has, opens its files anew, and follows no plan yet.
    """

    def __init__(
        self,
        source: Storage,
        manifest: Manifest,
        directory: Path,
        limit_bytes: int,
        *,
        connections: int = CONNECTIONS,
        part_bytes: int = PART_BYTES,
        ahead_share: float = AHEAD_SHARE,
    ) -> None:
        """`limit_bytes` is for all that is in the directory, of whatever process and data set; 0 caches nothing.

        Raises `InputError` for a directory on a network file system.
        """
        if limit_bytes:
            require_local(directory)
        self.location, self.source, self.manifest = source.location, source, manifest
        self.directory, self.limit_bytes = directory, limit_bytes
        self._options = {"connections": connections, "part_bytes": part_bytes, "ahead_share": ahead_share}
        shards = [CachedFile(shard.name, shard.bytes, shard.sha256) for shard in manifest.shards]
        extras = [(INDEX, manifest.index_sha256), (BACKGROUNDS, manifest.backgrounds_sha256)]
        self._files = [*shards, *(CachedFile(name, 0, sha256) for name, sha256 in extras)]
        self._by_name = {file.name: file for file in self._files}
        self._folder = CacheFolder(directory, manifest.sha256, limit_bytes, partial(_text, source, manifest))
        self._begin_anew()
        _caches.add(self)

    def _begin_anew(self) -> None:
        self._meter = Meter()
        self._open_files: OrderedDict[str, ReadFile] = OrderedDict()
        self._opening, self._starting, self._dropping = Lock(), Lock(), Lock()
        self._served, self._drops = local(), dict[str, int]()  # what a thread has read last, if it was cached
        self._fetcher: Fetcher | None = None
        self._uses: NextUses | None = None

    def _started(self) -> Fetcher:
        with self._starting:
            if self._fetcher is None:
                connections, part_bytes = int(self._options["connections"]), int(self._options["part_bytes"])
                ahead_bytes = int(self._options["ahead_share"] * self.limit_bytes)
                self._fetcher = Fetcher(
                    self.source, self._folder, self._files, self._meter, connections, part_bytes, ahead_bytes
                )
            return self._fetcher

    def follow(self, uses: NextUses | None, epoch: int = 0, batch: int = 0) -> None:
        """Fetch from now on what the order needs next, ahead of use; with None, what is read, while there is room."""
        if self.limit_bytes:
            self._uses = uses
            self._started().follow(uses, epoch * uses.batches + batch if uses else 0)

    def at(self, epoch: int, batch: int) -> None:
        """Batch `batch` of `epoch` is read next."""
        if self._uses is not None:
            fetcher = self._started()
            fetcher.at(epoch * self._uses.batches + batch)
            self._close_evicted(fetcher)

    def read(self, name: str, offset: int, size: int) -> Content:
        """See `Storage.read`; of a file that is under way, unless another process downloads it, what has come of it."""
        started_sec = time.perf_counter()
        file = self._by_name.get(name) if self.limit_bytes else None
        content: Content | None = None
        drops = self._drops.get(name, 0)
        if file is not None and (content := self._read_local(file, offset, size, drops)) is None:
            fetcher = self._started()
            if download := fetcher.downloading(name):
                content = download.read(offset, size, WAIT_SEC)
            if content is None:  # it may have come just now
                content = self._read_local(file, offset, size, drops)
            if content is None and name != INDEX:  # that is mapped
                fetcher.demand(self._sized(file))
        self._served.last = (name, drops) if content is not None else None
        if content is not None:
            self._meter.hit(len(content), time.perf_counter() - started_sec)
            return content
        content = self.source.read(name, offset, size)
        self._meter.missed(len(content), time.perf_counter() - started_sec)
        return content

    def _sized(self, file: CachedFile) -> CachedFile:
        """With its size, which no manifest has of the index and the backgrounds."""
        if not file.size:
            with suppress(OSError):
                file = self._by_name[file.name] = file._replace(size=self.source.stat(file.name).size)
        return file

    def _read_local(self, file: CachedFile, offset: int, size: int, drops: int) -> bytes | None:
        """Bytes of a cached file; None where it is not there, or cut short, which drops it."""
        try:
            local = self._local(file.name, drops)
            content = local.read(size, offset)
            if len(content) == size or offset + len(content) >= max(offset, file.size or local.size):
                return content
        except OSError:
            return None
        self._drop(file.name, drops)
        return None

    def _local(self, name: str, drops: int) -> ReadFile:
        """A cached file; it stays open as long as the caller holds it, whatever others open.

        It is kept open unless it was dropped meanwhile: what was opened is then the damaged one.
        """
        with self._opening:
            if (file := self._open_files.get(name)) is not None:
                self._open_files.move_to_end(name)
                return file
        file = ReadFile(self._folder.path(name), open_regular)
        with self._opening:
            if self._drops.get(name, 0) == drops:
                self._open_files[name] = file
            if len(self._open_files) > MAX_OPEN_FILES:
                self._open_files.popitem(last=False)
        return file

    def _close_evicted(self, fetcher: Fetcher) -> None:
        """Let go of files that were removed and are not needed now: open, they take room beyond the limit."""
        with self._opening:
            for name, file in list(self._open_files.items()):
                if not fetcher.is_needed(name) and not os.fstat(file.descriptor).st_nlink:
                    del self._open_files[name]

    def fetch(self, *names: str) -> None:
        """Let these files come whole, at the same time, if they can be cached; return when they are there, or not."""
        if self.limit_bytes:
            for name in names:
                if not self._folder.has(name):
                    self._started().demand(self._sized(self._by_name[name]))
            for name in names:
                self._fetch(name)

    def _fetch(self, name: str) -> None:
        if not self._folder.has(name):
            self._started().fetch(self._sized(self._by_name[name]))

    def map(self, name: str, most_bytes: int | None = None) -> bytes | mmap.mmap:
        """All of a file of the manifest: mapped and verified where it can be cached, for which it is fetched now."""
        if self.limit_bytes and (file := self._by_name.get(name)):
            for _ in range(2):
                self._fetch(name)
                try:
                    content = map_file(self._folder.path(name), open_regular)
                except OSError:
                    break
                if hashlib.sha256(content).hexdigest() == file.sha256:
                    self._meter.hit(len(content), 0.0)
                    require_at_most(most_bytes, len(content))
                    return content
                self._discard(name)
        return self.source.read_all(name, most_bytes)

    def drop(self, name: str) -> bool:
        """A checksum was wrong in what this thread has read last: whether it came from the cache, and to read it again.

        It is removed, read from the source and fetched again; only what is wrong then, too, is wrong at the source. A
        file that had to be dropped twice is left out.
        """
        last = getattr(self._served, "last", None)
        if last is None or last[0] != name:
            return False
        self._drop(*last)
        return True

    def _drop(self, name: str, drops: int) -> None:
        """Drop a file that was dropped so often before it was read, unless another thread was first."""
        with self._dropping:
            if self._drops.get(name, 0) == drops:
                self._discard(name)
                with self._opening:
                    self._open_files.pop(name, None)  # another thread may just have opened it
                    self._drops[name] = drops + 1

    def _discard(self, name: str) -> None:
        fetcher = self._started()
        if self._folder.has(name) or fetcher.downloading(name):
            fetcher.distrust(name)
        with self._opening:
            self._open_files.pop(name, None)
        with suppress(OSError):
            self._folder.remove(name)
        if self._folder.has(name):  # it cannot be removed
            self._by_name.pop(name, None)

    @property
    def uses(self) -> NextUses | None:
        """The order that is followed."""
        return self._uses

    def statistics(self) -> CacheStatistics:
        """What this process read from where."""
        return self._meter.read()

    @property
    def is_idle(self) -> bool:
        """Whether all that is to be fetched now is there."""
        return self._fetcher is None or self._fetcher.is_idle

    def stat(self, name: str) -> Stat:
        """See `Storage.stat`."""
        return self.source.stat(name)

    def put(self, name: str, content: bytes | Path) -> None:
        """See `Storage.put`."""
        self.source.put(name, content)

    def create(self, name: str, content: bytes) -> bool:
        """See `Storage.create`."""
        return self.source.create(name, content)

    def remove(self, name: str) -> None:
        """See `Storage.remove`."""
        self.source.remove(name)

    def names(self, prefix: str = "") -> list[str]:
        """See `Storage.names`."""
        return self.source.names(prefix)

    def close(self) -> None:
        """End all threads, remove what is under way, let go of files and connections; reading again begins anew."""
        with self._starting:
            fetcher, self._fetcher, self._uses = self._fetcher, None, None
        if fetcher is not None:
            fetcher.close()
        self._folder.leave()
        with self._opening:
            self._open_files.clear()
        self.source.close()

    def forget(self) -> None:
        """In a child that was forked: leave to the parent what is under way."""
        if self._fetcher is not None:
            self._fetcher.forget()
        self._folder.forget()
        self._begin_anew()

    def __del__(self) -> None:
        if hasattr(self, "_fetcher"):
            self.close()

    def __reduce__(self) -> tuple[Callable[..., "ShardCache"], tuple[Any, ...]]:
        arguments = self.source, self.manifest, self.directory, self.limit_bytes
        return partial(ShardCache, **self._options), arguments  # type: ignore[arg-type]


def _text(source: Storage, manifest: Manifest) -> bytes:
    """The bytes of manifest.json: made from what it says, or read where another program wrote it."""
    text = manifest.to_json().encode()
    if hashlib.sha256(text).hexdigest() != manifest.sha256:
        text = bytes(source.read_all(MANIFEST))
    if hashlib.sha256(text).hexdigest() != manifest.sha256:
        raise OSError(f"{source / MANIFEST} was replaced meanwhile")
    return text


def _forget_all() -> None:
    for cache in list(_caches):
        cache.forget()


_caches: "weakref.WeakSet[ShardCache]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget_all)
