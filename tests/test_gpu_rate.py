import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.baselines.plan import gmac
from pipeline.errors import InputError
from tools.gpu_check import clock, floor, original, rate
from tools.gpu_check.context import Context
from tools.gpu_check.cost import flops, traffic_bytes
from tools.gpu_check.kernels import OTHERS, kind_of, profiled, summary
from tools.gpu_check.rate import Case, flops_a_set, gpu_cases, measure_cases
from tools.gpu_check.rate_table import Found, cells, failures, notes
from tools.peers.options import Loaded, LoadOptions

CPU = torch.device("cpu")
TINY = Case("unet-4", 2, "off", 32)
MEASURED: Found = {
    "sets_per_sec": {"median": 4000.0, "q1": 3900.0, "q3": 4100.0}, "flops_a_set": 1e9, "flops_share": 0.42,
    "bytes_a_set_estimate": 2e6, "bytes_share_estimate": 0.3, "peak_bytes": 3 * 2**30, "first_step_sec": 31.0,
    "waits_a_step": 0, "busy_share": 0.97,
    "profile": summary([("triton_poi_fused_relu_3", 5, 0.003), ("sm90_xmma_fprop", 2, 0.001)]).plain(),
}  # fmt: skip


def a_context(work: Path, seconds: float = 60.0) -> Context:
    return Context(work, work, work, CPU, seconds, lambda line: None)


# --- the clock


