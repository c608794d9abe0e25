"""A cache directory that all processes of a host share: `DIR/<sha256 of manifest.json>/sets-000123.tar`.

The directory itself is the state. What is under way is a hidden file, of its full size from the beginning and locked by
the kernel for whoever fills it; it appears under its name when it is complete and verified. All that adds, names or
removes files holds one short lock. After `kill -9` nothing is left but hidden files that nobody has locked, which the
next process removes. (After a power failure a file may hold other bytes: checksums find that, as they find bit rot.)
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from errno import ENOENT, ENOSPC
from pathlib import Path
from stat import S_ISDIR
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.files import naming, user_cache, write_file
from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST
from pipeline.loading.caching.locks import locked, try_lock, unlock_and_close
from pipeline.storage import Url, location_of

IN_USE = ".in-use"
DATA_SET = re.compile("[0-9a-f]{64}")
PARTIAL = re.compile(r"\.(.+)\.partial")
NETWORK = re.compile(
    "nfs|cifs|smb|fuse|lustre|9p|ceph|gpfs|beegfs|gluster|afs|orangefs|pvfs|wekafs|panfs|virtiofs|vboxsf|vmhgfs|prl_fs"
)
"""How the types of file systems begin that are on other machines, or in user space (but for fuseblk, a local disk)."""


class CachedFile(NamedTuple):
    """What may be cached."""

    name: str
    size: int
    sha256: str


class FileInfo(NamedTuple):
    """What is known of a file."""

    size: int
    changed_ns: int


class Idle(NamedTuple):
    """A file of another data set that may go."""

    path: Path
    size: int


class Listing:
    """What is in the directory; true while its lock is held."""

    def __init__(self) -> None:
        self.total = 0
        """Bytes of all files, those under way at their full size."""
        self.complete: dict[str, int] = {}
        """Files of this data set, and their bytes."""
        self.partial: dict[str, int] = {}
        """Those that a process of this host downloads."""
        self.reclaimable: list[Idle] = []
        """What may go of other data sets, the first first."""
        self.evicted = 0
        """Files that were given up meanwhile."""


def cache_directory(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder that the user gives, which may not be a URL or a file, or the one in the user's cache folder (XDG).

    Raises `InputError`.
    """
    place = location_of(given) if given else user_cache()
    if isinstance(place, Url):
        raise InputError(f"the cache folder {place} is a URL: give --cache a folder on a local disk")
    place = place.expanduser()
    is_file = False
    with suppress(OSError):  # where it is used, that is told of
        is_file = not S_ISDIR(place.stat().st_mode)
    if is_file:
        raise InputError(f"the cache folder {place} is a file: give --cache a folder on a local disk")
    return place


