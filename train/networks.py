"""The networks by name."""

import re
from collections.abc import Mapping

from torch import nn

from pipeline.errors import InputError
from train.model import UNet
from train.original_models import ConvGen, Net

UNETS = {"unet-xs": (40, 80, 120, 160), "unet-s": (64, 112, 176, 288), "unet-m": (80, 152, 224, 312)}
"""Channels at 1/2, 1/4, 1/8 and 1/16 of the picture's size."""
ORIGINALS = {"net": Net, "convgen": ConvGen}
NETWORKS = (*UNETS, *ORIGINALS)


def build_network(name: str, depth: bool = True) -> nn.Module:
    """A new network: two uint8 [N,1,H,W] pictures, background and overlay, -> `train.model.Prediction`.

    `unet-W`, of a number W, is the U-Net that older runs have, of W, 2W, 4W and 8W channels. Without `depth`, the
    network tells the mask alone. Raises `InputError` for a name that is none.
    """
    require_network(name)
    if name in ORIGINALS:
        return ORIGINALS[name](depth)
    if name in UNETS:
        return UNet(UNETS[name], depth, head_padding="replicate")
    return UNet(int(name.removeprefix("unet-")), depth)


def require_network(name: str) -> None:
    """Raise `InputError` for a name of no network."""
    if name not in NETWORKS and not re.fullmatch("unet-[1-9][0-9]*", name):
        raise InputError(f"network {name!r}: expected one of {', '.join(NETWORKS)}, or unet- and a width, as unet-32")


def network_name(settings: Mapping[str, object]) -> str:
    """The name of a run's network by the settings in its checkpoint; old ones have no name but the U-Net's width."""
    return str(settings.get("model", f"unet-{settings.get('width')}"))
