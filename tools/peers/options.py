"""What every loader that fgbg-bench measures is asked for, and what it gives."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class LoadOptions:
    """What all loaders are asked for alike; what only ours has, the others pass over."""

    batch_size: int
    size: int
    """Height and width, pixels."""
    device: str
    """Where the batches have to be: "gpu" or "cpu"."""
    workers: int
    """DALI threads, or DataLoader processes."""
    prefetch: int = 4
    """Batches that loaders with DALI keep under way."""
    resident: str = "off"
    """Where ours keeps decoded sets: see `pipeline.Loader`."""
    hw_decoder_load: float | None = None
    """Share of the pictures that ours and DALI's reader give to the GPU's JPEG engine; None: the device's default."""
    cache: Path = Path("~/.cache/fgbg")
    """Where sets are written for loaders that read a format of their own; ~ is the home directory."""

    def plain(self) -> dict[str, Any]:
        """As JSON takes them."""
        return {**asdict(self), "cache": str(self.cache)}


class Loaded(NamedTuple):
    """A batch of any loader."""

    sets: int
    keys: Callable[[], list[str]]
    """Asked by the check of the pictures, and not while the clock runs."""
    pictures: dict[str, torch.Tensor]
    """For each part [sets, 1 or 3, size, size], uint8 0..255 or float32 0..1."""
