"""`total = 2 * mask + depth`: binary cross-entropy of the mask, 1 - SSIM of the depth where there is one."""

from typing import NamedTuple

import torch
from pytorch_msssim import SSIM
from pytorch_msssim.ssim import _ssim  # `ssim` gives no more than the mean over a batch
from torch import Tensor, nn
from torch.nn import functional as F

from train.model import Prediction

MASK_WEIGHT = 2.0


class Losses(NamedTuple):
    """Means over a batch, or those of each of its sets; on the device."""

    mask: Tensor
    depth: Tensor | None
    total: Tensor

    def named(self) -> dict[str, Tensor]:
        """Those that there are, by the names under which they are logged."""
        every = {"mask_loss": self.mask, "depth_loss": self.depth, "loss": self.total}
        return {name: loss for name, loss in every.items() if loss is not None}


def bce(mask_logits: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of float logits and a soft mask in 0..1, both [N,1,H,W]."""
    return F.binary_cross_entropy_with_logits(mask_logits, mask)


def bce_of_each(mask_logits: Tensor, mask: Tensor) -> Tensor:
    """The same of each set by itself, float32 [N]."""
    return F.binary_cross_entropy_with_logits(mask_logits, mask, reduction="none").flatten(1).mean(1)


def total_loss(mask: Tensor, depth: Tensor | None) -> Tensor:
    """What is minimised, of any two losses of one shape; without depth, the weighted mask alone."""
    return MASK_WEIGHT * mask + depth if depth is not None else MASK_WEIGHT * mask


class Ssim(nn.Module):
    """Structural similarity of pictures: 1 where they are equal. Wang et al. 2004: 11 x 11, sigma 1.5."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A buffer: pytorch_msssim would else make it on the CPU and copy it at every call, which waits for a GPU.
        self.register_buffer("window", SSIM(data_range=1.0, channel=1).win, persistent=False)  # [1,1,1,11]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two float32 [N,1,H,W] in 0..1, H and W of 11 or more -> the SSIM of each pair, float32 [N]."""
        # [1,N,H,W]: the same sums, but a grouped convolution, 17 times as fast on a CPU as one of a single channel.
        a, b = a.transpose(0, 1), b.transpose(0, 1)
        of_each, _ = _ssim(a, b, data_range=1.0, win=self.window.expand(a.shape[1], -1, -1, -1))
        return of_each[0]  # type: ignore[no-any-return]


class Criterion(nn.Module):
    """What a prediction costs."""

    def __init__(self) -> None:
        super().__init__()
        self.ssim = Ssim()

    def forward(self, prediction: Prediction, mask: Tensor, depth: Tensor | None) -> Losses:
        """The losses of float32 predictions against uint8 labels, all [N,1,H,W]; of the depth where both have it."""
        mask_loss, depth_loss = bce(prediction.mask_logits, unit(mask)), None
        if prediction.depth is not None and depth is not None:
            depth_loss = 1 - self.ssim(prediction.depth, unit(depth)).mean()
        return Losses(mask_loss, depth_loss, total_loss(mask_loss, depth_loss))


def unit(picture: Tensor) -> Tensor:
    """uint8 0..255 -> float32 0..1."""
    return picture.to(torch.float32) / 255