class Time:
    """A clock that moves by what is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, 0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def work(self) -> None:
        self.calls += 1
        self.now += 9.0 if self.calls <= 2 else 2.0  # slow at first


def test_windows_are_timed_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    assert clock.windows_sec(CPU, time.work, 2, 3) == [18.0, 4.0, 4.0]
    assert time.calls == 6


def test_the_first_window_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    assert clock.calls_sec(CPU, time.work) == [2.0] * clock.CPU_WINDOWS


def test_a_window_has_as_many_calls_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time(monkeypatch)
    monkeypatch.setattr(clock, "CPU_WINDOW_SEC", 20.0)
    assert clock.calls_sec(CPU, time.work) == [2.0] * clock.CPU_WINDOWS
    assert time.calls == 1 + 3 * (1 + clock.CPU_WINDOWS)  # one takes 9 s at first, 3 of them 20


# --- the floor


def test_the_floor_counts_operations_and_bytes_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def took_half_a_second(device: torch.device, work: Callable[[], object]) -> list[float]:
        work()
        return [0.5] * 5

    monkeypatch.setattr(floor, "calls_sec", took_half_a_second)
    assert floor.matmul(CPU, torch.bfloat16, 16)["median"] == 2 * (2 * 16**3)
    assert floor.copy(CPU)["median"] == 2 * (2 * floor.CPU_COPIED_BYTES)


def test_the_floor_is_measured_on_a_cpu_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    result = floor.measure(a_context(tmp_path))
    assert list(result.figures) == ["matmul bf16 128", "matmul bf16 256", "matmul fp32 128", "matmul fp32 256", "copy"]
    assert all(0 < found["q1"] <= found["median"] <= found["q3"] for found in result.figures.values())
    assert "copy from pinned memory to the device: skipped: no GPU" in result.notes
    assert {len(cells) for cells in result.rows.values()} == {len(result.columns)}


# --- what is counted


def test_arithmetic_is_that_of_a_convolution_forward_and_backward() -> None:
    convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    pictures = torch.rand(2, 3, 16, 16)
    forward = 2 * (2 * 16 * 16) * (8 * 3 * 3 * 3)
    assert flops(lambda: convolution(pictures)) == forward
    assert flops(lambda: convolution(pictures).sum().backward()) == 2 * forward  # nothing asks for the pictures'


def test_a_training_step_takes_three_times_the_arithmetic_of_the_network() -> None:
    forward = 2e9 * gmac("unet-16", True, 64)
    assert 2.9 < flops_a_set("unet-16", 64) / forward < 3.1  # no gradient at the pictures, but SSIM and its own


def test_traffic_is_what_operators_read_and_write() -> None:
    a, b = torch.rand(1000), torch.rand(1000)
    assert traffic_bytes(lambda: a + b) == 12_000
    assert traffic_bytes(lambda: a.add_(b)) == 12_000
    assert traffic_bytes(lambda: a.view(10, 100).t()) == 0
    assert traffic_bytes(lambda: torch.rand(1).expand(1000) + b) == 4 + 4 + 8000  # made, read, read and written
    leaf = torch.rand(1000, requires_grad=True)
    assert traffic_bytes(lambda: torch.autograd.grad((leaf * leaf).sum(), leaf)) > 3 * 12_000


# --- kernels


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("triton_poi_fused__native_batch_norm_legit_functional_convolution_3", "fused by the compiler"),
        ("void at::native::conv_depthwise2d_forward_kernel<float>", "SSIM's depthwise convolutions"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_nhwckrsc", "convolutions"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW", "batch norm"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16>", "changes of layout"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser, clipping and average"),
        ("Memcpy DtoD (Device -> Device)", "copies and fills"),
        ("void at::native::elementwise_kernel<tanh>", OTHERS),
    ],
)
def test_kernels_are_told_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_the_dearest_kernels_come_first_and_shares_are_of_all() -> None:
    found = [(f"triton_{number}", 2.0, float(number)) for number in range(1, 13)] + [("cutlass_tf32_x", 1.0, 22.0)]
    of_step = summary(found)
    assert of_step.sec == 100.0
    assert of_step.kernels == 25.0
    assert [kernel.share for kernel in of_step.dearest[:3]] == [0.22, 0.12, 0.11]
    assert len(of_step.dearest) == 10
    assert of_step.kinds == {"fused by the compiler": 0.78, "convolutions": 0.22}
    assert of_step.tf32 == 0.22


def test_a_profile_on_the_cpu_has_the_operators() -> None:
    a = torch.rand(64, 64)
    of_step = profiled(CPU, lambda: (a @ a).relu())
    calls = {kernel.name: kernel.calls for kernel in of_step.dearest}
    assert calls["aten::mm"] == calls["aten::relu"] == 1
    assert sum(kernel.share for kernel in of_step.dearest) <= 1 + 1e-9


# --- the rate


def test_a_case_is_measured_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = measure_cases(a_context(tmp_path), [TINY])
    found = result.figures["cases"]["unet-4, batch 2, off"]
    assert found["flops_a_set"] == flops_a_set("unet-4", 32)
    share = found["sets_per_sec"]["median"] * found["flops_a_set"] / result.figures["limits"]["flops_per_sec"]
    assert found["flops_share"] == pytest.approx(share)
    assert found["bytes_a_set_estimate"] > 4 * 32 * 32
    assert found["peak_bytes"] is found["waits_a_step"] is found["busy_share"] is None
    assert len(found["profile"]["dearest"]) == 10
    assert not result.failures
    assert [len(cells) for cells in result.rows.values()] == [len(result.columns)]
    json.dumps(result.figures, allow_nan=False)

    monkeypatch.setattr(rate, "attempt", lambda *_: pytest.fail("measured again"))
    again = measure_cases(a_context(tmp_path), [TINY])
    assert again.figures["cases"] == result.figures["cases"]
    monkeypatch.setattr(rate, "attempt", lambda *_: {**found, "waits_a_step": 2})
    monkeypatch.setattr(torch, "__version__", "another")
    other = measure_cases(a_context(tmp_path), [TINY])
    assert other.failures == ["unet-4, batch 2, off: a step waits 2 times for the device"]


@pytest.fixture
def attempted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that would be measured."""
    names = list[str]()

    def attempt(case: Case, *_: object) -> Found:
        names.append(case.name)
        return MEASURED

    monkeypatch.setattr(rate, "attempt", attempt)
    monkeypatch.setattr(rate, "limits", lambda _: {"flops_per_sec": 1e13, "bytes_per_sec": 1e12})
    return names


def test_what_there_is_no_time_for_is_named_and_comes_at_the_next_start(attempted: list[str], tmp_path: Path) -> None:
    first, second = TINY, TINY._replace(compile="default")
    result = measure_cases(a_context(tmp_path, rate.RESERVE_SEC + rate.FIRST_GUESS_SEC / 2), [first, second])
    assert attempted == ["unet-4, batch 2, off"]
    assert result.figures["not_measured"] == ["unet-4, batch 2, default"]
    assert result.notes[-1].startswith("not measured for lack of time (remove parts/rate.json")
    assert result.notes[-1].endswith("): unet-4, batch 2, default")
    measure_cases(a_context(tmp_path, 1000.0), [first, second])
    assert attempted == ["unet-4, batch 2, off", "unet-4, batch 2, default"]


