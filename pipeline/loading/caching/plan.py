"""Which shards a cache fetches and gives up: by when the order needs them next, as pure arithmetic; no I/O.

L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966: what is needed last goes first,
and nothing is fetched that is needed later than all that would go for it. Where half the shards fit, half are fetched
again in each epoch; by recency it would be 85 %.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.loading.sampler import Sampler, Turns

NEVER = int(np.iinfo(np.int64).max)
EPOCHS_AHEAD = 8  # of many hosts one may not need a shard for so long
"""Epochs in which the next use of a shard is looked for, the current one not counted."""


class NextUses:
    """When each shard is needed next, counted in batches over all epochs: batch b of epoch e is e * batches + b."""

    def __init__(self, turns: Callable[[int], Turns], batches: int) -> None:
        """`turns` are those of an epoch, `batches` are in each."""
        self._turns, self.batches = turns, batches
        self._plans: dict[int, tuple[Turns, NDArray[np.int64]]] = {}  # of the epochs asked for last

    @classmethod
    def of_ranks(cls, sampler: Sampler, ranks: range, world: int) -> "NextUses":
        """When any of these ranks, those of one host, needs a shard."""
        return cls(lambda epoch: sampler.turns(epoch, ranks.start, world, len(ranks)), sampler.batches)

    def __call__(self, position: int) -> NDArray[np.int64]:
        """Int64 [shards]: `position` itself for a shard in use, NEVER where no use is near enough to be known."""
        epoch, batch = divmod(position, self.batches)
        if epoch not in self._plans:
            self._plans = {known: self._plans[known] for known in [epoch - 1] if known in self._plans}
            self._plans[epoch] = self._turns(epoch), self._first_after(epoch)
        (first, last), later = self._plans[epoch]
        is_left = (last >= 0) & (last >= batch)
        return np.where(is_left, np.maximum(first, batch) + epoch * self.batches, later)

    def _first_after(self, epoch: int) -> NDArray[np.int64]:
        """When each shard is needed first after an epoch."""
        found = np.full(0, NEVER)
        for number in range(epoch + 1, epoch + 1 + EPOCHS_AHEAD):
            first, last = self._turns(number)
            here = np.where(last >= 0, first + number * self.batches, NEVER)
            found = np.minimum(found, here) if found.size else here
            if (found < NEVER).all():
                break
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
