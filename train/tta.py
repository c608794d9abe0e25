"""Test-time augmentation: the mean of the predictions on the pictures and on their left-right mirror."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.model import Prediction


class MirrorAveraged(nn.Module):
    """A trained network that predicts twice, on the pictures and on their mirror, and averages what it found.

    Two passes of the same batch size, one after the other: of mirrored pictures it predicts the mirror, to the bit.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, bg: Tensor, fg_bg: Tensor) -> Prediction:
        """Two uint8 [N,1,H,W] pictures -> mask logits and depth, float32 [N,1,H,W]."""
        mask_logits, depth = self.network(bg, fg_bg)
        mirrored_logits, mirrored_depth = self.network(bg.flip(-1), fg_bg.flip(-1))
        mask_logits = mean_probability(mask_logits, mirrored_logits.flip(-1))
        return Prediction(mask_logits, None if depth is None else (depth + mirrored_depth.flip(-1)) / 2)


def mean_probability(a: Tensor, b: Tensor) -> Tensor:
    """The logits of the mean of sigmoid(a) and sigmoid(b), finite where these are rounded to 0 or 1.

    NaN where a or b is not finite: of a network that overflows, one pass must not hide it in the other.
    """
    found = F.logsigmoid(a).logaddexp(F.logsigmoid(b)) - F.logsigmoid(-a).logaddexp(F.logsigmoid(-b))
    return found.where(a.isfinite() & b.isfinite(), torch.nan)
