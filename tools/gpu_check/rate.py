"""The part `rate`: how fast the network trains on a batch that is there, beside what the device could do."""

import functools
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.loading.batch import Batch
from pipeline.resume import atomic_file
from tools.benchmark.step import HALF_WAY, NOWHERE
from tools.benchmark.timing import spread
from tools.gpu_check import floor
from tools.gpu_check.clock import calls_sec, synchronize
from tools.gpu_check.context import Context, Result
from tools.gpu_check.cost import flops, traffic_bytes
from tools.gpu_check.kernels import profiled, waits
from tools.gpu_check.rate_table import COLUMNS, Found, cells, failures, notes
from train.config import Config
from train.train_step import Learner

WARM_UP_STEPS = 5  # the compiler's CUDA graphs are there from the third on
RESERVE_SEC = 20.0  # for what comes before the first case and after the last: our time counts from our start
FIRST_GUESS_SEC = 60.0  # of a case with a compilation, while none has been measured


class Case(NamedTuple):
    """What is measured."""

    model: str
    batch_size: int
    compile: str
    """As `train.config.Config` has it."""
    size: int = 128
    search: bool = False
    """Whether cuDNN tries its algorithms and takes the fastest (`torch.backends.cudnn.benchmark`)."""

    @property
    def name(self) -> str:
        """For tables and files."""
        return f"{self.model}, batch {self.batch_size}, {self.compile}{', cuDNN searches' if self.search else ''}"


def gpu_cases() -> list[Case]:
    """All of them, those that tell most first: time may run out."""
    models, modes = ("unet-m", "unet-s", "unet-xs"), ("off", "default", "reduce-overhead")
    first = [Case(model, 256, mode) for mode in modes for model in models]
    searched = [Case("unet-m", 256, "default", search=True)]
    others = [Case(model, sets, mode) for mode in modes for sets in (64, 128, 512) for model in models]
    return [*first, *searched, *others]


def cpu_cases() -> list[Case]:
    """Small ones: that the code works."""
    return [Case("unet-16", 4, "off", 64)]


def measure(context: Context) -> Result:
    """Every case for which there is time; those that were measured before are not measured again."""
    cases = gpu_cases() if context.on_gpu else cpu_cases()
    return measure_cases(context, cases)


def measure_cases(context: Context, cases: Sequence[Case]) -> Result:
    """The result of these cases in this order."""
    started_sec, device = time.perf_counter(), context.device
    peaks = limits(device)
    found, late = dict[str, Found](), list[str]()
    took_sec = {True: list[float](), False: list[float]()}  # cases with and without a compilation
    for case in cases:
        compiles = case.compile != "off"
        measured = load(context.work, case, device)
        if measured is None:
            left_sec = context.seconds - RESERVE_SEC - (time.perf_counter() - started_sec)
            if left_sec < max(took_sec[compiles], default=FIRST_GUESS_SEC if compiles else 0.0):
                late.append(case.name)
                continue
            begun_sec = time.perf_counter()
            measured = attempt(case, device, peaks)
            took_sec[compiles].append(time.perf_counter() - begun_sec)
            save(context.work, case, device, measured)
            context.say(f"{case.name}: {cells(measured)[0]} sets/s")
        found[case.name] = measured
    return Result(
        {"limits": peaks, "cases": found, "not_measured": late},
        COLUMNS,
        {name: cells(measured) for name, measured in found.items()},
        list(notes(found, late)),
        list(failures(found)),
    )


