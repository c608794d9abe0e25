"""A GPU for tests on machines without one: its tensors have shapes, types and a device, but no values.

PyTorch's FakeTensorMode runs operators so. It refuses tensors of several devices in one operator, and what depends on a
value of the device, for which the host would wait. Copies and indices for which it would wait are refused here. What
code asks of `torch.cuda` itself (streams, free memory) is not there, nor is automatic mixed precision.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

aten = torch.ops.aten
CUDA, META = torch.device("cuda", 0), torch.device("meta")
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
SEARCHED = (torch.bool, torch.uint8)  # indices of which PyTorch looks for the places that are not 0


class Waits(Exception):  # noqa: N818 - a finding
    """The host would wait for the device."""


@contextmanager
def fake_gpu() -> Generator["FakeGpu", None, None]:
    """Meanwhile, tensors have no values, and those on CUDA are on a GPU that is not there."""
    grouped = torch._C._group_tensors_by_device_and_dtype

    def on_gpu(*lists: Any) -> dict[Any, Any]:
        return {(CUDA if at == META else at, dtype): of for (at, dtype), of in grouped(*lists).items()}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FakeTensor, "is_cuda", property(lambda tensor: tensor.device.type == "cuda"))
        patched.setattr(torch._C, "_group_tensors_by_device_and_dtype", on_gpu)
        with FakeGpu() as gpu:
            yield gpu


class FakeGpu(FakeTensorMode):  # type: ignore[no-untyped-call]
    """What runs operators meanwhile."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._pinned = set[StorageWeakRef]()
        self._strict = False

    @contextmanager
    def without_waiting(self) -> Generator[None, None, None]:
        """Meanwhile, refuse copies for which the host would wait, too, with `Waits`."""
        self._strict = True
        try:
            yield
        finally:
            self._strict = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return META  # C++ asks, and PyTorch without CUDA could not go on; Python is told the truth
        if given.get("device") == META:  # C++ makes a tensor beside others
            given["device"] = CUDA
        if func is aten._pin_memory.default:
            copy: Any = super().__torch_dispatch__(aten.clone.default, types, args)
            return self._pin(copy)
        if self._strict and func is aten._to_copy.default:
            self._refuse(func, args[0], given.get("device") or args[0].device, given.get("non_blocking", False))
        if self._strict and func is aten.copy_.default:
            self._refuse(func, args[1], args[0].device, args[2:] == (True,), args[0])
        if self._strict and func in INDEXED and args[0].device == CUDA:
            number = len(args) > 2 and not args[2].ndim  # it is put in its places without a search
            for index in args[1]:
                if index is not None and (index.device != CUDA or (index.dtype in SEARCHED and not number)):
                    raise Waits(f"{func} with indices {index.dtype} on {index.device}")
        made: Any = super().__torch_dispatch__(func, types, args, given)
        return self._pin(made) if given.get("pin_memory") else made

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.add(_memory(tensor))
        return tensor

    def _refuse(self, func: Any, source: Tensor, to: torch.device, queued: bool, target: Tensor | None = None) -> None:
        """Between devices, a copy has to be queued, from or to memory of the host that is pinned."""
        host = source if source.device.type == "cpu" else target
        pinned = host is not None and _memory(host) in self._pinned
        if source.device.type != to.type and not (queued and pinned):
            raise Waits(f"{func} of {tuple(source.shape)} from {source.device} to {to}")


def _memory(tensor: Tensor) -> StorageWeakRef:
    """What views share with what they are views of."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
