"""Ranks: the processes that train one network together, one a GPU, as `torchrun` starts them.

With them batch norm over the sets of all ranks, so that a step does not depend on how many ranks share its batch.
Letters in shapes: N sets of this rank, which may be none; C channels; H and W pixels.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from pipeline.devices import gpu_usable, torch_device
from pipeline.errors import InputError
from pipeline.workers import available_cores

Value = TypeVar("Value")

# A rank that ends is noticed at once, by its closed sockets. This is for a machine that is gone without a word, and
# must be longer than what one rank may do alone while the others wait: read the index, compile, write a checkpoint.
TIMEOUT = timedelta(minutes=10)
END_TIMEOUT = timedelta(hours=1)
"""The same for `barrier`: at the end, the first writes the report, and waits for what it puts at a URL."""
STORE_SEC = 10.0
"""Longest wait for the store, whose machine may be the one that is gone."""
FAILED = "failed"
"""Its key for the number of ranks that have ended by an error of their own."""
OVER = (0, 2, 3)  # dimensions that a channel's statistics are over: sets and pixels


class RankLost(InputError):  # noqa: N818 - a finding, not a fault of the program
    """Another rank is gone that told of no error: it was killed, or its machine was lost."""


class Distributed:
    """This process among those that train together (its peers). For a single process every method returns at once.

    `sums`, `all_gather`, `broadcast`, `barrier`, `copy_from_first` and `sum_gradients` are collectives: all ranks call
    them, in the same order. Words go over gloo from host to host, not through the device's queue, where they would wait
    for the network; tensors of the device over the default process group, for which the host does not wait.
    """

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0, local_world: int = 1) -> None:
        """`rank` of `world` processes; `local` of the `local_world` that are on this machine. No group is formed."""
        self.rank, self.world, self.local, self.local_world = rank, world, local, local_world
        self.first = rank == 0
        """Whether this is rank 0, the only one that writes files and prints."""
        self.cores = max(1, available_cores() // local_world)
        """CPU cores of this machine that are this rank's, for its threads."""
        self.group: dist.ProcessGroup | None = None
        """All ranks over gloo; None alone."""
        self._store: Any = None

    @classmethod
    def from_environment(cls, device_name: str) -> "Distributed":
        """The ranks by the environment variables of `torchrun`; one without them. `device_name`: gpu, cpu or auto.

        On GPUs, each rank has the one of its place on the machine; it is the current CUDA device from here on. On the
        CPU, the ranks of a machine share its cores. Raises `InputError` where the environment contradicts itself, for
        more ranks on a machine than GPUs, and where the others cannot be reached.
        """
        if "RANK" not in os.environ and os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        rank, world, local = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        local_world = _number("LOCAL_WORLD_SIZE", str(local + 1))  # Slurm and MPI do not tell it
        if not (rank < world and local < local_world <= world):
            got = f"RANK {rank} of WORLD_SIZE {world}, LOCAL_RANK {local} of LOCAL_WORLD_SIZE {local_world}"
            raise InputError(f"{got}: each must be below what it is of; start the ranks with torchrun")
        on_gpu = device_name != "cpu" and gpu_usable()
        if on_gpu and local >= (gpus := torch.cuda.device_count()):
            found = f"{max(local + 1, local_world)} processes on this machine, but {gpus} GPUs"
            raise InputError(f"{found}: torchrun --nproc-per-node {gpus}, or --device cpu")
        if on_gpu:
            torch.cuda.set_device(local)
        else:
            torch_device("gpu" if device_name == "gpu" else "cpu")  # refuses a GPU that is not there
        ranks = cls(rank, world, local, local_world)
        if world > 1:
            ranks._join(on_gpu)
        return ranks

    def _join(self, on_gpu: bool) -> None:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise InputError(f"WORLD_SIZE {self.world}, but no {name}: start the ranks with torchrun")
        if not on_gpu:
            torch.set_num_threads(self.cores)
        try:
            self._store, rank, world = next(rendezvous("env://", timeout=TIMEOUT))
            backend = "nccl" if on_gpu else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT, store=self._store, rank=rank, world_size=world)
            self.group = dist.new_group(backend="gloo", timeout=TIMEOUT) if on_gpu else dist.group.WORLD
        except RuntimeError as error:
            self.close()
            where = f"{os.environ['MASTER_ADDR']} port {os.environ['MASTER_PORT']}"
            reason = str(error).splitlines()[0]
            raise InputError(f"rank {self.rank} does not reach the others by {where}: {reason}") from error

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value's sum over all ranks, in float64 and the same to the last bit on each of them; one message."""
        if self.group is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self.collective():
            dist.all_reduce(total, group=self.group)
        return total.tolist()

    def all_gather(self, value: Value) -> list[Value]:
        """The values of all ranks, by rank. Any objects that can be pickled; for rare use."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.world
        with self.collective():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def broadcast(self, value: Value) -> Value:
        """The value of rank 0; those of the others are ignored. An object that can be pickled; for rare use."""
        if self.group is None:
            return value
        sent = [value]
        with self.collective():
            dist.broadcast_object_list(sent, src=0, group=self.group)
        return sent[0]

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        if self.group is not None:
            with self.collective():
                dist.monitored_barrier(self.group, END_TIMEOUT)

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Within it, what a collective raises because another rank has ended becomes an `InputError`.

        It is a `RankLost` where the store, which is with rank 0 or torchrun, answers that no rank has failed by itself.
        The methods here do so themselves; it is for those of others, as in the two passes of `SyncedNorm`.
        """
        try:
            yield
        except RuntimeError as error:
            # gloo's are plain RuntimeErrors that begin with a path, "[.../gloo/transport/tcp/pair.cc:553] Connection
            # closed by peer"; NCCL's are DistErrors.
            if self.group is None or not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
                raise
            if self._asked(lambda store: store.check([FAILED])) is False:
                raise RankLost(f"rank {self.rank}: another rank was killed, or its machine is gone") from error
            raise InputError(f"rank {self.rank}: another rank has ended; see its message") from error

    def _asked(self, ask: Callable[[Any], Value]) -> Value | None:
        """What the store answers; None where it does not, in time."""
        answers = list[Value]()

        def wait() -> None:
            with suppress(RuntimeError):
                if self._store is not None:
                    answers.append(ask(self._store))

        thread = Thread(target=wait, daemon=True)
        thread.start()
        thread.join(STORE_SEC)
        return answers[0] if answers else None

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """The values of rank 0's `tensors`, of one type and of the same shapes everywhere, become those of all."""
        self._as_one(tensors, partial(dist.broadcast, src=0))

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Each parameter's gradient, after the backward pass, becomes the sum of all ranks' gradients.

        Those without a gradient, as of a head that has no label, are left out; they must be the same on all ranks.
        """
        self._as_one((p.grad for p in parameters if p.grad is not None), dist.all_reduce)

    @torch.no_grad()
    def _as_one(self, tensors: Iterable[Tensor], collective: Callable[[Tensor], object]) -> None:
        """Do `collective` on the values of all `tensors`, in place; one message. Alone, nothing is done.

        `DistributedDataParallel` would send gradients while the backward pass still goes on; but a compiled one gives
        them all at its end, and DDP has the compiler split the step's graph at the borders of what it sends at once.
        """
        if self.group is None:
            return
        each = list(tensors)
        joined = torch.cat([tensor.flatten() for tensor in each])
        with self.collective():
            collective(joined)
        for tensor, values in zip(each, torch.split(joined, [tensor.numel() for tensor in each]), strict=True):
            tensor.copy_(values.view_as(tensor))

    def close(self) -> None:
        """Leave the process groups; ranks that wait for this one get an error. May be called again."""
        group, self.group, self._store = self.group, None, None
        if not dist.is_initialized():
            return
        if group is not None and group is not dist.group.WORLD:
            dist.destroy_process_group(group)  # before NCCL's, which may wait for ranks that wait for us here
        dist.destroy_process_group()

    def __enter__(self) -> "Distributed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.group is not None and not isinstance(error, RankLost | SystemExit):
            self._asked(lambda store: store.add(FAILED, 1))  # before the others see that this one is gone
        self.close()


def restart_warning() -> str:
    """What torchrun must be told so that it can start ranks again; empty if it was, or is not to.

    Torch 2.13 lets ranks that are started again read what the former ones have left in its own store, as where they
    listened, and goes on with the address of a machine that was lost (pytorch#135712).
    """
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if not restarts or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return ""
    return "warning: --max-restarts of torchrun works only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"


SINGLE = Distributed()
"""One process without peers."""


def _number(name: str, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    if text is None:
        has = next(other for other in ("RANK", "WORLD_SIZE") if other in os.environ)
        raise InputError(f"the environment has {has} but no {name}: start the ranks with torchrun, or unset {has}")
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"{name} is {text!r} in the environment: expected 0 or more; start the ranks with torchrun")
    return int(text)


@dataclass
class SharedBatch:
    """The global batch, as far as the norms must know it."""

    sets: int = 0
    """Sets of all ranks, known on the host, so that no norm has to read the number of values from the device."""


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
    """As PyTorch's SyncBatchNorm, over the default process group, but also on the CPU and for ranks without sets.

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
