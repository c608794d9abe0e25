"""A run that has been trained: its network, ready to predict."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from pipeline.errors import InputError
from train.checkpoint import load, load_network
from train.config import Config
from train.networks import build_network


class Run(NamedTuple):
    """What one checkpoint of a run holds."""

    checkpoint: Path
    step: int
    """Steps of the optimiser that it has seen."""
    config: Config
    """The settings that it was trained with; `shards` and `device` are the caller's."""
    network: nn.Module
    """On the device, in evaluation mode."""


def open_run(folder: Path, name: str, shards: Path, device: torch.device) -> Run:
    """Load the checkpoint `name` ("best" or "last") of the run in `folder`, to be used on `shards`.

    Raises `InputError` where there is no such run or checkpoint, and where the checkpoint is damaged or does not fit.
    """
    path = folder / f"{name}.pt"
    if not path.is_file():
        found = sorted(other.stem for other in folder.glob("*.pt"))
        if not found:
            what = "no checkpoint in it" if folder.is_dir() else "no such folder"
            raise InputError(f"{folder}: {what}; expected a run of fgbg-train (its --out)")
        why = "the run has had no validation yet; " if name == "best" else ""
        raise InputError(f"{path}: no such checkpoint; {why}there is --checkpoint {' or '.join(found)}")
    saved = load(path)
    config = Config(shards, folder).resumed(saved.state["settings"], given=())
    network = build_network(config.model, config.depth)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_network(network, saved.ema or saved.network, path)
    return Run(path, saved.state["step"], config, network.eval())
