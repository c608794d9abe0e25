"""The part `original`: the training loop of the original S15 work on the same device, for the ratio to ours.

Its loader (Pillow, four decodes a set, a DataLoader), its network `net`, batches of 16, binary cross-entropy and SSIM,
SGD with momentum, all in float32, as tools/peers and train/original.py have them. It is spared two things that would
make it slower: reading the loss off the device in each step, and comparing three equal channels where one will do.
"""

import json
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.resume import atomic_file
from pipeline.workers import available_cores
from tools.benchmark.table import quartiles
from tools.benchmark.timing import spread
from tools.gpu_check.clock import calls_sec, windows_sec
from tools.gpu_check.context import Context, Result
from tools.peers.options import Loaded, LoadOptions
from tools.peers.pillow import seed
from train.losses import Criterion
from train.networks import build_network

FOUND = "original.json"
"""In the part's folder, for the part `whole`."""


class Form(NamedTuple):
    """How much of it is done."""

    model: str
    batch_size: int
    size: int
    """Height and width, pixels."""
    workers: int
    run_in_steps: int
    """Not timed: the workers start, and algorithms are chosen."""
    steps: int
    """Of each window that is timed."""
    windows: int


def form(context: Context) -> Form:
    """The original's on a GPU, with a process on each core for its loader, where it had four; else a small one."""
    if context.on_gpu:
        return Form("net", 16, 128, min(16, available_cores()), 40, 40, 5)
    return Form("convgen", 2, 32, 1, 1, 1, 3)


def measure(context: Context) -> Result:
    """Sets/s on its loader, and on one batch that is there."""
    asked = form(context)
    options = LoadOptions(asked.batch_size, asked.size, context.flag, asked.workers)
    step = a_step(asked.model, context.device)
    with closing(endless(seed(context.shards, options), asked.batch_size)) as batches:
        cached = next(batches)
        for _ in range(asked.run_in_steps):
            step(next(batches))
        loop_sec = windows_sec(context.device, lambda: step(next(batches)), asked.steps, asked.windows)
        compute_sec = calls_sec(context.device, lambda: step(cached))
    loop = spread([asked.steps * asked.batch_size / sec for sec in loop_sec])
    compute = spread([asked.batch_size / sec for sec in compute_sec])
    figures = {
        **asked._asdict(),
        "sets_per_sec": loop,
        "compute_sets_per_sec": compute,
        "stall_share": max(0.0, 1 - loop["median"] / compute["median"]),
    }
    with atomic_file(context.work / FOUND) as file:
        file.write(json.dumps(figures).encode())
    what = f"{asked.model}, batch {asked.batch_size}, {asked.size} x {asked.size}, {asked.workers} loader processes"
    rows = {what: [quartiles(loop), quartiles(compute), f"{100 * figures['stall_share']:.0f}"]}
    columns = ["sets/s in its loop (quartiles)", "on one batch (quartiles)", "stall %"]
    notes = () if context.on_gpu else ("the original's own `net` with batches of 16: skipped: no GPU",)
    return Result(figures, columns, rows, notes)


def endless(batches: Iterable[Loaded], batch_size: int) -> Generator[Loaded, None, None]:
    """The whole batches of its epochs, one epoch after the other; raises `InputError` where there is none."""
    while True:
        whole = 0
        for loaded in batches:
            if loaded.sets == batch_size:
                whole += 1
                yield loaded
        if not whole:
            raise InputError(f"fewer than {batch_size} sets, a batch of the original's: give more with --shards")


def a_step(model: str, device: torch.device) -> Callable[[Loaded], None]:
    """A step of its training: forward, its loss, backward, SGD."""
    torch.manual_seed(0)
    network = build_network(model).to(device)
    criterion = Criterion("bce+ssim").to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-5)

    def step(loaded: Loaded) -> None:
        bg, fg_bg, mask, depth = (plane(loaded.pictures[part]) for part in ("bg", "fg_bg", "mask", "depth"))
        optimizer.zero_grad()
        criterion(network(bg, fg_bg), mask, depth).total.backward()
        optimizer.step()

    return step


def plane(pictures: Tensor) -> Tensor:
    """float32 [N,3,H,W] in 0..1 of equal channels, as its loader has them -> uint8 [N,1,H,W], as our networks do."""
    return (pictures[:, :1] * 255).round().to(torch.uint8)
