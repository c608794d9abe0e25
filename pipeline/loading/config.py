"""The settings of a loader: one field each, checked in one place."""

import os
from dataclasses import dataclass

import torch

from pipeline.errors import InputError
from pipeline.limits import (
    MOST_BATCH,
    MOST_COUNT,
    MOST_EDGE,
    MOST_PREFETCH,
    MOST_SEED,
    MOST_WORKERS,
    URL_WINDOW,
    byte_count,
)
from pipeline.loading.augment import Augmentation
from pipeline.loading.sample_cache import PLACES
from pipeline.storage import StrLocation, Url, location_of

RESIDENT = ("off", "auto", *PLACES)
LARGEST = {
    "batch_size": MOST_BATCH,
    "size": MOST_EDGE,
    "seed": MOST_SEED,
    "readers": MOST_WORKERS,
    "threads": MOST_WORKERS,
    "prefetch": MOST_PREFETCH,
}
WHOLE_NUMBERS = (
    *("batch_size", "size", "seed", "rank", "world", "local_world"),
    *("readers", "prefetch", "threads", "window"),
)
OPTIONAL = ("threads", "window")  # settings that may be None


def shards_at_a_time(window: int | None, shards: StrLocation) -> int | None:
    """What a `window` means for shards at a location; None: all of them."""
    if window is None and isinstance(location_of(shards), Url):
        return URL_WINDOW
    return window or None


@dataclass(frozen=True)
class LoaderConfig:
    """Everything that decides which batches a `Loader` yields, and how they are made.

    Raises `InputError` for a setting that is out of its range.
    """

    batch_size: int = 64
    """Sets in a global batch, of which each of `world` ranks gets its share; at least `world`."""
    size: int = 128
    """Height and width of the pictures, pixels. Planes have a size of their own, which it must be."""
    device: str | torch.device = "auto"
    """Where batches are made: "cpu", "cuda", "cuda:1", or auto: the GPU if there is one. "gpu" is "cuda"."""
    seed: int = 0
    """Decides the order of the sets and their augmentation."""
    rank: int = 0
    """Number of this process among those that share each global batch, from 0."""
    world: int = 1
    """How many processes there are."""
    local_world: int = 1
    """How many of them share this machine, and with it the cache: ranks 0 to `local_world` - 1, and so on."""
    cache: str | os.PathLike[str] | None = None
    """Folder on a local disk where shards behind a URL are kept; None: fgbg in the user's cache folder."""
    cache_size: str = "100GB"
    """What all that is in that folder may take; "0": nothing is kept."""
    depth: bool = True
    """Whether depth is loaded. Without, no byte of it is read (of planes: none is handed on)."""
    shuffle: bool = True
    """Whether sets come in another order in each epoch, or as they lie in the index."""
    window: int | None = None
    """Shards that are read at a time, by all ranks together, and whose sets are mixed; 0: all of them; None: all, but
    URL_WINDOW of shards behind a URL."""
    resident: str = "off"
    """Where decoded sets stay for later epochs: "device", "host", "auto" (where there is room), or "off"."""
    resident_share: float = 0.6
    """Share of the memory left by the first steps that decoded sets may take; above 0, at most 1."""
    augmentation: Augmentation | None = None
    """How sets are changed on the device; None: not at all."""
    threads: int | None = None
    """Threads that decode; None: one a core."""
    readers: int = 16
    """Most threads that read; the longer a read takes, the more of them are used."""
    prefetch: int = 2
    """Finished batches that may wait for the consumer; as many are being decoded, and two more are being read."""
    hw_decoder_load: float | None = None
    """Share of the JPEGs that a GPU's hardware engine decodes, 0 to 1; None: `decode.hardware_load`."""
    max_bad_share: float = 0.01
    """Share of the split's sets that may be damaged before an iteration ends with an error."""

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "size",
            "seed",
            "rank",
            "world",
            "local_world",
            "readers",
            "prefetch",
            "threads",
            "window",
        ):
            if not isinstance(value := getattr(self, name), int | None) or (value is None and name not in OPTIONAL):
                raise InputError(f"{name} {value!r}: expected a whole number")
            if value is not None and value > (most := LARGEST.get(name, MOST_COUNT)):
                raise InputError(f"{name} {value}: expected at most {most:,}")
        if not (self.batch_size >= self.world > self.rank >= 0):
            got = f"batch size {self.batch_size}, rank {self.rank} of {self.world}"
            raise InputError(f"{got}: expected 0 <= rank < world <= batch size")
        byte_count(self.cache_size)
        for name in ("size", "prefetch", "readers", "local_world"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name} {value}: expected 1 or more")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads {self.threads}: expected 1 or more, or None for one a core")
        if self.window is not None and self.window < 0:
            raise InputError(f"window {self.window}: expected 1 or more shards, or 0 for the whole set")
        if self.resident not in RESIDENT:
            raise InputError(f"decoded sets cannot stay in {self.resident!r}: expected one of {', '.join(RESIDENT)}")
        if not 0 < self.resident_share <= 1:
            raise InputError(f"resident_share {self.resident_share}: expected a share above 0, at most 1")
        if self.hw_decoder_load is not None and not 0 <= self.hw_decoder_load <= 1:
            raise InputError(f"hw_decoder_load {self.hw_decoder_load}: expected 0 to 1, or None for the device's own")
        if not 0 <= self.max_bad_share <= 1:
            raise InputError(f"max_bad_share {self.max_bad_share}: expected a share from 0 to 1")
