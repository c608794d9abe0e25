"""A batch of image sets on the device, as the loader yields it."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Batch:
    """N sets on the device, as they were stored but for size, gray and depth table: nothing is scaled to float yet."""

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

    def head(self, sets: int) -> "Batch":
        """The first sets of it, in memory of their own."""
        return replace(self, **{name: part[:sets].clone() for name, part in vars(self).items() if part is not None})
