"""Batch norm over the sets of all ranks, so that a step does not depend on how many ranks share its batch.

Letters in shapes: N sets of this rank, which may be none; C channels; H and W pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.distributed import Distributed

OVER = (0, 2, 3)  # what a channel's statistics are over: sets and pixels


@dataclass
class SharedBatch:
    """The batch that all ranks share, as far as the norms must know it."""

    sets: int = 0
    """Those of all ranks. Known on the host, so that no norm asks the device how many values there are."""


def synced(network: nn.Module, ranks: Distributed, batch: SharedBatch) -> nn.Module:
    """`network` with each BatchNorm2d replaced by one over all ranks; alone, as it is.

    Parameters and buffers are the same tensors under the same names, so that optimisers stay valid and a checkpoint
    fits any number of ranks. Ranks may have different numbers of sets, or none; before each forward pass in training,
    `batch.sets` must be set to their sum. While training, every forward and every backward pass is a collective of all
    ranks; in `eval` nothing is. No pass waits for a GPU, and `torch.compile` sees no graph break.
    """
    if ranks.world == 1:
        return network
    if isinstance(network, nn.BatchNorm2d):
        return SyncedNorm(network, batch)
    for name, child in network.named_children():
        network.add_module(name, synced(child, ranks, batch))
    return network


class SyncedNorm(nn.BatchNorm2d):
    """What PyTorch's SyncBatchNorm is, over the default process group, for the CPU and for ranks without sets, too.

    That one counts the values on the device and picks the ranks that have any by a mask, for which the host waits at
    each norm, and `torch.compile` breaks the graph.
    """

    def __init__(self, norm: nn.BatchNorm2d, batch: SharedBatch) -> None:
        """In place of `norm`, with its tensors and in its mode."""
        assert norm.affine, "the only ones that our networks have"
        assert norm.track_running_stats, "as above"
        assert norm.momentum is not None, "as above"
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        for name, parameter in norm.named_parameters():
            self.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self.batch = batch
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,H,W]. Raises `ValueError` where all ranks together have no two values a channel.

        Of bfloat16 and float16 it is computed in float32, in which PyTorch computes its own.
        """
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        count = self.batch.sets * x.shape[2] * x.shape[3]
        if count < 2:
            raise ValueError(f"expected 2 values a channel or more over all ranks when training, got {count}")
        mean, var = _statistics(x.detach(), count)
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), self.momentum)  # unbiased
        return _Normalise.apply(x, self.weight, self.bias, mean, (var + self.eps).rsqrt(), count)  # type: ignore[no-any-return,no-untyped-call]


def _statistics(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of [N,C,H,W]: mean and biased variance of a channel's `count` values on all ranks, float64 [C].

    One message: each rank sends the sum of its values and of their squares. Both are made of its mean and variance,
    about which nothing cancels in float32; in float64, E[x^2] - E[x]^2 loses less than float32 pictures hold.
    """
    x = _wide(x)
    if len(x):
        var, mean = torch.var_mean(x, OVER, correction=0)
    else:  # whose mean is not a number
        var = mean = x.new_zeros(x.shape[1])
    var, mean = var.double(), mean.double()
    sums = x[:, 0].numel() * torch.stack([mean, var + mean.square()])
    dist.all_reduce(sums)
    mean, square = (sums / count).unbind()
    return mean, (square - mean.square()).clamp(min=0)


class _Normalise(torch.autograd.Function):
    """y = weight * z + bias with z = (x - mean) * rstd, where mean and rstd come from the x of all ranks.

    With g the gradient at y, and n values a channel over all ranks, the gradient at x is
    weight * rstd * (g - sum(g) / n - z * sum(g * z) / n) (Ioffe and Szegedy 2015, section 3), the sums over all ranks.
    Those at weight and bias are this rank's share, as of every other parameter.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, count: int) -> Tensor:
        """[N,C,H,W] and [C] -> [N,C,H,W]."""
        wide = _wide(x)
        mean, rstd = mean.to(wide.dtype), rstd.to(wide.dtype)
        ctx.save_for_backward(x, weight, mean, rstd)  # x as it came, half the bytes of float32 under autocast
        ctx.count = count
        return ((wide - _planes(mean)) * _planes(rstd * weight) + _planes(bias)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """[N,C,H,W] -> [N,C,H,W] and [C]."""
        x, weight, mean, rstd = ctx.saved_tensors
        g, z = _wide(gradient), (_wide(x) - _planes(mean)) * _planes(rstd)
        at_weight, at_bias = (g * z).sum(OVER), g.sum(OVER)
        sums = torch.stack([at_weight, at_bias])
        dist.all_reduce(sums)
        with_z, plain = sums / ctx.count
        at_x = _planes(weight * rstd) * (g - _planes(plain) - z * _planes(with_z))
        return at_x.to(x.dtype), at_weight, at_bias, None, None, None


def _wide(x: Tensor) -> Tensor:
    """In float32, where it is of fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _planes(values: Tensor) -> Tensor:
    """[C] -> [C,1,1]."""
    return values.view(-1, 1, 1)
