"""Where results shall go: looked at before the work is done, not after it."""

import os
from pathlib import Path

from pipeline.errors import InputError
from pipeline.storage import Location, storage_of


def require_writable(folder: Location) -> None:
    """Raise `InputError` unless `folder` can be written to, or made: nothing is made here.

    Of a URL, `OSError` unless what is behind it can be listed, as by those who may write: no web server can.
    """
    if not isinstance(folder, Path):
        storage_of(folder).names()
        return
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{there} is a file: give a folder, or a place in one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there} cannot be written to: give another folder, or the right to write there")


def require_file(path: Path) -> None:
    """Raise `InputError` unless a file can be written at `path`."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    require_writable(path.parent)
