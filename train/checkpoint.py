"""Checkpoints: tensors plus JSON in one file that appears complete or not at all; and a trained run read from one."""

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.files import read_file
from pipeline.resume import atomic_file
from pipeline.storage import Location, StrLocation, is_there, storage_of
from train.config import CHECKPOINTS, Config
from train.networks import build_network
from train.runtime import forbid_tf32
from train.saved_state import require_sound, require_weights
from train.sealed import is_sealed, is_whole, seal
from train.tta import MirrorAveraged

FORMAT = 2
MOST_BYTES = 64 << 30  # a longer file is none of ours, and would not fit into memory
NO_SHARDS = Path()  # nothing will be read
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"  # in the folder of a run


class Checkpoint(NamedTuple):
    """A run at one step."""

    network: dict[str, Tensor]
    """The network's state_dict."""
    optimizer: dict[str, Any]
    """The optimiser's state_dict: tensors and numbers."""
    state: dict[str, Any]
    """Everything else, as JSON has it: model, settings, manifest, step, the loader's state."""
    ema: dict[str, Tensor] | None = None
    """state_dict of the network with averaged weights, where the run has them."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` so that a reader sees the former file or the whole new one, whenever the power fails."""
    state = json.dumps({"format": FORMAT, "sealed": True, **checkpoint.state})
    tensors = {"network": checkpoint.network, "optimizer": checkpoint.optimizer, "ema": checkpoint.ema}
    write_archive(path, {**tensors, "state": state})


def write_archive(path: Path, content: object) -> None:
    """Write what `torch.save` makes of `content`, with a checksum; the disk is told of a whole file or of none."""
    archive = io.BytesIO()  # and not the file itself: of a full disk PyTorch only says "unexpected pos"
    torch.save(content, archive)
    seal(archive)
    with atomic_file(path) as file:
        file.write(archive.getbuffer())


def save_last(folder: Path, checkpoint: Checkpoint, *, keep_former: bool) -> None:
    """Write a run's LAST. The former LAST is kept as PREVIOUS if `keep_former`; it is not if it is damaged."""
    last, new = folder / LAST, folder / f"new-{LAST}"
    save(new, checkpoint)
    if keep_former and last.exists():
        last.replace(folder / PREVIOUS)
    new.replace(last)


class ResumePoint(NamedTuple):
    """The checkpoint that a run goes on from."""

    path: Path
    checkpoint: Checkpoint
    fallback: str
    """Why it is not LAST, one line for the user; empty for LAST."""


def has_checkpoint(folder: Path) -> bool:
    """Whether `load_last` has a file to read.

    While LAST is being saved there may be PREVIOUS alone, and at the end of a run's first epoch BEST.
    """
    return any((folder / name).exists() for name in (LAST, PREVIOUS, BEST))


def load_last(folder: Path) -> ResumePoint:
    """The LAST of a run in `folder`; if that is missing or damaged the one before, PREVIOUS, or else BEST.

    Raises `InputError` where none can be read.
    """
    last = folder / LAST
    try:
        return ResumePoint(last, load(last), "")
    except InputError as error:
        for path in (folder / PREVIOUS, folder / BEST):
            if path.is_file():
                with suppress(InputError):
                    checkpoint = load(path)
                    found = "damaged" if last.is_file() else "missing"
                    step = checkpoint.state["step"]
                    why = f"{last}: {found}; going on from the one before, {path.name}, of step {step:,}"
                    return ResumePoint(path, checkpoint, why)
        raise error


def load(path: Location) -> Checkpoint:
    """Read a file or an object into CPU memory, all of it checked; no code that it may hold is run.

    Raises `InputError` where it is missing, a byte of it is damaged, or `saved_state.require_sound` finds something.
    """
    if not is_there(path):
        raise InputError(f"{path}: no such checkpoint; to start a new run, leave --resume out")
    raw, size_bytes = _read(path)
    try:
        if not is_whole(raw):
            raise ValueError("bytes differ from their checksums")
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        state = json.loads(content["state"])
        if state.get("sealed") and not is_sealed(raw):
            raise ValueError("no checksum")
    except Exception as error:  # of a file that is none there is nothing that PyTorch's unpickler has not raised
        raise InputError(
            f"{path}: not a whole checkpoint ({size_bytes:,} bytes), cut short or damaged; "
            f"put another in its place, or start a new run with another --out"
        ) from error
    try:
        require_sound(content, state)
    except InputError as error:
        raise InputError(f"{path}: {error}; expected one that this version's fgbg-train has written") from error
    return Checkpoint(content["network"], content["optimizer"], state, content.get("ema"))


