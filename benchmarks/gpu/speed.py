"""Parts `stalls`, `decode`, `throughput`: how fast sets are decoded and trained on, beside what the device could do."""

import functools
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.plan import JPEG, PLANES
from benchmarks.gpu.process import Context
from benchmarks.gpu.record import Findings
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from pipeline.workers import available_cores
from tools.bench_loader import LoadOptions, our_loader
from tools.bench_stalls import (
    HALF_WAY,
    NOWHERE,
    RUN_IN_BATCHES,
    WARM_UP_STEPS,
    Stall,
    SweepSetting,
    cached,
    recommended,
)
from tools.measure import DRAINS, quartiles, spread, summarize, synchronize, warm_pass
from train.config import Config
from train.train_step import Learner

Spread = dict[str, float]
"""Median and quartiles, as `measure.spread` gives them."""


def rates(device: torch.device, call: Callable[[], object], amount: float) -> Spread:
    """`amount` by the seconds of a call, over blocks of calls; the host waits for a GPU after each block alone."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    times_sec = timer.blocked_autorange(min_run_time=1.0 if device.type == "cuda" else 0.02).times
    return spread([amount / sec for sec in (times_sec if len(times_sec) > 1 else times_sec * 2)])


def roofline(context: Context, found: Findings) -> dict[str, float]:
    """FLOP/s of matrix products and bytes/s of copies on this device, the medians: what all else is held against.

    Source: the roofline model (Williams et al., "Roofline: an insightful visual performance model", CACM 2009).
    """
    if "roofline" in found.rows:
        return dict(found.rows["roofline"]["figures"])
    device, figures = context.device, dict[str, float]()
    side, size = (8192, 2**30) if context.on_gpu else (256, 2**23)  # a copy of far more than caches hold
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in "ab")  # zeros would be multiplied faster
        multiply = functools.partial(torch.mm, a, b, out=torch.empty_like(a))
        figures[f"{dtype}".removeprefix("torch.")] = rates(device, multiply, 2 * side**3)["median"]
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    figures["copy"] = rates(device, lambda: target.copy_(source), 2 * size)["median"]  # read and written
    if context.on_gpu:
        pinned = source.cpu().pin_memory()
        figures["pinned"] = rates(device, lambda: target.copy_(pinned, non_blocking=True), size)["median"]
    told = (
        f"{name} {value / 1e12:,.2f} TFLOP/s" if "float" in name else f"{name} {value / 1e9:,.1f} GB/s"
        for name, value in figures.items()
    )
    found.row("roofline", figures, [", ".join(told)])
    return figures


class Case(NamedTuple):
    """A training step that is measured."""

    model: str
    batch_size: int
    compile: str
    """As `train.config.Config` has it."""

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.model}, batch {self.batch_size}, {self.compile}"


def a_step(case: Case, size: int, device: torch.device, optimizer: str = Config.optimizer) -> Callable[[], object]:
    """A training step of a new network on one batch, which is the same each time.

    Its pictures are noise, which a device multiplies no faster than photographs, with a mask in their middle.
    """
    config = Config(
        NOWHERE, NOWHERE, model=case.model, batch_size=case.batch_size, compile=case.compile, optimizer=optimizer,
        precision="auto",  # float32 on a CPU, as its roofline is
    )  # fmt: skip
    learner = Learner(config, device)
    random = torch.Generator().manual_seed(0)
    shape = (3, case.batch_size, 1, size, size)
    bg, fg_bg, depth = torch.randint(256, shape, generator=random, dtype=torch.uint8).to(device)
    mask = torch.zeros_like(bg)
    mask[..., size // 4 : size // 2, size // 4 : size // 2] = 255
    batch = Batch(bg, fg_bg, mask, depth, torch.arange(case.batch_size, device=device))
    return lambda: learner.train_step(batch, HALF_WAY, case.batch_size)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """AN ESTIMATE of the bytes that are moved: each operator reads its inputs and writes its outputs once."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        memory = {tensor.untyped_storage().data_ptr() for tensor in given}
        is_view = made and all(tensor.untyped_storage().data_ptr() in memory for tensor in made)
        if function._schema.is_mutable or not is_view:
            # An expanded tensor has fewer bytes than its shape says.
            self.bytes += sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in (*given, *made))
        return result


def counted(step: Callable[[], object]) -> tuple[int, int]:
    """Floating-point operations of the convolutions and products of a step that is not compiled, and bytes it moves."""
    with FlopCounterMode(display=False) as counter, _Traffic() as traffic:  # type: ignore[no-untyped-call]
        step()
    return int(counter.get_total_flops()), traffic.bytes


