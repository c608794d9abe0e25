"""A hidden folder on the local disk, for what is written there before it is put elsewhere."""

import atexit
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.errors import InputError
from pipeline.locks import locked

PREFIX = ".fgbg-staging-"
NEW_SEC = 60.0
"""For which a folder that nobody has locked may be one whose process has just begun."""


@contextmanager
def staging_folder() -> Iterator[Path]:
    """A new folder among the system's temporary ones (TMPDIR), removed at the end; those of killed processes, too."""
    _remove_leftovers(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def process_folder() -> Path:
    """The one of this process, for as long as it lives."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(staging_folder())


def _remove_leftovers(place: Path) -> None:
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError, InputError):  # another process is at work there, or removes it, too
            status = folder.lstat()
            if status.st_uid == os.getuid() and folder.is_dir() and status.st_mtime < time.time() - NEW_SEC:
                with locked(folder):
                    shutil.rmtree(folder)
