"""Ranks: the processes that train one network together, one a GPU, as `torchrun` starts them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.devices import gpu_usable, torch_device
from pipeline.errors import InputError
from pipeline.workers import available_cores

Value = TypeVar("Value")

# A rank that ends is noticed at once, by its closed sockets. This is for a machine that is gone without a word, and
# must be longer than what one rank may do alone while the others wait: validation, writing a checkpoint.
TIMEOUT = timedelta(minutes=30)


class Distributed:
    """This process and its peers. Where it has none, nothing below costs anything.

    `sums`, `all_gather`, `broadcast`, `barrier`, `copy_from_first` and `sum_gradients` are collectives: all ranks call
    them, in the same order. Words go over gloo from host to host, not through the device's queue, where they would wait
    for the network; tensors of the device over the default process group, for which the host does not wait.
    """

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0, local_world: int = 1) -> None:
        """`rank` of `world` processes; `local` of the `local_world` that are on this machine. No group is formed."""
        self.rank, self.world, self.local = rank, world, local
        self.first = rank == 0
        """Is this the rank that writes and speaks?"""
        self.cores = max(1, available_cores() // local_world)
        """CPU cores of this machine that are this rank's, for its threads."""
        self.group: dist.ProcessGroup | None = None
        """All ranks over gloo; None alone."""

    @classmethod
    def from_environment(cls, device_name: str) -> "Distributed":
        """The ranks that `torchrun` tells of; one, if it did not start this process. `device_name`: gpu, cpu or auto.

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
            dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
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
        """What rank 0 gave; what the others give is not looked at. An object that can be pickled; for rare use."""
        if self.group is None:
            return value
        sent = [value]
        with self.collective():
            dist.broadcast_object_list(sent, src=0, group=self.group)
        return sent[0]

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.group is not None:
            with self.collective():
                dist.barrier(group=self.group)

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Within it, what a collective raises because another rank has ended becomes an `InputError`.

        The methods here do so themselves; it is for those of others, as in the two passes of `synced_norm`.
        """
        try:
            yield
        except RuntimeError as error:
            # gloo's are plain RuntimeErrors that begin with a path, "[.../gloo/transport/tcp/pair.cc:553] Connection
            # closed by peer"; NCCL's are DistErrors.
            if self.group is None or not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
                raise
            raise InputError(f"rank {self.rank}: another rank has ended; see its message") from error

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
        """Leave the others; whoever waits for this rank is told. May be called again."""
        group, self.group = self.group, None
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
        self.close()


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