@functools.cache
def shares_of(model: str, size: int, device: torch.device) -> tuple[float, float]:
    """FLOPs of a set in a training step, and its bytes (an estimate) where nothing is fused.

    Without those of Muon, whose products are of a step and not of a set.
    """
    sets = 64 if device.type == "cuda" else 2
    flops, moved = counted(a_step(Case(model, sets, "off"), size, device, "adamw"))
    return flops / sets, moved / sets


def of_roofline(context: Context, peaks: dict[str, float], model: str, sets_per_sec: float) -> tuple[float, float]:
    """A training rate as shares of the roofline's FLOP/s and bytes/s; these may be above 1 where steps are fused."""
    flops, moved = shares_of(model, context.size, context.device)
    peak = peaks["bfloat16" if context.on_gpu else "float32"]
    return sets_per_sec * flops / peak, sets_per_sec * moved / peaks["copy"]


BATCH = {"gpu": 256, "cpu": 16}
TRAINED = {
    "gpu": (("unet-s", "default"), ("unet-s", "reduce-overhead"), ("unet-m", "default")),
    "cpu": (("unet-4", "off"),),
}
"""Networks, each with a mode of torch.compile: CUDA graphs leave the training thread less to do beside the loader's."""
SOURCES = ("JPEG", "planes", "resident")
EPOCH_SETS = {"gpu": 20_000, "cpu": 16}  # at most: more data take longer, and tell no more
# In the later epochs, at least: what a loader has ready when the clock starts shall be a small part of it.
LATER_SETS = {"gpu": 40_000, "cpu": 32}


def loader_of(context: Context, source: str, setting: SweepSetting) -> Loader:
    """A loader of all sets of one of SOURCES."""
    resident = ("device" if context.on_gpu else "host") if source == "resident" else "off"
    options = setting.of(LoadOptions(setting.batch_size, context.size, context.flag, 1, resident=resident))
    return our_loader(context.folder(PLANES if source == "planes" else JPEG), "all", options)


def stalls(context: Context, found: Findings) -> None:
    """Each network on each source, epoch after epoch: what of its time the training step waits for data.

    fgbg-bench --step measures the same differences; here the device's own clock is read beside them.
    """
    found.columns = ["sets/s", "on one batch", "% of FLOP/s, bytes/s", "stall %", "drift %", "GPU busy %"]
    peaks, setting = roofline(context, found), SweepSetting(available_cores(), 4, BATCH[context.flag], context.load)
    for model, how in TRAINED[context.flag]:
        torch.compiler.reset()
        config = Config(NOWHERE, NOWHERE, model=model, batch_size=setting.batch_size, compile=how)
        learner = Learner(config, context.device)
        for source in SOURCES:
            name = f"{model}, {how}, {source}, {setting.flags(context.flag) if source == 'JPEG' else ''}".rstrip(", ")
            if f"{name}, from epoch 2" in found.rows:
                continue
            for which, stall, busy_pct in stalled(context, source, setting, learner):
                alone = stall.sets / ((stall.compute_before_sec + stall.compute_after_sec) / 2)
                shares = of_roofline(context, peaks, model, alone)
                figures = {"stall_pct": stall.stall_pct, "busy_pct": busy_pct, "alone": alone, "shares": shares}
                cells = [f"{stall.sets / stall.end_to_end_sec:,.0f}", f"{alone:,.0f}", _percent(shares),
                         f"{stall.stall_pct:.1f}", f"{stall.drift_pct:+.1f}",
                         "-" if busy_pct is None else f"{busy_pct:.1f}"]  # fmt: skip
                found.row(f"{name}, {which}", {**stall._asdict(), **figures}, cells)
    found.note("goals from epoch 2 on: stalls of 10 % on JPEG, 1 % on planes and resident sets, a GPU busy for 97 %")
    found.note(
        "stall: share of the time beyond that of as many steps on one batch; drift: by how much these became slower "
        "meanwhile; GPU busy: share of the time within steps, by CUDA events; bytes/s: an estimate of unfused steps"
    )


