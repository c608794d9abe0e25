"""Files that appear under their name only when they are complete, and long runs that can be resumed when stopped."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.errors import InputError
from pipeline.files import read_file, sync_folder, written_file
from pipeline.locks import LOCK, locked
from pipeline.regular_files import NotRegular, open_regular

UNFINISHED, ARGUMENTS = ".unfinished", "arguments.json"


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a hidden temporary file for writing; on success sync it and rename it to `path`, else remove it."""
    temporary = path.with_name(f".{path.name}.partial")
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
        raise InputError(f"{folder} is unfinished: run the same {begun['command']} again, which continues it")


def unfinished_run(folder: Path) -> dict[str, Any] | None:
    """The arguments of the run that was stopped half-way in `folder`; raise `InputError` where they cannot be read."""
    records = folder / UNFINISHED
    try:
        if records.is_symlink():  # what is written and removed there would be elsewhere
            raise InputError(f"{records} is a link, which no run makes: remove it")
        begun = json.loads(read_file(records / ARGUMENTS, open_regular))
        if not isinstance(begun, dict) or not isinstance(begun.get("command"), str):
            raise ValueError("it names no command")
    except NotRegular:
        raise
    except OSError:
        return None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{records / ARGUMENTS} is damaged ({error}): remove {records}, then begin again") from None
    return begun


@contextmanager
def resumable(folder: Path, arguments: Mapping[str, object], *, fresh: bool = True) -> Iterator[Path]:
    """Do a long run in `folder`, which a later call with the same arguments continues where this one was stopped.

    Yields a hidden folder for progress records, a file for each piece that is done; it is removed when the run is
    complete. `arguments` decide the result, are plain JSON and name the "command".

    `fresh`: the folder has to be new or empty but for hidden files. It is left so by an `InputError`, after which the
    input must change, and by a stop before the first record. Raises `InputError` where the folder is in use, where
    another run is unfinished in it, and while another process works in it.
    """
    records = folder / UNFINISHED
    wanted = json.loads(json.dumps(arguments))
    existed = folder.exists()
    begun = unfinished_run(folder)
    if begun is None and fresh:
        require_unused(folder)
    for name, value in wanted.items():
        if begun is not None and begun.get(name) != value:
            was = f"{folder} holds an unfinished {begun['command']} with {name} {_short(begun.get(name))}"
            raise InputError(
                f"{was}, now it is {_short(value)}: continue with the same, or remove {folder if fresh else records}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            records.mkdir(exist_ok=True)
            if begun is None:
                with atomic_file(records / ARGUMENTS) as file:
                    file.write(json.dumps(wanted, indent=1).encode())
            try:
                yield records
            except BaseException as error:
                recorded = any(
                    entry.name != ARGUMENTS and not entry.name.startswith(".") for entry in records.iterdir()
                )
                if recorded and not (fresh and isinstance(error, InputError)):
                    error.add_note(f"what is done is kept in {folder}: the same command continues it")
                else:
                    shutil.rmtree(records)
                    if fresh:
                        _empty(folder, existed)
                raise
            # Under another name first: a kill during the removal must not leave some of the records.
            rubbish = folder / f"{UNFINISHED}-no-more"
            shutil.rmtree(rubbish, ignore_errors=True)
            shutil.rmtree(records.rename(rubbish))
    finally:
        if not existed:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _empty(folder: Path, existed: bool) -> None:
    """Remove what is not hidden, and what is if the folder was not there before, but for the lock."""
    for entry in folder.iterdir():
        if not entry.name.startswith(".") or not (existed or entry.name.startswith(LOCK)):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
