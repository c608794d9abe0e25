"""Files on any file system: what some mounts cannot do is done without, and what fails in passing is tried again.

Network shares, object storage behind FUSE and shared folders of virtual machines lack one or the other of sync, locks
and shared mappings, and now and then a read fails that would do a second later.
"""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

UNABLE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTTY})
"""What a file system gives that knows no sync, or none of folders."""
WRITE_BYTES = 1 << 20


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let an `OSError` that names no file, such as one of `write`, name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


class _WrittenFile(io.RawIOBase):
    """A new file whose errors name it.

    It tells no file descriptor: libraries that find one write behind Python's back, and make "4096 requested and 1024
    written" (NumPy) or "encoder error -2" (Pillow) of a full disk.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._descriptor, offset, whence)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        with naming(self._path):
            os.ftruncate(self._descriptor, size)
        return size

    def write(self, data: Any) -> int:
        with naming(self._path):
            return os.write(self._descriptor, data)

    def sync(self) -> None:
        with naming(self._path), unable_passed_over():
            os.fsync(self._descriptor)

    def close(self) -> None:
        if not self.closed:
            super().close()
            with naming(self._path):  # NFS tells of a full disk only here
                os.close(self._descriptor)


@contextmanager
def unable_passed_over() -> Iterator[None]:
    """Pass over that a file system cannot do something; what it tried and failed to do is raised."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNABLE:
            raise


@contextmanager
def written_file(path: Path, *, append: bool = False, sync: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for writing, anew or at its end; its `OSError`s name it. With `sync` it is on disk afterwards."""
    raw = _WrittenFile(path, os.O_APPEND if append else os.O_TRUNC)
    with io.BufferedWriter(raw, WRITE_BYTES) as file:
        yield file
        file.flush()
        if sync:
            raw.sync()


def write_file(path: Path, content: bytes) -> int:
    """Write a whole file; return its number of bytes. An `OSError` names it."""
    with written_file(path) as file:
        return file.write(content)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlive a power failure, where its file system can promise that."""
    with suppress(PermissionError), unable_passed_over():
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with naming(folder):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
