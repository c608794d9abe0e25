"""`total = 2 * mask + depth`: binary cross-entropy of the mask, 1 - SSIM of the depth."""

from typing import NamedTuple

import torch
from pytorch_msssim import SSIM, ssim
from torch import Tensor, nn
from torch.nn import functional as F

from train.model import Prediction

MASK_WEIGHT = 2.0


class Losses(NamedTuple):
    """Means over a batch, on the device."""

    mask: Tensor
    depth: Tensor
    total: Tensor


def bce(mask_logits: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of float logits and a soft mask in 0..1, both [N,1,H,W]."""
    return F.binary_cross_entropy_with_logits(mask_logits, mask)


class Ssim(nn.Module):
    """Mean structural similarity of two batches: 1 where they are equal. Wang et al. 2004: 11 x 11, sigma 1.5."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A buffer: pytorch_msssim would else make it on the CPU and copy it at every call, which waits for a GPU.
        self.register_buffer("window", SSIM(data_range=1.0, channel=1).win, persistent=False)  # [1,1,1,11]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two float32 [N,1,H,W] in 0..1, H and W of 11 or more -> their mean SSIM, a scalar."""
        # [1,N,H,W]: the same sums, but a grouped convolution, 17 times as fast on a CPU as one of a single channel.
        a, b = a.transpose(0, 1), b.transpose(0, 1)
        return ssim(a, b, data_range=1.0, win=self.window.expand(a.shape[1], -1, -1, -1))  # type: ignore[no-any-return]


class Criterion(nn.Module):
    """What a prediction costs."""

    def __init__(self) -> None:
        super().__init__()
        self.ssim = Ssim()

    def forward(self, prediction: Prediction, mask: Tensor, depth: Tensor) -> Losses:
        """The losses of float32 predictions against uint8 labels, all [N,1,H,W]."""
        mask_loss = bce(prediction.mask_logits, unit(mask))
        depth_loss = 1 - self.ssim(prediction.depth, unit(depth))
        return Losses(mask_loss, depth_loss, MASK_WEIGHT * mask_loss + depth_loss)


def unit(picture: Tensor) -> Tensor:
    """uint8 0..255 -> float32 0..1."""
    return picture.to(torch.float32) / 255