def stalled(
    context: Context, source: str, setting: SweepSetting, learner: Learner
) -> Iterator[tuple[str, Stall, float | None]]:
    """The first epoch of a loader, and its later ones until enough sets have gone by."""
    size, every = setting.batch_size, loader_of(context, source, setting)
    # Whole batches: of a smaller one at the end, a compiled step would be compiled a second time.
    picked = every.rows()[: min(every.sets, EPOCH_SETS[context.flag]) // size * size]
    with closing(every.sibling("all", picked=picked, resident=every.config.resident)) as loader:
        batch = loader.pick(picked[:size].tolist())
        for _ in range(WARM_UP_STEPS):
            learner.train_step(batch, HALF_WAY, size)
        for which, epochs in (("epoch 1", 1), ("from epoch 2", -(-LATER_SETS[context.flag] // loader.sets))):
            sets = epochs * loader.sets
            before_sec, _ = timed_steps(learner, cached(batch, sets))
            end_to_end_sec, busy_pct = timed_steps(learner, chain.from_iterable(repeat(loader, epochs)))
            after_sec, _ = timed_steps(learner, cached(batch, sets))
            yield which, Stall(sets // size, sets, before_sec, end_to_end_sec, after_sec), busy_pct


def timed_steps(learner: Learner, batches: Iterable[Batch]) -> tuple[float, float | None]:
    """Seconds until the device has done the last step, and on a GPU the percentage of its own time within steps."""
    marks, on_gpu = list[torch.cuda.Event](), learner.device.type == "cuda"

    def mark() -> None:
        if on_gpu:
            marks.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            marks[-1].record()

    synchronize()
    started_sec = time.perf_counter()
    mark()
    for batch in batches:
        mark()  # the device comes here when the batch is there
        learner.train_step(batch, HALF_WAY, len(batch.bg))
        mark()
    synchronize()
    took_sec = time.perf_counter() - started_sec
    within = sum(start.elapsed_time(end) for start, end in zip(marks[1::2], marks[2::2], strict=True))
    return took_sec, 100 * within / marks[0].elapsed_time(marks[-1]) if on_gpu else None


ROUNDS = 3
PASS_SETS = dict(zip(SOURCES, (15_000, 60_000, 400_000), strict=True))
PICTURES = 3  # of a set that are decoded; backgrounds are, once


def decode(context: Context, found: Findings) -> None:
    """Sets a second of each source; then along one axis after the other, each with the best of those before."""
    found.columns = ["sets/s (quartiles)", "images/s", "CPU s / 1,000 sets"]
    cores, load = available_cores(), context.load
    best = SweepSetting(cores, 4, 256, load) if context.on_gpu else SweepSetting(2, 2, 16, load)
    for source in SOURCES:
        decoded(context, found, source, best)
    axes: dict[str, Sequence[float]] = {"threads": (1, 2), "batch_size": (16, 32)}
    if context.on_gpu:
        axes = {"hw_decoder_load": (0.0, 0.35, 0.65, 0.8, 1.0) if load else (0.0,),
                "threads": sorted({max(1, cores // 4), max(1, cores // 2), cores}),
                "batch_size": (128, 256, 512), "prefetch": (2, 4, 8)}  # fmt: skip
    for axis, values in axes.items():
        settings = [SweepSetting(**{**best._asdict(), axis: value}) for value in values]
        best = recommended({setting: decoded(context, found, "JPEG", setting) for setting in settings})
    found.note(f"best for JPEG, the cheapest of the fastest within their spread: {best.flags(context.flag)}")
    settings = [best._replace(threads=int(threads)) for threads in axes["threads"]]
    found.figures = {"jpeg": best._asdict()}
    best = recommended({setting: decoded(context, found, "planes", setting) for setting in settings})
    found.figures["planes"] = best._asdict()
    found.note(f"best for planes, which depend on threads alone: {best.flags('cpu')}")


def decoded(context: Context, found: Findings, source: str, setting: SweepSetting) -> Spread:
    """The sets a second under one setting, timed when the loader has read ahead; a row."""
    name = f"{source} {setting.flags(context.flag)}"
    if name not in found.rows:
        with closing(loader_of(context, source, setting)) as loader:
            sizes = (len(batch.index) for batch in chain.from_iterable(repeat(loader)))
            run_in = setting.batch_size * (DRAINS * setting.prefetch + RUN_IN_BATCHES)
            run_in += loader.sets if source == "resident" else 0
            sets = PASS_SETS[source] if context.on_gpu else 64
            passes = [warm_pass(sizes, 0 if number else run_in, sets) for number in range(ROUNDS)]
        figures = summarize({"": passes}, "", "")
        sets_per_sec, cpu_sec = figures["sets_per_sec"], figures["cpu_sec_per_1000_sets"]
        found.row(
            name, figures, [quartiles(sets_per_sec), f"{PICTURES * sets_per_sec['median']:,.0f}", f"{cpu_sec:.2f}"]
        )
    return dict(found.rows[name]["figures"]["sets_per_sec"])


RATED = ("unet-s", "unet-m", "unet-xs")
RATINGS = [(256, "default"), (256, "reduce-overhead"), (256, "off"), *((sets, "default") for sets in (512, 128, 64))]
WARM_UP, PROFILED, DEAREST = 5, 5, 10  # steps; the compiler's CUDA graphs are there from the third on


def throughput(context: Context, found: Findings) -> None:
    """How fast networks train on a batch that is there, and where the time goes; needs no data and no decoder."""
    found.columns = ["sets/s (quartiles)", "% of FLOP/s, bytes/s", "peak GiB", "kernels", "busy %", "first step s"]
    peaks, longest_sec = roofline(context, found), 0.0
    cases = [Case(model, int(sets), how) for model, sets, how in (text.split(",") for text in context.cases)]
    own = [Case(model, *rating) for rating in RATINGS for model in RATED]
    for case in cases or (own if context.on_gpu else [Case("unet-4", 4, "off")]):
        if case.name in found.rows:
            continue
        if context.left_sec < longest_sec:
            found.late(case.name)
            continue
        began_sec = time.perf_counter()
        torch.compiler.reset()
        gc.collect()  # nothing that was compiled and nothing that stayed in memory before counts
        torch.cuda.empty_cache()
        try:
            figures, cells, failures = rated(context, case, peaks)
        except torch.OutOfMemoryError:
            figures, cells, failures = {}, ["out of memory"], []
        except Exception as error:  # of the compiler, which raises anything
            text = f"{type(error).__name__}: {[*str(error).strip().splitlines(), 'no message'][0]}"
            figures, cells, failures = {}, ["-"], [text]
        found.row(case.name, figures, cells, failures)
        longest_sec = max(longest_sec, time.perf_counter() - began_sec)
    for name, measured in found.rows.items():
        if "dearest" in measured["figures"]:
            dearest = "; ".join(f"`{kernel[:50]}` {share:.0%}" for kernel, share in measured["figures"]["dearest"][:3])
            found.note(f"{name}: the dearest kernels {dearest}")
    found.note("busy: the time of all kernels of that of a step; bytes/s: an estimate of unfused steps, of a copy's")


def rated(context: Context, case: Case, peaks: dict[str, float]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Time, memory and kernels of a training step, the optimiser and the average in it: figures, cells, failures."""
    device, on_gpu = context.device, context.on_gpu
    step = a_step(case, context.size, device)
    began_sec = time.perf_counter()
    step()
    synchronize()
    first_sec = time.perf_counter() - began_sec
    for _ in range(WARM_UP):
        step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    sets_per_sec = rates(device, step, case.batch_size)
    peak_gib = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None
    kernels = profiled(device, step)
    total_sec = sum(sec for _, _, sec in kernels) or 1.0
    busy = total_sec * sets_per_sec["median"] / case.batch_size if on_gpu else None
    tf32 = sum(sec for name, _, sec in kernels if "tf32" in name.lower()) / total_sec
    shares = of_roofline(context, peaks, case.model, sets_per_sec["median"])
    dearest = [(name[:100], sec / total_sec) for name, _, sec in sorted(kernels, key=lambda k: -k[2])[:DEAREST]]
    figures = {"sets_per_sec": sets_per_sec, "shares": shares, "peak_gib": peak_gib, "first_step_sec": first_sec,
               "busy_share": busy, "tf32_share": tf32, "dearest": dearest}  # fmt: skip
    cells = [quartiles(sets_per_sec), _percent(shares), "-" if peak_gib is None else f"{peak_gib:.1f}",
             f"{sum(calls for _, calls, _ in kernels):,.0f}", "-" if busy is None else f"{100 * busy:.0f}",
             f"{first_sec:.1f}"]  # fmt: skip
    failures = [f"kernels round to TF32, {tf32:.1%} of their time; SSIM needs float32"] if tf32 else []
    return figures, cells, failures


def profiled(device: torch.device, step: Callable[[], object]) -> list[tuple[str, float, float]]:
    """The kernels of `step`, which is warm, on a CPU its operators: name, calls and seconds of a step."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        for _ in range(PROFILED):
            step()
        synchronize()
    return [
        (e.key, e.count / PROFILED, (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1e6 / PROFILED)
        for e in profiler.key_averages()
        # Ranges that the program has marked last as long as the kernels in them.
        if e.device_type.name == ("CUDA" if on_gpu else "CPU") and not e.is_user_annotation
    ]


def _percent(shares: Sequence[float]) -> str:
    return ", ".join(f"{100 * share:.1f}" for share in shares)
