"""What is said of an interval over few backgrounds is so: beside a slow draw of many samples."""

import numpy as np
import pytest

from pipeline.format.sample import UNKNOWN
from train.reliability import ENOUGH, LEAST, count_known, coverage_of_range, narrowness, reliability, student_t
from train.scoring import intervals


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ((9, 1, 3), "9 sets on 1 background and 3 foregrounds: scores hold for this background alone"),
        ((9, 3, 1), "9 sets on 3 backgrounds and 1 foreground: scores hold for this foreground alone"),
        ((1, 1, 1), "1 set on 1 background and 1 foreground: scores hold for this background alone"),
        ((9, 2, 3), "9 sets on 2 backgrounds and 3 foregrounds: "
         "over 2 backgrounds a 95 % interval covers 50 % at most"),
        ((9, 9, 4), "9 sets on 9 backgrounds and 4 foregrounds: "
         "over 4 foregrounds a 95 % interval covers 88 % at most"),
        ((81, 9, 9), "81 sets on 9 backgrounds and 9 foregrounds: "
         "over 9 backgrounds a 95 % interval is 20 % too narrow"),
        ((81, 9, 0), "81 sets on 9 backgrounds: over 9 backgrounds a 95 % interval is 20 % too narrow"),
        ((4000, 30, 40), "4,000 sets on 30 backgrounds and 40 foregrounds"),
    ],
)  # fmt: skip
def test_the_fewer_of_both_decide(counts: tuple[int, int, int], line: str) -> None:
    assert reliability(*counts) == line
    assert len(line) <= 100


def test_a_foreground_that_is_not_known_does_not_count() -> None:
    assert count_known(np.array([3, UNKNOWN, 5, 3, UNKNOWN], np.int32)) == 2
    assert count_known(np.array([UNKNOWN], np.int32)) == 0


def test_the_quantile_is_that_of_tables() -> None:
    for freedom, value in ((5, 2.5706), (9, 2.2622), (19, 2.0930), (28, 2.0484)):
        assert student_t(freedom) == pytest.approx(value, rel=2e-3)


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_no_interval_over_few_covers_more_than_is_said(clusters: int) -> None:
    drawn = np.random.default_rng(0).normal(size=(20_000, clusters))
    covered = ((drawn.min(1) < 0) & (drawn.max(1) > 0)).mean()
    assert 100 * covered == pytest.approx(coverage_of_range(clusters), abs=1)
    found = intervals(drawn[:1].T, np.arange(clusters, dtype=np.int32))
    assert drawn[0].min() <= found[0] <= found[1] <= drawn[0].max()
    assert coverage_of_range(LEAST - 1) < 95 < coverage_of_range(LEAST)


def test_the_bootstrap_is_as_much_too_narrow_as_is_said() -> None:
    clusters = 9
    drawn = np.random.default_rng(1).normal(size=(clusters, 400))  # 400 scores on 9 backgrounds
    low, high = intervals(drawn, np.arange(clusters, dtype=np.int32))
    t = 2 * student_t(clusters - 1) * drawn.std(0, ddof=1) / np.sqrt(clusters)
    assert 100 * (1 - (high - low).sum() / t.sum()) == pytest.approx(narrowness(clusters), abs=2)
    assert narrowness(ENOUGH) < 6 < narrowness(ENOUGH - 2)
