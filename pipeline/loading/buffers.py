"""Gathering pictures in host memory: many rows of large tensors into batches, by threads, without fresh memory."""

import itertools
import math
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

LEAST_SHARE = 64
IDLE_BUFFERS = 8


class Gatherer:
    """Copies rows of tensors in host memory, in threads of its own.

    torch.index_select does so in OpenMP's threads, which spin while they wait for one another: with both cores of two
    busy elsewhere it was 4 times slower than this; as fast with one thread, or under OMP_WAIT_POLICY=PASSIVE.
    """

    def __init__(self, threads: int = 1) -> None:
        """Use so many threads, the caller's among them."""
        self._threads = threads
        self._workers: ThreadPoolExecutor | None = None
        self._memory = BufferPool()

    def gather(self, sources: Sequence[torch.Tensor], rows: NDArray[np.int64], *, pinned: bool = False) -> torch.Tensor:
        """These rows [N] of each of P tensors [K, ...] of one shape, all uint8: [P, N, ...], in memory of its own.

        `pinned` makes it memory that a GPU copies from without a wait; torch hands it out again when that is done.
        """
        shape = (len(sources), len(rows), *sources[0].shape[1:])
        out = torch.empty(shape, dtype=torch.uint8, pin_memory=True) if pinned else self._memory.empty(shape)
        self.fill(list(out), sources, rows)
        return out

    def fill(self, outs: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], rows: NDArray[np.int64]) -> None:
        """Copy these rows [N] of each tensor [K, ...] into a contiguous one [N, ...] of its own type."""
        pairs = [(source.numpy(), out.numpy()) for source, out in zip(sources, outs, strict=True)]

        def copy(start: int, stop: int) -> None:
            for source, out in pairs:
                # Not "raise": numpy would gather into memory of its own first.
                np.take(source, rows[start:stop], axis=0, out=out[start:stop], mode="clip")

        # Since "clip" would hide it.
        assert not len(rows) or (rows.min() >= 0 and rows.max() < min(map(len, sources))), "rows that are not there"
        shares = min(self._threads, -(-len(rows) // LEAST_SHARE)) or 1
        cuts = [len(rows) * share // shares for share in range(shares + 1)]
        if shares > 1 and self._workers is None:
            self._workers = ThreadPoolExecutor(self._threads - 1, "fgbg-gather")
        others = [self._workers.submit(copy, *ends) for ends in itertools.pairwise(cuts[1:]) if self._workers]
        copy(*cuts[:2])
        for other in others:
            other.result()

    def close(self) -> None:
        """End the other threads; gathering starts new ones."""
        if self._workers is not None:
            self._workers.shutdown()
            self._workers = None


class BufferPool:
    """Host memory for batches, handed out again once nobody holds a tensor in it.

    malloc returns pieces of this size to the kernel, which gives them back page by page, each cleared and faulted in
    anew: that made gathering 512 sets 1.5 times (median) to 3 times (one batch in ten) slower. Last freed is first
    used, since the processor's caches still hold it. Threads may share it.
    """

    def __init__(self) -> None:
        self._taking = Lock()
        self._bytes = 0
        self._idle = deque[torch.Tensor](maxlen=IDLE_BUFFERS)

    def empty(self, shape: Sequence[int]) -> torch.Tensor:
        """Uninitialised memory, uint8 of this shape, contiguous."""
        wanted = math.prod(shape)
        with self._taking:
            if wanted > self._bytes:
                self._bytes = wanted
                self._idle = deque(maxlen=IDLE_BUFFERS)  # what is still lent returns to the old one, and goes with it
            idle = self._idle
            memory = idle.pop() if idle else torch.empty(self._bytes, dtype=torch.uint8)
        # A tensor's views keep its storage alive, not itself; a storage made of an array keeps that very array.
        lent = memory[:wanted].numpy()
        weakref.finalize(lent, idle.append, memory).atexit = False
        return torch.from_numpy(lent).view(tuple(shape))
