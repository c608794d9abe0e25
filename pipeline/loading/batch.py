"""A batch of image sets, as the loader yields it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Batch:
    """N sets on one device, as they were stored but for size, gray and depth table: nothing is scaled to float yet."""

    bg: torch.Tensor
    """uint8 [N, 1, H, W]."""
    fg_bg: torch.Tensor
    """uint8 [N, 1, H, W]."""
    mask: torch.Tensor
    """uint8 [N, 1, H, W], 255 where the foreground is, soft at its edge."""
    depth: torch.Tensor | None
    """uint8 [N, 1, H, W], 255 near; None where it was not asked for."""
    index: torch.Tensor
    """int64 [N], rows of index.npy."""
    depth_valid: torch.Tensor | None = None
    """bool [N, 1, H, W], False where depth is 0 since nothing was measured there; None of data without such holes."""

    def __len__(self) -> int:
        """The number of sets, N; it may be 0."""
        return len(self.index)

    def asdict(self) -> dict[str, torch.Tensor]:
        """The tensors by name, without those that are None: for loops that unpack a batch."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same sets on another device."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """A copy in host memory from which a GPU copies without a wait; of a batch on the CPU."""
        return self._with(torch.Tensor.pin_memory)

    def head(self, sets: int) -> "Batch":
        """The first sets of it, in memory of their own."""
        return self._with(lambda tensor: tensor[:sets].clone())

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return replace(self, **{name: change(tensor) for name, tensor in self.asdict().items()})
