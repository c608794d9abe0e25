"""The bank: every background, decoded once and resident on the device; batches gather theirs by position."""

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.decode import DecodeOptions, Decoder, Encoded, Undecodable
from pipeline.errors import InputError
from pipeline.store import Store


class Bank:
    """All backgrounds of a shard directory."""

    pictures: torch.Tensor
    """uint8 [backgrounds, 1, size, size] on the device."""

    def __init__(self, store: Store, options: DecodeOptions) -> None:
        """Read backgrounds.tar and decode it through the loader's graph.

        Raises `InputError` for a damaged background, or one that DALI cannot decode.
        """
        self._set_backgrounds = store.index["bg"]
        self._ids = np.sort([background.id for background in store.manifest.backgrounds])
        encoded = [store.read_background(int(bg)) for bg in self._ids]
        self.any_encoded = encoded[0]
        starts = range(0, len(encoded), options.batch_size)
        batches: list[Encoded] = [[encoded[start : start + options.batch_size]] for start in starts]
        decoded = Decoder({"bg": None}, options).decode(iter(batches))
        try:
            self.pictures = torch.cat([pictures["bg"] for pictures in decoded])
        except Undecodable as error:
            raise InputError(
                f"DALI cannot decode one of the backgrounds in {store.shards}: pack again ({error})"
            ) from error

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in `pictures` the backgrounds of these rows of the index are, int64 [N]."""
        return np.searchsorted(self._ids, self._set_backgrounds[rows])
