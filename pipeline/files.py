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


@contextmanager
def empty_folder(folder: Path) -> Iterator[Path]:
    """Make `folder`, or take it if it is empty but for hidden files; on failure leave it as it was.

    Raises `InputError` if it is something else, or holds anything.
    """
    existed = folder.exists()
    if existed:
        if not folder.is_dir():
            raise InputError(f"{folder} is a file: give a new or an empty folder")
        if found := next((entry.name for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")), None):
            raise InputError(f"{folder} is not empty (it holds {found}): give a new or an empty folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        for entry in folder.iterdir():
            if not existed or not entry.name.startswith("."):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if not existed:
            folder.rmdir()
        raise
