"""The networks by name: the U-Net in several sizes, and the two networks of the original S15 work, for comparison.

Those two never leave the picture's full resolution. Source: the repository sudhakarmlal/EVA4, Session15 (README.md,
model/Model1.ipynb, model/Model2), where they take two pictures of three equal gray channels, 0..1, and give pictures of
three channels. `ConvGen` is as published there. So is the depth branch of `Net`; its mask branch is heavier there
(7.0 M parameters in all). The text of the original's own `Net` has not been found: with ConvGen as mask branch it has
the known 2.75 M parameters and 45 GMAC at 128 x 128.

Repaired: a picture of three channels that should be equal is told by their mean. Depth always passes a sigmoid: the
original's first loss had one inside, its second compared raw outputs with labels in 0..1. ConvGen gave one picture,
mask or depth as it had been trained; here it has a last convolution for each.
"""

import torch
from torch import Tensor, nn

from train.config import unet_shape
from train.model import Prediction, UNet


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3 x 3, without bias, at the same resolution."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def activated(inputs: int, outputs: int) -> nn.Sequential:
    """3 x 3 convolution, batch norm, ReLU."""
    return nn.Sequential(convolution(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU())


def gray(picture: Tensor, channels: int) -> Tensor:
    """uint8 [N,1,H,W] -> float32 [N,channels,H,W] in 0..1, all channels equal."""
    return (picture.float() / 255).expand(-1, channels, -1, -1)


def plane(picture: Tensor) -> Tensor:
    """[N,C,H,W], channels meant to be equal -> their mean, float32 [N,1,H,W]."""
    return picture.float().mean(1, keepdim=True)


class ConvGen(nn.Module):
    """The same two layers on each of both pictures, the second depthwise separable; then two on both together.

    305,728 parameters of three channels without depth: the published count.
    """

    def __init__(self, depth: bool = True, channels: int = 3) -> None:
        """`channels` of each picture, in and out: 3 as published, or 1."""
        super().__init__()
        self.channels = channels
        self.each = nn.Sequential(
            activated(channels, 32),
            nn.Conv2d(32, 32, 3, padding=1, bias=False, groups=32),
            nn.Conv2d(32, 64, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.both = activated(128, 256)
        self.mask = convolution(256, channels)
        self.depth = convolution(256, channels) if depth else None

    def forward(self, bg: Tensor, fg_bg: Tensor) -> Prediction:
        """Two uint8 [N,1,H,W] pictures of any size -> mask logits and depth, float32 [N,1,H,W]."""
        features = self.both(torch.cat([self.each(gray(picture, self.channels)) for picture in (bg, fg_bg)], dim=1))
        depth = torch.sigmoid(plane(self.depth(features))) if self.depth else None
        return Prediction(plane(self.mask(features)), depth)


class Residual(nn.Module):
    """x + its layers' answer; nothing is applied to the sum."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,H,W]."""
        return x + self.layers(x)  # type: ignore[no-any-return]


class Net(nn.Module):
    """ConvGen predicts the mask; a separate residual network of up to 256 channels predicts the depth.

    2,752,064 parameters of three channels.
    """

    def __init__(self, depth: bool = True, channels: int = 3) -> None:
        """`channels` of each picture, in and out: 3 as published, or 1."""
        super().__init__()
        self.channels = channels
        self.mask = ConvGen(depth=False, channels=channels)
        self.depth = self._depth_branch(channels) if depth else None

    def forward(self, bg: Tensor, fg_bg: Tensor) -> Prediction:
        """Two uint8 [N,1,H,W] pictures of any size -> mask logits and depth, float32 [N,1,H,W]."""
        mask_logits = self.mask(bg, fg_bg).mask_logits
        if self.depth is None:
            return Prediction(mask_logits, None)
        both = torch.cat([gray(picture, self.channels) for picture in (bg, fg_bg)], dim=1)
        return Prediction(mask_logits, torch.sigmoid(plane(self.depth(both))))

    @staticmethod
    def _depth_branch(channels: int) -> nn.Sequential:
        return nn.Sequential(
            activated(2 * channels, 64),
            activated(64, 128),
            Residual(activated(128, 128), activated(128, 128)),
            activated(128, 256),
            activated(256, 256),
            Residual(activated(256, 256), convolution(256, 256), nn.BatchNorm2d(256)),
            convolution(256, channels),
        )


UNETS = {"unet-xs": (40, 80, 120, 160), "unet-s": (64, 112, 176, 288), "unet-m": (80, 152, 224, 312)}
"""Channels at 1/2, 1/4, 1/8 and 1/16 of the picture's size."""
ORIGINALS = {"net": Net, "convgen": ConvGen}


def build_network(name: str, depth: bool = True) -> nn.Module:
    """A new network: two uint8 [N,1,H,W] pictures, background and overlay, -> `train.model.Prediction`.

    `unet-W`, of a number W, is the U-Net that older runs have, of W, 2W, 4W and 8W channels; `unet-WxB` has B blocks in
    place of one at each of its two coarsest levels. Without `depth`, the network predicts the mask alone. Raises
    `InputError` for a name that is none.
    """
    if name in ORIGINALS:
        return ORIGINALS[name](depth)
    if name in UNETS:
        return UNet(UNETS[name], depth, head_padding="replicate")
    width, blocks = unet_shape(name)
    return UNet(width, depth, coarse_blocks=blocks)
