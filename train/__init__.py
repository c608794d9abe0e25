"""Training: `Config` says what a run does, `Trainer` does it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.config import Config
    from train.trainer import Trainer

__all__ = ["Config", "Trainer"]
_MODULES = {"Config": "train.config", "Trainer": "train.trainer"}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: torch takes seconds to load."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
