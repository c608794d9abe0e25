"""Parts that run commands (`jpeg`, `planes`, `tests`, `nccl`, `end_to_end`), and the `original`'s training loop."""

import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from importlib.util import find_spec
from itertools import islice, pairwise, repeat
from pathlib import Path
from statistics import median_low
from xml.etree import ElementTree

import torch

from benchmarks.baseline_results import training_time
from benchmarks.gpu.plan import JPEG, PLANES
from benchmarks.gpu.process import SIZES, Context
from benchmarks.gpu.record import ROOT, Findings, load_record
from benchmarks.harness import Loaded
from benchmarks.peers_pillow import seed
from benchmarks.processes import GRACE_SEC, CommandError, last_line, run, run_command, seconds_taken
from pipeline.errors import InputError
from pipeline.workers import available_cores
from tools.bench_loader import LoadOptions
from tools.measure import quartiles, spread, synchronize
from train.checkpoint import has_checkpoint, load_last
from train.evaluate import HEADLINE
from train.logging import Line, read_lines
from train.losses import Criterion
from train.networks import build_network
from train.scoring import NETWORK, TRIVIAL


def jpeg(context: Context, found: Findings) -> None:
    """Compose synthetic sets, and pack them as they are; a run that was stopped goes on."""
    flags, loose = ["--synthetic", "--sets", str(context.sets), "--seed", "0"], context.folder(JPEG).with_name("sets")
    _make(context, found, "tools.compose", loose, flags, [])
    _make(context, found, "tools.pack", context.folder(JPEG), [], [str(loose), "--shards"])


def planes(context: Context, found: Findings) -> None:
    """Pack the same sets as planes."""
    flags, folder = ["--codec", "planes", "--size", str(SIZES[context.flag])], context.folder(PLANES)
    _make(context, found, "tools.pack", folder, flags, [str(folder.with_name("sets")), "--shards"])


def _make(
    context: Context, found: Findings, module: str, folder: Path, flags: Sequence[str], places: Sequence[str]
) -> None:
    """Fill a folder by a command, unless it has been; raises `InputError` where that was with other flags."""
    record, found.columns = folder.with_suffix(".json"), ["s", "sets/s"]
    seconds = seconds_taken(record, module, flags)
    if seconds is None:
        seconds = run(module, flags, [*places, str(folder)], record, folder.with_suffix(".log"))
    sets_per_sec = context.sets / seconds
    figures, cells = {"seconds": seconds, "sets_per_sec": sets_per_sec}, [f"{seconds:,.1f}", f"{sets_per_sec:,.0f}"]
    found.row(f"{module}, {folder.name}", figures, cells)


MARKED = "gpu"
MOST_WORKERS = 8  # each has a CUDA context, and imports torch and DALI


def tests(context: Context, found: Findings) -> None:
    """Run the project's tests that are marked `gpu`; every one of them has to run and to pass."""
    run_tests(context, found, ROOT)


def run_tests(context: Context, found: Findings, project: Path) -> None:
    """The same of any project."""
    report, log = Path(context.work, "junit.xml"), Path(context.work, "pytest.log")
    names = sorted((project / "tests").rglob("test_*.py"))
    files = [str(path) for path in names if f"mark.{MARKED}" in path.read_text()]  # the others take long to import
    report.unlink(missing_ok=True)
    flags = ["-c", str(project / "setup.cfg"), "--rootdir", str(project), "-q", "-m", MARKED, "-W", "default",
             "-p", "no:cacheprovider", "--junitxml", str(report)]  # fmt: skip
    if find_spec("xdist"):
        flags += ["-n", str(min(MOST_WORKERS, available_cores()))]
    # It ends before the part is stopped: what it has found by then is in its report.
    limit_sec = max(1.0, context.left_sec - 2 * GRACE_SEC)
    ended = run_command([sys.executable, "-m", "pytest", *flags, *files], log, limit_sec)
    if not report.exists():  # it did not get so far; else the file tells what failed
        raise CommandError(f"{last_line(log)} (exit code {ended.code}; all of its output: {log})")
    cases, failures = list(ElementTree.parse(report).iter("testcase")), list[str]()
    for case, child in ((parent, child) for parent in cases for child in parent):
        if child.tag in ("failure", "error", "skipped"):
            why = (child.get("message") or child.text or "no reason").strip().splitlines()[0]
            failures.append(f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}: {child.tag}: {why}")
    seconds = sum(float(case.get("time", 0)) for case in cases)
    told = re.search(r"(\d+) passed", last_line(log))  # the report has those that were stopped, too, as if they had
    passed = int(told[1]) if told else 0
    found.columns = ["passed", "failed or skipped", "s"]
    cells = [str(passed), str(len(failures)), f"{seconds:.0f}"]
    none = [] if passed or not ended.in_time else [f"no test in {project / 'tests'} is marked {MARKED}"]
    found.row(f"pytest -m {MARKED}", {"passed": passed, "seconds": seconds}, cells, failures or none)
    if not ended.in_time:
        found.late("the tests that had not ended")


