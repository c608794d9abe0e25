"""What is fetched and given up, against Belady's optimum."""

import numpy as np
import pytest

from pipeline.loading.caching.plan import NEVER, NextUses, next_fetch
from pipeline.loading.sampler import Sampler, Turns

SHARDS, WINDOW = 96, 6
SIZES = np.full(SHARDS, 40)


def test_next_uses_are_found_over_epochs() -> None:
    first = [np.array([0, 4, -1]), np.array([4, 0, -1])]
    uses = NextUses(lambda epoch: Turns(first[epoch % 2], np.array([3, 3, -1]) + first[epoch % 2]), 8)
    assert uses(0).tolist() == [0, 4, NEVER]
    assert uses(3).tolist() == [3, 4, NEVER]
    assert uses(4).tolist() == [12, 4, NEVER]
    assert uses(7).tolist() == [12, 7, NEVER]
    assert uses(8).tolist() == [12, 8, NEVER]
    assert uses(12).tolist() == [12, 20, NEVER]
    assert uses(7).tolist() == [12, 7, NEVER]


@pytest.mark.parametrize("ranks", [range(1), range(1, 3), range(3)])
def test_next_uses_are_those_of_the_batches_of_all_ranks_of_a_host(ranks: range) -> None:
    """Within its turn a shard is in use, also where a batch takes no set of it."""
    sizes = np.array([7, 12, 0, 9, 20])
    sampler = Sampler(sizes, 8, "key", window=2)
    uses, epochs = NextUses.of_ranks(sampler, ranks, 3), 3
    used: list[set[int]] = []
    for position in range(epochs * sampler.batches):
        slices = [part for rank in ranks for part in sampler.batch(*divmod(position, sampler.batches), rank, 3)]
        used.append({
            int(part.shards[np.searchsorted(np.cumsum(sizes[part.shards]), place, "right")])
            for part in slices for place in part.positions
        })  # fmt: skip
    for position in range((epochs - 2) * sampler.batches):
        found = uses(position)
        for shard in range(5):
            later = [place for place in range(position, len(used)) if shard in used[place]]
            assert found[shard] in (position, min(later, default=NEVER))
            assert found[shard] <= min(later, default=NEVER)


def belady(sampler: Sampler, capacity: int, epochs: int) -> list[int]:
    """Fetches in each epoch of the best there can be, by brute force over all turns."""
    order = sorted((int(first) + epoch * sampler.batches, shard, epoch) for epoch in range(epochs)
                   for shard, first in enumerate(sampler.turns(epoch).first))  # fmt: skip
    held: set[int] = set()
    fetched = [0] * epochs
    for place, (_, shard, epoch) in enumerate(order):
        if shard not in held:
            fetched[epoch] += 1
            held.add(shard)
            if len(held) > capacity:
                left = [other for _, other, _ in order[place + 1 :]]
                held.remove(max(held, key=lambda other: left.index(other) if other in left else NEVER))
    return fetched


@pytest.mark.parametrize("capacity", [24, 48, 72, 96])
def test_no_more_is_fetched_again_than_must_be(capacity: int) -> None:
    sampler = Sampler(SIZES, 16, "key", window=WINDOW)
    epochs, uses, batches = 5, NextUses.of_ranks(sampler, range(3), 3), sampler.batches
    held, sizes = np.zeros(SHARDS, np.bool_), np.full(SHARDS, 10)
    fetched, missed, evicted_in_use = [0] * epochs, 0, 0
    for position in range((epochs - 1) * batches):
        next_uses = uses(position)
        while True:
            room = (capacity - int(held.sum())) * 10
            fetch = next_fetch(~held, held, next_uses, sizes, position, room, capacity * 10 // 8)
            if fetch is None:
                break
            evicted_in_use += int((next_uses[fetch.victims] <= position).sum())
            held[fetch.victims] = False
            held[fetch.number] = True
            fetched[int(next_uses[fetch.number]) // batches] += 1
        assert held.sum() <= capacity
        missed += int((~held & (next_uses == position)).sum())
    best = belady(sampler, capacity, epochs - 1)
    assert missed == evicted_in_use == 0
    assert fetched[0] == best[0] == SHARDS
    assert sum(fetched[1 : epochs - 1]) <= 1.05 * sum(best[1:])


def test_nothing_is_fetched_that_is_needed_later_than_what_would_go_for_it() -> None:
    next_uses, sizes = np.array([0, 0, 3, 9]), np.array([10, 10, 10, 10])
    held = np.array([True, False, False, False])
    assert next_fetch(~held, held, next_uses, sizes, 0, 0, 100) is None
    next_uses[0] = 20
    fetch = next_fetch(~held, held, next_uses, sizes, 0, 0, 100)
    assert fetch is not None
    assert (fetch.number, fetch.victims.tolist()) == (1, [0])


def test_what_is_ahead_is_bounded_in_bytes() -> None:
    next_uses, sizes = np.array([5, 6, 7, NEVER]), np.array([10, 10, 10, 1])
    wanted, nothing = np.array([True, True, True, False]), np.zeros(4, np.bool_)
    for ahead_bytes, expected in ((0, [0]), (19, [0]), (20, [0, 1]), (30, [0, 1, 2])):
        left, found = wanted.copy(), []
        while (fetch := next_fetch(left, nothing, next_uses, sizes, 0, 1000, ahead_bytes)) is not None:
            left[fetch.number] = False
            found.append(fetch.number)
        assert found == expected


def test_a_file_beyond_the_limit_does_not_stop_the_others() -> None:
    fetch = next_fetch(np.ones(2, np.bool_), np.zeros(2, np.bool_), np.array([0, 1]), np.array([50, 10]), 0, 20, 100)
    assert fetch is not None
    assert fetch.number == 1


def test_what_nobody_plans_to_use_takes_free_room_alone() -> None:
    sizes, held = np.array([10, 10]), np.array([True, False])
    next_uses = np.full(2, NEVER)
    assert next_fetch(~held, held, next_uses, sizes, 0, 0, 100) is None
    assert next_fetch(~held, held, next_uses, sizes, 0, 10, 100) is not None
