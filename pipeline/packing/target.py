"""Where shards are written: a folder, or object storage by way of a temporary folder of this machine.

Of each shard the tar and the .idx are written, then its progress record; at the end what lies beside the shards, and
the manifest last. Object storage gets them in this order, too, and a shard is removed from this machine when it is put.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, Problem
from pipeline.files import read_file, write_file
from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST, Manifest, ShardInfo, idx_name
from pipeline.format.tar import Shard, load_shard
from pipeline.remote_resume import RECORDS, RemoteWork, resumable_remotely
from pipeline.resume import UNFINISHED, gone_from, require_files, resumable
from pipeline.staging import staging_folder
from pipeline.storage import Location, Storage, storage_of
from pipeline.words import plural

RECORD = re.escape(RECORDS) + r"sets-\d{6,}\.npz"
AT_ONCE = 16
"""Requests for small objects."""


@dataclass(frozen=True)
class ShardPlace:
    """Where one shard and its progress record are written; it is sent to workers."""

    path: Path
    """Of the tar."""
    record: Path
    remote: Storage | None = None
    """Where both are put when they are written."""

    def save(self, shard: Shard) -> None:
        """Let a shard whose tar and .idx are written be finished, by its record."""
        if not self.remote:
            shard.save(self.record)
            return
        note, files = f"{RECORDS}{self.record.name}", (self.path, self.path.with_suffix(".idx"))
        try:
            write_file(self.record, self.remote.read_all(note))  # another process was first
        except FileNotFoundError:
            for file in files if shard.info.sets else ():
                self.remote.put(file.name, file)
            shard.save(self.record)
            self.remote.put(note, self.record)
        for file in files:
            file.unlink(missing_ok=True)

    def __reduce__(self) -> tuple[Callable[..., "ShardPlace"], tuple[Any, ...]]:
        return _place_in_worker, (self.path, self.record, self.remote.location if self.remote else None)


def _place_in_worker(path: Path, record: Path, location: Location | None) -> ShardPlace:
    return ShardPlace(path, record, None if location is None else _storage_in_worker(location))


@functools.lru_cache(maxsize=1)
def _storage_in_worker(location: Location) -> Storage:
    return storage_of(location)


class Tally(NamedTuple):
    """Totals over the finished shards; their index rows stay in the progress records."""

    infos: list[ShardInfo]
    sizes: list[NDArray[np.int64]]
    left_out: Counter[str]
    problems: list[Problem]

    @property
    def sets(self) -> int:
        """Sets in all shards."""
        return sum(info.sets for info in self.infos)


class Target(NamedTuple):
    """Where shards are written, and their progress records, of which each says that a shard is done."""

    folder: Path
    records: Path
    remote: Storage | None = None
    """Where all of the folder is put in the end, and each shard when it is written."""

    def place(self, shard: int) -> ShardPlace:
        """Where shard number `shard` goes."""
        return ShardPlace(self.folder / f"sets-{shard:06}.tar", self._record(shard), self.remote)

    def _record(self, shard: int) -> Path:
        return self.records / f"sets-{shard:06}.npz"

    def _load(self, shard: int) -> Shard | None:
        return load_shard(self._record(shard), None if self.remote else self.folder)

    def done(self, count: int) -> dict[int, int]:
        """Which of the shards 0 .. count - 1 are finished, and how many sets each has dealt with."""
        loaded = ((number, self._load(number)) for number in range(count))
        return {number: shard.info.sets + shard.left_out.total() for number, shard in loaded if shard}

    def finished(self, count: int) -> Iterator[Shard]:
        """The shards 0 .. count - 1, one at a time: index rows are never all in memory."""
        for number in range(count):
            shard = self._load(number)
            assert shard, "a progress record vanished during the run"
            yield shard

    def tally(self, count: int) -> Tally:
        """Add up the shards 0 .. count - 1, all of which are finished."""
        total = Tally([], [], Counter(), [])
        for shard in self.finished(count):
            total.left_out.update(shard.left_out)
            total.problems.extend(shard.problems)
            if shard.info.sets:
                total.infos.append(shard.info)
                total.sizes.append(shard.sizes)
        return total

    def reading(self, *names: str) -> Path | Storage:
        """Where the shards that are saved can be read, and the files `names`, which are written in full."""
        if not self.remote:
            return self.folder
        for name in names:
            self.remote.put(name, self.folder / name)
            (self.folder / name).unlink()
        return self.remote


def writing(
    shards: Location | Storage, arguments: Mapping[str, object], newest_ns: int = 0
) -> AbstractContextManager[Target]:
    """Write a shard directory, to be finished by `finalize`, which a later call with the same arguments goes on with.

    `shards` is a folder that is new or empty but for hidden files, or a place like that in object storage. Arguments
    and errors are those of `resume.resumable`, for a fresh run that knows its result.
    """
    if isinstance(shards, Path):
        return _writing_folder(shards, arguments, newest_ns)
    return _writing_remotely(storage_of(shards), arguments, newest_ns)


@contextmanager
def _writing_folder(folder: Path, arguments: Mapping[str, object], newest_ns: int) -> Iterator[Target]:
    complete = functools.partial(describe_complete, folder)
    with resumable(folder, arguments, result=complete, newest_ns=newest_ns) as records:
        yield Target(folder, records)


@contextmanager
def _writing_remotely(storage: Storage, arguments: Mapping[str, object], newest_ns: int) -> Iterator[Target]:
    complete = functools.partial(describe_complete, storage)
    with resumable_remotely(storage, arguments, MANIFEST, complete, newest_ns) as run, staging_folder() as folder:
        target = Target(folder, folder / UNFINISHED, storage)
        target.records.mkdir()
        _fetch_records(target.records, run)
        yield target
        _finish(folder, run)


def _fetch_records(folder: Path, run: RemoteWork) -> None:
    """Copy the progress records of the shards that are there."""

    def fetch(name: str) -> None:
        path = folder / name.removeprefix(RECORDS)
        with suppress(FileNotFoundError):  # the run of another process has ended meanwhile
            write_file(path, run.storage.read_all(name))
            shard = load_shard(path, None)
            if shard is None or (shard.info.sets and not run.names.issuperset((shard.info.name, idx_name(shard.info)))):
                run.storage.remove(name)
                path.unlink()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(fetch, (name for name in run.names if re.fullmatch(RECORD, name))))


def _finish(folder: Path, run: RemoteWork) -> None:
    """Put what lies beside the shards, look whether those are as they were written, and put the manifest."""
    for file in sorted(folder.iterdir()):
        if not file.name.startswith(".") and file.name != MANIFEST:
            run.storage.put(file.name, file)

    def check(info: ShardInfo) -> None:
        for name in (info.name, idx_name(info)):
            with suppress(FileNotFoundError):
                if run.storage.stat(name).size == info.bytes or name != info.name:
                    continue
            raise run.changed(name)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(check, Manifest.load(folder).shards))
    run.finish(read_file(folder / MANIFEST))


def describe_complete(shards: Path | Storage, present: Container[str] | None = None) -> str:
    """What complete shards are, in a phrase; raise `InputError` if files of them are gone, or have other sizes.

    `present` are the names of all objects, in object storage, where they are whole or not there.
    """
    storage = storage_of(shards)

    def require(*names: str) -> None:
        if gone := next((name for name in names if name not in present), None) if present is not None else None:
            raise gone_from(storage.location, gone)
        if isinstance(shards, Path):
            require_files(shards, names)

    require(MANIFEST, INDEX, BACKGROUNDS)
    manifest = Manifest.load(storage)
    for info in manifest.shards:
        require(info.name, idx_name(info))
        if isinstance(shards, Path) and (found := (shards / info.name).stat().st_size) != info.bytes:
            raise InputError(f"{shards / info.name} has {found:,} bytes, not {info.bytes:,}: copy it again")
    sets = f"{plural(manifest.sets, 'set')} on {plural(len(manifest.backgrounds), 'background')}"
    return f"{sets} in {plural(len(manifest.shards), 'shard')}"