# Network, batch, pixels, loader processes at most, steps not timed, steps of a window, windows.
ORIGINAL = {"gpu": ("net", 16, 128, 16, 40, 40, 5), "cpu": ("convgen", 2, 32, 1, 1, 1, 3)}


def original(context: Context, found: Findings) -> None:
    """The training loop of the original S15 work on the same device, for the ratio to ours; on its loader and without.

    Pillow, four decodes a set, a DataLoader; its network, batches of 16, binary cross-entropy and SSIM, SGD with
    momentum, all in float32, as benchmarks/peers_pillow.py and train/networks.py have them. It is spared two
    things that would make it slower: reading the loss off the device in each step, and comparing three equal channels
    where one will do.
    """
    model, batch, size, most, run_in, steps, windows = ORIGINAL[context.flag]
    workers, rates = min(most, available_cores()), (list[float](), list[float]())
    step, loader = original_step(model, context.device), LoadOptions(batch, size, context.flag, workers)
    with closing(endless(seed(context.folder(JPEG), loader), batch)) as batches:
        cached = repeat(next(batches))
        for measured, source in zip(rates, (batches, cached), strict=True):
            for number in range(windows + 1):  # what the loader has ready at first is used up in the one not counted
                synchronize()
                started_sec = time.perf_counter()
                for loaded in islice(source, steps if number else run_in):
                    step(loaded)
                synchronize()
                measured.append(steps * batch / (time.perf_counter() - started_sec))
    loop, one = (spread(of[1:]) for of in rates)
    stalled = max(0.0, 1 - loop["median"] / one["median"])
    found.columns = ["sets/s in its loop (quartiles)", "on one batch (quartiles)", "stall %"]
    what = f"{model}, batch {batch}, {size} x {size}, {workers} loader processes"
    figures = {"sets_per_sec": loop, "compute_sets_per_sec": one, "stall_share": stalled}
    found.row(what, figures, [quartiles(loop), quartiles(one), f"{100 * stalled:.0f}"])
    if not context.on_gpu:
        found.note("the original's own `net` with batches of 16: skipped: no GPU")


def endless(batches: Iterable[Loaded], batch_size: int) -> Generator[Loaded, None, None]:
    """The whole batches of its epochs, one epoch after the other; raises `InputError` where there is none."""
    while True:
        count = 0
        for loaded in batches:
            if loaded.sets == batch_size:
                count += 1
                yield loaded
        if not count:
            raise InputError(f"fewer than {batch_size} sets, a batch of the original's: give more with --shards")


def original_step(model: str, device: torch.device) -> Callable[[Loaded], None]:
    """A step of its training: forward, its loss, backward, SGD."""
    torch.manual_seed(0)
    network = build_network(model).to(device)
    criterion = Criterion("bce+ssim").to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-5)

    def step(loaded: Loaded) -> None:
        # float32 [N,3,H,W] in 0..1 of equal channels, as its loader has them -> uint8 [N,1,H,W], as our networks do.
        bg, fg_bg, mask, depth = (
            (loaded.pictures[part][:, :1] * 255).round().to(torch.uint8) for part in ("bg", "fg_bg", "mask", "depth")
        )
        optimizer.zero_grad()
        criterion(network(bg, fg_bg), mask, depth).total.backward()
        optimizer.step()

    return step


TORCHRUN = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node"]  # whatever name the machine goes by
# Network, sets a step, steps, and by how much losses may differ, relatively: at the first step, before any has spread
# rounding, and at any. Of bfloat16 on a GPU, whose convolutions choose other algorithms for other shares
# of a batch; of float32 on a CPU.
RANKED = {"gpu": ("unet-s", 128, 40, 0.01, 0.1), "cpu": ("unet-4", 32, 3, 1e-4, 0.02)}


