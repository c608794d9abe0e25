"""Files on any file system: what some mounts cannot do is done without, and what fails in passing is tried again.

Network shares, object storage behind FUSE and shared folders of virtual machines lack one or the other of sync, locks
and shared mappings, and now and then a read fails that would do a second later.
"""

import errno
import io
import math
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")

UNABLE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTTY})
"""What a file system gives that knows no sync, or none of folders."""
PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EREMOTEIO, errno.ECONNRESET,
     errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET}
)  # fmt: skip
"""What a read from a network share, or from object storage behind FUSE, gives now and then, and not again."""
PAUSES_SEC = (0.1, 0.5, 2.0)  # before a read is tried again
WRITE_BYTES = 1 << 20
Opener = Callable[[str, int], int]
"""As `os.open`: (path, flags) to a file descriptor."""


def open_any(path: str, flags: int) -> int:
    """Open a file of any kind."""
    return os.open(path, flags)


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


def write_file(path: Path, content: bytes | bytearray | memoryview, offset: int | None = None) -> int:
    """Write a whole file, or with `offset` a part of one that is there; return how many bytes. `OSError`s name it."""
    how = os.O_CREAT | os.O_TRUNC if offset is None else 0
    rest, place = memoryview(content).cast("B"), offset or 0
    with naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | how, 0o666)
        try:
            while rest:
                written = os.pwrite(descriptor, rest, place)
                rest, place = rest[written:], place + written
        finally:
            os.close(descriptor)
    return place - (offset or 0)


def user_cache() -> Path:
    """The folder for fgbg in the user's cache folder (XDG Base Directory Specification); it may not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgbg"


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlive a power failure, where its file system can promise that."""
    with suppress(PermissionError), unable_passed_over():
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with naming(folder):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def retried(action: Callable[[], Result]) -> Result:
    """What `action` returns; a passing error of it is raised only if it comes again after each of some pauses."""
    for pause_sec in PAUSES_SEC:
        try:
            return action()
        except OSError as error:
            if error.errno not in PASSING:
                raise
        time.sleep(pause_sec)
    return action()


class ReadFile:
    """A file open for reading at any place, by any number of threads; closed when nobody holds it any more.

    A read is tried again after a passing error, on the file opened anew: a handle that is stale stays so. Its
    `OSError`s name it.
    """

    def __init__(self, path: str | os.PathLike[str], opener: Opener = open_any) -> None:
        self.path = os.fspath(path)
        self._opener = opener
        self.descriptor = retried(self._open)

    def _open(self) -> int:
        with naming(self.path):
            return self._opener(self.path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def size(self) -> int:
        """Its bytes, as the file system has them now."""
        return os.fstat(self.descriptor).st_size

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes, or those up to the file's end."""
        try:
            return self._read(size, offset)
        except OSError:
            return self._read_again(size, offset)

    def _read_again(self, size: int, offset: int) -> bytes:
        def read() -> bytes:
            with suppress(OSError):
                self._reopen()
            with naming(self.path):
                return self._read(size, offset)

        return retried(read)

    def _read(self, size: int, offset: int) -> bytes:
        content = os.pread(self.descriptor, size, offset)
        if len(content) in (0, size):
            return content
        chunks = [content]
        while chunks[-1] and (missing := size - sum(map(len, chunks))):
            chunks.append(os.pread(self.descriptor, missing, offset + size - missing))
        return b"".join(chunks)

    def _reopen(self) -> None:
        """Put the file, opened anew, behind the same descriptor, from which other threads may be reading."""
        descriptor = self._open()
        os.dup2(descriptor, self.descriptor, inheritable=False)
        os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open file cannot be copied: two owners would close it twice")


class ReadStream(io.RawIOBase):
    """A `ReadFile` from its beginning to its end; `position` is where the next read begins, bytes."""

    def __init__(self, path: str | os.PathLike[str], opener: Opener) -> None:
        self.file, self.position = ReadFile(path, opener), 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set `position`, and return it; raise `OSError` for one before the beginning."""
        start = (0, self.position, self.file.size)[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.file.path)
        self.position = start + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or the beginning of it at the end of the file; return how many bytes."""
        content = self.file.read(len(buffer), self.position)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def fileno(self) -> int:
        """For `fstat` and positional reads."""
        return self.file.descriptor


READ_BYTES = 1 << 16


def open_file(path: str | os.PathLike[str], opener: Opener = open_any) -> io.BufferedReader:
    """Open a file for reading from its beginning, as `open` does; passing errors are tried again."""
    return io.BufferedReader(ReadStream(path, opener), READ_BYTES)


def read_file(path: str | os.PathLike[str], opener: Opener = open_any, most_bytes: int | None = None) -> bytes:
    """All of a file; passing errors are tried again. Raises ValueError for more than `most_bytes`, and reads none."""
    file = ReadFile(path, opener)
    if most_bytes is not None and file.size > most_bytes:
        raise ValueError(f"it has {file.size:,} bytes")
    if size := file.size:
        return file.read(size, 0)
    return io.BufferedReader(ReadStream(path, opener)).read()  # some FUSE tell no size


def map_file(path: str | os.PathLike[str], opener: Opener = open_any) -> bytes | mmap.mmap:
    """The bytes of a file, mapped into memory, or read where its file system cannot map files.

    The mapping is a private one: FUSE and 9p refuse others.
    """
    file = ReadFile(path, opener)
    if not (size := file.size):
        return b""
    with suppress(OSError):
        return mmap.mmap(file.descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    return read_file(path, opener)


def map_array(path: str | os.PathLike[str], opener: Opener = open_any) -> NDArray[Any]:
    """The array of an .npy file, not to be written to, as `map_file` has its bytes; raise ValueError if it is none."""
    return npy_array(map_file(path, opener))


def npy_array(content: bytes | mmap.mmap) -> NDArray[Any]:
    """The array of an .npy file's bytes, which it shares, not to be written to; raise ValueError if it is none."""
    start = io.BytesIO(content[:READ_BYTES])
    version = np.lib.format.read_magic(start)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(start)
    array = np.frombuffer(content, dtype, math.prod(shape), start.tell())
    return array.reshape(shape, order="F" if fortran_order else "C")
