from collections.abc import Iterator

import pytest
import torch

from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from tools.bench_stalls import Stall, cached, measure_stalls, refuse_stalls


def batch(sets: int) -> Batch:
    pictures = (torch.arange(sets * 32 * 32) % 256).to(torch.uint8).view(sets, 1, 32, 32)
    return Batch(pictures, pictures, pictures, pictures, torch.arange(sets))


def test_stall_is_the_share_of_the_time_that_is_not_compute() -> None:
    stall = Stall(steps=10, sets=100, compute_before_sec=7.0, end_to_end_sec=10.0, compute_after_sec=8.0)
    assert stall.stall_pct == pytest.approx(25.0)
    assert stall.drift_pct == pytest.approx(100 / 7)


@pytest.mark.parametrize(("sets", "sizes"), [(8, [4, 4]), (9, [4, 4, 1]), (3, [3]), (4, [4])])
def test_the_cached_epoch_has_the_loaders_batch_sizes(sets: int, sizes: list[int]) -> None:
    assert [len(one.bg) for one in cached(batch(4), sets)] == sizes


def test_every_epoch_lies_between_two_on_the_cached_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now, cost_sec, order = 0.0, 1.0, list[str]()
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def loading(wait_sec: float) -> Iterator[Batch]:
        nonlocal now
        order.append("loader")
        for one in cached(batch(4), 10):
            now += wait_sec
            yield one

    def caching() -> Iterator[Batch]:
        nonlocal cost_sec
        order.append("cached")
        if len(order) > 2:  # after the warm-up, the machine becomes slower
            cost_sec *= 2
        return cached(batch(4), 10)

    def step(_: Batch) -> None:
        nonlocal now
        now += cost_sec

    waits = iter((4.0, 0.0))
    first, second = measure_stalls(lambda: loading(next(waits)), caching, step)
    assert order == ["cached", "cached", "loader", "cached", "loader", "cached"]
    assert first == Stall(3, 10, 3.0, 3 * (1 + 4), 6.0)
    assert second == Stall(3, 10, 6.0, 6.0, 12.0)
    assert first.stall_pct == pytest.approx(70.0)


def test_too_long_stalls_are_refused_by_epoch() -> None:
    epochs = [{"stall_pct": 0.9, "drift_pct": 0.1}, {"stall_pct": 2.04, "drift_pct": 0.1}]
    refuse_stalls(epochs, 2.1)
    with pytest.raises(InputError, match=r"^epoch 2 stalls 2.0 % of its time, allowed are 1 %"):
        refuse_stalls(epochs, 1.0)
