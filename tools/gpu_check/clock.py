"""Time as the device has it: stretches of work between CUDA events; without a GPU, the host's clock."""

import math
import time
from collections.abc import Callable
from itertools import pairwise

import torch

WINDOWS, WINDOW_SEC = 7, 0.25  # of a measurement on a GPU
CPU_WINDOWS, CPU_WINDOW_SEC = 5, 0.0  # where only the code is tried


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def calls_sec(device: torch.device, work: Callable[[], object]) -> list[float]:
    """Seconds that a call of `work` takes, the mean of each of several windows of many calls; call it before: warm it.

    On a GPU nothing waits within or between the windows, so what counts is the slower of device and host, as in a
    training loop that does not wait either.
    """
    windows, window_sec = (WINDOWS, WINDOW_SEC) if device.type == "cuda" else (CPU_WINDOWS, CPU_WINDOW_SEC)
    [once_sec] = windows_sec(device, work, 1, 1)
    calls = max(1, math.ceil(window_sec / max(once_sec, 1e-6)))
    _, *measured = windows_sec(device, work, calls, 1 + windows)  # in the first, the device waits for the host to begin
    return [sec / calls for sec in measured]


def windows_sec(device: torch.device, work: Callable[[], object], calls: int, windows: int) -> list[float]:
    """Seconds of each of `windows` stretches of `calls` calls of `work`, one after the other."""
    synchronize(device)
    if device.type != "cuda":
        moments = [time.perf_counter()]
        for _ in range(windows):
            _repeat(work, calls)
            moments.append(time.perf_counter())
        return [end - start for start, end in pairwise(moments)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(windows + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        _repeat(work, calls)
        mark.record()
    marks[-1].synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]


def _repeat(work: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        work()
