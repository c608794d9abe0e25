"""Batch norm over the sets of all ranks, so that a step does not depend on how many ranks share its batch.

Letters in shapes: N sets of this rank, which may be none; C channels; H and W pixels; R ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# `torch.compiler.disable`, which loads the compiler when it is called (2 s), not when it is defined. Ranks with other
# numbers of sets compile at other times, and would wait for one another within it for ever.
from torch._compile import _disable_dynamo

from train.distributed import Ranks


def synced(network: nn.Module, ranks: Ranks) -> nn.Module:
    """`network` with each BatchNorm2d replaced by one over all ranks; alone, as it is.

    Parameters and buffers are the same tensors under the same names, so that optimisers stay valid and a checkpoint
    fits any number of ranks. Ranks may have different numbers of sets, or none. While training, every forward and
    every backward pass is a collective of all ranks; in `eval` nothing is.
    """
    if ranks.world == 1:
        return network
    if isinstance(network, nn.BatchNorm2d):
        on_gpu = network.running_mean is not None and network.running_mean.is_cuda
        return _with_tensors_of(network, CudaNorm if on_gpu else SyncedNorm)
    for name, child in network.named_children():
        network.add_module(name, synced(child, ranks))
    return network


def _with_tensors_of(norm: nn.BatchNorm2d, kind: "type[CudaNorm | SyncedNorm]") -> nn.Module:
    assert norm.affine, "the only ones that our networks have"
    assert norm.track_running_stats, "as above"
    new = kind(norm.num_features, norm.eps, norm.momentum, device="meta")
    for name, parameter in norm.named_parameters():
        new.register_parameter(name, parameter)
    for name, buffer in norm.named_buffers():
        new.register_buffer(name, buffer)
    return new.train(norm.training)


class CudaNorm(nn.SyncBatchNorm):
    """PyTorch's own, which refuses tensors of the CPU, for a rank without sets under autocast, too.

    Such a rank sends its statistics in the type of its input, bfloat16, where the others send float32.
    """

    @_disable_dynamo
    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,H,W]."""
        return super().forward(x if len(x) else x.float()).to(x.dtype)


class SyncedNorm(nn.BatchNorm2d):
    """The same on the CPU, over the default process group."""

    @_disable_dynamo
    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,H,W]. Raises `ValueError` where all ranks together have no two values a channel.

        Of bfloat16 it is computed in float32, in which PyTorch computes its own.
        """
        if not self.training:
            return super().forward(x)
        given = x.dtype
        x = x.to(torch.promote_types(given, torch.float32))
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        mean, var, count = _statistics(x.detach())
        if count < 2:
            raise ValueError(f"expected 2 values a channel or more over all ranks when training, got {count:.0f}")
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), momentum)  # unbiased
        y = _Normalise.apply(x, self.weight, self.bias, mean.to(x.dtype), var.to(x.dtype), self.eps, count)  # type: ignore[no-untyped-call]
        return y.to(given)  # type: ignore[no-any-return]


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Of [N,C,H,W]: mean and biased variance over all ranks, float64 [C], and the number of values a channel.

    One message: each rank sends its number of values, its mean, and its squares about that mean, which are joined as
    in Chan, Golub and LeVeque (1979). Their sums over ranks are in the ranks' order: alike to the last bit everywhere.
    """
    channels = x.shape[1]
    count = x.numel() // channels
    mine = torch.zeros(3, channels, dtype=torch.float64)
    mine[0] = count
    if count:
        mean = x.mean((0, 2, 3), dtype=torch.float64)
        mine[1] = mean
        mine[2] = (x - mean.to(x.dtype).view(-1, 1, 1)).square_().sum((0, 2, 3), dtype=torch.float64)
    everyones = mine.new_empty((dist.get_world_size(), *mine.shape))
    dist.all_gather(list(everyones), mine)
    counts, means, squares = everyones.unbind(1)  # each [R,C]
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    var = (squares + counts * (means - mean).square()).sum(0) / total
    return mean, var, total[0].item()


class _Normalise(torch.autograd.Function):
    """y = weight * (x - mean) / sqrt(var + eps) + bias, where mean and var come from the x of all ranks.

    With z = (x - mean) / sqrt(var + eps), g the gradient at y and n values a channel over all ranks, the gradient at x
    is weight / sqrt(var + eps) * (g - sum(g) / n - z * sum(g * z) / n) (Ioffe and Szegedy 2015, section 3), the sums
    over all ranks. Those at weight and bias are this rank's share, as of every other parameter.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, count: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.count = eps, count
        return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        if len(x):
            # As if mean and var were constants: weight / sqrt(var + eps) * g, and this rank's sums.
            at_x, at_weight, at_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
            )
        else:  # for which PyTorch divides by zero and ends the process
            at_x, at_weight, at_bias = gradient, torch.zeros_like(weight), torch.zeros_like(weight)
        sums = torch.stack([at_weight, at_bias]).double()
        dist.all_reduce(sums)
        with_z, plain = (sums / ctx.count).to(x.dtype)
        scale = weight * (var + ctx.eps).rsqrt()
        slope = -scale * with_z * (var + ctx.eps).rsqrt()
        offset = -scale * plain - slope * mean
        at_x = at_x + slope.view(-1, 1, 1) * x + offset.view(-1, 1, 1)
        return at_x, at_weight, at_bias, None, None, None, None
