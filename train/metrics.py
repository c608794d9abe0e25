"""Scores of masks; every one is computed for each set by itself, so that means over sets are means over sets."""

from collections.abc import Iterator

import torch
from torch import Tensor

BOUNDARY_PIXELS = (1, 2)  # how far apart two outlines may be and still agree


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


def mask_scores(found: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """All scores of bool [N,1,H,W] `found` against uint8 [N,1,H,W] `mask`, by name, float32 [N]."""
    of_sets = iou(found, mask)
    boundaries = {f"boundary_f_{pixels}px": boundary_f(found, mask, pixels) for pixels in BOUNDARY_PIXELS}
    return {"mask_iou": of_sets, "mask_dice": dice(of_sets), **boundaries}


def boundary_f(found: Tensor, mask: Tensor, pixels: int) -> Tensor:
    """F-measure of the outlines of bool [N,1,H,W] `found` and uint8 [N,1,H,W] `mask`, float32 [N].

    Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?", section 3: precision is the
    share of the outline found that is within `pixels` (Euclidean) of the true one, recall the reverse,
    F = 2 P R / (P + R). 1 where neither mask has an outline, 0 where one has none.
    """
    ours, true = outline(found), outline(mask >= 128)
    precision, recall = _share(ours, within(true, pixels)), _share(true, within(ours, pixels))
    f = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    neither = ~(ours | true).flatten(1).any(1)
    return torch.where(neither, 1.0, f)


def outline(mask: Tensor) -> Tensor:
    """The pixels of bool [N,1,H,W] that have one of their four neighbours outside the mask; the frame is no edge."""
    return mask & within(~mask, 1)


def within(mask: Tensor, pixels: int) -> Tensor:
    """Where a pixel of bool [N,1,H,W] is at most `pixels` away (Euclidean, between centres): bool [N,1,H,W]."""
    height, width = mask.shape[-2:]
    near = mask.clone()
    for down, right in _disk(pixels):
        if abs(down) < height and abs(right) < width:
            to = near[..., max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
            to |= mask[..., max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    return near


def _disk(pixels: int) -> Iterator[tuple[int, int]]:
    reach = range(-pixels, pixels + 1)
    return ((y, x) for y in reach for x in reach if 0 < y * y + x * x <= pixels * pixels)


def _share(of: Tensor, inside: Tensor) -> Tensor:
    """The share of the pixels `of` that are `inside`, float32 [N]; 0 where there are none."""
    return (of & inside).flatten(1).sum(1) / of.flatten(1).sum(1).clamp(min=1)
