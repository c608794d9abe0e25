import functools
import itertools
from collections.abc import Iterator

import pytest

from pipeline.errors import InputError
from tools.benchmark.usage import Usage
from tools.measure import Pass, awaited, cold_pass, in_turn, row, spread, waits_ms, warm_pass
from tools.peers.options import Loaded


class Batches:
    """A loader that says which batches were asked for, and after how many of them its time was taken."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.given: list[int] = []

    def __iter__(self) -> Iterator[Loaded]:
        for size in self.sizes:
            self.given.append(size)
            yield Loaded(size, list, {})


@pytest.mark.parametrize("sizes", [[4] * 25, [32, 32, 32, 4], [100], [60, 40], [1, 99]])
def test_passes_follow_one_another_on_one_stream(sizes: list[int]) -> None:
    batches = Batches(sizes)
    stream = itertools.chain.from_iterable(itertools.repeat(batches))
    before = 0
    for _ in range(3):
        run = warm_pass(stream, 70, 100)
        seen = list(itertools.accumulate(batches.given[before:]))
        first = next(position for position, count in enumerate(seen) if count >= 70)
        assert run.sets == seen[-1] - seen[first]
        assert run.sets >= 100 > run.sets - batches.given[-1]  # not a batch more than it takes
        assert len(run.waits_sec) == len(seen) - 1 - first
        before = len(batches.given)
    assert run.wall_sec > 0
    assert run.peak_mib is not None
    assert run.peak_mib > 1


def test_a_cold_pass_drops_the_cache_twice_and_leaves_the_first_batch_out() -> None:
    order: list[str] = []

    def make() -> Batches:
        order.append("made")
        return Batches([40, 40, 20])

    run = cold_pass(make, lambda: order.append("dropped"))
    assert order == ["dropped", "made", "dropped"]
    assert (run.sets, len(run.waits_sec)) == (60, 2)
    assert run.first_batch_sec is not None


def test_an_epoch_of_one_batch_cannot_be_timed_cold() -> None:
    with pytest.raises(InputError, match="an epoch of 100 sets is one batch, a cold pass needs two"):
        cold_pass(lambda: Batches([100]), lambda: None)


def test_waits_are_those_of_next(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def slow() -> Iterator[int]:
        nonlocal now
        for seconds in (1, 2, 3):
            now += seconds
            yield seconds

    monkeypatch.setattr("time.perf_counter", lambda: now)
    waits = []
    for item, wait_sec in awaited(slow()):
        waits.append((item, wait_sec))
        now += 100  # what the consumer does in between is no wait
    assert waits == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_percentiles_of_waits_are_over_all_passes() -> None:
    passes = [Pass(1, 1.0, waits_sec=tuple(n / 1000 for n in range(51))), Pass(1, 1.0, waits_sec=(0.1,) * 50)]
    assert waits_ms(passes) == pytest.approx({"p50": 50, "p95": 100, "p99": 100, "max": 100})


def test_spread_is_median_and_quartiles() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == {"q1": 2.0, "median": 3.0, "q3": 4.0}


def test_ratios_are_within_rounds_and_cpu_time_is_a_thousand_sets() -> None:
    passes = {
        "a": [Pass(100, 1.0, Usage(0.5, 0, 0)), Pass(100, 10.0, Usage(0.7, 0, 0)), Pass(100, 2.0, Usage(0.6, 0, 0))],
        "b": [Pass(100, 3.0), Pass(100, 30.0), Pass(100, 6.0)],  # the machine became slow for both
    }
    assert row(passes, "a", "b")["ratio"] == pytest.approx({"median": 3, "q1": 3, "q3": 3})
    assert row(passes, "a", "b")["cpu_sec_per_1000_sets"] == pytest.approx(6.0)


def test_passes_take_turns() -> None:
    order: list[str] = []

    def run(name: str) -> Pass:
        order.append(name)
        return Pass(1, 1.0)

    runs = {name: functools.partial(run, name) for name in "ab"}
    ticks: list[int] = []
    results = in_turn(runs, 3, lambda: ticks.append(1))
    assert "".join(order) == "ababab"
    assert [len(passes) for passes in results.values()] == [3, 3]
    assert len(ticks) == 6
