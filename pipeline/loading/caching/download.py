"""One file on its way into the cache: parts that arrive in any order, hashed in order, readable as they are there."""

import hashlib
import logging
import os
import time
from collections import deque
from threading import Condition

import numpy as np

from pipeline.files import naming
from pipeline.loading.caching.folder import CachedFile
from pipeline.loading.caching.locks import unlock_and_close
from pipeline.storage import Content

log = logging.getLogger(__name__)
MOST_ASKED = 2
"""Times that a part is under way at once."""
MOST_FAILURES = 3
"""Of one part, after which the file is given up for now."""

KNOWN_PARTS = 20
"""Parts after which it is known how long one takes."""
HEDGE_SEC, HEDGE_UNKNOWN_SEC = 0.5, 3.0
"""Shortest time after which a part is asked for again; and that as long as it is not known."""
RECENT_PARTS = 256
PAUSE_SEC = 20.0
"""Time for which nothing is cached after the cache folder failed, and for which a file is left out whose parts did."""
MOST_WRONG = 2
"""Times that a file may come with another hash, or turn out to be damaged, before it is left out."""


class PartTimes:
    """How long parts take, and so when one is asked for a second time; threads may share it."""

    def __init__(self) -> None:
        self._recent_sec: deque[float] = deque(maxlen=RECENT_PARTS)
        self.longest_sec = HEDGE_UNKNOWN_SEC
        """The 99th percentile, as far as that is known."""

    def add(self, part_sec: float) -> None:
        """A part took so long."""
        self._recent_sec.append(part_sec)
        if len(self._recent_sec) >= KNOWN_PARTS:
            self.longest_sec = max(HEDGE_SEC, float(np.quantile(list(self._recent_sec), 0.99)))


class LeftOut:
    """Files that are not fetched: for a while because their parts did not come, or for good."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._wrong: dict[str, int] = {}

    def failed(self, name: str) -> None:
        """A part did not come, time and again."""
        self._until[name] = max(self._until.get(name, 0.0), time.monotonic() + PAUSE_SEC)

    def wrong(self, name: str) -> None:
        """A file was not what its manifest says."""
        self._wrong[name] = self._wrong.get(name, 0) + 1
        if self._wrong[name] == MOST_WRONG:
            self._until[name] = float("inf")
            log.warning("%s is again not what the manifest says: it is not cached, its sets are read one by one", name)

    def names(self) -> list[str]:
        """Those that are left out now."""
        now = time.monotonic()
        return [name for name, until in self._until.items() if until > now]


class Download:
    """A hidden file that threads fill, until one of them claims it; it can be read until it is closed."""

    def __init__(self, file: CachedFile, descriptor: int, part_bytes: int) -> None:
        self.file, self.part_bytes = file, part_bytes
        self.parts = -(-file.size // part_bytes)
        self.trusted = True
        """Whether what is there may be read before its hash is known: until a checksum was wrong."""
        self._descriptor: int | None = descriptor
        self._changed = Condition()
        self._there = [False] * self.parts
        self._failures = [0] * self.parts
        self._asked: dict[int, list[float]] = {}
        self._hash, self._hashed = hashlib.sha256(), 0
        self._is_slow = self._is_claimed = False

    @property
    def is_complete(self) -> bool:
        """Whether all of it is there and hashed."""
        return self._hashed == self.parts

    @property
    def is_right(self) -> bool:
        """Whether it is what the manifest says."""
        return self._hash.hexdigest() == self.file.sha256

    def left(self) -> int:
        """Parts that nobody has asked for yet."""
        with self._changed:
            return sum(not there and number not in self._asked for number, there in enumerate(self._there))

    def take(self, longest_sec: float | None = None) -> int | None:
        """A part to ask for: one that nobody has; with `longest_sec`, one that takes longer and is asked for once."""
        now = time.monotonic()
        with self._changed:
            for number, there in enumerate(self._there):
                asked = self._asked.get(number, [])
                if there or len(asked) >= MOST_ASKED:
                    continue
                if not asked if longest_sec is None else asked and now - asked[0] > longest_sec:
                    self._asked.setdefault(number, []).append(now)
                    return number
        return None

    def extent(self, number: int) -> tuple[int, int]:
        """Where a part begins, and its bytes."""
        first = number * self.part_bytes
        return first, min(self.part_bytes, self.file.size - first)

    def store(self, number: int, content: Content) -> bool:
        """Write a part; False if it was there before, or nothing is wanted any more. `OSError`s name the file."""
        with self._changed:
            if self._is_claimed or self._descriptor is None or self._there[number]:
                return False
            with naming(f"{self.file.name} (in the cache)"):
                _write(self._descriptor, content, number * self.part_bytes)
            self._there[number], self._is_slow = True, False
            self._asked.pop(number, None)
            while self._hashed < self.parts and self._there[self._hashed]:
                first, size = self.extent(self._hashed)
                self._hash.update(content if number == self._hashed else os.pread(self._descriptor, size, first))
                self._hashed += 1
            self._changed.notify_all()
            return True

    def failed(self, number: int) -> bool:
        """A part did not come; whether the file is to be given up."""
        with self._changed:
            if self._is_claimed or self._descriptor is None or self._there[number]:
                return False
            if asked := self._asked.get(number):
                asked.pop()
                if not asked:
                    del self._asked[number]
            self._failures[number] += 1
            return self._failures[number] >= MOST_FAILURES

    def read(self, offset: int, size: int, most_sec: float) -> bytes | None:
        """Bytes of it, for which it is waited a little; None if they do not come soon: then others are not waited for.

        Of a file that was not verified yet: the reader compares checksums.
        """
        end = min(offset + size, self.file.size)
        needed = range(offset // self.part_bytes, -(-end // self.part_bytes))

        def is_there() -> bool:
            return self._descriptor is None or all(self._there[number] for number in needed)

        with self._changed:
            if not self._changed.wait_for(is_there, 0 if self._is_slow else most_sec):
                self._is_slow = True
                return None
            if self._descriptor is None or not self.trusted:
                return None
            return os.pread(self._descriptor, max(0, end - offset), offset)

    def claim(self) -> int | None:
        """Let no more be written; the descriptor for whoever is the first, who then closes it."""
        with self._changed:
            if self._is_claimed:
                return None
            self._is_claimed = True
            return self._descriptor

    def close(self) -> None:
        """Let no more be read, either."""
        with self._changed:
            if self._descriptor is not None:
                unlock_and_close(self._descriptor)
            self._descriptor = None
            self._changed.notify_all()

    def forget(self) -> None:
        """In a child that was forked, where a thread that is not there may hold the lock: let go of the descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _write(descriptor: int, content: Content, offset: int) -> None:
    rest = memoryview(content).cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
