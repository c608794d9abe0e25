"""A run that has been trained: its network, ready to predict."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from train.checkpoint import Checkpoint, load, load_network
from train.config import Config
from train.networks import build_network
from train.precision import forbid_tf32

NAMES = ("best", "last")  # of the checkpoints that are there to be used
NO_SHARDS = Path()  # nothing will be read


class Run(NamedTuple):
    """What one checkpoint of a run holds."""

    checkpoint: Path
    step: int
    """Steps of the optimiser that it has seen."""
    manifest: str
    """Hash of the manifest of the shards that it was trained on."""
    config: Config
    """The settings that it was trained with; `shards` and `device` are the caller's."""
    network: nn.Module
    """On the device, in evaluation mode."""

    @property
    def peer_protocol(self) -> bool:
        """Whether its training sets were drawn at random, so that it has seen the held-out ids."""
        return self.config.peer_protocol


def weights(saved: Checkpoint) -> dict[str, Tensor]:
    """Those of the network to be used: the averaged ones (EMA), or where the run kept none the last."""
    return saved.ema or saved.network


def open_run(folder: Path, name: str, device: torch.device, shards: Path = NO_SHARDS) -> Run:
    """Load the checkpoint `name` ("best" or "last") of the run in `folder`, to be used on `shards` or without any.

    The network has its `weights`. Raises `InputError` where there is no such run or checkpoint, and where the
    checkpoint is damaged or does not fit.
    """
    path = folder / f"{name}.pt"
    if not path.is_file():
        found = [other for other in NAMES if (folder / f"{other}.pt").is_file()]
        if not found:
            what = "no checkpoint in it" if folder.is_dir() else "is a file" if folder.exists() else "no such folder"
            raise InputError(f"{folder}: {what}; expected a run of fgbg-train (its --out)")
        why = "the run has had no validation yet; " if name == "best" else ""
        raise InputError(f"{path}: no such checkpoint; {why}there is --checkpoint {' or '.join(found)}")
    saved = load(path)
    config = Config(shards, folder).resumed(saved.state["settings"], given=())
    forbid_tf32()
    network = build_network(config.model, config.depth)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_network(network, weights(saved), path)
    return Run(path, saved.state["step"], saved.state["manifest"], config, network.eval())
