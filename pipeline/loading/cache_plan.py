"""Which shards a cache fetches and gives up: by when the order needs them next, as pure arithmetic; no I/O.

L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966: what is needed last goes first,
and nothing is fetched that is needed later than all that would go for it. Where half the shards fit, half are fetched
again in each epoch; by recency it would be 85 %.
"""

from collections.abc import Callable, Iterable
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
        self._known: dict[int, Turns] = {}

    @classmethod
    def of_ranks(cls, sampler: Sampler, ranks: Iterable[int], world: int) -> "NextUses":
        """When any of these ranks, those of one host, needs a shard."""

        def turns(epoch: int) -> Turns:
            each = [sampler.turns(epoch, rank, world) for rank in ranks]
            first = np.min([np.where(one.first < 0, NEVER, one.first) for one in each], axis=0)
            return Turns(first, np.max([one.last for one in each], axis=0))

        return cls(turns, sampler.batches)

    def __call__(self, position: int) -> NDArray[np.int64]:
        """Int64 [shards]: `position` itself for a shard in use, NEVER where no use is near enough to be known."""
        epoch = position // self.batches
        for old in [known for known in self._known if known < epoch - 1]:
            del self._known[old]
        found: NDArray[np.int64] | None = None
        for number in range(epoch + EPOCHS_AHEAD, epoch - 1, -1):
            if number not in self._known:
                self._known[number] = self._turns(number)
            first, last = self._known[number]
            start = number * self.batches
            found = np.full(len(first), NEVER) if found is None else found
            is_left = (last >= 0) & (last + start >= position)
            found[is_left] = np.maximum(first[is_left] + start, position)
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
