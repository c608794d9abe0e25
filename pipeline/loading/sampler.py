"""Which sets come next, as pure arithmetic of (data, seed, epoch, step); no I/O.

A Feistel network over the smallest power of two that holds the sets, walked until it lands inside (cycle walking:
J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), permutes any number of sets exactly and gives
the set at any position without computing the others. Unlike `numpy.random`, it will not change under a user's feet.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
PERMUTED_AT_ONCE = 1 << 15
"""Positions: many calls of NumPy on few numbers cost more than one on as many as fit the L2 cache."""


class Permutation:
    """A pseudo-random bijection of 0 .. count - 1, told apart by `key` (any text)."""

    def __init__(self, count: int, key: str) -> None:
        self.count = count
        bits = max(2, (count - 1).bit_length())
        self._right_bits = np.uint64(bits // 2)
        self._masks = (np.uint64((1 << (bits - bits // 2)) - 1), np.uint64((1 << (bits // 2)) - 1))
        digest = hashlib.sha256(key.encode()).digest() + hashlib.sha256(key.encode() + b"+").digest()
        self._round_keys = np.frombuffer(digest, dtype="<u8")[:ROUNDS]

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map int64 [N] in 0 .. count - 1 to int64 [N] in the same range."""
        values = self._encrypt(positions.astype(np.uint64))
        outside = np.flatnonzero(values >= self.count)
        while outside.size:
            values[outside] = again = self._encrypt(values[outside])
            outside = outside[again >= self.count]
        return values.view(np.int64)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._right_bits, values & self._masks[1]
        for number, round_key in enumerate(self._round_keys):
            # Odd rounds change the right half, even ones the left: halves of unequal width stay what they are.
            if number % 2:
                right ^= _mix(left ^ round_key) & self._masks[1]
            else:
                left ^= _mix(right ^ round_key) & self._masks[0]
        return (left << self._right_bits) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).

    It works in place, and returns `values`.
    """
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


class WindowSlice(NamedTuple):
    """A run of a batch inside one window."""

    shards: NDArray[np.int64]
    """The window's shards, ascending, without those that have no set of the split."""
    positions: NDArray[np.int64]
    """Which sets, [N]: they count the split's sets of these shards, one shard after the other. Read only."""


class Sampler:
    """The order of a split in global batches of `batch_size`; the last batch of an epoch may be smaller.

    Global batches are laid down before ranks: every rank takes its share of the same batch, so the number of ranks
    changes who loads a set and never when it is seen.

    The sets of `window` shards are shuffled among each other, and each epoch puts other shards together; where random
    reads are dear, only so many shards are read from at a time. A batch may end one window and begin the next. Without
    a window, or with one that holds all shards, a set may be anywhere. Nothing is kept in memory for every set. One
    thread at a time may use it, since it remembers the window that it was last in.
    """

    def __init__(
        self, sizes: NDArray[np.int64], batch_size: int, key: str, shuffle: bool = True, window: int | None = None
    ) -> None:
        """`sizes`, int64 [shards], counts the split's sets in each shard; `key` tells orders apart; `window` >= 1.

        Without `shuffle` sets come as they lie in the index.
        """
        self.count = int(sizes.sum())
        """Sets in the split."""
        self.batch_size, self.key, self.shuffle = batch_size, key, shuffle
        self._sizes, self._shards = sizes, np.flatnonzero(sizes)
        self._width = len(self._shards) if window is None else min(window, len(self._shards))
        self._epoch = -1
        self._in_turn, self._ends = self._shards, sizes[:0]
        self._window: _Window | None = None

    @property
    def batches(self) -> int:
        """Global batches in an epoch."""
        return -(-self.count // self.batch_size)

    def batch(self, epoch: int, number: int, rank: int = 0, world: int = 1) -> list[WindowSlice]:
        """One rank's share, about batch_size / world sets, of a global batch; empty if no set is left for this rank."""
        start = number * self.batch_size
        length = min(self.batch_size, self.count - start)
        first, last = start + length * rank // world, start + length * (rank + 1) // world
        slices = []
        while first < last:
            window = self._window_at(epoch, first)
            end = min(last, window.end)
            slices.append(WindowSlice(window.shards, window.sets(first, end)))
            first = end
        return slices

    def _window_at(self, epoch: int, position: int) -> "_Window":
        """The window that holds a position of an epoch."""
        if epoch != self._epoch:
            self._lay_out(epoch)
        window = self._window
        if window is None or not window.start <= position < window.end:
            number = int(np.searchsorted(self._ends, position, "right"))
            start, end = int(self._ends[number - 1]) if number else 0, int(self._ends[number])
            shards, key = self._in_turn, f"{self.key}/{epoch}"
            if self._width < len(self._shards):
                shards = np.sort(shards[number * self._width : (number + 1) * self._width])
                key = f"{key}/{number}"
            window = _Window(shards, start, end, Permutation(end - start, key) if self.shuffle else None)
            self._window = window
        return window

    def _lay_out(self, epoch: int) -> None:
        """Take the shards in an epoch's order, `_width` a window, and find where each window ends."""
        count = len(self._shards)
        if self.shuffle and self._width < count:
            self._in_turn = self._shards[Permutation(count, f"{self.key}/{epoch}/shards")(np.arange(count))]
        lasts = np.append(np.arange(self._width, count, self._width), count) - 1
        self._ends = np.cumsum(self._sizes[self._in_turn])[lasts]
        self._epoch, self._window = epoch, None


class _Window:
    """Positions [start, end) of an epoch, which hold the sets of some shards."""

    def __init__(self, shards: NDArray[np.int64], start: int, end: int, permutation: Permutation | None) -> None:
        self.shards, self.start, self.end = shards, start, end
        self._permutation = permutation
        self._first, self._ahead = start, np.empty(0, np.int64)

    def sets(self, first: int, last: int) -> NDArray[np.int64]:
        """Which of the window's sets are at positions [first, last) of the epoch."""
        if not self._first <= first < last <= self._first + len(self._ahead):
            inside = np.arange(first, min(max(last, first + PERMUTED_AT_ONCE), self.end)) - self.start
            self._first, self._ahead = first, self._permutation(inside) if self._permutation else inside
        return self._ahead[first - self._first : last - self._first]
