"""Where bytes lie: in a folder, or behind a URL; what reads or writes them goes through this one seam.

Names are relative to the place. What is written appears whole or not at all. Failures are `OSError`s that name the
object, never a secret. Nothing that reads lists names: a public web server need not be able to.
"""

import importlib
import io
import mmap
import os
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from errno import EMFILE, ENFILE, EPERM
from pathlib import Path
from threading import Lock, get_ident
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pipeline.errors import InputError
from pipeline.files import UNABLE, ReadFile, map_file, open_file, read_file
from pipeline.regular_files import open_regular
from pipeline.resume import atomic_file

SCHEMES = ("s3", "gs", "az", "http", "https")
"""Of URLs that are read by `pipeline.object_storage`; file:// is a folder."""
MAX_OPEN_FILES = 256
STREAM_BYTES = 8 << 20
"""What is asked for at once, where a whole object is read from its beginning to its end."""
Content = bytes | memoryview
_HOST = re.compile(r"[\w.:\[\]-]+")
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_MISSPELT = re.compile(rf"({'|'.join(SCHEMES)}|file):(?!//)", re.IGNORECASE)
"""A URL without its two slashes, which `Path` makes one: as a path it would be a folder `s3:` of the working folder."""


class Url:
    """A place in object storage, or on a web server: `url / name` is an object below it. Raises `InputError`."""

    def __init__(self, text: str) -> None:
        try:
            parts = urlsplit(text)
        except ValueError as error:  # brackets of an IPv6 address
            raise InputError(f"{text.rpartition('@')[2]} is no URL: {error}") from None
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if parts.scheme not in SCHEMES or not _HOST.fullmatch(parts.netloc.rpartition("@")[2]):
            raise InputError(f"{shown} is no URL that fgbg reads: expected {', '.join(SCHEMES)}, each with ://")
        if "@" in parts.netloc or parts.query or parts.fragment:
            found = "a user or a password" if "@" in parts.netloc else "something behind ? or #"
            how = "give keys as the tools of that storage take them (environment, profile, role), and the bare URL"
            raise InputError(f"{shown} was given with {found}, which logs would show: {how}")
        self.text = shown.rstrip("/")

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}/{name}")

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        """What it lies in."""
        return Url(self.text.rpartition("/")[0])

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Url({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


Location = Path | Url
StrLocation = str | os.PathLike[str] | Url
"""How users give a location: see `location_of`."""


def location_of(text: StrLocation) -> Location:
    """A folder or a file as a path, all else that has a scheme as a `Url`; raises `InputError` for another scheme."""
    if isinstance(text, Url):
        return text
    given = os.fspath(text)
    if _MISSPELT.match(given):
        how = "give it as text, with two slashes behind the colon, or the full path of a folder of that name"
        raise InputError(f"{given} is no URL, but looks like one: {how}")
    if not (scheme := _URL.match(given)):
        return Path(text)
    if scheme[1].lower() != "file":
        return Url(given)
    parts = urlsplit(given)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{given} names the machine {parts.netloc}: expected file:///{parts.netloc}{parts.path}")
    return Path(unquote(parts.path))


class Stat(NamedTuple):
    """What is known of an object without reading it."""

    size: int
    """Bytes."""
    etag: str
    """Another one when the object was replaced; "" where none is told."""


class Storage(ABC):
    """The objects of one place; threads may share it. A copy, or what is unpickled, opens its files anew."""

    location: Location

    @abstractmethod
    def stat(self, name: str) -> Stat:
        """Size and etag; raises `FileNotFoundError`."""

    @abstractmethod
    def read(self, name: str, offset: int, size: int) -> Content:
        """`size` bytes from `offset` on, or those up to the object's end."""

    @abstractmethod
    def put(self, name: str, content: bytes | Path) -> None:
        """Write an object, from memory or from a local file; it replaces one of that name."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one of that name, which several processes may try; whether it was written.

        Where the answer was lost, the same bytes of another process count as written.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""

    @abstractmethod
    def names(self, prefix: str = "") -> list[str]:
        """Names of all objects that begin with `prefix`, sorted; for what writes alone."""

    def stats(self) -> dict[str, Stat]:
        """Sizes and etags of all objects by name; for what writes, and for sources of pictures."""
        return {name: self.stat(name) for name in self.names()}

    def read_all(self, name: str, most_bytes: int | None = None) -> bytes:
        """All of an object. Raises ValueError for more than `most_bytes`, and reads none."""
        require_at_most(most_bytes, size := self.stat(name).size)
        return bytes(self.read(name, 0, size))

    def open(self, name: str) -> io.BufferedReader:
        """An object as a stream, for reading from its beginning to its end."""
        return io.BufferedReader(_Stream(self, name), STREAM_BYTES)

    def map(self, name: str, most_bytes: int | None = None) -> bytes | mmap.mmap:
        """What `read_all` returns, mapped into memory where it is a local file: a folder's, or a verified copy."""
        return self.read_all(name, most_bytes)

    def drop(self, name: str) -> bool:
        """Forget the local copy of an object, which has turned out to be damaged; whether there was one."""
        return False

    def close(self) -> None:  # noqa: B027 - nothing to do where nothing stays open
        """Let go of files and connections; reading again opens them again."""

    def __truediv__(self, name: str) -> Location:
        """How an object is called in messages."""
        return self.location / name

    def __reduce__(self) -> tuple[Callable[..., "Storage"], tuple[Any, ...]]:
        return storage_of, (self.location,)


def require_at_most(most_bytes: int | None, size: int) -> None:
    """Raise ValueError for an object of more than `most_bytes`."""
    if most_bytes is not None and size > most_bytes:
        raise ValueError(f"it has {size:,} bytes")


class _Stream(io.RawIOBase):
    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name, self._position = storage, name, 0
        self._size = storage.stat(name).size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, (0, self._position, self._size)[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self._storage.read(self._name, self._position, min(len(buffer), self._size - self._position))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def readall(self) -> bytes:  # else a request every 8 KiB
        content = bytes(self._storage.read(self._name, self._position, self._size - self._position))
        self._position += len(content)
        return content


class Folder(Storage):
    """A folder of this machine. Only regular files are opened, see `regular_files`; a few stay open."""

    def __init__(self, location: Path) -> None:
        self.location: Path = location
        self._open_files: OrderedDict[str, ReadFile] = OrderedDict()
        self._opening = Lock()

    def stat(self, name: str) -> Stat:
        """See `Storage.stat`."""
        file = ReadFile(self.location / name, open_regular)
        status = os.fstat(file.descriptor)
        return Stat(status.st_size, f"{status.st_ino:x}-{status.st_mtime_ns:x}")

    def read(self, name: str, offset: int, size: int) -> bytes:
        """See `Storage.read`."""
        file = self._file(name)
        if size > STREAM_BYTES:  # memory is taken before it is read
            size = min(size, max(0, file.size - offset))
        return file.read(size, offset)

    def read_all(self, name: str, most_bytes: int | None = None) -> bytes:
        """See `Storage.read_all`."""
        return read_file(self.location / name, open_regular, most_bytes)

    def open(self, name: str) -> io.BufferedReader:
        """See `Storage.open`."""
        return open_file(self.location / name, open_regular)

    def map(self, name: str, most_bytes: int | None = None) -> bytes | mmap.mmap:
        """See `Storage.map`."""
        content = map_file(self.location / name, open_regular)
        require_at_most(most_bytes, len(content))
        return content

    def put(self, name: str, content: bytes | Path) -> None:
        """See `Storage.put`."""
        path = self.location / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(content if isinstance(content, bytes) else read_file(content))

    def create(self, name: str, content: bytes) -> bool:
        """See `Storage.create`."""
        path = self.location / name
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f"{path.name}.{os.getpid()}-{get_ident()}")
        try:
            with atomic_file(whole) as file:
                file.write(content)
            try:
                os.link(whole, path)
            except OSError as error:
                if error.errno not in UNABLE | {EPERM}:
                    raise
                with path.open("xb") as file:  # a file system without links: the next best
                    file.write(content)
        except FileExistsError:
            return False
        finally:
            whole.unlink(missing_ok=True)
        return True

    def remove(self, name: str) -> None:
        """See `Storage.remove`."""
        (self.location / name).unlink(missing_ok=True)

    def names(self, prefix: str = "") -> list[str]:
        """See `Storage.names`."""
        every = (path for path in self.location.rglob("*") if path.is_file())
        found = (path.relative_to(self.location).as_posix() for path in every)
        return sorted(name for name in found if name.startswith(prefix))

    def _file(self, name: str) -> ReadFile:
        """A file; it stays open as long as the caller holds it, whatever others open."""
        with self._opening:
            file = self._open_files.get(name)
            if file is None:
                file = self._open_files[name] = self._opened(name)
                if len(self._open_files) > MAX_OPEN_FILES:
                    self._open_files.popitem(last=False)
            else:
                self._open_files.move_to_end(name)
            return file

    def _opened(self, name: str) -> ReadFile:
        try:
            return ReadFile(self.location / name, open_regular)
        except OSError as error:
            if error.errno not in (EMFILE, ENFILE):
                raise
        self._open_files.clear()  # fewer may be open than are kept
        return ReadFile(self.location / name, open_regular)

    def close(self) -> None:
        """See `Storage.close`."""
        with self._opening:
            self._open_files.clear()


def open_location(location: Location) -> io.BufferedReader:
    """A file, or an object, as a stream, for reading from its beginning to its end."""
    return storage_of(location.parent).open(location.name)


def is_there(location: Location) -> bool:
    """Whether there is a file, or an object, at a location."""
    if isinstance(location, Path):
        return location.is_file()
    try:
        storage_of(location.parent).stat(location.name)
    except FileNotFoundError:
        return False
    return True


def storage_of(location: StrLocation | Storage) -> Storage:
    """The storage of a folder or a URL; raises `InputError` for a URL of a scheme that fgbg does not read."""
    if isinstance(location, Storage):
        return location
    place = location_of(location)
    if isinstance(place, Path):
        return Folder(place)
    storage: Storage = importlib.import_module("pipeline.object_storage").ObjectStorage(place)
    return storage
