"""Which shards a cache fetches and gives up: by when the order needs them next, as pure arithmetic; no I/O.

L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966: what is needed last goes first,
and nothing is fetched that is needed later than all that would go for it. Where half the shards fit, half are fetched
again in each epoch; by recency it would be 85 %.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEVER = int(np.iinfo(np.int64).max)
EPOCHS_AHEAD = 2
"""Epochs in which the next use of a shard is looked for, the current one not counted."""

Turns = Callable[[int], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""The first and the last batch, int64 [shards] each, that reads from each shard in an epoch; -1 where none does."""


class NextUses:
    """When each shard is needed next, counted in batches over all epochs: batch b of epoch e is e * batches + b."""

    def __init__(self, turns: Turns, batches: int) -> None:
        """`turns` are those of all ranks of this host together: of each shard the first first, and the last last."""
        self._turns, self.batches = turns, batches
        self._known: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def __call__(self, position: int) -> NDArray[np.int64]:
        """Int64 [shards]: `position` itself for a shard in use, NEVER where no use is near enough to be known."""
        epoch = position // self.batches
        for old in [known for known in self._known if known < epoch - 1]:
            del self._known[old]
        found: NDArray[np.int64] | None = None
        for number in range(epoch + EPOCHS_AHEAD, epoch - 1, -1):
            if number not in self._known:
                self._known[number] = self._turns(number)
            first, last = (batch + number * self.batches for batch in self._known[number])
            found = np.full(len(first), NEVER) if found is None else found
            is_left = (self._known[number][1] >= 0) & (last >= position)
            found = np.where(is_left, np.maximum(first, position), found)
        assert found is not None
        return found


class Fetch(NamedTuple):
    """What to fetch next."""

    number: int
    victims: NDArray[np.int64]
    """What to give up for it, beside what else may go: as few as make room."""


def next_fetch(
    wanted: NDArray[np.bool_],
    evictable: NDArray[np.bool_],
    next_uses: NDArray[np.int64],
    sizes: NDArray[np.int64],
    position: int,
    room: int,
    ahead_bytes: int,
) -> Fetch | None:
    """The file of those `wanted`, bool [files], that is needed first and finds room; None if there is none.

    `next_uses` and `sizes`, bytes, are int64 [files]. What is needed after `position` is fetched if it is among the
    next `ahead_bytes` of the order, or the very next; what nobody plans to use (NEVER), in free room alone.
    """
    order = np.argsort(next_uses, kind="stable")
    ahead = order[(next_uses[order] > position) & (next_uses[order] < NEVER)]
    is_near = next_uses <= position
    is_near[ahead[np.cumsum(sizes[ahead]) <= ahead_bytes]] = True
    is_near[ahead[:1]] = True
    for number in order[wanted[order] & (is_near | (next_uses == NEVER))[order]].tolist():
        if sizes[number] <= room:
            return Fetch(number, order[:0])
        victims = order[evictable[order] & (next_uses[order] > next_uses[number])][::-1]
        enough = room + np.cumsum(sizes[victims]) >= sizes[number]
        if enough.any():
            return Fetch(number, victims[: int(enough.argmax()) + 1])
    return None
