"""Where shards are written: a folder, or object storage by way of a temporary folder of this machine.

Of each shard the tar and the .idx are written, then its progress record. Object storage gets them in this order, too,
and a shard is removed from this machine when it is put. See `packing.writing` for how a target is begun and finished.
"""

import errno
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Problem
from pipeline.files import write_file
from pipeline.format.manifest import ShardInfo
from pipeline.format.tar import Shard, load_shard
from pipeline.parts import Part, PartDone, require_parts
from pipeline.remote_resume import RECORDS
from pipeline.resume import is_elsewhere
from pipeline.staging import process_folder
from pipeline.storage import Folder, Location, Storage, storage_of

AT_ONCE = 16
"""Requests for small objects."""
LEFT = ".sets-*.*.?*.partial"
"""Files of processes on other machines that were killed."""
LATE_SEC = 120.0
"""For which a network share may not show what was written on another machine: twice what NFS has by default."""


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
        for file in (*files, self.record) if is_elsewhere() else files:
            file.unlink(missing_ok=True)

    def __reduce__(self) -> tuple[Callable[..., "ShardPlace"], tuple[Any, ...]]:
        return _place_in_worker, (self.path, self.record, self.remote.location if self.remote else None)


def _place_in_worker(path: Path, record: Path, location: Location | None) -> ShardPlace:
    if location is not None and is_elsewhere():
        path, record = process_folder() / path.name, process_folder() / record.name
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
    """Of what lies beside the shards, and of these, too, unless `tars` is another one."""
    records: Path
    remote: Storage | None = None
    """Where all of the folder is put in the end, and each shard when it is written."""
    tars: Path | None = None
    private: Path | None = None
    """A folder of this process alone; None: that of the records is."""
    part: Part | None = None
    """Which shards are to be written; None: all."""
    parts: int = 0
    """In how many parts the shards were written that are to be finished; 0: they are written here."""

    @property
    def scratch(self) -> Path:
        """A folder for hidden files that only the run itself needs."""
        return self.private or self.records

    def numbers(self, count: int) -> range:
        """Which of the shards 0 .. count - 1 are written here."""
        return self.part.numbers(count) if self.part else range(count)

    def part_done(self, count: int, earlier: int) -> PartDone | None:
        """What its part of the shards 0 .. count - 1 has done, if it is one; `earlier` were there before."""
        return PartDone(self.part, len(self.numbers(count)), earlier, count) if self.part else None

    def place(self, shard: int) -> ShardPlace:
        """Where shard number `shard` goes."""
        return ShardPlace((self.tars or self.folder) / f"sets-{shard:06}.tar", self._record(shard), self.remote)

    def _record(self, shard: int) -> Path:
        return self.records / f"sets-{shard:06}.npz"

    def _load(self, shard: int) -> Shard | None:
        return load_shard(self._record(shard), None if self.remote else self.tars or self.folder)

    def done(self, count: int) -> dict[int, int]:
        """Which of the shards 0 .. count - 1 that are its own are finished, and how many sets each has dealt with.

        Raises `InputError` where other parts were to write them, and have not.
        """
        loaded = ((number, self._load(number)) for number in self.numbers(count))
        done = {number: shard.info.sets + shard.left_out.total() for number, shard in loaded if shard}
        if self.parts:
            require_parts((self.remote or Folder(self.tars or self.folder)).location, done, count, self.parts)
        return done

    def finished(self, count: int) -> Iterator[Shard]:
        """Those of the shards 0 .. count - 1 that are its own, one at a time: rows are never all in memory."""
        for number in self.numbers(count):
            shard = self._load(number)
            assert shard, "a progress record vanished during the run"
            yield shard

    def collect(self, count: int) -> None:
        """Wait for the records of its own shards, written on any machine; remove what killed processes have left.

        Raises `OSError` where they stay away.
        """
        missing = [path for path in map(self._record, self.numbers(count)) if not path.exists()]
        if storage := self.remote:
            with ThreadPoolExecutor(AT_ONCE) as threads:
                contents = threads.map(lambda path: storage.read_all(f"{RECORDS}{path.name}"), missing)
                for path, content in zip(missing, contents, strict=True):
                    write_file(path, content)
            return
        await_files(missing)
        for rubbish in (self.tars or self.folder).glob(LEFT):
            rubbish.unlink(missing_ok=True)

    def tally(self, count: int) -> Tally:
        """Add up those of the shards 0 .. count - 1 that are its own, all of which are finished."""
        total = Tally([], [], Counter(), [])
        for shard in self.finished(count):
            total.left_out.update(shard.left_out)
            total.problems.extend(shard.problems)
            if shard.info.sets:
                total.infos.append(shard.info)
                total.sizes.append(shard.sizes)
        return total

    def anywhere(self, name: str) -> Location:
        """Where the file `name`, which is written in full, can be read on any machine that sees the target."""
        if not self.remote:
            return self.folder / name
        self.remote.put(name, self.folder / name)
        return self.remote / name

    def reading(self, *names: str) -> Path | Storage:
        """Where the shards that are saved can be read, and the files `names`, which are written in full."""
        if self.tars:
            for name in names:
                (self.folder / name).replace(self.tars / name)
            return self.tars
        if not self.remote:
            return self.folder
        for name in names:
            self.remote.put(name, self.folder / name)
            (self.folder / name).unlink()
        return self.remote


def await_files(paths: Iterable[Path]) -> None:
    """Wait for what was written on any machine that shares the folder; raise `OSError` where it stays away."""
    end_sec = time.monotonic() + LATE_SEC
    for path in paths:
        while not path.exists():
            if time.monotonic() > end_sec:
                raise OSError(
                    errno.ENOENT, "a node has written it, but not here: is this one folder on all nodes?", path
                )
            time.sleep(LATE_SEC / 200)
