from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.loading.sampler import PERMUTED_AT_ONCE, ROUNDS, Permutation, Sampler, WindowSlice

Set = tuple[int, int]  # (shard, which of its sets that are in the split)


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


def test_the_order_in_windows_is_frozen() -> None:
    order = Sampler(np.array([3, 0, 2, 4, 1]), 6, "golden", window=2)
    found = [[(p.shards.tolist(), p.positions.tolist()) for p in order.batch(3, number)] for number in range(2)]
    assert found == [[([0, 3], [3, 5, 6, 4, 1, 2])], [([0, 3], [0]), ([2, 4], [1, 2, 0])]]


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
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
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


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    window=st.integers(1, 13),
    batch_size=st.integers(1, 50),
)
def test_windows_are_those_of_the_slow_reference(sizes: list[int], window: int, batch_size: int) -> None:
    epoch, with_sets = 2, [shard for shard, size in enumerate(sizes) if size]
    shards = [with_sets[n] for n in Permutation(len(with_sets), f"k/{epoch}/shards")(np.arange(len(with_sets)))]
    expected = []
    for number, first in enumerate(range(0, len(shards), window)):
        here = [(shard, place) for shard in sorted(shards[first : first + window]) for place in range(sizes[shard])]
        # A window that holds everything is no window.
        key = f"k/{epoch}/{number}" if window < len(shards) else f"k/{epoch}"
        expected += [here[n] for n in Permutation(len(here), key)(np.arange(len(here)))]
    assert epoch_of(Sampler(np.array(sizes), batch_size, "k", window=window), sizes, epoch) == expected


def test_shards_without_sets_change_nothing() -> None:
    dense, sparse = [3, 4, 5, 2], [0, 3, 4, 0, 0, 5, 2, 0]
    names = [1, 2, 5, 6]
    for window in (None, 1, 2, 3, 4):
        expected = epoch_of(Sampler(np.array(dense), 3, "k", window=window), dense, 0)
        found = epoch_of(Sampler(np.array(sparse), 3, "k", window=window), sparse, 0)
        assert found == [(names[shard], place) for shard, place in expected]


def test_only_so_many_shards_are_read_from_at_a_time() -> None:
    sizes = [10] * 12
    order = Sampler(np.array(sizes), 7, "k", window=3)
    windows = [tuple(p.shards.tolist()) for number in range(order.batches) for p in order.batch(0, number)]
    in_turn = [window for place, window in enumerate(windows) if window != windows[place - 1]]
    assert len(in_turn) == 4  # none is come back to
    assert sorted(shard for window in in_turn for shard in window) == list(range(12))


def test_epochs_put_other_shards_together_in_another_order() -> None:
    sizes = [20] * 30
    orders = [epoch_of(Sampler(np.array(sizes), 64, "k", window=1), sizes, epoch) for epoch in range(2)]
    shards = [[shard for shard, place in order if place == 0] for order in orders]
    assert shards[0] != shards[1]
    inside = [{shard: [place for one, place in order if one == shard] for shard in range(30)} for order in orders]
    assert all(inside[0][shard] != inside[1][shard] for shard in range(30))
    together = [
        {frozenset(p.shards.tolist()) for n in range(order.batches) for p in order.batch(epoch, n)}
        for epoch in range(2)
        for order in [Sampler(np.array(sizes), 64, "k", window=3)]
    ]
    assert len(together[0]) == len(together[1]) == 10
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


@pytest.mark.parametrize("window", [None, 1, 2])
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
