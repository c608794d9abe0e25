"""What a training step costs, counted and not timed: arithmetic and memory traffic."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def flops(step: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products in `step`, forward and backward.

    A multiplication and an addition are two. Compiled code is not seen: let it be off.
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def traffic_bytes(step: Callable[[], object]) -> int:
    """AN ESTIMATE of the bytes that `step` moves: each of its operators reads its inputs and writes its outputs once.

    Caches spare some of it, and operators that read their input twice move more. Compiled code is not seen.
    """
    counter = _Traffic()  # type: ignore[no-untyped-call]
    with counter:
        step()
    return counter.bytes


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        memory = {tensor.untyped_storage().data_ptr() for tensor in given}
        is_view = made and all(tensor.untyped_storage().data_ptr() in memory for tensor in made)
        if function._schema.is_mutable or not is_view:
            # An expanded tensor has fewer bytes than its shape says.
            self.bytes += sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in (*given, *made))
        return result
