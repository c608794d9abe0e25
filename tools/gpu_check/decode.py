"""Part `decode`: how many sets a second are decoded, under which settings, and what of it the CPU does."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.workers import available_cores
from tools.benchmark.sweep import RUN_IN_BATCHES, Setting, recommended
from tools.benchmark.table import quartiles
from tools.benchmark.timing import DRAINS, Pass, in_turn, row, spread, warm_pass
from tools.gpu_check.context import Context, Result
from tools.gpu_check.engines import Busy, watched
from tools.peers.loaders import our_loader
from tools.peers.options import Loaded, LoadOptions

ROUNDS = 3
PASS_SETS = {"gpu": (15_000, 60_000), "cpu": (64, 64)}  # of JPEG, of planes
PICTURES = 3  # of a set that are decoded; backgrounds are, once
LOAD = "hw_decoder_load"
JPEG_SHARE, PLANES_SHARE = 0.6, 0.8  # of the time: after it no new axis is begun
Axes = Mapping[str, Sequence[float]]


class Descent(NamedTuple):
    """What came of going along the axes."""

    tried: dict[Setting, list[Pass]]
    best: Setting
    left_out: list[str]
    """Axes for which there was no time."""


def axes(on_gpu: bool, cores: int) -> Axes:
    """The values of each axis, in the order in which they are gone through."""
    if not on_gpu:
        return {"threads": (1, 2), "batch_size": (16, 32)}
    return {
        LOAD: (0.0, 0.35, 0.65, 0.8, 1.0),
        "threads": tuple(sorted({max(1, cores // 4), max(1, cores // 2), cores})),
        "batch_size": (128, 256, 512),
        "prefetch": (2, 4, 8),
    }


def measure(context: Context) -> Result:
    """Go along one axis after the other, each with the best of those before, on JPEG; then the threads of planes."""
    cores, started_sec = available_cores(), time.perf_counter()
    ways = axes(context.on_gpu, cores)
    start = Setting(cores, 4, 256, 0.65) if context.on_gpu else Setting(2, 2, 16, 0.65)
    of_jpeg, of_planes = PASS_SETS[context.flag]
    run = functools.partial(one_pass, context, context.shards, of_jpeg)
    jpeg = descend(run, start, ways, started_sec + JPEG_SHARE * context.seconds)
    context.say(f"JPEG: {jpeg.best}")
    # The only axis of these that planes depend on much.
    threads = {"threads": ways["threads"]}
    run = functools.partial(one_pass, context, context.planes, of_planes)
    planes = descend(run, jpeg.best, threads, started_sec + PLANES_SHARE * context.seconds)
    busy = _watch(context, jpeg.best, ways, of_jpeg)
    notes = [
        f"best for JPEG, the cheapest of the fastest within their spread: {jpeg.best.flags(context.flag)}",
        f"best for planes: {planes.best.flags('cpu')}",
        "axes are gone through one after the other, each with the best value of those before it",
        *(f"load {load:g}: {found.describe()}" for load, found in busy.items()),
    ]
    if not context.on_gpu:
        notes.append("decoding on a GPU, its engines: skipped: no GPU")
    if left := [f"JPEG {axis}" for axis in jpeg.left_out] + [f"planes {axis}" for axis in planes.left_out]:
        notes.append(f"there was no time for {', '.join(left)}")
    rows = {**_rows("JPEG", jpeg, context.flag), **_rows("planes", planes, "cpu")}
    figures = {"jpeg": _plain(jpeg), "planes": _plain(planes),
               "busy_pct": {f"{load:g}": found._asdict() for load, found in busy.items()}}  # fmt: skip
    return Result(figures, ["sets/s (quartiles)", "images/s", "CPU s / 1,000 sets"], rows, notes)


def descend(run: Callable[[Setting], Pass], start: Setting, ways: Axes, ends_sec: float) -> Descent:
    """Let `run` take each setting of one axis in turn, ROUNDS times, and go on from the best of them along the next."""
    tried, best, left_out = dict[Setting, list[Pass]](), start, list[str]()
    for axis, values in ways.items():
        if time.perf_counter() > ends_sec:
            left_out.append(axis)
            continue
        settings = [Setting(**{**best._asdict(), axis: value}) for value in values]
        new = {str(setting): setting for setting in settings if setting not in tried}
        passes = in_turn({name: functools.partial(run, s) for name, s in new.items()}, ROUNDS, lambda: None)
        tried |= {setting: passes[name] for name, setting in new.items()}
        best = recommended({s: spread([one.sets_per_sec for one in tried[s]]) for s in settings})
    return Descent(tried, best, left_out)


def one_pass(context: Context, shards: Path, sets: int, setting: Setting) -> Pass:
    """Time so many sets of a new loader, when it has read ahead."""
    options = setting.of(LoadOptions(setting.batch_size, context.size, context.flag, setting.threads))
    with closing(our_loader(shards, "all", options)) as loader:
        epochs = chain.from_iterable(repeat(loader))
        batches = (Loaded(len(batch.index), list, {}) for batch in epochs)
        run_in = setting.batch_size * (DRAINS * setting.prefetch + RUN_IN_BATCHES)
        return warm_pass(batches, run_in, sets)


def _watch(context: Context, best: Setting, ways: Axes, sets: int) -> dict[float, Busy]:
    """How busy the GPU's engines are under each load, in passes of their own, since to watch costs time, too."""
    found = {}
    for load in ways.get(LOAD, ()) if context.on_gpu else ():
        with watched() as busy:
            one_pass(context, context.shards, sets, best._replace(hw_decoder_load=load))
        found[load] = busy.read()
    return found


def _rows(name: str, descent: Descent, device: str) -> dict[str, list[str]]:
    cells = {}
    for setting, passes in descent.tried.items():
        found = row({"": passes}, "", "")
        rate = found["sets_per_sec"]
        cells[f"{name} {setting.flags(device)}"] = [
            quartiles(rate), f"{PICTURES * rate['median']:,.0f}", f"{found['cpu_sec_per_1000_sets']:.2f}"
        ]  # fmt: skip
    return cells


def _plain(descent: Descent) -> dict[str, Any]:
    tried = [{**setting._asdict(), **row({"": passes}, "", "")} for setting, passes in descent.tried.items()]
    return {"tried": tried, "best": descent.best._asdict(), "left_out": descent.left_out}
