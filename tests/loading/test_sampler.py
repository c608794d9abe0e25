from collections import deque
from itertools import groupby, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.loading.sampler import MOST_LANES, PERMUTED_AT_ONCE, ROUNDS, Permutation, Sampler, WindowSlice

Set = tuple[int, int]  # (shard, which of its sets that are in the split)
SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


def sets(pieces: list[WindowSlice], sizes: list[int]) -> list[Set]:
    """The sets of a batch, by their names."""
    found = []
    for shards, positions in pieces:
        here = [(shard, place) for shard in shards.tolist() for place in range(sizes[shard])]
        found += [here[position] for position in positions.tolist()]
    return found


def epoch_of(order: Sampler, sizes: list[int], epoch: int) -> list[Set]:
    return [one for number in range(order.batches) for one in sets(order.batch(epoch, number), sizes)]


def numbers(count: int, batch_size: int, key: str) -> Sampler:
    """An order of one shard, whose sets are 0 .. count - 1."""
    return Sampler(np.array([count]), batch_size, key)


def positions(order: Sampler, epoch: int, number: int) -> NDArray[np.int64]:
    return np.concatenate([piece.positions for piece in order.batch(epoch, number)])


def encrypt_slowly(permutation: Permutation, value: int) -> int:
    """The Feistel network on one Python integer."""
    bits = max(2, (permutation.count - 1).bit_length())
    low = bits // 2
    left, right = value >> low, value & (1 << low) - 1
    for number in range(ROUNDS):
        mixed = (left if number % 2 else right) ^ int(permutation._round_keys[number])
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
        if number % 2:
            right ^= mixed & (1 << low) - 1
        else:
            left ^= mixed & (1 << bits - low) - 1
    return left << low | right


@given(count=st.integers(1, 3000), key=st.text(max_size=8))
def test_every_position_maps_to_one_set(count: int, key: str) -> None:
    order = Permutation(count, key)(np.arange(count))
    assert np.array_equal(np.sort(order), np.arange(count))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1000, 2**31 + 3, 10**11])
def test_a_permutation_is_its_slow_reference(count: int) -> None:
    permutation = Permutation(count, "slow")
    for position in range(0, count, -(-count // 50)):
        walked = encrypt_slowly(permutation, position)
        while walked >= count:
            walked = encrypt_slowly(permutation, walked)
        assert permutation(np.array([position])).tolist() == [walked]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 2**16 - 1, 2**16, 2**16 + 1])
def test_powers_of_two_are_no_edge(count: int) -> None:
    assert len(np.unique(Permutation(count, "k")(np.arange(count)))) == count


def test_any_position_can_be_asked_alone() -> None:
    permutation = Permutation(1000, "k")
    alone = [int(permutation(np.array([position]))[0]) for position in range(1000)]
    assert np.array_equal(alone, permutation(np.arange(1000)))


def test_the_order_is_frozen() -> None:
    # Golden: a run resumed under a later version must see the sets that it would have seen.
    assert Permutation(10, "golden")(np.arange(10)).tolist() == [1, 2, 5, 0, 9, 6, 7, 3, 4, 8]
    assert Permutation(400_000, "golden")(np.arange(3)).tolist() == [282706, 234394, 166805]
    whole = Sampler(np.array([7, 0, 12, 1]), 8, "golden")
    assert [positions(whole, 3, number).tolist() for number in range(3)] == [
        [8, 14, 6, 0, 5, 13, 3, 17],
        [10, 2, 4, 18, 15, 16, 1, 19],
        [12, 11, 9, 7],
    ]
    many = Sampler(np.full(400, 1000), 512, "golden")
    assert positions(many, 2, 700)[:5].tolist() == [398178, 270386, 162068, 194765, 137426]


