"""Structural similarity of pictures (Wang et al. 2004), of each pair of a batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2  # of values in 0..1


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
