"""An exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


class Ema:
    """A copy of a network that follows it slowly: what is validated, and used once training is over.

    After step t, from 1: average += (1 - d) (weights - average), d = min(decay, (1 + t) / (10 + t)): early on, when
    the weights still change much, it follows closely (as in TensorFlow's ExponentialMovingAverage with num_updates).
    Buffers, those of batch norm, are copied: they are averages already.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """`decay` is above 0 and below 1."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follow `network` after its step `step`, from 1. The host does not wait."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), share)
        if buffers := list(self.network.buffers()):
            torch._foreach_copy_(buffers, list(network.buffers()))
