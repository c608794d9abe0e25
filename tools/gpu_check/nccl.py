"""Part `nccl`: what several ranks learn is what one learns; started by torchrun, over NCCL where there are GPUs.

Run by torchrun itself, this module lets its ranks add up a tensor.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from tools.gpu_check.context import Context, Result
from train.logging import read_lines

# Where its ranks meet is this machine, whatever name it has: one that no server knows costs seconds, or the run.
TORCHRUN: tuple[object, ...] = (
    "torch.distributed.run",
    "--standalone",
    "--local-addr",
    "127.0.0.1",
    "--nproc-per-node",
)
STEPS, SUM_BYTES, SUM_TIMES = 40, 1 << 28, 20
SETTINGS = {"gpu": ("unet-s", 128), "cpu": ("unet-4", 32)}  # network, sets a step
CPU_STEPS, CPU_SUM_BYTES = 3, 1 << 20
# Relative difference of the loss: at the first step, before any has spread rounding, and at any. Of bfloat16 on a GPU,
# whose convolutions choose other algorithms for other shares of a batch; of float32 on a CPU.
ALIKE = {"gpu": (0.01, 0.1), "cpu": (1e-4, 0.02)}


class Run(NamedTuple):
    """One training."""

    name: str
    ranks: int
    """Started by torchrun; 0: without it."""
    compiled: bool = False


def runs(gpus: int) -> list[Run]:
    """What is trained on a machine of so many GPUs; the first is what the others are compared with."""
    if not gpus:
        return [Run("alone", 0), Run("torchrun, 2 ranks, gloo", 2)]
    found = [Run("alone", 0), Run("torchrun, 1 rank", 1)]
    return found + ([Run("torchrun, 2 ranks, NCCL", 2), Run("the same, compiled", 2, True)] if gpus > 1 else [])


def measure(context: Context) -> Result:
    """Train alike, alone and in ranks, and compare the losses step by step; let ranks add up a tensor."""
    wanted = runs(torch.cuda.device_count() if context.on_gpu else 0)
    lines = {run.name: trained(context, run) for run in wanted}
    figures, rows, failures = dict[str, Any](), dict[str, list[str]](), list[str]()
    for name, of_run in lines.items():
        first, largest = differences(of_run, lines[wanted[0].name])
        rate = of_run[-1]["sets_per_sec"]
        figures[name] = {"steps": len(of_run), "first": first, "largest": largest, "sets_per_sec": rate}
        rows[name] = [str(len(of_run)), f"{of_run[-1]['loss']:.4f}", f"{first:.1e}", f"{largest:.1e}"]
        most_first, most = ALIKE[context.flag]
        if not (first <= most_first and largest <= most):  # of losses that are no numbers, too
            was = f"its loss is {first:.1e} from that of one process at the first step, {largest:.1e} at any"
            failures.append(f"{name}: {was}; allowed are {most_first:g} and {most:g}")
    ranks = max(run.ranks for run in wanted)
    figures["all_reduce"] = added = add_up(context, ranks)
    notes = [f"all_reduce of {added['mib']} MiB over {added['backend']}, {ranks} ranks: {added['ms']:.2f} ms, the sum "
             f"is exact: {added['exact']}"]  # fmt: skip
    if not added["exact"]:
        failures.append("all_reduce: the sum is wrong")
    if context.on_gpu and ranks == 1:
        notes.append("one GPU: our trainer alone forms no group; 2 ranks over NCCL: skipped: one GPU")
    if not context.on_gpu:
        notes.append("NCCL: skipped: no GPU; gloo on the CPU stands for it")
    return Result(figures, ["steps", "last loss", "first step apart", "any step apart"], rows, notes, failures)


def trained(context: Context, run: Run) -> list[dict[str, Any]]:
    """The lines of its metrics.jsonl that tell of training, one a step."""
    out = context.work / f"run-{run.ranks}{'-compiled' if run.compiled else ''}-{time.time_ns()}"
    model, batch = SETTINGS[context.flag]
    steps = STEPS if context.on_gpu else CPU_STEPS
    flags = ["--shards", context.shards, "--out", out, "--model", model, "--batch-size", batch, "--sets", steps * batch,
             "--size", context.size, "--device", context.flag, "--log-every", 1, "--no-report",
             "--compile", "default" if run.compiled else "off"]  # fmt: skip
    started = (*TORCHRUN, run.ranks, "-m", "tools.train") if run.ranks else ("tools.train",)
    context.command(*started, *flags, environment=_environment())
    return [line for line in read_lines(out / "metrics.jsonl") if line["kind"] == "train"]


def differences(lines: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """By how much the losses of two runs differ, relatively: at the first step, and at most at any.

    Infinite where they did not take the same steps on as many sets, and where a loss is no number.
    """
    if [(line["step"], line["sets_seen"]) for line in lines] != [(line["step"], line["sets_seen"]) for line in others]:
        return math.inf, math.inf
    apart = [abs(line["loss"] / other["loss"] - 1) for line, other in zip(lines, others, strict=True)]
    return (apart[0], max(apart)) if all(map(math.isfinite, apart)) else (math.inf, math.inf)


def add_up(context: Context, ranks: int) -> dict[str, Any]:
    """What the ranks' own program, `main`, says."""
    words = (*TORCHRUN, ranks, "-m", "tools.gpu_check.nccl", context.flag)
    said = context.command(*words, environment=_environment())
    found: dict[str, Any] = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    return found


def _environment() -> dict[str, str]:
    """Ours, and that the ranks are on this machine, whatever name it goes by."""
    return {"OMP_NUM_THREADS": "1", **os.environ, "GLOO_SOCKET_IFNAME": "lo"}


def main(device: str) -> None:
    """One rank: add up the ranks' numbers, some times; the first prints what came of it as a line of JSON."""
    rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    on_gpu = device == "gpu"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend, where = ("nccl", "cuda") if on_gpu else ("gloo", "cpu")
    dist.init_process_group(backend)
    numbers = torch.full(((SUM_BYTES if on_gpu else CPU_SUM_BYTES) // 4,), rank + 1.0, device=where)
    dist.all_reduce(numbers)
    exact = bool((numbers == world * (world + 1) / 2).all())  # waits for the device
    started_sec = time.perf_counter()
    for _ in range(SUM_TIMES):
        dist.all_reduce(numbers)
    if on_gpu:
        torch.cuda.synchronize()
    milliseconds = 1000 * (time.perf_counter() - started_sec) / SUM_TIMES
    if rank == 0:
        print(json.dumps({"backend": backend, "mib": numbers.nbytes >> 20, "ms": milliseconds, "exact": exact}))
    dist.destroy_process_group()


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
