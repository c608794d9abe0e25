"""The optimiser, its learning rate, and an exponential moving average of the weights (EMA)."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from train.config import Config
from train.muon import Muon, parameters_by_optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 25e4  # of one-cycle: share of the run, rates at its two ends
MOST_OF_RUN = 0.02  # that a step is taken for; of a run of some minutes, validation and compilation may take more
LEAST_RISE = 0.01  # of the highest rate: a linear rise that began at 0 would waste a step


def build_optimizer(network: nn.Module, config: Config) -> Optimizer:
    """The optimiser of a run, one of `config.OPTIMIZERS`; a group's rate is its "share", else 1, of the run's."""
    build = Muon if config.optimizer == "muon" else adamw
    return build(network, config.lr, config.weight_decay)


def set_rates(optimizer: Optimizer, config: Config, progress: float, former: float) -> None:
    """Set the rates of the step at `progress`, 0..1, of a run; that of the step before was `former`.

    Of Muon's weights, a step that is 1/N of the run takes off rate / highest rate * decay / N: a run of any length
    forgets alike, in terms of itself, as is best for AdamW, too (Wang and Aitchison 2024, arXiv 2405.13698). No step
    forgets as if it were more than MOST_OF_RUN, however much time has passed, or less than none: a run may be resumed
    with a greater length.
    """
    rate = learning_rate(progress, config.lr, config.warmup, config.schedule)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)
        if "decay_of_run" in group:
            group["weight_decay"] = group["decay_of_run"] * min(MOST_OF_RUN, max(0.0, progress - former)) / config.lr


def kept_by_parameter(network: nn.Module, optimizer: str) -> list[tuple[nn.Parameter, tuple[str, ...]]]:
    """All parameters in the order in which an optimiser counts them, and what it keeps of each beside its "step"."""
    if optimizer == "adamw":
        return [(parameter, MOMENTS) for group in parameters_by_decay(network) for parameter in group]
    matrices, others = parameters_by_optimizer(network)
    return [*((matrix, ("momentum",)) for matrix in matrices), *((other, MOMENTS) for other in others)]


def adamw(network: nn.Module, lr: float, weight_decay: float) -> AdamW:
    """AdamW that decays the convolutions' weights and leaves norms and biases alone."""
    decayed, free = parameters_by_decay(network)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return AdamW(groups, lr=lr, fused=True)  # fused: one call a step instead of several for each parameter


def parameters_by_decay(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those that are decayed, and those that are not, in the order in which the optimiser counts them."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    return decayed, [p for p in network.parameters() if p.ndim <= 1]


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


class Ema:
    """An exponential moving average of a network's weights, as a network: it is validated, and used after training.

    After step t, from 1: average += (1 - d) (weights - average), d = min(decay, (1 + t) / (10 + t)): early on, when
    the weights still change much, it follows closely (as in TensorFlow's ExponentialMovingAverage with num_updates).
    Buffers, those of batch norm, are copied: they are averages already.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Average the weights of `network`, beginning with those it has now; `decay` is above 0 and below 1."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        # Listed once: a walk over the modules takes longer than what is done with the lists in a step.
        self._weights = list[Tensor](self.network.parameters()), list[Tensor](network.parameters())
        # Of one type each: of a list with several, PyTorch copies every tensor by itself.
        self._buffers = [
            tuple([buffer for buffer in of.buffers() if buffer.dtype == dtype] for of in (self.network, network))
            for dtype in dict.fromkeys(buffer.dtype for buffer in network.buffers())
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after the network's step `step`, from 1. Does not synchronise with the device."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._weights, share)
        for ours, theirs in self._buffers:
            torch._foreach_copy_(ours, theirs)

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Give the network the buffers that it had at the last `update`."""
        for ours, theirs in self._buffers:
            torch._foreach_copy_(theirs, ours)
