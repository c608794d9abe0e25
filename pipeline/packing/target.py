"""Where shards are written: a folder, or object storage by way of a temporary folder of this machine.

Of each shard the tar and the .idx are written, then its progress record; at the end what lies beside the shards, and
the manifest last. Object storage gets them in this order, too, and a shard is removed from this machine when it is put.
One of several parts of a run writes its shards and their records, and leaves the rest to the call that finishes them.
"""

import errno
import functools
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
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
from pipeline.parts import (
    Part,
    PartDone,
    parts_to_finish,
    require_idle,
    require_parts,
    resumable_part,
    with_parts,
)
from pipeline.remote_resume import RECORDS, RemoteWork, begun_arguments, resumable_remotely
from pipeline.resume import PARTS, UNFINISHED, gone_from, is_elsewhere, require_files, resumable, unfinished_run
from pipeline.staging import process_folder, staging_folder
from pipeline.storage import Folder, Location, Storage, is_there, storage_of
from pipeline.words import plural

RECORD = re.compile(re.escape(RECORDS) + r"(sets-(\d{6,}))\.npz")
BESIDE = ".beside"
"""Folder in that of the progress records, for what lies beside the shards until all of it is there."""
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


def writing(
    shards: Location | Storage,
    arguments: Mapping[str, object],
    newest_ns: int = 0,
    *,
    part: Part | None = None,
    finish: bool = False,
) -> AbstractContextManager[Target]:
    """Write a shard directory, to be finished by `finalize`, which a later call with the same arguments goes on with.

    `shards` is a folder that is new or empty but for hidden files, or a place like that in object storage. Arguments
    and errors are those of `resume.resumable`, for a fresh run that knows its result. With `part`, only its shards are
    written, and no more (see `parts.resumable_part`); with `finish`, those that parts have written are finished.
    """
    if isinstance(shards, Path):
        if part:
            return _writing_part(shards, arguments, newest_ns, part)
        if finish:
            begun, complete = unfinished_run(shards), is_there(shards / MANIFEST)
            return _finishing_folder(shards, with_parts(shards, arguments, begun, complete=complete), newest_ns)
        return _writing_folder(shards, arguments, newest_ns)
    storage = storage_of(shards)
    if finish:
        begun, complete = begun_arguments(storage), is_there(storage / MANIFEST)
        arguments = with_parts(storage.location, arguments, begun, complete=complete)
    return _writing_remotely(storage, arguments, newest_ns, part)


@contextmanager
def _writing_folder(folder: Path, arguments: Mapping[str, object], newest_ns: int) -> Iterator[Target]:
    complete = functools.partial(describe_complete, folder)
    with resumable(folder, arguments, result=complete, newest_ns=newest_ns) as records:
        yield Target(folder, records)


@contextmanager
def _writing_part(folder: Path, arguments: Mapping[str, object], newest_ns: int, part: Part) -> Iterator[Target]:
    complete = functools.partial(describe_complete, folder)
    with (
        resumable_part(folder, arguments, part, complete, newest_ns) as records,
        staging_folder() as private,
        _withdrawn_on_input_error(Folder(folder), part),
    ):
        yield Target(private, records, None, folder, private, part)


@contextmanager
def _finishing_folder(folder: Path, arguments: Mapping[str, object], newest_ns: int) -> Iterator[Target]:
    complete, parts = functools.partial(describe_complete, folder), parts_to_finish(arguments)
    with resumable(folder, arguments, result=complete, newest_ns=newest_ns) as records, staging_folder() as private:
        require_idle(records)
        beside = records / BESIDE
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            yield Target(beside, records, None, folder, private, None, parts)
            for file in sorted(beside.iterdir(), key=lambda file: file.name == MANIFEST):
                file.replace(folder / file.name)
        finally:
            shutil.rmtree(beside)


@contextmanager
def _writing_remotely(
    storage: Storage, arguments: Mapping[str, object], newest_ns: int, part: Part | None
) -> Iterator[Target]:
    complete, parts = functools.partial(describe_complete, storage), parts_to_finish(arguments)
    if part:
        arguments = {**arguments, PARTS: part.of}
    with resumable_remotely(storage, arguments, MANIFEST, complete, newest_ns) as run, staging_folder() as folder:
        target = Target(folder, folder / UNFINISHED, storage, part=part, parts=parts)
        target.records.mkdir()
        _fetch_records(target, run)
        if part:
            with _withdrawn_on_input_error(storage, part):
                yield target
            run.pause()
        else:
            yield target
            _finish(folder, run)


@contextmanager
def _withdrawn_on_input_error(storage: Storage, part: Part) -> Iterator[None]:
    """Take away the shards of a part after an error that its input causes, as a run without parts takes away all."""
    try:
        yield
    except InputError:
        for shard in _recorded(storage.names(RECORDS), part):
            for name in (f"{RECORDS}{shard}.npz", f"{shard}.tar", f"{shard}.idx"):
                storage.remove(name)
        raise


def _recorded(names: Iterable[str], part: Part | None) -> list[str]:
    """Which shards have a progress record among some names, of those of a part."""
    found = filter(None, map(RECORD.fullmatch, names))
    return [record[1] for record in found if not part or int(record[2]) % part.of == part.number]


def _fetch_records(target: Target, run: RemoteWork) -> None:
    """Copy the progress records of the shards that are there, of those that are the target's own."""

    def fetch(stem: str) -> str:
        try:
            write_file(target.records / f"{stem}.npz", run.storage.read_all(f"{RECORDS}{stem}.npz"))
        except FileNotFoundError:
            if target.part or target.parts:
                raise run.ended() from None
        return stem

    with ThreadPoolExecutor(AT_ONCE) as threads:
        # Looked at by one thread: Python 3.11 fails now and then when several read the headers of arrays at once.
        for stem in threads.map(fetch, _recorded(run.names, target.part)):
            path = target.records / f"{stem}.npz"
            shard = load_shard(path, None)
            if shard is None or (shard.info.sets and not run.names.issuperset((shard.info.name, idx_name(shard.info)))):
                run.storage.remove(f"{RECORDS}{stem}.npz")
                path.unlink(missing_ok=True)


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