def _read(path: Location) -> tuple[bytes, int]:
    """All bytes, or none of what is longer than MOST_BYTES; and how many it has."""
    if isinstance(path, Path):  # whatever it links to: it is the user's own
        size_bytes = path.stat().st_size
        return read_file(path) if size_bytes <= MOST_BYTES else b"", size_bytes
    storage = storage_of(path.parent)
    size_bytes = storage.stat(path.name).size
    return storage.read_all(path.name) if size_bytes <= MOST_BYTES else b"", size_bytes


def refuse_other(path: Path, what: str, saved: Any, ours: Any) -> None:
    """Raise `InputError` where a checkpoint and the run that would load it differ in `what`."""
    if saved != ours:
        raise InputError(
            f"{path}: {what} is {saved}, but here it is {ours}; continue with the same, or set another --out"
        )


def load_network(network: nn.Module, saved: Mapping[str, Tensor], path: Location) -> None:
    """Put the weights of the checkpoint at `path` into `network`; raises `InputError` where they do not fit."""
    try:
        require_weights(network, saved)
    except InputError as error:
        raise InputError(f"{path}: {error}; continue with the same, or set another --out") from error
    network.load_state_dict(dict(saved))


class Run(NamedTuple):
    """A trained run as one of its checkpoints has it, its network ready to predict."""

    checkpoint: Location
    step: int
    """Steps of the optimiser that it has seen."""
    manifest: str
    """Hash of the manifest of the shards that it was trained on."""
    config: Config
    """The settings that it was trained with; `shards` and `device` are the caller's."""
    network: nn.Module
    """On the device, in evaluation mode."""
    fallbacks: tuple[str, ...] = ()
    """Where it went on from an earlier checkpoint, since the last was damaged: a line each."""
    tta: bool = False
    """Whether `network` averages over the pictures and their mirror."""

    @property
    def peer_protocol(self) -> bool:
        """Whether its training sets were drawn at random, so that it has seen the held-out ids."""
        return self.config.peer_protocol


def weights(saved: Checkpoint) -> dict[str, Tensor]:
    """The weights to predict with: the averaged ones (EMA), or the last ones of a run without averages."""
    return saved.ema or saved.network


def load_run(
    run: Location, name: str, device: torch.device, shards: StrLocation = NO_SHARDS, *, tta: bool = False
) -> Run:
    """Load the checkpoint `name` ("best" or "last") of a run, to be used on `shards` or without any.

    The network has its `weights`; with `tta` its predictions are averaged over the mirror, see `tta.MirrorAveraged`.
    Raises `InputError` where there is no such run or checkpoint, and where the checkpoint is damaged or does not fit.
    """
    path = run / f"{name}.pt"
    if not is_there(path):
        found = [other for other in CHECKPOINTS if is_there(run / f"{other}.pt")]
        if not found:
            raise InputError(f"{run}: {_what_is_there(run)}; expected a run of fgbg-train (its --out)")
        why = "the run has had no validation yet; " if name == "best" else ""
        raise InputError(f"{path}: no such checkpoint; {why}there is --checkpoint {' or '.join(found)}")
    try:
        saved = load(path)
    except InputError as error:
        if other := next((other for other in CHECKPOINTS if other != name and is_there(run / f"{other}.pt")), ""):
            error.add_note(f"there is --checkpoint {other}")
        raise
    config = Config(shards, run).resumed(saved.state["settings"], given=())
    forbid_tf32()
    network = build_network(config.model, config.depth)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_network(network, weights(saved), path)
    fallbacks = tuple(saved.state.get("fallbacks", ()))
    network = MirrorAveraged(network) if tta else network
    return Run(path, saved.state["step"], saved.state["manifest"], config, network.eval(), fallbacks, tta)


def _what_is_there(run: Location) -> str:
    """In place of a run."""
    if not isinstance(run, Path):
        return "no checkpoint behind it"
    return "no checkpoint in it" if run.is_dir() else "is a file" if run.exists() else "no such folder"
