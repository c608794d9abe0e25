from collections.abc import Iterator

import pytest
import torch

from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from tools.bench_loader import LoadOptions
from tools.bench_stalls import Stall, SweepSetting, cached, measure_stalls, parse_grid, recommended, refuse_stalls


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


# --- the sweep


def spread_of(median: float, q1: float, q3: float) -> dict[str, float]:
    return {"median": median, "q1": q1, "q3": q3}


def test_a_grid_is_all_values_of_all_axes() -> None:
    settings = parse_grid(["threads=1,2", "prefetch=3", "batch-size=8,16"], "cpu")
    assert settings == [SweepSetting(t, 3, b, 0.65) for t in (1, 2) for b in (8, 16)]
    loads = {setting.hw_decoder_load for setting in parse_grid([], "gpu")}
    assert loads == {0.5, 0.65, 0.8}
    assert {setting.hw_decoder_load for setting in parse_grid([], "cpu")} == {0.65}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=1", "no axis called 'speed': expected some of threads, prefetch, batch-size, hw-decoder-load"),
        ("threads=many", "threads=many: expected numbers with commas, as in threads=1,2"),
        ("threads=", "threads=: expected numbers"),
        ("prefetch=0", "threads, prefetch and batch size are 1 or more"),
        ("hw-decoder-load=1.5", "hw-decoder-load is from 0 to 1"),
    ],
)
def test_a_wrong_grid_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_grid([text], "gpu")


def test_the_cheapest_within_the_spread_of_the_fastest_is_recommended() -> None:
    rates = {
        SweepSetting(1, 1, 64, 0.65): spread_of(80, 79, 81),
        SweepSetting(2, 4, 256, 0.65): spread_of(100, 95, 105),
        SweepSetting(2, 2, 256, 0.65): spread_of(96, 90, 99),
        SweepSetting(2, 2, 64, 0.65): spread_of(94, 94, 94),
        SweepSetting(1, 4, 512, 0.65): spread_of(95, 90, 99),
    }
    assert recommended(rates) == SweepSetting(1, 4, 512, 0.65)
    del rates[SweepSetting(1, 4, 512, 0.65)]
    assert recommended(rates) == SweepSetting(2, 2, 256, 0.65)


def test_settings_are_flags_and_options() -> None:
    setting = SweepSetting(2, 3, 64, 0.5)
    assert setting.flags("cpu") == "--threads 2 --prefetch 3 --batch-size 64"
    assert setting.flags("gpu") == "--threads 2 --prefetch 3 --batch-size 64 --hw-decoder-load 0.5"
    options = setting.of(LoadOptions(8, 32, "cpu", 1))
    assert (options.workers, options.prefetch, options.batch_size, options.size) == (2, 3, 64, 32)
