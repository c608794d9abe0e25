"""Losses: named parts of a mask loss and a depth loss, SSIM among them, and the weighted sum of the two.

Every part is computed for each set by itself and then averaged: the loss of a set does not depend on its batch.

Of depth with holes, a mean is over what was measured: sum(v e) / max(sum(v), 1), where v is 1 for a pixel, a difference
of two pixels or a window of SSIM all of whose pixels were measured, and else 0. Nothing else has a gradient.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError
from train.config import LOSSES, Config
from train.model import Prediction

EDGE_BAND = 5  # pixels: the width of the window that must hold foreground and background for a pixel to be at an edge
SCALES = 4  # of the gradient: 1, 2, 4 and 8 pixels
WINDOW, SIGMA = 11, 1.5  # pixels, of SSIM (Wang et al. 2004)
C1, C2 = 0.01**2, 0.03**2  # of SSIM, for values in 0..1

SHARPNESS = "mask_sharpness"
RECIPES: dict[str, dict[str, float]] = {
    "bce": {"mask_bce": 1, "depth_bce": 1},
    "bce+ssim": {"mask_bce": 1, "depth_ssim": 1},
    "combined": {
        "mask_bce": 1,
        "mask_dice": 0.5,
        "mask_edge": 0.1,
        "depth_ssim": 1,
        "depth_gradient": 1,
        "depth_l1": 1,
    },
}
RECIPES["sharp"] = RECIPES["combined"] | {SHARPNESS: 4, "depth_ssim": 2}
"""Loss recipes by name: the weight of each part in the mask loss or the depth loss.

`bce` and `bce+ssim` are the two stages in which the original was trained. After 6,400 sets `combined` has mask IoU
0.90, depth SSIM 0.897 and RMSE 0.063, `bce+ssim` 0.86, 0.895 and 0.070; with half its SSIM and a tenth of its L1, it
has 0.90, 0.891 and 0.073. `sharp` is `combined` with mask labels that are `sharpened`: a score counts a pixel as
foreground from one half on, so that near the outline it matters on which side of it a label lies. Masks came out too
large before, by pixels that are 0.4 to 0.5 foreground: IoU 0.923 where these have 0.929, with Muon after 6,400 sets.
Its SSIM weighs twice as much: 0.945 where once has 0.941 after 12,800 sets, at the same IoU.
"""


class Losses(NamedTuple):
    """Means over a batch, or those of each of its sets; on the device."""

    mask: Tensor
    depth: Tensor | None
    total: Tensor
    parts: Mapping[str, Tensor] = {}
    """The parts of the mask loss and the depth loss before weighting, by the names in `RECIPES`."""

    def named(self) -> dict[str, Tensor]:
        """All losses that are not None, by the names under which they are logged."""
        totals = {"mask_loss": self.mask, "depth_loss": self.depth, "loss": self.total}
        parts = {f"{name}_loss": loss for name, loss in self.parts.items()}
        return {name: loss for name, loss in totals.items() if loss is not None} | parts


class Criterion(nn.Module):
    """The loss of a prediction by one of RECIPES."""

    def __init__(
        self,
        name: str = Config.loss,
        mask_weight: float | None = None,
        depth_weight: float = Config.depth_weight,
    ) -> None:
        """`name` is one of RECIPES; raises `InputError` for any other, and for weights that are not 0 or more.

        `mask_weight` None: the recipe's own.
        """
        super().__init__()
        if name not in RECIPES:
            raise InputError(f"loss {name!r}: expected one of {', '.join(RECIPES)}")
        mask_weight = LOSSES[name] if mask_weight is None else mask_weight
        for what, weight in (("mask", mask_weight), ("depth", depth_weight)):
            if not 0 <= weight < float("inf"):
                raise InputError(f"weight {weight} of the {what} loss: expected 0 or more")
        self.recipe, self.mask_weight, self.depth_weight = RECIPES[name], mask_weight, depth_weight
        self.sharpness = self.recipe.get(SHARPNESS, 1.0)
        self.ssim = Ssim()
        self.mask_parts: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "mask_bce": mask_bce,
            "mask_dice": dice_loss,
            "mask_edge": edge_loss,
        }
        self.depth_parts: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
            "depth_bce": depth_bce,
            "depth_ssim": self.ssim.loss,
            "depth_gradient": gradient_loss,
            "depth_l1": lambda depth, truth, valid: mean_of((depth - truth).abs(), valid),
        }

    def per_sample(
        self, prediction: Prediction, mask: Tensor, depth: Tensor | None, depth_valid: Tensor | None = None
    ) -> Losses:
        """Each set's losses, float32 [N]: predictions against uint8 labels, all [N,1,H,W]; depth where both have it.

        `depth_valid`, bool [N,1,H,W], is False in its holes; None: it has none.
        """
        logits, truth = prediction.mask_logits.float(), to_float(mask)  # float32 under autocast, too
        if self.sharpness != 1:
            truth = sharpened(truth, self.sharpness)
        mask_parts = {name: part(logits, truth) for name, part in self.mask_parts.items() if name in self.recipe}
        mask_loss, depth_loss = self._weighted(mask_parts), None
        depth_parts: dict[str, Tensor] = {}
        if prediction.depth is not None and depth is not None:
            found, truth = prediction.depth.float(), to_float(depth)  # SSIM takes differences of squares
            used = {name: part for name, part in self.depth_parts.items() if name in self.recipe}
            depth_parts = {name: part(found, truth, depth_valid) for name, part in used.items()}
            depth_loss = self._weighted(depth_parts)
        total = self.mask_weight * mask_loss
        if depth_loss is not None:
            total = total + self.depth_weight * depth_loss
        return Losses(mask_loss, depth_loss, total, mask_parts | depth_parts)

    def forward(
        self, prediction: Prediction, mask: Tensor, depth: Tensor | None, depth_valid: Tensor | None = None
    ) -> Losses:
        """The means of `per_sample` over the batch."""
        mask_loss, depth_loss, total, parts = self.per_sample(prediction, mask, depth, depth_valid)
        return Losses(
            mask_loss.mean(),
            depth_loss.mean() if depth_loss is not None else None,
            total.mean(),
            {name: part.mean() for name, part in parts.items()},
        )

    def _weighted(self, parts: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.recipe[name] * part for name, part in parts.items()]).sum(0)


def mask_bce(mask_logits: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of float logits and a soft mask in 0..1, both [N,1,H,W]: float32 [N]."""
    return F.binary_cross_entropy_with_logits(mask_logits, mask, reduction="none").flatten(1).mean(1)


