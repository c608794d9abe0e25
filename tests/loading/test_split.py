import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.index_rows import row_type
from pipeline.format.sample import UNKNOWN
from pipeline.loading.sampler import Sampler, WindowSlice
from pipeline.loading.split import BACKGROUND_SALT, FOREGROUND_SALT, SPLITS, TABLE_IDS, Split, group
from tests.samples import split_rows


def all_pairs(ids: int) -> tuple[np.ndarray, np.ndarray]:
    bg, fg = np.meshgrid(np.arange(ids, dtype=np.int32), np.arange(ids, dtype=np.int32))
    return bg.ravel(), fg.ravel()


@pytest.mark.parametrize(("ids", "held_out"), [(10, 1), (100, 10)])
def test_shares_are_exact_for_the_usual_numbers_of_ids(ids: int, held_out: int) -> None:
    bg, fg = all_pairs(ids)
    sizes = {split: len(split_rows(bg, fg, split)) for split in SPLITS}
    assert sizes == {"train": (ids - 2 * held_out) ** 2, "val": held_out**2, "test": held_out**2}


def test_nothing_evaluated_was_trained_on() -> None:
    bg, fg = all_pairs(200)
    ids = {split: (set(bg[rows := split_rows(bg, fg, split)]), set(fg[rows])) for split in SPLITS}
    for one, other in [("train", "val"), ("train", "test"), ("val", "test")]:
        assert not ids[one][0] & ids[other][0]
        assert not ids[one][1] & ids[other][1]


def test_an_id_keeps_its_group_as_the_data_grows() -> None:
    # Golden: whoever changes these lets networks be tested on what they were trained on.
    assert [i for i in range(30) if group(BACKGROUND_SALT, i) != "train"] == [5, 6, 12, 22, 23, 24, 25, 26]
    assert [i for i in range(30) if group(FOREGROUND_SALT, i) != "train"] == [3, 7, 18, 20, 21]


def test_an_unknown_foreground_leaves_the_choice_to_the_background() -> None:
    bg, fg = all_pairs(30)
    unknown = np.where(fg % 3 == 0, np.int32(-1), fg)
    for split in SPLITS:
        expected = [
            row
            for row in range(len(bg))
            if group(BACKGROUND_SALT, bg[row]) == split
            and (fg[row] % 3 == 0 or group(FOREGROUND_SALT, fg[row]) == split)
        ]
        assert split_rows(bg, unknown, split).tolist() == expected


def test_all_and_unknown_names() -> None:
    bg, fg = all_pairs(3)
    assert split_rows(bg, fg, "all").tolist() == list(range(9))
    with pytest.raises(InputError, match="no split called 'dev': expected one of train, val, test or all"):
        split_rows(bg, fg, "dev")


class Index(NamedTuple):
    """An index, and how its rows lie in shards."""

    rows: NDArray[np.void]
    shard_sets: list[int]


def index_of(bg: list[int], fg: list[int], shard_sets: list[int]) -> Index:
    rows = np.zeros(len(bg), row_type(4))
    rows["bg"], rows["fg"] = bg, fg
    return Index(rows, shard_sets)


def rows_slowly(index: Index, split: str) -> list[list[int]]:
    """The split's rows of each shard, one row at a time."""
    found, row = [], 0
    for count in index.shard_sets:
        here = []
        for bg, fg in index.rows[["bg", "fg"]][row : row + count].tolist():
            fits = group(BACKGROUND_SALT, bg) == split and (fg == UNKNOWN or group(FOREGROUND_SALT, fg) == split)
            here += [row] if split == "all" or fits else []
            row += 1
        found.append(here)
    return found


