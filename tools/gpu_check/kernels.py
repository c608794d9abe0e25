"""Where the time of a training step goes: the dearest kernels, and whether the host waits for the device."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from tools.gpu_check.clock import synchronize

STEPS, MOST = 5, 10
NAME_LENGTH = 100  # characters; those of templates have thousands
KINDS = {
    "fused by the compiler": ("triton",),
    "SSIM's depthwise convolutions": ("depthwise", "c1_k1"),
    "batch norm": ("batch_norm", "bn_fw", "bn_bw"),
    "changes of layout": ("nchwtonhwc", "nhwctonchw"),
    "convolutions": ("conv", "xmma", "cutlass", "gemm", "wgrad", "dgrad", "fprop", "cudnn"),
    "optimiser, clipping and average": ("adam", "multi_tensor", "lerp", "foreach"),
    "copies and fills": ("memcpy", "memset", "copy", "fill", "cat"),
}
"""What a kernel does by what its name has in it; the first that fits."""
OTHERS = "others, one operator each"


class Kernel(NamedTuple):
    """One of the device's, or on a CPU an operator."""

    name: str
    calls: float
    """In a step."""
    sec: float
    """Of a step."""
    share: float
    """Of the time of all kernels."""


class Profile(NamedTuple):
    """Of a step."""

    kernels: float
    """How many are started."""
    sec: float
    """The time of all of them."""
    dearest: list[Kernel]
    kinds: dict[str, float]
    """Share of the time by what they do, the largest first."""
    tf32: float
    """Share of the time of kernels that round float32 to TF32, by their names: losses must not."""

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**self._asdict(), "dearest": [kernel._asdict() for kernel in self.dearest]}


def profiled(device: torch.device, step: Callable[[], object]) -> Profile:
    """The kernels of `step`, which is warm; their times are those under the profiler."""
    synchronize(device)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            step()
        synchronize(device)
    found = list[tuple[str, float, float]]()
    for event in profiler.key_averages():
        # Ranges that the program has marked last as long as the kernels in them.
        if event.device_type.name == ("CUDA" if on_gpu else "CPU") and not event.is_user_annotation:
            took_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            found.append((event.key, event.count / STEPS, took_us / 1e6 / STEPS))
    return summary(found)


def summary(found: list[tuple[str, float, float]]) -> Profile:
    """Of names, calls and seconds of a step."""
    total_sec = sum(sec for _, _, sec in found) or 1.0
    kinds = dict[str, float]()
    for name, _, sec in found:
        kind = kind_of(name)
        kinds[kind] = kinds.get(kind, 0.0) + sec / total_sec
    dearest = sorted(found, key=lambda one: -one[2])[:MOST]
    return Profile(
        sum(calls for _, calls, _ in found),
        sum(sec for _, _, sec in found),
        [Kernel(name[:NAME_LENGTH], calls, sec, sec / total_sec) for name, calls, sec in dearest],
        dict(sorted(kinds.items(), key=lambda one: -one[1])),
        sum(sec for name, _, sec in found if "tf32" in name.lower()) / total_sec,
    )


def kind_of(name: str) -> str:
    """What a kernel does, of KINDS or OTHERS; a guess by its name."""
    lower = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in lower for word in words)), OTHERS)


def waits(step: Callable[[], object]) -> int:
    """How often `step`, which is warm, makes the host wait for the GPU, as far as CUDA's debug mode sees it."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in found)