def nccl(context: Context, found: Findings) -> None:
    """Train alike, alone and in ranks of torchrun, and compare the losses step by step."""
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    model, batch, steps, most_first, most = RANKED[context.flag]
    gpus, work = torch.cuda.device_count() if context.on_gpu else 0, Path(context.work)
    found.columns = ["steps", "last loss", "first step apart", "any step apart"]
    flags = ["--model", model, "--batch-size", batch, "--sets", steps * batch, "--size", context.size, "--device",
             context.flag, "--log-every", 1, "--no-report", "--compile", "off", "--precision", "auto"]  # fmt: skip
    several = {0: [2], 1: [1]}.get(gpus, [1, 2])  # ranks of torchrun; without a GPU over gloo
    for ranks in (0, *several):
        name, out = f"torchrun, {ranks} ranks" if ranks else "alone", work / f"run-{ranks}"
        if name not in found.rows:
            shutil.rmtree(out, ignore_errors=True)
            words = [*TORCHRUN, ranks, "-m", "tools.train"] if ranks else []
            words += [*flags, "--shards", context.folder(JPEG), "--out", out]
            record, module = out.with_suffix(".json"), "torch.distributed.run" if ranks else "tools.train"
            run(module, [*map(str, words)], [], record, out.with_suffix(".log"))
            lines, alone = (read_lines(folder / "metrics.jsonl") for folder in (out, work / "run-0"))
            first, largest = differences(lines, alone)
            right = first <= most_first and largest <= most  # not of losses that are no numbers
            wrong = f"its losses are apart from those of one process; allowed are {most_first:g} and {most:g}"
            loss = [line["loss"] for line in lines if line["kind"] == "train"]
            cells = [str(len(loss)), f"{loss[-1]:.4f}", f"{first:.1e}", f"{largest:.1e}"]
            found.row(name, {"first": first, "largest": largest}, cells, [] if right else [wrong])
    if gpus < 2:
        found.note(f"2 ranks over NCCL: skipped: {'one' if gpus else 'no'} GPU")


def differences(lines: Sequence[Line], others: Sequence[Line]) -> tuple[float, float]:
    """By how much the losses of two runs differ, relatively: at the first training step, and at most at any.

    Infinite where they did not take the same steps on as many sets, and where a loss is no number.
    """
    ours, theirs = (
        {(line["step"], line["sets_seen"]): line["loss"] for line in of if line["kind"] == "train"}
        for of in (lines, others)
    )
    apart = [abs(ours[step] / theirs[step] - 1) for step in ours] if ours and list(ours) == list(theirs) else [math.inf]
    return (apart[0], max(apart)) if all(map(math.isfinite, apart)) else (math.inf, math.inf)


GOAL_SETS_PER_SEC, GOAL_SEC = 20_000, 600.0
SET_BYTES = 40_000  # on disk, with room to spare
# Network, sets a step, pixels, steps between lines of metrics (each waits for the device), test sets of a cell at most.
END_TO_END = {"gpu": ("unet-s", 256, 128, 100, 500), "cpu": ("unet-4", 16, 32, 5, 20)}
SCORES = {"mask_iou": "mask IoU", "depth_ssim": "depth SSIM"}


def end_to_end(context: Context, found: Findings) -> None:
    """Sets composed and packed on this machine, a network trained on them and scored, as a user would.

    What is done is noted, and a step that was stopped goes on where it was.
    """
    found.columns, work, sets = ["figure"], Path(context.work), context.end_to_end[0]
    for name, module, flags, places in end_to_end_steps(context):
        record, again = work / f"{name}.json", has_checkpoint(work / "run") and name == "train"
        seconds = seconds_taken(record, module, flags)
        if seconds is None:
            if name == "compose" and (free := shutil.disk_usage(work).free) < sets * SET_BYTES:
                need = f"{sets:,} sets may take {sets * SET_BYTES / 1e9:.0f} GB"
                raise InputError(f"{need}, {work} has {free / 1e9:.0f} GB free: give a WORK with more room")
            if name == "train" and not again:
                shutil.rmtree(work / "run", ignore_errors=True)  # it was stopped before its first checkpoint
            seconds = run(module, flags, [*places, *(["--resume"] if again else [])], record, work / f"{name}.log")
        found.row(f"{name}, the last start", {"seconds": seconds}, [f"{seconds:,.1f} s"])
    report_end_to_end(context, found)