def dice_loss(mask_logits: Tensor, mask: Tensor) -> Tensor:
    """1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1) of p = sigmoid(logits) and a soft mask m, both [N,1,H,W]: [N].

    The soft Dice of Sudre et al. 2017, of one class; the 1, a pixel, keeps it defined for an empty mask.
    """
    p, m = mask_logits.sigmoid().flatten(1), mask.flatten(1)
    return 1 - (2 * (p * m).sum(1) + 1) / (p.sum(1) + m.sum(1) + 1)


def edge_loss(mask_logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy near the outline: sum(e bce) / (sum(e) + 1), both [N,1,H,W]: [N].

    e is the morphological gradient of the mask: the largest less the smallest value in EDGE_BAND x EDGE_BAND pixels.
    """
    edge = max_filter(mask) + max_filter(-mask)
    bce = F.binary_cross_entropy_with_logits(mask_logits, mask, reduction="none")
    return (edge * bce).flatten(1).sum(1) / (edge.flatten(1).sum(1) + 1)


def max_filter(picture: Tensor) -> Tensor:
    """The largest value in EDGE_BAND x EDGE_BAND pixels around each of [N,1,H,W]."""
    around = EDGE_BAND // 2
    height, width = picture.shape[-2:]
    picture = F.pad(picture, (around,) * 4, value=float("-inf"))
    rows = [picture[:, :, y : y + height] for y in range(EDGE_BAND)]
    picture = reduce(torch.maximum, rows)  # max_pool2d of a single channel takes ten times as long on a CPU
    return reduce(torch.maximum, [picture[..., x : x + width] for x in range(EDGE_BAND)])


def mean_of(values: Tensor, valid: Tensor | None) -> Tensor:
    """The mean over each of [N,1,H,W] where bool `valid` of that shape is True, 0 without such; None: over all."""
    if valid is None:
        return values.flatten(1).mean(1)
    weights = valid.flatten(1).to(values.dtype)
    return (values.flatten(1) * weights).sum(1) / weights.sum(1).clamp(min=1)


def depth_bce(depth: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of two depths in 0..1, both [N,1,H,W]: [N]; finite at 0 and 1, the original's first."""
    return mean_of(F.binary_cross_entropy(depth, truth, reduction="none"), valid)


def gradient_loss(depth: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """|d/dx| + |d/dy| of depth - truth, both [N,1,H,W], averaged over pixels and over SCALES halvings: [N].

    The gradient matching term of MegaDepth (Li & Snavely 2018), of depth as it is and of means of 2 x 2 pixels. A
    difference counts where both of its pixels are `valid`, as such a mean is where all four are.
    """
    error = depth - truth
    losses: list[Tensor] = []
    for scale in range(SCALES):
        if scale:
            error = F.avg_pool2d(error, 2)
            valid = None if valid is None else F.avg_pool2d(valid.float(), 2) == 1
        down, right = (
            mean_of(error.diff(dim=dim).abs(), None if valid is None else _pairs(valid, dim)) for dim in (2, 3)
        )
        losses.append(down + right)
    return torch.stack(losses).mean(0)


def _pairs(valid: Tensor, dim: int) -> Tensor:
    """Which neighbours along `dim`, of bool [N,1,H,W], are both True."""
    last = valid.shape[dim] - 1
    return valid.narrow(dim, 1, last) & valid.narrow(dim, 0, last)


def sharpened(mask: Tensor, by: float) -> Tensor:
    """A soft mask in 0..1 whose distances from one half are multiplied, in 0..1 again."""
    return ((mask - 0.5) * by + 0.5).clamp(0, 1)


def to_float(picture: Tensor) -> Tensor:
    """uint8 0..255 -> float32 0..1. Raises `TypeError` for another type: floats would be scaled a second time."""
    if picture.dtype != torch.uint8:
        raise TypeError(f"a picture of {picture.dtype}: expected torch.uint8, 0 to 255")
    return picture.to(torch.float32) / 255


class Ssim(nn.Module):
    """Structural similarity: 1 where two pictures are equal; the mean over all windows that lie inside."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        offsets = torch.arange(WINDOW) - WINDOW // 2
        weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
        self.register_buffer("window", weights / weights.sum(), persistent=False)  # a buffer, to be on the device

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two float32 [N,1,H,W] in 0..1, H and W of 11 or more -> the SSIM of each pair, float32 [N]."""
        if not len(a):  # as a rank may have: a convolution of no groups is refused
            return a.flatten(1).sum(1)
        return self.map(a, b).flatten(1).mean(1)

    def loss(self, a: Tensor, b: Tensor, valid: Tensor | None = None) -> Tensor:
        """1 - SSIM, float32 [N]; of the windows all of whose pixels are `valid`, bool [N,1,H,W], and 0 without any."""
        if valid is None or not len(a):
            return 1 - self.forward(a, b)
        return mean_of(1 - self.map(a, b), whole_windows(valid))

    def map(self, a: Tensor, b: Tensor) -> Tensor:
        """The same at every place of the window, float32 [N,1,H-10,W-10]."""
        mean_a, square_a, product = self._blur(a, a * a, a * b)
        mean_b, square_b = self._blur(b, b * b)  # apart: a label has no gradient
        variances = square_a - mean_a**2 + square_b - mean_b**2
        covariance = product - mean_a * mean_b
        luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
        similarity: Tensor = luminance * (2 * covariance + C2) / (variances + C2)
        return similarity.transpose(0, 1)

    def _blur(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Each [N,1,H,W] -> [1,N,H-10,W-10]."""
        # As channels of one picture: a grouped convolution is 17 times as fast on a CPU as one of a single channel.
        together = torch.cat(maps).transpose(0, 1)
        channels = together.shape[1]
        for shape in ((1, 1, WINDOW, 1), (1, 1, 1, WINDOW)):
            together = F.conv2d(together, self.window.view(shape).expand(channels, -1, -1, -1), groups=channels)
        return together.chunk(len(maps), dim=1)


def whole_windows(valid: Tensor) -> Tensor:
    """Of bool [N,1,H,W], at which places of SSIM's window all of its pixels are True: bool [N,1,H-10,W-10]."""
    for dim in (2, 3):
        places = valid.shape[dim] - WINDOW + 1
        valid = reduce(Tensor.logical_and, [valid.narrow(dim, first, places) for first in range(WINDOW)])
    return valid
