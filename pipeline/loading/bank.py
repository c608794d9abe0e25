"""The bank: every background, decoded once and resident on the device; batches gather theirs by position."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.devices import torch_device
from pipeline.errors import InputError
from pipeline.format.planes import PLANES, BadFrame, decompress_frames
from pipeline.loading.decode import DecodeOptions, Decoder, Encoded, Undecodable
from pipeline.loading.shard_reader import ShardReader


class BackgroundCache:
    """All backgrounds of a shard directory."""

    pictures: torch.Tensor
    """uint8 [backgrounds, 1, size, size] on the device."""

    def __init__(self, store: ShardReader, options: DecodeOptions) -> None:
        """Read backgrounds.tar and decode it through the loader's graph; planes are decompressed.

        Raises `InputError` for a damaged background, or one that cannot be decoded.
        """
        self._ids = np.sort([background.id for background in store.manifest.backgrounds])
        encoded = [store.read_background(int(bg)) for bg in self._ids]
        self.any_encoded = encoded[0]
        decode = _decompress if store.manifest.codec == PLANES else _decode
        try:
            self.pictures = torch.cat(list(decode(encoded, options)))
        except (Undecodable, BadFrame) as error:
            raise InputError(
                f"one of the backgrounds in {store.shards} cannot be decoded: pack again ({error})"
            ) from error

    def positions(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Where in `pictures` the backgrounds of these ids are, int64 [N]."""
        return np.searchsorted(self._ids, ids)


def _decode(encoded: Sequence[NDArray[np.uint8]], options: DecodeOptions) -> Iterator[torch.Tensor]:
    starts = range(0, len(encoded), options.batch_size)
    batches: list[Encoded] = [[list(encoded[start : start + options.batch_size])] for start in starts]
    for pictures in Decoder({"bg": None}, options).decode(iter(batches)):
        yield pictures["bg"]


def _decompress(frames: Sequence[NDArray[np.uint8]], options: DecodeOptions) -> Iterator[torch.Tensor]:
    planes = np.stack(list(decompress_frames((frame.data for frame in frames), options.size**2)))
    yield torch.from_numpy(planes).view(-1, 1, options.size, options.size).to(torch_device(options.device))
