"""Long runs whose results go to object storage, by any number of processes; see `resume` for those in folders.

The arguments of a run are created there first, below `.unfinished/` as its progress records are, and one object of its
results last, which is created only where there is none: without it, there are no results. So runs of other arguments
are refused, and those of the same, whose bytes are the same, may work side by side, or go on with what another one has
left, on any machine.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import EBUSY
from uuid import uuid4

from pipeline.errors import AlreadyComplete, InputError, is_bad_input
from pipeline.resume import (
    ARGUMENTS,
    COMPLETE,
    MAX_ARGUMENTS_BYTES,
    PARTS,
    UNFINISHED,
    Arguments,
    parse_arguments,
    require_made_with,
    require_unchanged,
    require_unfinished_with,
    undivided,
)
from pipeline.storage import Storage

RECORDS = f"{UNFINISHED}/"
BEGUN = f"{RECORDS}{ARGUMENTS}"
WRITER = f"{RECORDS}writer-"
"""Beginning of an object of each process that is at work, or was killed."""
BY = "by"
"""Which writer has created BEGUN, beside its arguments."""
NEWEST = ".newest.txt"
"""When the source of a complete run was changed last, ns since the epoch; a folder has it as the time of a file."""


class RemoteWork:
    """A run that is at work in object storage: see `resumable_remotely`."""

    def __init__(self, storage: Storage, arguments: Mapping[str, object], last: str, newest_ns: int) -> None:
        self.storage, self.last, self._newest_ns = storage, last, newest_ns
        self._arguments: Arguments = json.loads(json.dumps(arguments))
        self._writer = f"{WRITER}{uuid4().hex}"
        self.names = set[str]()
        """Of all objects that were there at the beginning."""

    def begin(self, result: Callable[[set[str]], str]) -> None:
        """Let this be the run there, or join the same one; `result` and the errors as for `resumable_remotely`."""
        # What others write may be there as soon as the run has begun, so what is not theirs is looked for before.
        before = self.storage.names()
        found = "" if BEGUN in before else min(filter(_is_shown, before), default="")
        # Of this process alone: where an answer is lost, what is the same counts as created.
        is_first = self.storage.create(BEGUN, _text({**self._arguments, BY: self._writer}))
        try:
            self._join(result, found, is_first=is_first)
        except BaseException:
            if is_first:
                with suppress(OSError):
                    if found or self.storage.names(RECORDS) == [BEGUN]:  # else others have joined
                        self.storage.remove(BEGUN)
            raise
        self.storage.put(self._writer, b"")

    def _join(self, result: Callable[[set[str]], str], found: str, *, is_first: bool) -> None:
        self.names = set(self.storage.names())
        if self.last in self.names:
            self._remove(name for name in self.names if name.startswith(RECORDS))
            raise self._complete(result)
        if not is_first:
            place = self.storage.location
            if (begun := begun_arguments(self.storage)) is None:
                raise self.ended()
            require_unfinished_with(place, begun, self._arguments, place)
        elif found:
            raise self._in_use(found)

    def ended(self) -> InputError:
        """What to raise where another process has ended the run meanwhile."""
        place = self.storage.location
        return InputError(f"another process was at work in {place} just now: give the same command again")

    def _in_use(self, found: str) -> InputError:
        place = self.storage.location
        return InputError(f"{place} is not empty (it holds {found}): give a new or an empty place, or remove it")

    def _complete(self, result: Callable[[set[str]], str]) -> Exception:
        """What to raise where there are results."""
        place, made = self.storage.location, complete_arguments(self.storage) or {}
        if made.get("command") != self._arguments["command"]:
            return self._in_use(self.last)
        require_made_with(place, made, undivided(self._arguments))
        with suppress(FileNotFoundError, ValueError):
            require_unchanged(place, self._newest_ns, int(self.storage.read_all(NEWEST, 100)))
        return AlreadyComplete(f"{place}: already complete: {result(self.names)}")

    def pause(self) -> None:
        """Leave the run to other processes, or to a later call, which finds what this one has recorded."""
        self.storage.remove(self._writer)

    def finish(self, last: bytes) -> None:
        """Create the last object of the results, all others of which are there."""
        self.storage.put(COMPLETE, _text(undivided(self._arguments)))
        if self._newest_ns:
            self.storage.put(NEWEST, str(self._newest_ns).encode())
        if not self.storage.create(self.last, last) and self.storage.read_all(self.last) != last:
            raise self.changed(self.last)
        self._remove(self.storage.names(RECORDS))

    def changed(self, name: str) -> OSError:
        """What to raise where an object is not as this run has left it."""
        why = "another process has written other bytes there: let one write, or remove it and begin again"
        return OSError(EBUSY, why, str(self.storage / name))

    def leave(self, error: BaseException) -> None:
        """After an error: let the same command go on, or take all away if none can, and no other process may."""
        names = self.storage.names()
        records = [name for name in names if name.startswith(RECORDS)]
        alone = not any(name.startswith(WRITER) and name != self._writer for name in records)
        recorded = any(name != BEGUN and not name.startswith(WRITER) for name in records)
        place = self.storage.location
        if self.last in names:
            self._remove(records)
        elif recorded and PARTS in self._arguments and is_bad_input(error):
            self.pause()  # what others have done stays, whatever this process has found
        elif recorded and not is_bad_input(error):
            self.pause()
            error.add_note(f"what is done is kept in {place}: the same command continues it")
        elif alone:
            self._remove([*filter(_is_shown, names), *records])
        else:
            self.pause()
            error.add_note(f"what is done stays in {place}, where another process may be at work")

    def _remove(self, names: Iterable[str]) -> None:
        for name in sorted(names, key=lambda name: name == BEGUN):  # it goes last: what it stands for is gone
            self.storage.remove(name)


def begun_arguments(storage: Storage) -> Arguments | None:
    """The arguments of the run that is at work in a place, or was stopped; raise `InputError` if they are damaged."""
    try:
        begun = parse_arguments(storage.read_all(BEGUN, MAX_ARGUMENTS_BYTES))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        place, where = storage.location, storage / BEGUN
        raise InputError(f"{where} is damaged ({error}): remove {place}, then begin again") from None
    begun.pop(BY, None)
    return begun


def complete_arguments(storage: Storage) -> Arguments | None:
    """The arguments of the run that is complete in a place, as far as that is known."""
    try:
        return parse_arguments(storage.read_all(COMPLETE, MAX_ARGUMENTS_BYTES))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _is_shown(name: str) -> bool:
    return not name.startswith(".")


def _text(arguments: Arguments) -> bytes:
    return json.dumps(arguments, indent=1).encode()


@contextmanager
def resumable_remotely(
    storage: Storage,
    arguments: Mapping[str, object],
    last: str,
    result: Callable[[set[str]], str],
    newest_ns: int = 0,
) -> Iterator[RemoteWork]:
    """Do a long run into object storage, which a later call with the same arguments continues.

    The caller puts progress records below `.unfinished/`, and lets the run `finish` with the object `last`.
    `arguments`, `newest_ns` and errors are as for `resume.resumable`, of a fresh run; `result` is told the names of all
    objects. Raises `OSError` where other bytes were written by another process.
    """
    run = RemoteWork(storage, arguments, last, newest_ns)
    try:
        run.begin(result)
        try:
            yield run
        except BaseException as error:
            if isinstance(error, ConnectionError | TimeoutError):  # the storage was waited for already
                error.add_note(f"what is done stays in {storage.location}: the same command continues it")
            else:
                with suppress(OSError):
                    run.leave(error)
            raise
    finally:
        storage.close()
