"""AdamW and its learning rate."""

import math

from torch import nn
from torch.optim import AdamW

SCHEDULES = ("cosine", "one-cycle")
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 25e4  # of one-cycle: share of the run, rates at its two ends
LEAST_RISE = 0.01  # of the highest rate: a linear rise that began at 0 would waste a step


def adamw(network: nn.Module, lr: float, weight_decay: float) -> AdamW:
    """AdamW that decays the convolutions' weights and leaves norms and biases alone."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return AdamW(groups, lr=lr, fused=True)  # fused: one call a step instead of several for each parameter


def learning_rate(progress: float, highest: float, warmup: float, schedule: str) -> float:
    """The rate at `progress`, 0..1, of a run: a pure function, so that a resumed run needs no state.

    "cosine": a linear rise over the share `warmup`, then half a cosine to 0. "one-cycle" (Smith & Topin 2018, with the
    figures of torch.optim.lr_scheduler.OneCycleLR): half a cosine up over the first 30 %, half a cosine down.
    """
    progress = min(1.0, progress)
    if schedule == "one-cycle":
        if progress < RISE:
            return highest * between(FIRST, 1.0, progress / RISE)
        return highest * between(1.0, LAST, (progress - RISE) / (1 - RISE))
    if progress < warmup:
        return highest * max(LEAST_RISE, progress / warmup)
    return highest * between(1.0, 0.0, (progress - warmup) / (1 - warmup))


def between(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` to `end`."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
