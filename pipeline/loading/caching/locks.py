"""The locks of a cache directory, held for milliseconds, or for as long as a file is filled; the kernel's own."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ETIMEDOUT
from pathlib import Path

from pipeline.files import naming

LOCK = ".lock"
LOCK_SEC = 10.0
"""Longest wait for the directory's lock: its holder may have been stopped."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Be the one process, and thread, that changes what is in the directory; raises `OSError` if it cannot be soon."""
    deadline = time.monotonic() + LOCK_SEC
    while (descriptor := _locked_file(directory / LOCK)) is None:
        if time.monotonic() > deadline:
            raise OSError(ETIMEDOUT, "another process holds its lock: end it, if it hangs", str(directory / LOCK))
        time.sleep(0.002)
    try:
        yield
    finally:
        unlock_and_close(descriptor)


def _locked_file(path: Path) -> int | None:
    """The descriptor of a lock file that is locked now; None while another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        with naming(path), suppress(FileNotFoundError):  # removed in between
            if try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def try_lock(descriptor: int) -> bool:
    """Lock an open file, unless another process, or thread, has; whether it is locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock_and_close(descriptor: int) -> None:
    """Unlock and close: a child that was forked may have the descriptor, too, and with it the lock."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
