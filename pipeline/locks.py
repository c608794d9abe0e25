"""A folder in which one process works at a time, on any file system."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.files import UNABLE, naming

LOCK, OWNED = ".lock", ".lock-owned"
NO_LOCKS = UNABLE | {errno.ENOLCK}
RENEW_SEC = 20.0
STALE_SEC = 120.0
"""For which a lock of a machine that is gone may stay: NFS 4 keeps it for 90 s; without a renewal, OWNED is stale."""
TELL_SEC = 5.0
"""After which a process that waits says so."""
FIRST_PAUSE_SEC, PAUSE_SEC = 0.05, 1.0
"""Between two looks, at first and later."""


class AtWork(InputError):  # noqa: N818 - not of the program
    """Another process works in a folder."""


class Owner(NamedTuple):
    """A process that owns a lock."""

    host: str
    pid: int
    started: str
    """Boot, name space and start of the process: tells it from another one of the same number."""

    @classmethod
    def of_process(cls, pid: int) -> "Owner | None":
        """The process of a number on this machine; None if there is none, or it cannot be seen."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            space = Path("/proc/self/ns/pid").stat().st_ino
            about = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()  # proc(5)
            state, start_ticks = about[0], about[19]
        except (OSError, IndexError):
            return None
        return cls(socket.gethostname(), pid, f"{boot} {space} {'ended' if state in 'ZX' else start_ticks}")

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}"

    def has_ended(self) -> bool:
        """Whether the process is known to have ended: of one elsewhere, in another container too, nobody can tell."""
        here = Owner.of_process(os.getpid())
        if here is None or here.host != self.host or here.started.split()[:2] != self.started.split()[:2]:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        now = Owner.of_process(self.pid)
        return now is not None and now != self


def _silent(line: str) -> None:
    pass


@contextmanager
def held(
    folder: Path, *, patience_sec: float = 0.0, also_here: bool = False, say: Callable[[str], None] = _silent
) -> Iterator[bool]:
    """Make `folder` if need be, and be the one process that works in it; if it was made, it goes when it stays empty.

    Yields whether it was made. Raises `AtWork` while another process works in it, see `locked`, and `InputError` where
    it is a file.
    """
    existed = folder.exists()
    if existed and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a new or an empty folder")
    try:
        with ExitStack() as working:
            while True:
                folder.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # another process that has made it has removed it again
                    working.enter_context(locked(folder, patience_sec=patience_sec, also_here=also_here, say=say))
                    break
            yield not existed
    finally:
        if not existed:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


@contextmanager
def locked(
    folder: Path, *, patience_sec: float = 0.0, also_here: bool = False, say: Callable[[str], None] = _silent
) -> Iterator[None]:
    """Be the one process that works in `folder`, which exists; raise `AtWork` while another one does.

    The lock is a hidden file there, locked by the system, so that it ends with the process, however that ends. Where
    the file system knows no locks, another file is the lock by being there: it is taken over from a process of this
    machine that has ended, and for any other the message says which file to remove.

    With `patience_sec` (0 or STALE_SEC) the lock of a process elsewhere is waited for that long: a machine that is gone
    may have left it. A file that is the lock is then taken over if nobody has renewed it. `say` is told of both. With
    `also_here`, that of a process of this machine, which is known to live, is waited for, too: for locks of moments.
    """
    path, descriptor = _wait_and_lock(folder, patience_sec, say, also_here=also_here)
    ended = Event()
    if path.name == OWNED:
        Thread(target=_renew, args=(os.dup(descriptor), ended), name="fgbg-lock", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):  # or it is the lock of another by now
                path.unlink()
        os.close(descriptor)


def _renew(descriptor: int, ended: Event) -> None:
    while not ended.wait(RENEW_SEC):
        with suppress(OSError):
            os.utime(descriptor)
    os.close(descriptor)


def _wait_and_lock(
    folder: Path, patience_sec: float, say: Callable[[str], None], *, also_here: bool
) -> tuple[Path, int]:
    """As `_lock`, which is tried again until `patience_sec` have passed."""
    before, begun, told = _renewed(folder), time.monotonic(), False
    while True:
        try:
            return _lock(folder)
        except AtWork as busy:
            owner = _read_owner(folder / OWNED) or _read_owner(folder / LOCK)
            lives = owner is not None and Owner.of_process(owner.pid) == owner
            if lives and not also_here:
                raise
            waited_sec = time.monotonic() - begun
            if patience_sec and waited_sec >= TELL_SEC and not told:
                say(f"{busy}; looking for up to {patience_sec:.0f} s whether it ends")
                told = True
            if waited_sec >= patience_sec:
                if lives or not patience_sec or not before or _renewed(folder) != before:
                    raise
                if not _remove_owned(folder, owner):
                    raise
                say(f"{folder}: {owner or 'its owner'}, which was at work in it, is gone; this one goes on")
                patience_sec = 0.0
                continue
            time.sleep(min(PAUSE_SEC, FIRST_PAUSE_SEC + waited_sec / 10))


def _renewed(folder: Path) -> tuple[int, int] | None:
    """What differs after each renewal of OWNED; None without it."""
    with suppress(OSError):
        about = (folder / OWNED).stat()
        return about.st_ino, about.st_mtime_ns
    return None


def _lock(folder: Path) -> tuple[Path, int]:
    """The lock file, and its descriptor: it is locked until this is closed."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            with naming(path):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    with suppress(OSError):  # of a full disk
                        _write_owner(descriptor)
                    return path, descriptor
            os.close(descriptor)  # its owner has removed it in between
        except BlockingIOError:
            os.close(descriptor)
            raise AtWork(f"another process is at work in {folder}: wait for it, or stop it") from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            return folder / OWNED, _own(folder)


def _own(folder: Path) -> int:
    """Create the file that is a lock by being there, taken over from an owner that has ended; its descriptor."""
    path = folder / OWNED
    for attempt in range(2):
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with naming(path):
                _write_owner(descriptor)
            return descriptor
        owner = _read_owner(path)
        if attempt or owner is None or not owner.has_ended() or not _remove_owned(folder, owner):
            break
    who = owner or "another process"
    raise AtWork(f"{who} is at work in {folder}: wait for it, or stop it; if it runs no more, remove {path}")


def _remove_owned(folder: Path, owner: Owner | None) -> bool:
    """Remove OWNED if it is still that of `owner`; whether it is gone."""
    path, aside = folder / OWNED, folder / f"{OWNED}-{os.getpid()}"
    with suppress(FileNotFoundError):  # another process has taken it over
        path.rename(aside)
        if _read_owner(aside) != owner:
            aside.rename(path)
            return False
        aside.unlink()
    return True


def _write_owner(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)  # of what a killed process has left
    os.write(descriptor, json.dumps(Owner.of_process(os.getpid())).encode())


def _read_owner(path: Path) -> Owner | None:
    with suppress(OSError, ValueError, TypeError):
        owner = Owner(*json.loads(path.read_text()))
        if isinstance(owner.pid, int) and 0 < owner.pid < 1 << 31 and isinstance(owner.started, str):
            return owner
    return None
