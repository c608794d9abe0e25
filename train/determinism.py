"""Runs that can be repeated to the bit on a GPU, too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Within it, if `on`, PyTorch takes algorithms that give the same bits in every run; after it, what it took before.

    cuDNN's gradients of weights are else sums in an order that changes. Enter it before the process first multiplies
    matrices on a GPU: cuBLAS looks at its environment variable once. Raises RuntimeError within it, where an operation
    has no such algorithm; those of our networks, losses and loader all have one, or need none.
    """
    if not on:
        yield
        return
    former = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property of the module
    workspace = os.environ.get(CUBLAS)
    os.environ.setdefault(CUBLAS, ":4096:8")
    torch.backends.cudnn.benchmark = False  # a search by time, which ends otherwise now and then
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # none is read
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(former[0], warn_only=former[1])
        torch.backends.cudnn.benchmark = benchmark
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        if workspace is None:
            del os.environ[CUBLAS]