def test_a_case_that_fails_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([torch.OutOfMemoryError("of 5 GiB"), RuntimeError("no ptxas\nin all of this"), ValueError()])

    def one(*_: object) -> Found:
        raise next(errors)

    monkeypatch.setattr(rate, "one", one)
    told = []
    for _ in range(3):
        result = measure_cases(a_context(tmp_path), [TINY])
        told.append((result.figures["cases"][TINY.name]["error"], list(result.failures)))
        assert result.rows[TINY.name][0] == told[-1][0]
    assert told == [
        ("out of memory", []),
        ("RuntimeError: no ptxas", [f"{TINY.name}: RuntimeError: no ptxas"]),
        ("ValueError: no message", [f"{TINY.name}: ValueError: no message"]),
    ]


def test_float32_that_is_rounded_is_a_failure() -> None:
    rounded = {**MEASURED, "profile": summary([("sm80_xmma_tf32f32", 1, 1.0), ("relu", 1, 3.0)]).plain()}
    [line] = failures({"a": MEASURED, "b": rounded})
    assert line.startswith("b: kernels round to TF32, 25.0% of their time")


def test_a_row_and_a_note_say_what_was_found() -> None:
    assert cells(MEASURED) == ["4,000 (3,900-4,100)", "42.0", "30.0", "3.0", "7", "97", "31.0"]
    slower = {**MEASURED, "sets_per_sec": {"median": 10.0}}
    note, _ = notes({"unet-s, batch 64, off": slower, "unet-s, batch 256, off": MEASURED, "x": {"error": "e"}}, [])
    told = "unet-s, batch 256, off: fused by the compiler 75%, convolutions 25%; the dearest: `triton_poi_fused_relu_3`"
    assert note.startswith(told)


def test_the_cases_of_a_gpu_are_all_and_each_once() -> None:
    cases = gpu_cases()
    assert len(set(cases)) == len({rate.path(Path(), case) for case in cases}) == len(cases) == 3 * 4 * 3 + 1
    assert {case.batch_size for case in cases[:9]} == {256}


# --- the original


class Epochs:
    """Epochs of the original's loader, of batches of these sizes."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def __iter__(self) -> Iterator[Loaded]:
        for sets in self.sizes:
            pictures = {part: torch.rand(sets, 1, 32, 32).expand(-1, 3, -1, -1) for part in PARTS}
            yield Loaded(sets, list, pictures)


PARTS = ("bg", "fg_bg", "mask", "depth")


def test_the_originals_loop_is_measured_and_left_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[LoadOptions] = []

    def seed(shards: Path, options: LoadOptions) -> Epochs:
        asked.append(options)
        return Epochs([2, 2, 1])

    monkeypatch.setattr(original, "seed", seed)
    result = original.measure(a_context(tmp_path))
    assert [(options.batch_size, options.size, options.device) for options in asked] == [(2, 32, "cpu")]
    assert json.loads((tmp_path / original.FOUND).read_text()) == result.figures
    assert 0 <= result.figures["stall_share"] < 1
    assert result.figures["sets_per_sec"]["median"] > 0
    assert "skipped: no GPU" in result.notes[0]


def test_only_whole_batches_are_trained_and_none_is_told() -> None:
    batches = original.endless(Epochs([4, 4, 3]), 4)
    assert [next(batches).sets for _ in range(5)] == [4] * 5
    with pytest.raises(InputError, match="fewer than 8 sets"):
        next(original.endless(Epochs([4, 3]), 8))


def test_pictures_go_back_to_bytes_exactly() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    unit = levels.float() / 255
    for slightly_off in (unit, unit.nextafter(torch.zeros(1)), unit.nextafter(torch.ones(1))):
        assert torch.equal(original.plane(slightly_off.expand(-1, 3, -1, -1)), levels)


def test_the_originals_step_is_gradient_descent_with_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Conv2d(2, 2, 1)
    given: dict[str, Any] = {}

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, bg: torch.Tensor, fg_bg: torch.Tensor) -> SimpleNamespace:
            mask, depth = self.inner(torch.cat([bg, fg_bg], 1) / 255).split(1, 1)
            return SimpleNamespace(mask_logits=mask, depth=depth.sigmoid())

    monkeypatch.setattr(original, "build_network", lambda name: given.setdefault(name, Network()))
    step = original.a_step("net", CPU)
    loaded = next(iter(Epochs([4])))
    reference, velocity = {name: p.detach().clone() for name, p in network.named_parameters()}, dict[str, Any]()
    for _ in range(3):
        step(loaded)
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            decayed = parameter.grad + 1e-5 * reference[name]
            velocity[name] = 0.9 * velocity[name] + decayed if name in velocity else decayed
            reference[name] = reference[name] - 0.01 * velocity[name]
            torch.testing.assert_close(parameter.detach(), reference[name])
    assert list(given) == ["net"]