@st.composite
def indexes(draw: st.DrawFn) -> Index:
    shard_sets = draw(st.lists(st.integers(0, 12), min_size=1, max_size=8))
    sets = sum(shard_sets)
    far = draw(st.sampled_from([[], [TABLE_IDS - 1], [TABLE_IDS, 2**31 - 1], [-3, -2, TABLE_IDS - 2, TABLE_IDS - 1]]))
    bg = st.sampled_from([0, 1, 5, 6, 12, 22, 100_000, *far])
    fg = st.sampled_from([UNKNOWN, 0, 1, 3, 7, 18, 99_999, *far])
    backgrounds, foregrounds = (draw(st.lists(ids, min_size=sets, max_size=sets)) for ids in (bg, fg))
    return index_of(backgrounds, foregrounds, shard_sets)


@given(
    index=indexes(),
    split=st.sampled_from([*SPLITS, "all"]),
    window=st.none() | st.integers(1, 5),
    batch_size=st.integers(1, 20),
    block=st.sampled_from([1, 3, 16, 65536]),
)
def test_sizes_and_rows_are_those_of_the_slow_reference(
    index: Index, split: str, window: int | None, batch_size: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.loading.split.BLOCK", block)
        expected = rows_slowly(index, split)
        held = Split(index.rows, index.shard_sets, split)
        assert held.sizes.tolist() == [len(rows) for rows in expected]
        assert held.count == sum(map(len, expected))
        order = Sampler(held.sizes, batch_size, "k", window=window)
        for epoch in range(2):
            for number in range(order.batches):
                pieces = order.batch(epoch, number)
                window_rows = [sum((expected[shard] for shard in shards), []) for shards, _ in pieces]
                picked = [[rows[n] for n in piece.positions] for rows, piece in zip(window_rows, pieces, strict=True)]
                found = held.rows(pieces)
                assert found.dtype == np.int64
                assert found.tolist() == sum(picked, [])


def test_a_rank_without_sets_has_no_rows() -> None:
    held = Split(index_of([0], [0], [1]).rows, [1], "all")
    rows = held.rows(Sampler(held.sizes, 4, "k").batch(0, 0, rank=0, world=4))
    assert rows.dtype == np.int64
    assert not len(rows)
    with pytest.raises(InputError, match="no split called 'dev'"):
        Split(index_of([0], [0], [1]).rows, [1], "dev")


def test_the_rows_of_two_windows_are_kept() -> None:
    index = index_of([0] * 9, [0] * 9, [3, 3, 3])
    held = Split(index.rows, index.shard_sets, "train")
    windows = [[WindowSlice(np.array([shard]), np.arange(3))] for shard in range(3)]
    assert [held.rows(window).tolist() for window in windows[:2]] == [[0, 1, 2], [3, 4, 5]]
    index.rows["bg"] = 5  # of another split: who looks at the index again now finds nothing
    assert [held.rows(window).tolist() for window in windows[:2]] == [[0, 1, 2], [3, 4, 5]]
    index.rows["bg"] = 0
    assert held.rows(windows[2]).tolist() == [6, 7, 8]
    index.rows["bg"] = 5
    assert held.rows(windows[1]).tolist() == [3, 4, 5]
    changed = r"index\.npy was changed while it was in use: see what fgbg-check says, and start again"
    with pytest.raises(InputError, match=changed):
        held.rows(windows[0])
    held = Split(index_of([0, 0, 5, 0], [0] * 4, [3, 1]).rows, [3, 1], "train")
    held._bg[2] = 0  # one more
    with pytest.raises(InputError, match=changed):
        held.rows(windows[0])


def test_an_epoch_in_windows_needs_no_memory_for_its_sets() -> None:
    shard_sets = [1000] * 2000
    rng = np.random.default_rng(0)
    index = np.zeros(sum(shard_sets), [("bg", "<i4"), ("fg", "<i4")])
    index["bg"], index["fg"] = rng.integers(0, 100, (2, len(index)))
    peaks = {}
    for window in (8, None):
        tracemalloc.start()
        held = Split(index, shard_sets, "train")
        order = Sampler(held.sizes, 4096, "k", window=window)
        seen = sum(len(held.rows(order.batch(0, number))) for number in range(order.batches))
        peaks[window] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen == held.count > 1_200_000
    assert peaks[8] < 4e6
    assert peaks[None] > 4e6  # what the first number is worth: one for all sets is seen