def test_the_order_in_lanes_is_frozen() -> None:
    order = Sampler(np.array([3, 0, 2, 4, 1]), 6, "golden", window=2)
    found = [[(p.shards.tolist(), p.positions.tolist()) for p in order.batch(3, number)] for number in range(2)]
    assert found == [[([0], [1, 2, 0]), ([4], [0]), ([2], [1, 0])], [([3], [1, 0]), ([3], [3, 2])]]
    wide = Sampler(np.full(100, 10), 64, "golden", window=70)  # 35 lanes of 2 shards at a time
    assert [piece.positions.tolist() for piece in wide.batch(1, 3)[10:14]] == [[6], [0, 5], [18, 3], [1, 5]]
    plain = Sampler(np.array([3, 0, 2, 4, 1]), 4, "golden", shuffle=False, window=2)
    found = [[(p.shards.tolist(), p.positions.tolist()) for p in plain.batch(3, number)] for number in range(2)]
    assert found == [[([0, 2], [0, 1, 2, 3])], [([0, 2], [4]), ([3, 4], [0, 1, 2])]]


def test_permutations_of_three_are_equally_likely() -> None:
    drawn = [tuple(Permutation(3, str(key))(np.arange(3)).tolist()) for key in range(3000)]
    counts = [drawn.count(order) for order in set(drawn)]
    assert len(counts) == 6
    assert min(counts) > 400  # 500 expected, standard deviation 20


def test_neighbours_are_strangers() -> None:
    order = Permutation(100_000, "k")(np.arange(100_000))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02


@given(
    sizes=SIZES,
    window=st.none() | st.integers(1, 13),
    batch_size=st.integers(1, 50),
    world=st.integers(1, 7),
    shuffle=st.booleans(),
)
def test_every_set_comes_once_and_ranks_share_the_global_batch(
    sizes: list[int], window: int | None, batch_size: int, world: int, shuffle: bool
) -> None:
    order = Sampler(np.array(sizes), batch_size, "k", shuffle, window)
    seen = []
    for number in range(order.batches):
        whole = sets(order.batch(1, number), sizes)
        shares = [sets(order.batch(1, number, rank, world), sizes) for rank in range(world)]
        assert sum(shares, []) == whole
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert len(whole) == batch_size or number == order.batches - 1
        seen += whole
    everything = [(shard, place) for shard, size in enumerate(sizes) for place in range(size)]
    assert (sorted(seen) if shuffle else seen) == everything


