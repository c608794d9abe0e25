"""What a checkpoint has to hold: checked here, before any of it is used. Files come from elsewhere, too."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.limits import MOST_COUNT
from train.config import Config
from train.networks import build_network
from train.optim import kept_by_parameter
from train.option import shortened

READABLE = (1, 2)
"""Formats; 1 has no averaged weights."""

Count = Annotated[int, Meta(ge=0, le=MOST_COUNT)]
Text = Annotated[str, Meta(max_length=1000)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]


class Scaler(msgspec.Struct):
    """The state of `torch.amp.GradScaler`."""

    scale: Annotated[float, Meta(gt=0, le=1e300)]
    growth_factor: Annotated[float, Meta(gt=1, le=1e300)]
    backoff_factor: Annotated[float, Meta(gt=0, lt=1)]
    growth_interval: Annotated[int, Meta(ge=1, le=MOST_COUNT)]
    growth_tracker: Count = msgspec.field(name="_growth_tracker")


class SavedState(msgspec.Struct):
    """The JSON of a checkpoint; more names than these are passed over."""

    step: Count
    settings: dict[Text, bool | int | float | Text | None]
    manifest: Text
    loader: dict[Text, int | Text]
    sets_seen: Count
    best_iou: Annotated[float, Meta(ge=-1, le=1)]
    scores: dict[Text, float] | None  # NaN of a score that no set has
    progress: Annotated[float, Meta(ge=0, le=1)] | None = None
    elapsed_sec: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    scaler: Scaler | None = None
    fallbacks: list[Text] = []


def require_sound(content: Any, state: Any) -> None:
    """Raise `InputError` unless a checkpoint, as `torch.load` and its JSON gave it, can be gone on from.

    That is: it is of a format that is known, has all that is needed, each of its kind and within its limits, and
    tensors, all finite, of the network that its settings name. The message has no path.
    """
    if not isinstance(content, dict) or not isinstance(state, dict):
        raise InputError("no checkpoint")
    if (found := state.get("format")) not in READABLE:
        raise InputError(
            f"checkpoint format {shortened(found)}, but this version reads {' and '.join(map(str, READABLE))}"
        )
    if missing := [name for name in ("step", "settings", "manifest") if name not in state]:
        raise InputError(f"a checkpoint without {', '.join(missing)}")
    try:
        msgspec.convert(state, SavedState)
    except msgspec.ValidationError as error:
        raise InputError(f"a checkpoint of wrong content: {error}") from error
    config = Config("", "").resumed(state["settings"], given=())
    with torch.device("meta"):  # shapes without memory
        network = build_network(config.model, config.depth)
    for name in ("network", "ema"):
        if name == "network" or content.get(name) is not None:
            require_weights(network, content.get(name))
    _require_moments(network, config.optimizer, content.get("optimizer"))


def require_weights(network: nn.Module, saved: Any) -> None:
    """Raise `InputError` unless `saved` is a state_dict of `network`, all of it finite."""
    if not isinstance(saved, Mapping) or not all(isinstance(name, str) for name in saved):
        raise InputError("a checkpoint of wrong content: no weights by name")
    ours = network.state_dict()
    for name in sorted(ours.keys() | saved.keys()):
        found = _described(saved[name]) if name in saved else "missing"
        expected = _described(ours[name]) if name in ours else "missing"
        if found != expected:
            raise InputError(f"the network's {shortened(name)} is {found}, but here it is {expected}")
        _require_finite(name, saved[name])


def _require_moments(network: nn.Module, optimizer: str, saved: Any) -> None:
    """Raise `InputError` unless `saved` is the state of `optimizer` for `network`; it may have made no step yet."""
    parameters = kept_by_parameter(network, optimizer)
    states = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(states, dict) or not states.keys() <= set(range(len(parameters))):
        raise InputError("a checkpoint of wrong content: no state of the optimiser")
    for number, of in states.items():
        parameter, names = parameters[number]
        expected = dict.fromkeys(names, _described(parameter)) | {"step": _described(torch.zeros(()))}
        found = {shortened(name): _described(value) for name, value in of.items()} if isinstance(of, dict) else {}
        if found != expected:
            raise InputError(f"the optimiser's state of parameter {number} is {found}, but here it is {expected}")
        for name, value in of.items():
            _require_finite(f"the optimiser's {name} of parameter {number}", value)


def _described(value: Any) -> str:
    """Type and shape of a plain tensor, float32 [4, 2]."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        return f"no tensor but {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _require_finite(name: str, value: Tensor) -> None:
    if value.is_floating_point() and not value.isfinite().all():
        raise InputError(f"{shortened(name)} holds values that are no numbers")
