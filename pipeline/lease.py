"""A place in object storage in which one process works at a time.

Whoever works there writes an object of the next number, which only one can create, and renews it. None is ever removed,
so that a process that was thought dead, and wakes up, finds that another has come after it.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.locks import RENEW_SEC, STALE_SEC, Owner
from pipeline.storage import Storage

PREFIX = ".writers/"
PAUSE_SEC = 2.0
"""Between two looks at whether another process renews its lease."""
OLD_SEC = 600.0
"""As STALE_SEC, but by the owner's clock, which may differ from the one here."""


class _Record(NamedTuple):
    """What an owner writes."""

    owner: Owner
    renewed: float
    """Seconds since 1970, by the owner's clock."""
    released: bool

    def encode(self) -> bytes:
        return json.dumps([*self]).encode()

    @classmethod
    def decode(cls, content: bytes) -> "_Record":
        """Raises ValueError for what no owner has written."""
        try:
            owner, renewed, released = json.loads(content)
            return cls(Owner(str(owner[0]), int(owner[1]), str(owner[2])), float(renewed), bool(released))
        except (TypeError, IndexError) as error:
            raise ValueError(str(error)) from error

    def __str__(self) -> str:
        return f"process {self.owner.pid} of {self.owner.host}"


class Lease:
    """The right to work in a place, held from when it is made until `close`.

    Another process may take it over when it was not renewed for a while, as when the network was away: `require` raises
    then. Between that and what is written next a process may still be stopped for minutes; nothing prevents that.
    """

    def __init__(self, storage: Storage, say: Callable[[str], None]) -> None:
        """Raises `InputError` while another process works there; `say` is told of what is waited for, or taken over."""
        self._storage = storage
        # Where the system tells nothing of processes, the moment stands for this one.
        self._owner = Owner.of_process(os.getpid()) or Owner("this machine", os.getpid(), str(time.time()))
        names = storage.names(PREFIX)
        last = names[-1] if names else ""
        if last:
            self._await(last, say)
        number = int(last.removeprefix(PREFIX)) + 1 if last else 1
        self._name, self._following = (f"{PREFIX}{of:06}" for of in (number, number + 1))
        if not storage.create(self._name, self._record().encode()):
            raise self._busy("another process")
        self._lost, self._ended = False, Event()
        self._renewing = Thread(target=self._renew, name="fgbg-lease", daemon=True)
        self._renewing.start()

    def require(self) -> None:
        """Raise `InputError` if another process has taken over."""
        if not self._lost:
            with suppress(FileNotFoundError):
                self._storage.stat(self._following)
                self._lost = True
        if self._lost:
            why = f"another process has gone on with it, since this one was not heard of for {STALE_SEC:.0f} s"
            raise InputError(f"{self._storage.location}: {why}: leave it to that one, or stop it and start again")

    def close(self) -> None:
        """Release it. May be called again."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._renewing.join(RENEW_SEC)
        with suppress(OSError):  # then it is stale after a while
            self._storage.put(self._name, self._record(released=True).encode())

    def _record(self, *, released: bool = False) -> _Record:
        return _Record(self._owner, time.time(), released)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SEC):
            with suppress(OSError):
                self._storage.put(self._name, self._record().encode())

    def _busy(self, who: object) -> InputError:
        return InputError(f"{who} is at work in {self._storage.location}: wait for it, or stop it")

    def _await(self, name: str, say: Callable[[str], None]) -> None:
        """Return once the owner of a lease has ended; raise `InputError` once it is seen to live."""
        content = self._storage.read_all(name)
        began, waiting = time.monotonic(), ""
        while True:
            try:
                record = _Record.decode(content)
            except ValueError:
                record = _Record(Owner("an unknown machine", 0, ""), time.time(), False)
            silent_sec = time.time() - record.renewed
            if record.released:
                return
            if record.owner.has_ended() or silent_sec > OLD_SEC or time.monotonic() - began > STALE_SEC:
                say(f"{self._storage.location}: {record}, which was at work in it, is gone; this one goes on")
                return
            if Owner.of_process(record.owner.pid) == record.owner:
                raise self._busy(record)
            if not waiting:
                waiting = f"looking for up to {STALE_SEC:.0f} s whether {record} is still at work in it"
                say(f"{self._storage.location}: {waiting}")
            time.sleep(PAUSE_SEC)
            if (now := self._storage.read_all(name)) != content and not _is_released(now):
                raise self._busy(record)
            content = now


def _is_released(content: bytes) -> bool:
    with suppress(ValueError):
        return _Record.decode(content).released
    return False