def end_to_end_steps(context: Context) -> list[tuple[str, str, list[str], list[str]]]:
    """Name, module, flags that decide its result, and places of each command, in order."""
    sets, epochs = map(str, context.end_to_end)
    model, batch, size, log_every, test_sets = map(str, END_TO_END[context.flag])
    shards, out, test = (str(Path(context.work, name)) for name in ("shards", "run", "test"))
    device = ["--shards", shards, "--device", context.flag]
    training = ["--model", model, "--epochs", epochs, "--batch-size", batch, "--size", size, "--resident", "auto",
                "--log-every", log_every, "--seed", "0"]  # fmt: skip
    load = ["--hw-decoder-load", f"{context.load:g}"] if context.on_gpu else []
    scoring = ["--split", "test", "--sets-per-cell", test_sets]
    return [
        ("compose", "tools.compose", ["--synthetic", "--sets", sets, "--seed", "0"], ["--shards", shards]),
        ("train", "tools.train", training, ["--out", out, *device, "--no-report", *load]),
        ("evaluate", "tools.evaluate", scoring, [out, "--out", test, *device]),
    ]


def report_end_to_end(context: Context, found: Findings) -> None:
    """The figures of all that is done, and beside them the original's loop, where that was measured."""
    run_folder, epochs = Path(context.work, "run"), context.end_to_end[1]
    lines = read_lines(run_folder / "metrics.jsonl")
    first, every = training_time([line for line in lines if line["epoch"] == 1]), training_time(lines)
    later = [of_all - of_first for of_all, of_first in zip(every, first, strict=True)]
    for name, (sets, sec, waited_sec) in {"epoch 1": first, "from epoch 2 on": later}.items():
        cell = f"{sets / sec:,.0f} sets/s, {waited_sec / sec:.1%} of the time waiting for data"
        figures = {"sets_per_sec": sets / sec, "stall_share": waited_sec / sec}
        found.row(f"{name}, while it trains", figures, [cell])
    sets_per_sec = every[0] / epochs / median_low(epoch_sec(run_folder / "pictures"))
    told, elapsed_sec = f"{sets_per_sec:,.0f} sets/s", load_last(run_folder).checkpoint.state["elapsed_sec"]
    found.row("from epoch 2 on, validation and checkpoints included", {"sets_per_sec": sets_per_sec}, [told])
    found.row(f"{epochs} epochs of {every[0] / epochs:,.0f} sets", {"sec": elapsed_sec}, [f"{elapsed_sec:,.1f} s"])
    theirs = load_record(Path(context.root), "original")
    for row in theirs["rows"].values() if theirs else ():
        ratio = sets_per_sec / row["figures"]["sets_per_sec"]["median"]
        found.row("against the original's loop", {"ratio": ratio}, [f"{ratio:,.0f} x"])
    cell = json.loads(Path(context.work, "test", "evaluation.json").read_text())["cells"][HEADLINE]
    for name, title in SCORES.items():
        means = [cell["scores"].get(who, {}).get(name, {}).get("mean") for who in (NETWORK, TRIVIAL)]
        told = " (trivial ".join("-" if mean is None else f"{mean:.3f}" for mean in means) + ")"
        found.row(f"{title}, new foregrounds on new backgrounds", cell["scores"], [told])
    if context.on_gpu:
        fast, quick = sets_per_sec >= GOAL_SETS_PER_SEC, elapsed_sec < GOAL_SEC
        found.note(f"goal of {GOAL_SETS_PER_SEC:,} sets/s from epoch 2 on: {'reached' if fast else 'missed'}")
        found.note(f"goal of all epochs in {GOAL_SEC / 60:.0f} minutes: {'reached' if quick else 'missed'}")


def epoch_sec(pictures: Path) -> list[float]:
    """Seconds of each epoch from 2 on, all that is done at its end included: between the pictures of two ends.

    Where a run was stopped and went on, one has the time in between; the (lower) median is none of it.
    """
    ends = [path.stat().st_mtime for path in sorted(pictures.glob("epoch_*.png"))]
    return [end - start for start, end in pairwise(ends)]
