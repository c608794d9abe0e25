"""Which sets come next, as pure arithmetic of (data, seed, epoch, step); no I/O.

A Feistel network over the smallest power of two that holds the sets, walked until it lands inside (cycle walking:
J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), permutes any number of sets exactly and gives
the set at any position without computing the others. Unlike `numpy.random`, it will not change under a user's feet.
"""

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
MOST_LANES = 64
"""A batch is put together from as many pieces. Fewer would be shared by many hosts, more would be small."""
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


class Turns(NamedTuple):
    """When one rank takes sets of each shard in an epoch, in numbers of global batches."""

    first: NDArray[np.int64]
    """[shards], -1 for a shard of which it takes none."""
    last: NDArray[np.int64]
    """[shards], -1 likewise."""


class Sampler:
    """The order of a split in global batches of `batch_size`; the last batch of an epoch may be smaller.

    Global batches are laid down before ranks: every rank takes its share of the same batch, so the number of ranks
    changes who loads a set and never when it is seen.

    Without a window a set may be anywhere in its epoch. With one, each epoch lays the shards in a row in another order
    and cuts it into lanes of as many sets. All lanes are read at the same time, each one shard after the other, or
    some shards at a time that are shuffled among each other: `window` shards at a time in all. Every batch takes as
    many sets from each lane and holds them lane by lane, so that a rank reads from few lanes and not from all of them:
    from at most (lanes / world + 2) * (window / lanes) shards at a time.

    Every other lane is read backwards: a shard that is cut lies at the end of two lanes, or at the beginning of both,
    and is in use once.

    Nothing is kept in memory for every set. One thread at a time may call `batch`, which remembers where it was last.
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
        self.lanes, self._width = 1, len(self._shards)
        """How many lanes there are, and how many shards of each are shuffled among each other."""
        self._in_windows = window is not None
        if window is not None and shuffle:
            self._width = -(-window // min(batch_size, MOST_LANES))
            self.lanes = -(-window // self._width)
        elif window is not None:
            self._width = window
        full, rest = divmod(self.count, batch_size)
        lanes = np.arange(self.lanes + 1)
        self._cuts = full * batch_size * lanes // self.lanes + rest * lanes // self.lanes
        self._epoch, self._windows = -1, dict[int, _Window]()  # by lane
        self._layout: _Layout

    @property
    def batches(self) -> int:
        """Global batches in an epoch."""
        return -(-self.count // self.batch_size)

    def batch(self, epoch: int, number: int, rank: int = 0, world: int = 1) -> list[WindowSlice]:
        """One rank's share, about batch_size / world sets, of a global batch; empty if no set is left for this rank."""
        if self._epoch != epoch:
            self._layout, self._epoch, self._windows = self._lay_out(epoch), epoch, {}
        length = min(self.batch_size, self.count - number * self.batch_size)
        first, last = length * rank // world, length * (rank + 1) // world
        lane, slices = first * self.lanes // length, list[WindowSlice]()
        while (edge := self._edge(number, length, lane)) < last:
            begin = int(self._cuts[lane]) + self._taken(number, lane)  # of this lane in this batch
            end = min(last, self._edge(number, length, lane + 1)) - edge
            start = max(first - edge, 0)
            while start < end:
                window = self._window_at(begin + start, lane)
                stop = min(end, window.end - begin)
                slices.append(WindowSlice(window.shards, window.sets(begin + start, begin + stop)))
                start = stop
            lane += 1
        return slices

    def turns(self, epoch: int, rank: int = 0, world: int = 1, ranks: int = 1) -> Turns:
        """The first and the last global batch of an epoch in which a rank takes sets of each shard.

        Or in which any of `ranks` does, from `rank` on, such as those of a host.

        Of shards that are shuffled among each other (more in the window than there are lanes, or no window), it is when
        it takes sets of any of them. May be called in any thread.
        """
        layout, full, rest = self._lay_out(epoch), *divmod(self.count, self.batch_size)
        begins, ends, shards = layout.begins, layout.ends, layout.shards
        if self.shuffle:  # no set of a window can be told from another but by its permutation
            windows = layout.windows
            begins = np.repeat(begins[windows[:-1]], np.diff(windows))
            ends = np.repeat(ends[windows[1:] - 1], np.diff(windows))
        first, last = np.full(len(self._sizes), self.batches), np.full(len(self._sizes), -1)
        among = rank, rank + ranks, world
        cycle = self.lanes // math.gcd(self.lanes, self.batch_size)  # after so many full batches ranks take the same
        for lane in range(self.lanes):
            here = slice(*layout.lanes[lane : lane + 2])
            begin, end, names = begins[here] - self._cuts[lane], ends[here] - self._cuts[lane], shards[here]
            starts, stops = self._share(np.arange(cycle), self.batch_size, lane, among)
            taking = np.flatnonzero(starts < stops)
            if taking.size:
                length, limit = cycle * self.batch_size // self.lanes, self._taken(full, lane)
                early = _first_above(stops[taking], length, begin)
                late = _first_above(starts[taking] + 1, length, np.minimum(end, limit)) - 1
                found = early <= late
                np.minimum.at(
                    first, names[found], early[found] // len(taking) * cycle + taking[early[found] % len(taking)]
                )
                np.maximum.at(
                    last, names[found], late[found] // len(taking) * cycle + taking[late[found] % len(taking)]
                )
            if rest:
                [start], [stop] = self._share(np.array([full]), rest, lane, among)
                found = (begin < stop) & (start < end) & (start < stop)
                first[names[found]] = np.minimum(first[names[found]], full)
                last[names[found]] = full
        first[last < 0] = -1
        return Turns(first, last)

    def _taken(self, number: Any, lane: Any) -> Any:
        """How many sets of a lane come before a batch; all before it are full ones."""
        sets = number * self.batch_size
        return sets * (lane + 1) // self.lanes - sets * lane // self.lanes

    def _edge(self, number: Any, length: int, lane: Any) -> Any:
        """Where in a batch of `length` sets the sets of a lane begin."""
        if length < self.batch_size:
            return length * lane // self.lanes
        sets = number * self.batch_size
        return (sets + length) * lane // self.lanes - sets * lane // self.lanes

    def _share(
        self, numbers: NDArray[np.int64], length: int, lane: int, among: tuple[int, int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """From where to where in a lane sets are taken for these batches of `length`: int64 [N] each.

        `among` is the first rank that takes them, the one after the last, and how many there are.
        """
        left, right = (self._edge(numbers, length, number) for number in (lane, lane + 1))
        taken = self._taken(numbers, lane) - left
        first, last = (np.clip(length * rank // among[2], left, right) for rank in among[:2])
        return taken + first, taken + last

    def _window_at(self, position: int, lane: int) -> "_Window":
        """The window of a lane that holds a position of the epoch, counted lane after lane."""
        window = self._windows.get(lane)
        if window is None or not window.start <= position < window.end:
            number = int(np.searchsorted(self._layout.window_ends, position, "right"))
            window = self._windows[lane] = self._window(number)
        return window

    def _window(self, number: int) -> "_Window":
        layout = self._layout
        pieces = np.arange(*layout.windows[number : number + 2])
        pieces = pieces[np.argsort(layout.shards[pieces])]
        shards, key = layout.shards[pieces], f"{self.key}/{self._epoch}"
        if self._in_windows:
            key = f"{key}/{number}"
        else:
            shards = self._shards  # the same array in all epochs
        lengths = layout.ends[pieces] - layout.begins[pieces]
        start = int(layout.begins[pieces].min())
        end = int(layout.ends[pieces].max())
        skipped = np.cumsum(self._sizes[shards]) - self._sizes[shards] + layout.skips[pieces]
        shifts = skipped - np.cumsum(lengths) + lengths
        permutation = Permutation(end - start, key) if self.shuffle else None
        return _Window(shards, start, end, permutation, np.cumsum(lengths), shifts)

    def _lay_out(self, epoch: int) -> "_Layout":
        """Lay the shards in an epoch's order, cut them into lanes, and put windows together."""
        in_turn = self._shards
        if self.shuffle and self._in_windows:
            in_turn = in_turn[Permutation(len(in_turn), f"{self.key}/{epoch}/shards")(np.arange(len(in_turn)))]
        shard_ends = np.cumsum(self._sizes[in_turn])
        bounds = np.unique(np.concatenate([self._cuts, shard_ends]))
        lanes = np.searchsorted(bounds[:-1], self._cuts)
        lane = np.searchsorted(self._cuts, bounds[:-1], "right") - 1
        pieces = np.arange(len(lane))
        along = np.where(lane % 2, lanes[lane] + lanes[lane + 1] - 1 - pieces, pieces)
        begins, lengths = bounds[along], np.diff(bounds)[along]
        place = np.searchsorted(shard_ends, begins, "right")
        shards = in_turn[place]
        skips = begins - (shard_ends[place] - self._sizes[shards])
        ends = np.cumsum(lengths)
        windows = np.append(np.flatnonzero((pieces - lanes[lane]) % self._width == 0), len(pieces))
        return _Layout(shards, skips, ends - lengths, ends, lanes, windows, ends[windows[1:] - 1])


class _Layout(NamedTuple):
    """An epoch's pieces of shards, lane after lane as they are read. Positions count sets in this order."""

    shards: NDArray[np.int64]
    """Which shard each is of, [pieces]."""
    skips: NDArray[np.int64]
    """How many of its shard's sets lie before each, [pieces]."""
    begins: NDArray[np.int64]
    """The position of the first set of each, [pieces]."""
    ends: NDArray[np.int64]
    """The position after the last, [pieces]."""
    lanes: NDArray[np.int64]
    """Which piece each lane begins with, and their number, [lanes + 1]."""
    windows: NDArray[np.int64]
    """Which piece each window begins with, and their number, [windows + 1]."""
    window_ends: NDArray[np.int64]
    """The position after the last set of each, [windows]."""


class _Window:
    """Positions [start, end) of an epoch, which hold sets of some shards."""

    def __init__(
        self,
        shards: NDArray[np.int64],
        start: int,
        end: int,
        permutation: Permutation | None,
        ends: NDArray[np.int64],
        shifts: NDArray[np.int64],
    ) -> None:
        self.shards, self.start, self.end = shards, start, end
        self._permutation, self._ends, self._shifts = permutation, ends, shifts
        self._is_cut = bool(shifts.any())
        self._first, self._ahead = start, np.empty(0, np.int64)

    def sets(self, first: int, last: int) -> NDArray[np.int64]:
        """Which of the window's sets are at positions [first, last) of the epoch."""
        if not self._first <= first < last <= self._first + len(self._ahead):
            inside = np.arange(first, min(max(last, first + PERMUTED_AT_ONCE), self.end)) - self.start
            self._first, self._ahead = first, self._permutation(inside) if self._permutation else inside
            if self._is_cut:  # sets that are in other lanes are skipped
                self._ahead = self._ahead + self._shifts[np.searchsorted(self._ends, self._ahead, "right")]
        return self._ahead[first - self._first : last - self._first]


def _first_above(values: NDArray[np.int64], length: int, limits: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first place above each limit in an ascending sequence, int64 [limits].

    The sequence is `values`, in 0 .. length, which repeat without end, each time larger by `length`.
    """
    repeats, limits = np.divmod(limits, length)
    return repeats * len(values) + np.searchsorted(values, limits, "right")
