"""What a cache did: counted by its threads, told in one line."""

from collections import deque
from threading import Lock
from typing import NamedTuple

import numpy as np

RECENT = 4096
"""Reads of which the waits are known."""


class CacheStatistics(NamedTuple):
    """Of one process, since its cache was made."""

    hits: int
    """Reads from local files."""
    misses: int
    """Reads from the source."""
    cache_bytes: int
    """Bytes read from local files."""
    source_bytes: int
    """Bytes that came from the source, in whole shards or not."""
    refetched_bytes: int
    """Those of them that had come before: of shards that were given up meanwhile, and of parts asked for twice."""
    requests: int
    """Ranges asked of the source."""
    evictions: int
    """Files given up."""
    wait_p50_sec: float
    """Median time of the last 4,096 reads."""
    wait_p99_sec: float
    """The 99th percentile of it."""

    @property
    def hit_share(self) -> float:
        """Of all reads."""
        return self.hits / max(1, self.hits + self.misses)

    def __str__(self) -> str:
        return (
            f"cache: {self.hit_share:.1%} of {self.hits + self.misses:,} reads, {self.cache_bytes / 1e9:,.2f} GB; "
            f"from the source {self.source_bytes / 1e9:,.2f} GB in {self.requests:,} requests, "
            f"{self.refetched_bytes / 1e9:,.2f} GB of it again; {self.evictions:,} evicted; "
            f"a read waits {self.wait_p50_sec * 1e3:,.1f} ms (p99 {self.wait_p99_sec * 1e3:,.1f})"
        )


class Meter:
    """The counters; threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._hits = self._misses = self._cache_bytes = self._source_bytes = 0
        self._refetched_bytes = self._requests = self._evictions = 0
        self._waits_sec: deque[float] = deque(maxlen=RECENT)

    def hit(self, size: int, wait_sec: float) -> None:
        """A read from a local file."""
        with self._lock:
            self._hits += 1
            self._cache_bytes += size
            self._waits_sec.append(wait_sec)

    def missed(self, size: int, wait_sec: float) -> None:
        """A read from the source."""
        with self._lock:
            self._misses += 1
            self._requests += 1
            self._source_bytes += size
            self._waits_sec.append(wait_sec)

    def requested(self, size: int) -> None:
        """A part of a shard came from the source."""
        with self._lock:
            self._requests += 1
            self._source_bytes += size

    def refetched(self, size: int) -> None:
        """It had come before."""
        with self._lock:
            self._refetched_bytes += size

    def evicted(self, count: int) -> None:
        """Files were given up."""
        with self._lock:
            self._evictions += count

    def read(self) -> CacheStatistics:
        """What was counted so far."""
        with self._lock:
            p50, p99 = np.quantile(self._waits_sec, [0.5, 0.99]).tolist() if self._waits_sec else (0.0, 0.0)
            return CacheStatistics(
                self._hits, self._misses, self._cache_bytes, self._source_bytes, self._refetched_bytes,
                self._requests, self._evictions, p50, p99,
            )  # fmt: skip
