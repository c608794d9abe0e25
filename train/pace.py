"""How long a run takes: said before its first step where a CPU would take too long, and as soon as two are done."""

import copy
import time
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from train.config import Config
from train.networks import build_network
from train.runtime import autocast

TOO_LONG_SEC = 3600.0  # of a run on a CPU
PROBED_SETS = 2
PROBED_FLOPS = 2e10  # forward, at most, unless 32 x 32 pixels have more: about a second on a slow core
ENOUGH_SEC = 1.0  # of a first step, beside which what it prepares is little
SHORT = 1e12
"""Parameters x pixels x sets: no network takes minutes for a run with fewer, which is not worth a look."""
SMALLER = ("unet-xs", "unet-24x2", "unet-16", "unet-8")


class FirstSteps:
    """The rate of a run from the second step of a process on: the first one compiles, and takes memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first: tuple[float, float] | None = None  # moment and progress of the first step's end
        self._steps = 0
        self.left_sec = 0.0
        """How long the run takes from here on."""

    def describe(self, sets: int, progress: float) -> str:
        """What to show after a step of so many sets; empty after the first. Waits for the device in the first two."""
        if self._steps < 2 and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # else it would be timed how steps are queued
        now_sec = time.perf_counter()
        if self._first is None:
            self._first = now_sec, progress
            return ""
        self._steps += 1
        step_sec = (now_sec - self._first[0]) / self._steps
        gained = (progress - self._first[1]) / self._steps
        self.left_sec = (1 - progress) / gained * step_sec if gained > 0 else 0.0
        return f"{step_sec:.2g} s a step, {sets / step_sec:,.0f} sets/s, {duration(self.left_sec)} left"


class Estimate(NamedTuple):
    """How long a run takes on this CPU, in seconds."""

    run_sec: float
    smaller: dict[str, float]
    """The same with each smaller network."""


def estimate(config: Config, network: nn.Module, sets: int) -> Estimate:
    """Time steps of `network` on PROBED_SETS blank sets; those of smaller networks follow by their arithmetic.

    The sets are smaller than the run's where those would take long: the arithmetic grows with the pixels. `sets` are
    those of the whole run. Neither the network nor the random numbers change.
    """
    own, size = arithmetic(config.model, config), config.size
    while size >= 64 and own * PROBED_SETS * (size / config.size) ** 2 > PROBED_FLOPS:
        size = size // 32 * 16
    probe = copy.deepcopy(network)
    blank = torch.zeros(PROBED_SETS, 1, size, size, dtype=torch.uint8)
    for _ in range(2):  # the first one also prepares the kernels
        began_sec = time.perf_counter()
        with autocast(config.precision, blank.device):
            prediction = probe(blank, blank)
        loss = prediction.mask_logits.mean()
        (loss if prediction.depth is None else loss + prediction.depth.mean()).backward()
        taken_sec = time.perf_counter() - began_sec
        if taken_sec > ENOUGH_SEC:
            break
    run_sec = taken_sec / PROBED_SETS * (config.size / size) ** 2 * sets
    others = {name: arithmetic(name, config) for name in SMALLER if name != config.model}
    return Estimate(run_sec, {name: run_sec * of / own for name, of in others.items() if of < own})


def arithmetic(model: str, config: Config) -> int:
    """Floating-point operations of a network for one set, as PyTorch's FlopCounterMode counts them."""
    with torch.device("meta"):
        network = build_network(model, depth=config.depth)
        blank = torch.zeros(1, 1, config.size, config.size, dtype=torch.uint8)
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(blank, blank)
    return int(counter.get_total_flops())


def advice(config: Config, network: nn.Module, sets: int) -> str:
    """What would fit, where a run of so many sets takes a CPU too long; else empty."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if config.minutes or parameters * config.size**2 * sets < SHORT:
        return ""
    run_sec, smaller = estimate(config, network, sets)
    if run_sec < TOO_LONG_SEC:
        return ""
    fitting = [f"--model {name} {duration(sec)}" for name, sec in smaller.items()]
    others = f"; by its arithmetic, {', '.join(fitting)}" if fitting else ""
    found = f"{config.model} takes this CPU about {duration(run_sec)} (timed on {PROBED_SETS} sets)"
    return f"{found}{others}; or end it in time, --minutes 10"


def duration(sec: float) -> str:
    """45 s, 12 min, 3.5 h or 2.1 days."""
    if sec < 60:
        return f"{sec:.0f} s"
    if sec < 5400:
        return f"{sec / 60:.0f} min"
    return f"{sec / 3600:.1f} h" if sec < 48 * 3600 else f"{sec / 86400:.1f} days"
