"""Files that appear under their name only when they are complete, and folders that are filled or left as they were."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import InputError


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a hidden temporary file for writing; on success sync it and rename it to `path`, else remove it."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the new name, too, must outlive a power failure
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def require_unused(folder: Path, *, hidden_files: bool = False) -> None:
    """Raise `InputError` unless `folder` is not there yet, or empty (but for hidden files, if those may be there)."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: give a new or an empty folder")
    names = sorted(entry.name for entry in folder.iterdir())
    if found := next((name for name in names if not (hidden_files and name.startswith("."))), None):
        raise InputError(f"{folder} is not empty (it holds {found}): give a new or an empty folder, or remove it")


@contextmanager
def filled_folder(folder: Path) -> Iterator[None]:
    """Fill an unused folder in place, beside hidden files; on failure leave it as it was.

    Raises `InputError` if it is in use.
    """
    require_unused(folder, hidden_files=True)
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for entry in folder.iterdir():
            if not existed or not entry.name.startswith("."):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if not existed:
            folder.rmdir()
        raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` to fill; on success it becomes `folder`, else it is removed.

    For what tells no one when it is complete. Raises `InputError` if `folder` is in use.
    """
    require_unused(folder)
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
