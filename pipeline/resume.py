"""Files that appear under their name only when they are complete, and long runs that can be resumed when stopped."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.errors import AlreadyComplete, InputError, is_bad_input
from pipeline.files import UNABLE, read_file, sync_folder, written_file
from pipeline.locks import LOCK, held, locked
from pipeline.regular_files import NotRegular, open_regular

UNFINISHED, ARGUMENTS, COMPLETE = ".unfinished", "arguments.json", ".complete.json"
MAX_ARGUMENTS_BYTES = 1 << 24
PARTS = "parts"
"""The argument that says into how many parts a run is divided (see `parts`); its results do not depend on it."""
Arguments = dict[str, Any]
_elsewhere = ""


def set_elsewhere(name: str) -> None:
    """Let this be a process that does jobs of a command on another machine, by a name that no other process has.

    It stands in the names of temporary files: of a machine that only seemed lost, a second process may be at the same.
    """
    global _elsewhere
    _elsewhere = f".{name}"


def is_elsewhere() -> bool:
    """Whether this process does jobs of a command on another machine, or on what may be another one."""
    return bool(_elsewhere)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a hidden temporary file for writing; on success sync it and rename it to `path`, else remove it."""
    temporary = path.with_name(f".{path.name}{_elsewhere}.partial")
    temporary.unlink(missing_ok=True)  # of a run that was killed; or, in a folder from elsewhere, a link or a pipe
    try:
        with written_file(temporary, sync=True) as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)  # the new name, too, must outlive a power failure


def require_unused(folder: Path) -> None:
    """Raise `InputError` unless `folder` is not there yet, or empty but for hidden files."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: give a new or an empty folder")
    names = sorted(entry.name for entry in folder.iterdir())
    if found := next((name for name in names if not name.startswith(".")), None):
        raise InputError(f"{folder} is not empty (it holds {found}): give a new or an empty folder, or remove it")


def require_finished(folder: Path) -> None:
    """Raise `InputError` if a resumable run in `folder` was stopped half-way."""
    if begun := unfinished_run(folder):
        raise unfinished(folder, begun)


def unfinished(place: object, begun: Arguments) -> InputError:
    """What to raise where the results of a run that was begun with some arguments are asked for."""
    if PARTS in begun:
        how = f"when all of its {begun[PARTS]} parts are written, give the same {begun['command']} --finish"
        return InputError(f"{place} is unfinished: {how}")
    return InputError(f"{place} is unfinished: run the same {begun['command']} again, which continues it")


def unfinished_run(folder: Path) -> dict[str, Any] | None:
    """The arguments of the run that was stopped half-way in `folder`; raise `InputError` where they cannot be read."""
    records = folder / UNFINISHED
    try:
        if records.is_symlink():  # what is written and removed there would be elsewhere
            raise InputError(f"{records} is a link, which no run makes: remove it")
        return parse_arguments(read_file(records / ARGUMENTS, open_regular, MAX_ARGUMENTS_BYTES))
    except NotRegular:
        raise
    except OSError:
        return None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{records / ARGUMENTS} is damaged ({error}): remove {records}, then begin again") from None


def parse_arguments(text: bytes) -> Arguments:
    """The arguments that a run has kept; raise ValueError or RecursionError where they are none."""
    arguments = json.loads(text)
    if not isinstance(arguments, dict) or not isinstance(arguments.get("command"), str):
        raise ValueError("it names no command")
    return arguments


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Raise `InputError` unless what a complete run has written is there."""
    if gone := next((name for name in names if not (folder / name).is_file()), None):
        raise gone_from(folder, gone)


def gone_from(place: object, name: str) -> InputError:
    """What to raise where a complete run has left something that is there no more."""
    return InputError(f"{place} was complete, and {name} is gone: copy it again, or remove {place}")


@contextmanager
def resumable(
    folder: Path,
    arguments: Mapping[str, object],
    *,
    fresh: bool = True,
    result: Callable[[], str] | None = None,
    newest_ns: int = 0,
) -> Iterator[Path]:
    """Do a long run in `folder`, which a later call with the same arguments continues where this one was stopped.

    Yields a hidden folder for progress records, a file for each piece that is done; it is removed when the run is
    complete. `arguments` decide the result, are plain JSON and name the "command".

    `fresh`: the folder has to be new or empty but for hidden files. It is left so by an `InputError`, after which the
    input must change, and by a stop before the first record. Raises `InputError` where the folder is in use, where
    another run is unfinished in it, and while another process works in it.

    `result`, of a fresh run, says in a phrase what a complete one has made, and raises `InputError` if some of it is
    gone. With it the same call on a complete run raises `AlreadyComplete`, and one with other arguments `InputError`.
    The arguments are kept for that in a hidden file; they should be the same on any machine. Times are not: when the
    input was changed last is `newest_ns`, since the epoch, and kept as the time of that file, as make does it.
    """
    records = folder / UNFINISHED
    wanted = json.loads(json.dumps(arguments))
    if fresh and result:
        require_incomplete(folder, wanted, result, newest_ns)
    begun = unfinished_run(folder)
    if begun is None and fresh:
        require_unused(folder)
    if begun is not None:
        require_unfinished_with(folder, begun, wanted, folder if fresh else records)
    with held(folder) as is_new:
        if unfinished_run(folder) != begun:
            raise InputError(f"another process was at work in {folder} just now: give the same command again")
        records.mkdir(exist_ok=True)
        if fresh:
            (folder / COMPLETE).unlink(missing_ok=True)  # of results that were removed
        if begun is None:
            keep_arguments(records / ARGUMENTS, wanted)
        try:
            yield records
        except BaseException as error:
            recorded = any(entry.name != ARGUMENTS and not entry.name.startswith(".") for entry in records.iterdir())
            if PARTS in wanted:  # what others have done stays, whatever this process has found
                pass
            elif recorded and not (fresh and is_bad_input(error)):
                error.add_note(f"what is done is kept in {folder}: the same command continues it")
            else:
                shutil.rmtree(records)
                if fresh:
                    remove_results(folder, existed=not is_new)
            raise
        if fresh and result:
            _save_complete(folder / COMPLETE, wanted, newest_ns)
        _remove(records)