def limits(device: torch.device) -> dict[str, float]:
    """What `floor` finds, the medians: FLOP/s of the format that we train in, and bytes/s."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    side = floor.sides(device)[-1]
    return {
        "flops_per_sec": floor.matmul(device, dtype, side)["median"],
        "bytes_per_sec": floor.copy(device)["median"],
    }


def attempt(case: Case, device: torch.device, peaks: dict[str, float]) -> Found:
    """The case measured, or why it could not be: out of memory, or nothing to compile with."""
    try:
        with tidy(device, search=case.search):
            return one(case, device, peaks)
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    except Exception as error:  # of the compiler, which raises anything
        said = str(error).strip().splitlines() or ["no message"]
        return {"error": f"{type(error).__name__}: {said[0]}"}


def one(case: Case, device: torch.device, peaks: dict[str, float]) -> Found:
    """Time, arithmetic, traffic, memory and kernels of a training step, the optimiser and the average in it."""
    on_gpu = device.type == "cuda"
    arithmetic = flops_a_set(case.model, case.size)
    step = a_step(case, device)
    began_sec = time.perf_counter()
    step()
    synchronize(device)
    first_sec = time.perf_counter() - began_sec
    for _ in range(WARM_UP_STEPS):
        step()
    synchronize(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    steps_sec = calls_sec(device, step)
    rate = spread([case.batch_size / sec for sec in steps_sec])
    peak_bytes = torch.cuda.max_memory_allocated(device) if on_gpu else None
    kernels = profiled(device, step)
    moved = traffic_bytes(step) / case.batch_size if case.compile == "off" else None
    return {
        "sets_per_sec": rate,
        "flops_a_set": arithmetic,
        "flops_share": rate["median"] * arithmetic / peaks["flops_per_sec"],
        "bytes_a_set_estimate": moved,
        "bytes_share_estimate": rate["median"] * moved / peaks["bytes_per_sec"] if moved else None,
        "peak_bytes": peak_bytes,
        "first_step_sec": first_sec,
        "waits_a_step": waits(step) if on_gpu else None,
        "busy_share": kernels.sec * rate["median"] / case.batch_size if on_gpu else None,
        "profile": kernels.plain(),
    }


@functools.cache
def flops_a_set(model: str, size: int) -> float:
    """Of a training step; counted on the CPU."""
    return flops(a_step(Case(model, 2, "off", size), torch.device("cpu"))) / 2


def a_step(case: Case, device: torch.device) -> Callable[[], object]:
    """A training step of a new network on one batch, which is the same each time."""
    config = Config(NOWHERE, NOWHERE, model=case.model, batch_size=case.batch_size, compile=case.compile)
    learner, batch = Learner(config, device), a_batch(case.batch_size, case.size, device)
    learner.network.train()
    return lambda: learner.learn(batch, HALF_WAY, case.batch_size)


def a_batch(sets: int, size: int, device: torch.device) -> Batch:
    """Pictures of noise, which a device multiplies no faster than photographs, with a mask in their middle."""
    random = torch.Generator().manual_seed(0)
    shape = (3, sets, 1, size, size)
    bg, fg_bg, depth = torch.randint(256, shape, generator=random, dtype=torch.uint8).to(device)
    mask = torch.zeros_like(bg)
    mask[..., size // 4 : size // 2, size // 4 : size // 2] = 255
    return Batch(bg, fg_bg, mask, depth, torch.arange(sets, device=device))


@contextmanager
def tidy(device: torch.device, *, search: bool) -> Iterator[None]:
    """Nothing that was compiled and nothing that stayed in memory before counts."""
    if device.type == "cuda":
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
    former = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = search
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = former


def path(work: Path, case: Case) -> Path:
    """Of what was found about a case."""
    return work / f"{case.name.replace(', ', '-').replace(' ', '-')}-{case.size}.json"


def save(work: Path, case: Case, device: torch.device, measured: Found) -> None:
    """Keep what was found."""
    with atomic_file(path(work, case)) as file:
        file.write(json.dumps({"on": _on(device), **measured}, indent=1).encode())


def load(work: Path, case: Case, device: torch.device) -> Found | None:
    """What was found before with the same device and PyTorch, None where nothing was."""
    if not path(work, case).exists():
        return None
    kept: Found = json.loads(path(work, case).read_text())
    return kept if kept.pop("on") == _on(device) and "error" not in kept else None


def _on(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return f"{name}, PyTorch {torch.__version__}"
