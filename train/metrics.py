"""Scores of predictions; every one is computed for each set by itself, so that means over sets are means over sets."""

import torch
from torch import Tensor


def iou(found: Tensor, mask: Tensor) -> Tensor:
    """Intersection over union of bool [N,1,H,W] `found` and uint8 [N,1,H,W] `mask` (128 or more is foreground).

    float32 [N]. A set with an empty mask scores 1 if nothing was found and 0 if anything was.
    """
    truth = mask >= 128
    both = (found & truth).flatten(1).sum(1)
    either = (found | truth).flatten(1).sum(1)
    return torch.where(either == 0, 1.0, both / either.clamp(min=1))


def dice(iou: Tensor) -> Tensor:
    """The Dice coefficient 2 |A and B| / (|A| + |B|) of the same two masks as an intersection over union."""
    return 2 * iou / (1 + iou)


def rmse(depth: Tensor, truth: Tensor) -> Tensor:
    """Root of the mean squared difference of two float [N,1,H,W]: float [N], in the units of the depth."""
    return (depth - truth).square().flatten(1).mean(1).sqrt()


def difference(bg: Tensor, fg_bg: Tensor) -> Tensor:
    """|fg_bg - bg| of two uint8 [N,1,H,W], in 0..255."""
    return torch.maximum(bg, fg_bg) - torch.minimum(bg, fg_bg)