def keep_arguments(path: Path, arguments: Arguments) -> None:
    """Write the arguments of a run, which `parse_arguments` reads."""
    with atomic_file(path) as file:
        file.write(json.dumps(arguments, indent=1).encode())


def undivided(arguments: Arguments) -> Arguments:
    """Arguments without what its results do not depend on."""
    return {name: value for name, value in arguments.items() if name != PARTS}


def require_incomplete(folder: Path, wanted: Arguments, result: Callable[[], str], newest_ns: int) -> None:
    """Raise `AlreadyComplete` if the run is complete in `folder`, `InputError` if another one is."""
    made = complete_run(folder)
    if made is None or all(entry.name.startswith(".") for entry in folder.iterdir()):
        return
    if made.get("command") != wanted.get("command"):
        require_unused(folder)
    require_made_with(folder, made, undivided(wanted))
    require_unchanged(folder, newest_ns, (folder / COMPLETE).stat().st_mtime_ns)
    there = result()
    if (folder / UNFINISHED).exists():  # it was killed just before its end
        with locked(folder):
            _remove(folder / UNFINISHED)
    raise AlreadyComplete(f"{folder}: already complete: {there}")


def require_unfinished_with(place: object, begun: Arguments, wanted: Arguments, remove: object) -> None:
    """Raise `InputError` unless the unfinished run in a place was begun with the same arguments."""
    if differs := _difference(begun, wanted):
        raise InputError(
            f"{place} holds an unfinished {begun['command']} {differs}: continue with the same, or remove {remove}"
        )


def require_made_with(place: object, made: Arguments, wanted: Arguments) -> None:
    """Raise `InputError` unless the complete run in a place was made with the same arguments."""
    if differs := _difference(made, wanted):
        raise InputError(
            f"{place} holds a complete {made.get('command')} {differs}: give the same, another folder, or remove it"
        )


def require_unchanged(place: object, newest_ns: int, made_from_ns: int) -> None:
    """Raise `InputError` if the source of the complete run in a place has a file that is newer than what it had."""
    if newest_ns > made_from_ns:
        raise InputError(
            f"{place} is complete, but a file of its source was changed since: give another folder, or remove it"
        )


def _save_complete(path: Path, arguments: Arguments, newest_ns: int) -> None:
    keep_arguments(path, undivided(arguments))
    with suppress(OSError):  # a mount that sets no times leaves that of now
        if newest_ns:
            os.utime(path, ns=(newest_ns, newest_ns))
            if path.stat().st_mtime_ns < newest_ns:  # some keep times in steps of two seconds
                os.utime(path, ns=(newest_ns + 2 * 10**9, newest_ns + 2 * 10**9))


def _remove(records: Path) -> None:
    # Under another name first: a kill during the removal must not leave some of the records.
    rubbish = records.with_name(f"{UNFINISHED}-no-more")
    shutil.rmtree(rubbish, ignore_errors=True)
    try:
        records = records.rename(rubbish)
    except OSError as error:
        if error.errno not in UNABLE | {errno.EXDEV, errno.EPERM}:  # of some FUSE and overlay mounts, for folders
            raise
    for entry in sorted(records.iterdir(), key=lambda entry: entry.name == ARGUMENTS):  # the next best order
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    records.rmdir()


def complete_run(folder: Path) -> Arguments | None:
    """The arguments of the run that is complete in `folder`, as far as that is known."""
    try:
        made = json.loads(read_file(folder / COMPLETE, open_regular, MAX_ARGUMENTS_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return made if isinstance(made, dict) else None


def _difference(was: Arguments, now: Arguments) -> str:
    """The first argument that is another, in a phrase; "" if none is."""
    for name in {**now, **was}:
        before, after = was.get(name), now.get(name)
        if before != after:
            return f"with {name} {_short(before)}, now it is {_short(after)}"
    return ""


def _short(value: object) -> str:
    text = json.dumps(value)
    if re.fullmatch('"[0-9a-f]{64}"', text):
        return f'"{text[1:9]}..." (a hash)'
    return text if len(text) <= 60 else f"{text[:57]}..."


def remove_results(folder: Path, *, existed: bool = True) -> None:
    """Remove what is not hidden, and what is if the folder was not there before, but for the lock."""
    for entry in folder.iterdir():
        if not entry.name.startswith(".") or not (existed or entry.name.startswith(LOCK)):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
