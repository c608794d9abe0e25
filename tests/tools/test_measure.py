import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.workers import timed
from tools import measure
from tools.measure import (
    Pass,
    TimedLoader,
    Usage,
    in_turn,
    peak_mib,
    reset_peak,
    spread,
    summarize,
    used,
    waits_ms,
    warm_pass,
)


class Batches:
    """A loader that says which batches were asked for, and after how many of them its time was taken."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.given: list[int] = []

    def __iter__(self) -> Iterator[int]:
        for size in self.sizes:
            self.given.append(size)
            yield size


def loader_of(
    make: Callable[[], Iterable[int]], drop_pages: Callable[[], object] = lambda: None, ahead_sets: int = 0
) -> TimedLoader:
    """A loader of batches that are told by their sizes."""
    return TimedLoader(make, int, ahead_sets, drop_pages)


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
    assert run.peak_mib > 1


def test_a_cold_pass_drops_the_cache_twice_and_leaves_the_first_batch_out() -> None:
    order: list[str] = []

    def make() -> Batches:
        order.append("made")
        return Batches([40, 40, 20])

    run = loader_of(make, lambda: order.append("dropped")).cold()
    assert order == ["dropped", "made", "dropped"]
    assert (run.sets, len(run.waits_sec)) == (60, 2)
    assert run.first_batch_sec > 0


def test_an_epoch_of_one_batch_cannot_be_timed_cold() -> None:
    with pytest.raises(InputError, match="an epoch of 100 sets is one batch, a cold pass needs two"):
        loader_of(lambda: Batches([100])).cold()


def test_waits_are_those_of_next(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def slow() -> Iterator[int]:
        nonlocal now
        for seconds in (1, 2, 3):
            now += seconds
            yield seconds

    monkeypatch.setattr("time.perf_counter", lambda: now)
    waits = []
    for item, wait_sec in timed(slow()):
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
    assert summarize(passes, "a", "b")["ratio"] == pytest.approx({"median": 3, "q1": 3, "q3": 3})
    assert summarize(passes, "a", "b")["cpu_sec_per_1000_sets"] == pytest.approx(6.0)


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


CHILD = """
import sys
held = bytearray(64 << 20)
for page in range(0, len(held), 4096):
    held[page] = 1
open(sys.argv[1], 'rb').read()
total = sum(range(3_000_000))
print('ready', flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    return tmp_path / "file"


def test_children_count_while_they_live_and_their_time_afterwards(busy: Path) -> None:
    before = used()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(busy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stdin
        assert child.stdout.readline() == "ready\n"
        alive = used().since(before)
        assert alive.cpu_sec > 0
        assert alive.read_bytes >= 1 << 20
        alone, together = peak_mib(child.pid), peak_mib()
        assert alone > 64
        assert together > 64 + 1
        child.stdin.write("\n")
    assert used().since(before).cpu_sec >= alive.cpu_sec - 0.02  # clock ticks


def test_bytes_of_this_process(busy: Path) -> None:
    before = used()
    busy.read_bytes()
    assert 1 << 20 <= used().since(before).read_bytes < 2 << 20


def test_a_forgotten_peak_begins_anew() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    held = bytearray(os.urandom(1)) * (128 << 20)
    peak = peak_mib(os.getpid())
    del held
    reset_peak()
    assert peak_mib() < peak - 100


class Counted:
    """A loader that counts its epochs, those that went to their end."""

    def __init__(self) -> None:
        self.epochs, self.closed = 0, False

    def __iter__(self) -> Iterator[int]:
        yield from [25] * 4
        self.epochs += 1

    def close(self) -> None:
        self.closed = True


def test_a_loader_is_opened_timed_and_closed() -> None:
    made: list[Counted] = []

    def make() -> Counted:
        made.append(Counted())
        return made[-1]

    loader, ahead_sets = loader_of(make, ahead_sets=192), 192
    assert loader.open() > 0
    run_in = 2 * ahead_sets  # 384 sets are 16 of these batches
    assert [loader.warm(100).sets for _ in range(2)] == [100, 100]
    loader.close()
    assert [(one.epochs, one.closed) for one in made] == [(1 + -(-2 * (-(-run_in // 25) + 4) // 4), True)]
    assert loader.cold().sets == 75
    assert [(one.epochs, one.closed) for one in made[1:]] == [(1, True)]
    loader.close()


@pytest.mark.parametrize(("cpu_sec", "waits"), [([0, 1, 1, 3, 3, 3.005], 3), ([0, 1] * 30, 20)])
def test_a_turn_begins_when_all_is_at_rest_or_never_will_be(
    cpu_sec: list[float], waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings, slept = iter(cpu_sec), list[float]()
    monkeypatch.setattr(measure, "used", lambda: Usage(next(readings), 0, 0))
    monkeypatch.setattr("time.sleep", slept.append)
    measure.settle()
    assert len(slept) == waits
