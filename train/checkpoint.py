"""Checkpoints: tensors plus JSON in one file that appears complete or not at all."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.files import atomic_file

FORMAT = 1
LAST, BEST = "last.pt", "best.pt"  # in the folder of a run


class Checkpoint(NamedTuple):
    """A run at one step."""

    network: dict[str, Tensor]
    """The network's state_dict."""
    optimizer: dict[str, Any]
    """The optimiser's state_dict: tensors and numbers."""
    state: dict[str, Any]
    """Everything else, as JSON has it: model, settings, manifest, step, the loader's state."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` so that a reader sees the former file or the whole new one, whenever the power fails."""
    state = json.dumps({"format": FORMAT, **checkpoint.state})
    with atomic_file(path) as file:
        torch.save({"network": checkpoint.network, "optimizer": checkpoint.optimizer, "state": state}, file)


def load(path: Path) -> Checkpoint:
    """Read `path` into CPU memory; raises `InputError` where it is missing, cut short, damaged or of another format."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; to start a new run, leave --resume out")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = json.loads(content["state"])
        checkpoint = Checkpoint(content["network"], content["optimizer"], state)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        size_bytes = path.stat().st_size
        raise InputError(
            f"{path}: not a whole checkpoint ({size_bytes:,} bytes), cut short or damaged; "
            f"put another in its place, or start a new run with another --out"
        ) from error
    if state.get("format") != FORMAT:
        raise InputError(f"{path}: checkpoint format {state.get('format')}, but this version reads {FORMAT}")
    return checkpoint


def refuse_other(path: Path, what: str, saved: Any, ours: Any) -> None:
    """Raise `InputError` where a checkpoint and the run that would load it differ in `what`."""
    if saved != ours:
        raise InputError(
            f"{path}: {what} is {saved}, but here it is {ours}; continue with the same, or set another --out"
        )


def load_network(network: nn.Module, saved: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of the checkpoint at `path` into `network`; raises `InputError` where they do not fit."""
    ours = network.state_dict()
    for name in sorted(ours.keys() | saved.keys()):
        refuse_other(
            path,
            f"the shape of the network's {name}",
            list(saved[name].shape) if name in saved else "missing",
            list(ours[name].shape) if name in ours else "missing",
        )
    network.load_state_dict(dict(saved))
