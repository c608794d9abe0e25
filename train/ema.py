"""An exponential moving average of a network's weights."""

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A copy of a network that follows it slowly: what is validated, and used once training is over.

    After step t, from 1: average += (1 - d) (weights - average), d = min(decay, (1 + t) / (10 + t)): early on, when
    the weights still change much, it follows closely (as in TensorFlow's ExponentialMovingAverage with num_updates).
    Buffers, those of batch norm, are copied: they are averages already.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Follow the tensors that `network` has now, which stay its own; `decay` is above 0 and below 1."""
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
        """Follow the network after its step `step`, from 1. The host does not wait."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._weights, share)
        for ours, theirs in self._buffers:
            torch._foreach_copy_(ours, theirs)

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Give the network the buffers that it had at the last `update`."""
        for ours, theirs in self._buffers:
            torch._foreach_copy_(theirs, ours)
