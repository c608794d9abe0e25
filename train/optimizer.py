"""AdamW and its learning rate."""

import math

from torch import nn
from torch.optim import AdamW


def adamw(network: nn.Module, lr: float, weight_decay: float) -> AdamW:
    """AdamW that decays the convolutions' weights and leaves norms and biases alone."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return AdamW(groups, lr=lr, fused=True)  # fused: one call a step instead of several for each parameter


def learning_rate(step: int, total_steps: int, highest: float, warmup: float) -> float:
    """The rate of step `step` (from 0): a linear rise over the share `warmup` of all steps, then half a cosine to 0.

    A pure function of the step, so that a resumed run needs no state for it.
    """
    warmup_steps = warmup * total_steps
    if step < warmup_steps:
        return highest * (step + 1) / (warmup_steps + 1)
    share = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
