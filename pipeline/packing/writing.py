"""Writing a shard directory: a run, one of its parts, or what finishes them, in a folder or in object storage.

At the end what lies beside the shards is written, and the manifest last; object storage gets all in the same order.
What is stopped is gone on with, see `resume`, `remote_resume` and `parts`.
"""

import functools
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from pipeline.errors import InputError, is_bad_input
from pipeline.files import read_file, write_file
from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST, Manifest, ShardInfo, idx_name
from pipeline.format.tar import load_shard
from pipeline.packing.target import AT_ONCE, Target
from pipeline.parts import Part, parts_to_finish, require_idle, resumable_part, with_parts
from pipeline.remote_resume import RECORDS, RemoteWork, begun_arguments, complete_arguments, resumable_remotely
from pipeline.resume import (
    PARTS,
    UNFINISHED,
    Arguments,
    complete_run,
    gone_from,
    require_files,
    resumable,
    unfinished_run,
)
from pipeline.staging import staging_folder
from pipeline.storage import Folder, Location, Storage, is_there, storage_of
from pipeline.words import plural

RECORD = re.compile(re.escape(RECORDS) + r"(sets-(\d{6,}))\.npz")
BESIDE = ".beside"
"""Folder in that of the progress records, for what lies beside the shards until all of it is there."""


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


def arguments_of(shards: Location | Storage) -> Arguments:
    """Those of the writing that is unfinished or complete in a place; none where there is none, or is not known."""
    if isinstance(shards, Path):
        return unfinished_run(shards) or complete_run(shards) or {}
    storage = storage_of(shards)
    return begun_arguments(storage) or complete_arguments(storage) or {}


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
    except InputError as error:
        for shard in _recorded(storage.names(RECORDS), part) if is_bad_input(error) else ():
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