def require_local(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Raise `InputError` for a directory on a network file system, as far as that is known; see proc(5)."""
    place, kind = os.path.realpath(directory), ""
    with suppress(OSError):
        nearest = 0
        for line in mounts.read_text(errors="surrogateescape").splitlines():
            fields, _, about = line.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4])
            if len(point) >= nearest and f"{place}/".startswith(f"{point.rstrip('/')}/"):
                nearest, kind = len(point), about.split()[0]
    if NETWORK.match(kind) and kind != "fuseblk":
        raise InputError(
            f"the cache folder {directory} is on a network file system ({kind}): give --cache a folder on a local disk"
        )


class CacheFolder:
    """The files of one data set in the directory. What fails raises `OSError`, and leaves nothing half-done."""

    def __init__(self, directory: Path, sha256: str, limit_bytes: int, manifest_text: Callable[[], bytes]) -> None:
        """`limit_bytes` is for all that is in the directory; `manifest_text` returns the bytes of manifest.json."""
        self.directory, self.limit_bytes = directory, limit_bytes
        self.folder = directory / sha256
        self._manifest_text = manifest_text
        self._in_use: int | None = None
        self._known = dict[Path, dict[str, FileInfo]]()  # as they were listed last, by folder

    @contextmanager
    def listed(self) -> Iterator[Listing]:
        """Hold the directory's lock, as one that uses this data set; stale files are removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = b"" if self.has(MANIFEST) else self._manifest_text()
        with locked(self.directory):
            self._join()
            folders = [folder for folder in self.directory.iterdir() if DATA_SET.fullmatch(folder.name)]
            self._known = {folder: files_of(folder, self._known.get(folder)) for folder in folders}
            listing, others = Listing(), dict(self._known)
            for name, file in others.pop(self.folder).items():
                if partial := PARTIAL.fullmatch(name):
                    listing.partial[partial[1]] = file.size
                else:
                    listing.complete[name] = file.size
            listing.total = sum(file.size for files in self._known.values() for file in files.values())
            listing.reclaimable = self._reclaimable(listing, others)
            if text and MANIFEST not in listing.complete:
                self._make_room(listing, len(text), ())
                write_file(self._partial(MANIFEST), text)
                self._partial(MANIFEST).rename(self.path(MANIFEST))
                listing.complete[MANIFEST] = len(text)
                listing.total += len(text)
            yield listing

    def path(self, name: str) -> Path:
        """Where a file is when it is there."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether a file is there, as far as that may be known."""
        try:
            self.path(name).stat()
        except OSError:
            return False
        return True

    def _partial(self, name: str) -> Path:
        return self.folder / f".{name}.partial"

    def _join(self) -> None:
        """Let other processes know that this data set is in use."""
        path = self.folder / IN_USE
        with suppress(FileNotFoundError):
            if self._in_use is not None and os.path.samestat(os.fstat(self._in_use), path.stat()):
                return
        self.leave()
        self._in_use = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with naming(path):
            fcntl.flock(self._in_use, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def leave(self) -> None:
        """Use this data set no more, until it is listed again."""
        if self._in_use is not None:
            with suppress(OSError):
                os.utime(self._in_use)
                fcntl.flock(self._in_use, fcntl.LOCK_UN)  # a child that was forked may hold it, too
            self.forget()

    def forget(self) -> None:
        """As `leave`, in a child that was forked: its parent goes on."""
        if self._in_use is not None:
            os.close(self._in_use)
            self._in_use = None

    def _reclaimable(self, listing: Listing, others: dict[Path, dict[str, FileInfo]]) -> list[Idle]:
        """What may go of other data sets: what is not in use, and of what is, as much as a fair share allows.

        Each data set in use may fill its share of the limit, and what others leave. What one holds above its share goes
        to those that are below theirs, what was downloaded first first.
        """
        in_use = {folder: files for folder, files in others.items() if _is_in_use(folder)}
        found = []
        for folder in sorted(others.keys() - in_use.keys(), key=_last_use):
            found += [Idle(folder / name, file.size) for name, file in _by_age(others[folder])]
        fair = self.limit_bytes // (1 + len(in_use))
        missing = fair - sum(listing.complete.values()) - sum(listing.partial.values())
        for folder, files in in_use.items():
            excess = sum(file.size for file in files.values()) - fair
            for name, file in _by_age(files):
                if min(excess, missing) > 0 and name not in (MANIFEST, INDEX, BACKGROUNDS):
                    found.append(Idle(folder / name, file.size))
                    excess, missing = excess - file.size, missing - file.size
        return found

    def room(self, listing: Listing) -> int:
        """Bytes that may be added without giving up any of this data set."""
        return self.limit_bytes - listing.total + sum(idle.size for idle in listing.reclaimable)

    def begin(self, listing: Listing, file: CachedFile, victims: Sequence[str]) -> int:
        """Begin a download, for which files of this data set are given up where needed; its open, locked, hidden file.

        Raises `FileExistsError` where it was begun already, `OSError` with ENOSPC without room.
        """
        path = self._partial(file.name)
        self._make_room(listing, file.size, victims)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with naming(path):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, file.size)
        except BaseException:
            self.abandon(file, descriptor)
            unlock_and_close(descriptor)
            raise
        listing.partial[file.name] = file.size
        listing.total += file.size
        return descriptor

    def idle_sec(self, name: str) -> float:
        """Time since something came of a download that is under way, in whatever process; 0 where none is."""
        with suppress(OSError):
            return time.time() - self._partial(name).stat().st_mtime
        return 0.0

    def _make_room(self, listing: Listing, size: int, victims: Sequence[str]) -> None:
        if size > self.room(listing) + sum(listing.complete[name] for name in victims):
            raise OSError(ENOSPC, "no room within its limit: give more --cache-size", str(self.directory))
        while listing.total + size > self.limit_bytes and listing.reclaimable:
            path, freed = listing.reclaimable.pop(0)
            _remove(path)
            listing.total -= freed
            listing.evicted += 1
        for name in victims:
            if listing.total + size > self.limit_bytes:
                _remove(self.path(name))
                listing.total -= listing.complete.pop(name)
                listing.evicted += 1

    def finish(self, file: CachedFile, descriptor: int) -> None:
        """Let a verified download appear under its name."""
        partial = self._partial(file.name)
        with locked(self.directory):
            if not os.path.samestat(os.fstat(descriptor), partial.stat()):
                raise FileNotFoundError(ENOENT, os.strerror(ENOENT), str(partial))
            partial.rename(self.path(file.name))

    def abandon(self, file: CachedFile, descriptor: int) -> None:
        """Remove a download that was begun; its lock ends when it is closed."""
        partial = self._partial(file.name)
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), partial.stat()):
                partial.unlink()

    def remove(self, name: str) -> None:
        """Give up a file, if it is there."""
        with suppress(FileNotFoundError), locked(self.directory):
            self.path(name).unlink()


def files_of(folder: Path, known: Mapping[str, FileInfo] | None = None) -> dict[str, FileInfo]:
    """The files of a data set; downloads that nobody fills any more are removed.

    A file of a name has one size, so that those `known` before are not looked at again, of which there may be 100,000.
    """
    known, found = known or {}, {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name == IN_USE or (name[0] == "." and PARTIAL.fullmatch(name) and _is_stale(Path(entry.path))):
                continue
            if (file := known.get(name)) is None:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # an abandoned download
                    continue
                file = FileInfo(status.st_size, status.st_mtime_ns)
            found[name] = file
    return found


def _is_stale(partial: Path) -> bool:
    """Whether nobody fills this file; it is gone then."""
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if is_stale := try_lock(descriptor):
            partial.unlink(missing_ok=True)
        return is_stale
    finally:
        unlock_and_close(descriptor)


def _is_in_use(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / IN_USE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        unlock_and_close(descriptor)


def _last_use(folder: Path) -> int:
    """When a data set was used last, nanoseconds."""
    with suppress(FileNotFoundError):
        return (folder / IN_USE).stat().st_mtime_ns
    return 0


def _by_age(files: dict[str, FileInfo]) -> list[tuple[str, FileInfo]]:
    """What may be removed, oldest first; the manifest, which says what the others must be, last."""
    whole = [(name, file) for name, file in files.items() if not PARTIAL.fullmatch(name)]
    return sorted(whole, key=lambda item: (item[0] == MANIFEST, item[1].changed_ns))


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    if path.name == MANIFEST:  # the last
        with suppress(OSError):
            (path.parent / IN_USE).unlink(missing_ok=True)
            path.parent.rmdir()
