"""What a run will take: said in time, and nothing of the run changes by it."""

import copy

import pytest
import torch

from train import pace
from train.config import Config
from train.networks import build_network
from train.pace import Estimate, FirstSteps, advice, arithmetic, duration, estimate

CONFIG = Config(shards="x", out="y", model="unet-8", size=32, epochs=2)


def test_rate_and_time_left_are_those_of_the_steps_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([10.0, 12.0, 16.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    steps = FirstSteps(torch.device("cpu"))
    assert steps.describe(8, 0.1) == ""
    assert steps.describe(8, 0.2) == "2 s a step, 4 sets/s, 16 s left"
    assert steps.describe(8, 0.3) == "3 s a step, 3 sets/s, 21 s left"
    assert steps.left_sec == pytest.approx(21)


def test_durations() -> None:
    assert [duration(sec) for sec in (0, 59, 60, 5399, 5400, 86400, 4 * 86400)] == [
        "0 s", "59 s", "1 min", "90 min", "1.5 h", "24.0 h", "4.0 days",
    ]  # fmt: skip


def test_arithmetic_grows_with_width_pixels_and_at_full_resolution() -> None:
    assert arithmetic("unet-16", CONFIG) > 3 * arithmetic("unet-8", CONFIG)
    assert arithmetic("net", CONFIG) > 10 * arithmetic("unet-s", CONFIG)
    larger = Config(shards="x", out="y", size=64, epochs=1)
    assert arithmetic("unet-8", larger) == pytest.approx(4 * arithmetic("unet-8", CONFIG), rel=0.01)


def test_an_estimate_changes_neither_the_network_nor_random_numbers() -> None:
    network = build_network("unet-16")
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    found = estimate(Config(shards="x", out="y", model="unet-16", size=32, epochs=1), network, 1000)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert found.run_sec > 0
    assert list(found.smaller) == ["unet-8"]
    share = arithmetic("unet-8", CONFIG) / arithmetic("unet-16", CONFIG)
    assert found.smaller["unet-8"] == pytest.approx(found.run_sec * share)


def test_what_would_fit_is_said_where_a_run_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network("unet-8")
    monkeypatch.setattr(pace, "estimate", lambda *_: Estimate(40_000.0, {"unet-xs": 7200.0}))
    assert advice(CONFIG, network, 100) == ""  # not even looked at
    assert advice(CONFIG, network, 400_000) == (
        "unet-8 takes this CPU about 11.1 h (timed on 2 sets); by its arithmetic, --model unet-xs 2.0 h; "
        "or end it in time, --minutes 10"
    )
    assert advice(Config(shards="x", out="y", model="unet-8", size=32, minutes=5, epochs=None), network, 400_000) == ""
    monkeypatch.setattr(pace, "estimate", lambda *_: Estimate(600.0, {}))
    assert advice(CONFIG, network, 400_000) == ""