def lanes_slowly(sizes: list[int], batch_size: int, window: int, epoch: int) -> list[Set]:
    """The order in lanes, set by set."""
    width = -(-window // min(batch_size, MOST_LANES))
    lanes = -(-window // width)
    names = [shard for shard, size in enumerate(sizes) if size]
    in_turn = [names[n] for n in Permutation(len(names), f"k/{epoch}/shards")(np.arange(len(names)))]
    stream = [(shard, place) for shard in in_turn for place in range(sizes[shard])]
    full, rest = divmod(len(stream), batch_size)
    cuts = [full * batch_size * lane // lanes + rest * lane // lanes for lane in range(lanes + 1)]
    number, queues = 0, []
    for lane, (first, last) in enumerate(pairwise(cuts)):
        pieces = [list(sets) for _, sets in groupby(stream[first:last], key=lambda one: one[0])]
        queues.append(queue := deque[Set]())
        pieces = pieces[::-1] if lane % 2 else pieces
        for begin in range(0, len(pieces), width):
            mixed = sorted(sum(pieces[begin : begin + width], []))
            queue += [mixed[n] for n in Permutation(len(mixed), f"k/{epoch}/{number}")(np.arange(len(mixed)))]
            number += 1
    order = []
    for start in range(0, full * batch_size, batch_size):
        edges = [(start + batch_size) * lane // lanes - start * lane // lanes for lane in range(lanes + 1)]
        order += [queue.popleft() for queue, (a, b) in zip(queues, pairwise(edges), strict=True) for _ in range(a, b)]
    return order + [one for queue in queues for one in queue]


@given(sizes=SIZES, window=st.integers(1, 150), batch_size=st.integers(1, 100))
def test_lanes_are_those_of_the_slow_reference(sizes: list[int], window: int, batch_size: int) -> None:
    order = Sampler(np.array(sizes), batch_size, "k", window=window)
    assert epoch_of(order, sizes, 2) == lanes_slowly(sizes, batch_size, window, 2)
    assert window <= order.lanes * order._width < window + order._width


@given(
    sizes=SIZES,
    window=st.none() | st.integers(1, 13),
    batch_size=st.integers(1, 50),
    world=st.integers(1, 7),
    shuffle=st.booleans(),
)
def test_turns_are_those_of_all_batches(
    sizes: list[int], window: int | None, batch_size: int, world: int, shuffle: bool
) -> None:
    order = Sampler(np.array(sizes), batch_size, "k", shuffle, window)
    one_by_one = not shuffle or (window is not None and window <= batch_size)
    for rank in range(world):
        expected = [(-1, -1)] * len(sizes)
        for number in range(order.batches):
            for shard, _ in sets(order.batch(1, number, rank, world), sizes):
                expected[shard] = (number if expected[shard][0] < 0 else expected[shard][0], number)
        found = list(zip(*(side.tolist() for side in order.turns(1, rank, world)), strict=True))
        if one_by_one:
            assert found == expected
        else:  # of shards that are shuffled together: when any of them is needed
            assert all(a <= c <= d <= b for (a, b), (c, d) in zip(found, expected, strict=True) if c >= 0)
            assert all(size > 0 for size, (a, _) in zip(sizes, found, strict=True) if a >= 0)
    of_ranks = [order.turns(1, rank, world) for rank in range(world)]
    for ranks in range(1, world + 1):
        first, last = order.turns(1, world - ranks, world, ranks)
        firsts = np.stack([turns.first for turns in of_ranks[world - ranks :]])
        assert last.tolist() == np.max([turns.last for turns in of_ranks[world - ranks :]], axis=0).tolist()
        assert (
            first.tolist() == np.where(last < 0, -1, np.where(firsts < 0, order.batches, firsts).min(axis=0)).tolist()
        )


def test_turns_of_a_huge_set_are_arithmetic() -> None:
    order = Sampler(np.full(100_000, 1000), 512, "k", window=64)
    first, last = order.turns(7, 3, 8)
    shard = int(np.flatnonzero(first > 0)[0])
    for number, inside in (
        (first[shard] - 1, False),
        (first[shard], True),
        (last[shard], True),
        (last[shard] + 1, False),
    ):
        assert any(shard in piece.shards for piece in order.batch(7, int(number), 3, 8)) == inside
    assert 12_500 <= np.count_nonzero(first >= 0) <= 12_502
    assert (last - first).max() <= 1000 / 8 + 1


def test_shards_without_sets_change_nothing() -> None:
    dense, sparse = [3, 4, 5, 2], [0, 3, 4, 0, 0, 5, 2, 0]
    names = [1, 2, 5, 6]
    for window in (None, 1, 2, 3, 4):
        expected = epoch_of(Sampler(np.array(dense), 3, "k", window=window), dense, 0)
        found = epoch_of(Sampler(np.array(sparse), 3, "k", window=window), sparse, 0)
        assert found == [(names[shard], place) for shard, place in expected]


@pytest.mark.parametrize(("window", "batch_size", "world"), [(64, 512, 8), (64, 96, 7), (8, 64, 3), (100, 20, 3)])
def test_only_so_many_shards_are_read_from_at_a_time(window: int, batch_size: int, world: int) -> None:
    sizes = np.full(400, 100)
    order = Sampler(sizes, batch_size, "k", window=window)
    turns = [order.turns(0, rank, world) for rank in range(world)]
    at_a_time = (order.lanes / world + 3) * order._width
    for number in range(0, order.batches, 20):
        whole = np.unique(np.concatenate([piece.shards for piece in order.batch(0, number)]))
        # Beside a cut between two lanes, both read from the shard that is cut, at the end of an epoch or its beginning.
        assert window / 2 <= len(whole) <= 2 * order.lanes * order._width
        for first, last in turns:
            ending, beginning = np.count_nonzero(last == number), np.count_nonzero(first == number)
            in_use = np.count_nonzero((first <= number) & (number <= last))
            assert in_use - min(ending, beginning) < at_a_time


def downloads(sizes: NDArray[np.int64], batch_size: int, hosts: int, window: int = 64) -> float:
    """How often a shard is downloaded in an epoch, if each host that takes a set of it does it once."""
    order = Sampler(sizes, batch_size, "k", window=window)
    used = sum(np.count_nonzero(order.turns(0, host, hosts).first >= 0) for host in range(hosts))
    return used / np.count_nonzero(sizes)


@pytest.mark.parametrize("hosts", [1, 2, 3, 5, 7, 8])
def test_hosts_download_little_more_than_the_data(hosts: int) -> None:
    uneven = np.append(np.full(79, 640), 13)
    sparse = np.random.default_rng(0).integers(0, 12, 1000)
    for sizes, batch_size in product((uneven, sparse, np.full(400, 1000)), (64, 256, 1000, 4096)):
        assert downloads(sizes, batch_size, hosts) <= 1.3
    assert downloads(np.full(400, 1000), 512, 8) <= 1.02
    assert downloads(np.full(32, 1000), 512, hosts) <= 1.3
    assert downloads(np.full(8, 1000), 512, hosts) <= (8 + hosts - 1) / 8  # as few as equal shares can be


def test_epochs_put_other_shards_together_in_another_order() -> None:
    sizes = [20] * 30
    orders = [epoch_of(Sampler(np.array(sizes), 64, "k", window=1), sizes, epoch) for epoch in range(2)]
    shards = [[shard for shard, place in order if place == 0] for order in orders]
    assert shards[0] != shards[1]
    inside = [{shard: [place for one, place in order if one == shard] for shard in range(30)} for order in orders]
    assert all(inside[0][shard] != inside[1][shard] for shard in range(30))
    together = [
        {frozenset(np.concatenate([p.shards for p in order.batch(epoch, n)]).tolist()) for n in range(order.batches)}
        for epoch in range(2)
        for order in [Sampler(np.array(sizes), 20, "k", window=3)]
    ]
    assert len(together[0]) >= len(together[1]) >= 10
    assert len(together[0] & together[1]) < 3


def test_epochs_and_keys_differ_and_no_shuffle_is_the_index() -> None:
    first = positions(numbers(100, 100, "k"), 0, 0).tolist()
    assert first != positions(numbers(100, 100, "k"), 1, 0).tolist()
    assert first != positions(numbers(100, 100, "other"), 0, 0).tolist()
    plain = Sampler(np.array([50, 50]), 30, "k", shuffle=False)
    assert positions(plain, 5, 3).tolist() == list(range(90, 100))


def test_what_is_permuted_ahead_is_no_edge() -> None:
    count = 2 * PERMUTED_AT_ONCE + 5
    expected = Permutation(count, "k/0")(np.arange(count))
    for batch_size in (PERMUTED_AT_ONCE - 1, PERMUTED_AT_ONCE, PERMUTED_AT_ONCE + 1, 3 * PERMUTED_AT_ONCE, 7001):
        order = numbers(count, batch_size, "k")
        backwards = [positions(order, 0, number) for number in reversed(range(order.batches))]
        assert np.array_equal(np.concatenate(backwards[::-1]), expected)
        onwards = [positions(order, 0, number) for number in range(order.batches)]
        assert np.array_equal(np.concatenate(onwards), expected)


@pytest.mark.parametrize("window", [None, 1, 2, 9])
def test_going_on_anywhere_with_any_number_of_ranks(window: int | None) -> None:
    sizes = [7, 0, 5, 9, 2]
    undisturbed = Sampler(np.array(sizes), 4, "k", window=window)
    expected = [sets(undisturbed.batch(epoch, n), sizes) for epoch in range(2) for n in range(undisturbed.batches)]
    for before, after in product(range(1, 5), repeat=2):
        for stop in range(len(expected) + 1):
            seen = []
            # Every rank has an Order of its own, and those of the second run know nothing of the first.
            for world, steps in ((before, range(stop)), (after, range(stop, len(expected)))):
                ranks = [Sampler(np.array(sizes), 4, "k", window=window) for _ in range(world)]
                for step in steps:
                    epoch, number = divmod(step, undisturbed.batches)
                    shares = [sets(order.batch(epoch, number, r, world), sizes) for r, order in enumerate(ranks)]
                    seen.append(sum(shares, []))
            assert seen == expected
