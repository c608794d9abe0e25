import math

import numpy as np
import pytest
from numpy.typing import NDArray

import train.scoring
from pipeline.format.index_rows import row_type
from pipeline.format.sample import UNKNOWN
from pipeline.loading.split import BACKGROUND_SALT, FOREGROUND_SALT, PEER_SPLITS, SPLITS, Split, group
from tests.loading.test_split import all_pairs
from tests.samples import split_rows
from train.evaluate import CELLS, HEADLINE, cells_of, protocol
from train.scoring import intervals


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_of_cells_holds_what_is_of_training_or_of_the_split(split: str) -> None:
    bg, fg = all_pairs(60)
    fg[::7] = UNKNOWN
    expected = [
        row
        for row, (b, f) in enumerate(zip(bg.tolist(), fg.tolist(), strict=True))
        if group(BACKGROUND_SALT, b) in ("train", split)
        and (f == UNKNOWN or group(FOREGROUND_SALT, f) in ("train", split))
    ]
    rows = split_rows(bg, fg, f"{split}-cells")
    assert rows.tolist() == expected
    cell = cells_of(bg[rows], fg[rows])
    known = fg[rows] != UNKNOWN
    for name, part in ((HEADLINE, split), ("seen_seen", "train")):
        assert set(rows[(cell == name) & known]) == {r for r in split_rows(bg, fg, part) if fg[r] != UNKNOWN}
    assert set(cell) == set(CELLS)


def test_cells_are_those_of_the_ids() -> None:
    bg, fg = all_pairs(30)
    fg[::5] = UNKNOWN
    expected = [
        ("seen" if group(BACKGROUND_SALT, b) == "train" else "new")
        + ("_seen" if f == UNKNOWN or group(FOREGROUND_SALT, f) == "train" else "_new")
        for b, f in zip(bg.tolist(), fg.tolist(), strict=True)
    ]
    assert cells_of(bg, fg).tolist() == expected


def keyed(sets: int) -> NDArray[np.void]:
    rows = np.zeros(sets, row_type(12))
    rows["key"] = [f"set_{n:06}".encode() for n in range(sets)]
    rows["bg"] = np.arange(sets) % 7
    return rows


def test_the_peer_splits_part_all_sets_by_their_keys() -> None:
    rows = keyed(3000)
    parts = {name: Split(rows, [1000, 2000], name) for name in PEER_SPLITS}
    assert sum(part.count for part in parts.values()) == 3000
    for name, part in parts.items():
        expected = [n for n in range(3000) if group("peer", f"set_{n:06}") == PEER_SPLITS[name]]
        assert part.sizes.tolist() == [sum(n < 1000 for n in expected), sum(n >= 1000 for n in expected)]
        assert part._held(0, 3000).tolist() == expected
    assert [parts[f"peer-{split}"].count / 3000 for split in SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    # Golden: published comparisons shall stay the same.
    assert parts["peer-test"]._held(0, 100).tolist() == [36, 37, 47, 62, 65, 84, 89, 96, 99]


def test_what_a_split_means() -> None:
    assert [protocol(split, peer=False).scored for split in (*SPLITS, "all")] == [
        "train", "val-cells", "test-cells", "all",
    ]  # fmt: skip
    assert protocol("val", peer=True).scored == "peer-val"
    assert protocol("val", peer=True).training == "peer-train"
    assert "LEAKING" in next(iter(protocol("test", peer=True).cells.values()))


def plain_intervals(values: list[float], backgrounds: list[int], seed: int) -> tuple[float, float]:
    """Draws backgrounds one by one, and takes all sets of each."""
    of = {b: [v for v, c in zip(values, backgrounds, strict=True) if c == b and not math.isnan(v)] for b in backgrounds}
    rng = np.random.default_rng(seed)
    names = sorted(of)
    means = list[float]()
    for _ in range(4000):
        drawn: list[float] = sum((of[names[n]] for n in rng.integers(0, len(names), len(names))), [])
        means += [sum(drawn) / len(drawn)] if drawn else []
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def test_intervals_are_those_of_a_plain_bootstrap_over_backgrounds() -> None:
    rng = np.random.default_rng(5)
    backgrounds = np.repeat(np.arange(12, dtype=np.int32), rng.integers(1, 30, 12))
    values = 5 + rng.normal(size=(len(backgrounds), 2)) * 0.1 + rng.normal(size=12)[backgrounds][:, None]
    values[rng.random(values.shape) < 0.1] = np.nan
    found = intervals(values, backgrounds)
    for column in range(2):
        expected = plain_intervals(values[:, column].tolist(), backgrounds.tolist(), 9)
        width = expected[1] - expected[0]
        assert found[:, column] == pytest.approx(expected, abs=0.12 * width)  # another draw of 1,000
    sets_alone = intervals(values, np.arange(len(values), dtype=np.int32))
    assert (found[1] - found[0] > 2 * (sets_alone[1] - sets_alone[0])).all()  # resampling sets would be too sure


def test_intervals_are_the_same_again_in_blocks_and_with_other_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(60, 3))
    backgrounds = (np.arange(60) % 9).astype(np.int32)
    found = intervals(values, backgrounds)
    assert np.array_equal(found, intervals(values, backgrounds))
    np.testing.assert_allclose(found[:, 1:], intervals(values[:, 1:], backgrounds))
    assert not np.array_equal(found, intervals(values, backgrounds, seed=1))
    monkeypatch.setattr(train.scoring, "COUNTS_IN_MEMORY", 70)
    np.testing.assert_allclose(found, intervals(values, backgrounds))


def test_one_background_has_no_interval() -> None:
    values = np.array([[1.0, 1.0, 1.0], [0.0, np.nan, 0.0]])
    assert np.isnan(intervals(values, np.zeros(2, np.int32))).all()
    found = intervals(values, np.array([3, 4], np.int32))
    assert np.isnan(found[:, 1]).all()
    assert found[:, 0].tolist() == [0, 1]
