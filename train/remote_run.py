"""A run whose place is a URL: it is written to a local folder, from which a thread puts what is complete.

Training never waits for the network, except at its beginning and its end. All that a run needs to go on is put
together, the checkpoint last, so that another machine finds nothing half.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from errno import EPERM
from itertools import count
from pathlib import Path
from threading import Condition, Thread
from time import monotonic
from typing import NamedTuple

from pipeline.errors import InputError, explain
from pipeline.files import UNABLE, read_file, user_cache, write_file
from pipeline.lease import Lease
from pipeline.locks import LOCK
from pipeline.resume import atomic_file
from pipeline.storage import STREAM_BYTES, Url, storage_of
from train.checkpoint import BEST, LAST
from train.logging import METRICS, TENSORBOARD
from train.run_folder import CURVES, PICTURES

NEEDED = (METRICS, BEST, LAST)
"""What a run goes on from."""
LINKS, PUT = ".to-put", ".put.json"  # in the local folder: what is being put; what was, by etags
PAUSE_SEC = 10.0
"""From the beginning of one upload to that of the next, at least."""
END_SEC = 900.0
"""How long the end of a run waits for its last upload."""


class _Stamp(NamedTuple):
    """Differs when the file was written again."""

    inode: int
    changed_ns: int
    size: int


class _File(NamedTuple):
    """A file as it was at one moment."""

    name: str
    """Below the run."""
    link: Path
    stamp: "_Stamp"


class RemoteRun:
    """The local folder of a run at `url`, from `open` to `close`; for the one process that writes."""

    def __init__(self, url: Url, say: Callable[[str], None]) -> None:
        self.url, self.folder, self.say = url, local_folder(url), say
        self.names = set[str]()
        """Of all that was at the URL when the run was opened."""
        self.behind = False
        """Whether the local folder had what could not be put before."""
        self._storage = storage_of(url)
        self._put = dict[str, _Stamp]()
        self._numbers = count()
        self._sender: Thread | None = None
        self._changed = Condition()
        self._next: list[_File] | None = None
        self._ending = False
        self._error: Exception | None = None
        self._lost: InputError | None = None

    def __enter__(self) -> "RemoteRun":
        """Take the run, and fetch what it goes on from, unless the folder has what could not be put before.

        Raises `InputError` while another process has the run, and `OSError` where it cannot be read.
        """
        self._lease = Lease(self._storage, self.say)
        try:
            self._fetch()
        except BaseException:
            self._lease.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Put what is left, and release the run; the local folder goes when all was put.

        Raises `OSError`, which says where the files are, if that is not done within END_SEC.
        """
        try:
            if self._sender:
                self._finish(self._sender)
            shutil.rmtree(self.folder, ignore_errors=True)
        except BaseException as error:
            error.add_note(f"all files of the run are kept in {self.folder}")
            raise
        finally:
            self._lease.close()
            self._storage.close()

    def named(self, text: str) -> str:
        """A message that names files of the local folder, with those at the URL in their place."""
        return text.replace(str(self.folder), str(self.url))

    def has(self, name: str) -> bool:
        """Whether there is a file of this name at the URL."""
        return name in self.names or name in self._put

    def start(self, *, anew: bool) -> None:
        """Begin to put what the run writes; `anew`: what is there is of a start that came to nothing, and goes."""
        if anew:
            for name in self.names:
                if name in (METRICS, CURVES) or name.startswith((f"{TENSORBOARD}/", f"{PICTURES}/")):
                    self._storage.remove(name)
        self._sender = Thread(target=self._send, name="fgbg-upload", daemon=True)
        self._sender.start()
        self.publish()

    def publish(self) -> None:
        """Have all that is complete put soon, in place of what is still waiting for it.

        Raises `InputError` if another process has taken the run over.
        """
        if self._lost:
            raise self._lost
        files = self._links()
        with self._changed:
            files, self._next = self._next or [], files
            self._changed.notify()
        _remove(files)

    def _links(self) -> list[_File]:
        """What has changed since it was put, the checkpoint last, safe from being replaced meanwhile."""
        folder = self.folder / LINKS / str(next(self._numbers))
        found = (sorted((self.folder / name).glob("[!.]*")) for name in (PICTURES, TENSORBOARD))
        paths = [path for paths in found for path in paths]
        files = list[_File]()
        for path in [*paths, *(self.folder / name for name in (CURVES, *NEEDED))]:
            if not path.exists():
                continue
            name, stamp = path.relative_to(self.folder).as_posix(), _stamp(path)
            if self._put.get(name) != stamp:
                folder.mkdir(parents=True, exist_ok=True)
                files.append(_File(name, folder / str(len(files)), stamp))
                _link(path, files[-1].link)
        return files

    def _send(self) -> None:
        """Put what is published, in a thread of its own, until the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._ending)
                files, self._next = self._next, None
            if files is None:
                return
            began = monotonic()
            try:
                self._put_all(files)
                self._error = None
            except InputError as error:
                self._lost = error
                return
            except Exception as error:
                if not self._error and not self._ending:
                    why = explain(error) if isinstance(error, OSError) else str(error)
                    self.say(f"{why}; the run goes on, and this is tried again at its next checkpoint")
                self._error = error
            finally:
                _remove(files)
            with self._changed:
                self._changed.wait_for(lambda: self._ending, began + PAUSE_SEC - monotonic())

    def _put_all(self, files: list[_File]) -> None:
        self._lease.require()
        for file in files:
            if file.name == LAST:
                self._lease.require()
            if file.name in (BEST, LAST):
                self._storage.put(file.name, file.link)
            else:  # it may have grown since
                self._storage.put(file.name, read_file(file.link)[: file.stamp.size])
            self._put[file.name] = file.stamp
        write_file(self.folder / PUT, json.dumps(self._etags({*NEEDED} & self._put.keys())).encode())

    def _finish(self, sender: Thread) -> None:
        self.publish()
        with self._changed:
            self._ending = True
            self._changed.notify()
        sender.join(END_SEC)
        if sender.is_alive():
            raise TimeoutError(f"{self.url}: what the run has written last could not be put there in {END_SEC:.0f} s")
        if self._lost or self._error:
            raise self._lost or self._error  # type: ignore[misc]

    def _etags(self, names: set[str]) -> dict[str, str]:
        return {name: self._storage.stat(name).etag for name in sorted(names)}

    def _fetch(self) -> None:
        self.names = set(self._storage.names())
        there = self._etags({*NEEDED} & self.names)
        if there == self._read_put():
            self.behind = any((self.folder / name).exists() for name in NEEDED)
            if self.behind:
                self.say("the run goes on from what is kept here, since not all of it was put at the URL before")
            shutil.rmtree(self.folder / LINKS, ignore_errors=True)
            return
        for path in self.folder.iterdir():  # of a run that others went on with
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith(LOCK):
                path.unlink()
        for name in there:
            with self._storage.open(name) as source, atomic_file(self.folder / name) as file:
                shutil.copyfileobj(source, file, STREAM_BYTES)
            self._put[name] = _stamp(self.folder / name)
        write_file(self.folder / PUT, json.dumps(there).encode())

    def _read_put(self) -> object:
        """The etags of what was put from the local folder, or fetched into it."""
        with suppress(FileNotFoundError, ValueError):
            return json.loads((self.folder / PUT).read_bytes())
        return {}


def local_folder(url: Url) -> Path:
    """Where a run is written that is put at `url`: below the user's cache folder, or that for temporary files."""
    name = f"{url.name}-{hashlib.sha256(url.text.encode()).hexdigest()[:16]}"
    cache = user_cache()
    for base in (cache, Path(tempfile.gettempdir()) / f"fgbg-{os.getuid()}"):
        with suppress(OSError):
            (base / "runs").mkdir(parents=True, exist_ok=True)
            if os.access(base / "runs", os.W_OK | os.X_OK):
                return base / "runs" / name
    raise InputError(f"{cache.parent} cannot be written to: set XDG_CACHE_HOME to a folder on a local disk")


def _stamp(path: Path) -> _Stamp:
    about = path.stat()
    return _Stamp(about.st_ino, about.st_mtime_ns, about.st_size)


def _link(path: Path, link: Path) -> None:
    try:
        os.link(path, link)
    except OSError as error:
        if error.errno not in UNABLE | {EPERM}:
            raise
        shutil.copyfile(path, link)


def _remove(files: list[_File]) -> None:
    for file in files:
        file.link.unlink(missing_ok=True)
    for folder in {file.link.parent for file in files}:
        folder.rmdir()
