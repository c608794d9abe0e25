"""The part `floor`: the machine's own limits, beside which what we reach is told. Source: the roofline model.

(Williams et al., "Roofline: an insightful visual performance model", CACM 2009.)
"""

from collections.abc import Callable, Sequence

import torch

from tools.benchmark.table import quartiles
from tools.benchmark.timing import spread
from tools.gpu_check.clock import calls_sec
from tools.gpu_check.context import Context, Result

Spread = dict[str, float]
"""Median and quartiles, as `timing.spread` gives them."""

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SIDES, CPU_SIDES = (4096, 8192), (128, 256)
COPIED_BYTES, CPU_COPIED_BYTES = 2**30, 2**23  # on a GPU, far more than its caches hold
SENT_BYTES = 2**28
WARM_UP_CALLS = 3


def measure(context: Context) -> Result:
    """Rates of matrix products, of copies on the device and of copies from pinned memory to it."""
    device = context.device
    found = {
        f"matmul {name} {side}": matmul(device, dtype, side) for name, dtype in DTYPES.items() for side in sides(device)
    }
    rows = {name: [quartiles(_scaled(rate, 1e12), 2), "TFLOP/s"] for name, rate in found.items()}
    found["copy"] = copy(device)
    rows["copy on the device, read + written"] = [quartiles(_scaled(found["copy"], 1e9), 1), "GB/s"]
    notes = list[str]()
    if context.on_gpu:
        found["host_to_device"] = host_to_device(device)
        rows["copy from pinned memory to the device"] = [quartiles(_scaled(found["host_to_device"], 1e9), 1), "GB/s"]
    else:
        notes.append("copy from pinned memory to the device: skipped: no GPU")
    notes.append("FLOP/s and bytes/s of random data; float32 products are not rounded to TF32")
    return Result(found, ["median (quartiles)", "unit"], rows, notes)


def sides(device: torch.device) -> Sequence[int]:
    """Rows and columns of the matrices that are multiplied."""
    return SIDES if device.type == "cuda" else CPU_SIDES


def matmul(device: torch.device, dtype: torch.dtype, side: int) -> Spread:
    """FLOP/s of the product of two random [side, side] matrices, 2 side^3 each."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))  # zeros would be multiplied faster
    out = torch.empty_like(a)
    return _rates(2 * side**3, device, lambda: torch.mm(a, b, out=out))


def copy(device: torch.device) -> Spread:
    """Bytes/s of a copy on the device, read and written ones counted."""
    size = COPIED_BYTES if device.type == "cuda" else CPU_COPIED_BYTES
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _rates(2 * size, device, lambda: target.copy_(source))


def host_to_device(device: torch.device) -> Spread:
    """Bytes/s of a copy from pinned host memory to the GPU."""
    source = torch.randint(256, (SENT_BYTES,), dtype=torch.uint8).pin_memory()
    target = torch.empty(SENT_BYTES, dtype=torch.uint8, device=device)
    return _rates(SENT_BYTES, device, lambda: target.copy_(source, non_blocking=True))


def _rates(amount: float, device: torch.device, call: Callable[[], object]) -> Spread:
    for _ in range(WARM_UP_CALLS):
        call()
    return spread([amount / sec for sec in calls_sec(device, call)])


def _scaled(values: Spread, unit: float) -> Spread:
    return {name: value / unit for name, value in values.items()}
