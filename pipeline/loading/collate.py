"""Collate: the decoded parts of sets, with their backgrounds from a cache of all of them, become a batch."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.devices import torch_device
from pipeline.errors import InputError
from pipeline.format.depth import WITH_HOLES
from pipeline.format.manifest import BACKGROUNDS
from pipeline.format.planes import PLANES, BadFrame, decompress_frames
from pipeline.loading.batch import Batch
from pipeline.loading.buffers import Gatherer
from pipeline.loading.decode import DecodeOptions, Decoder, Encoded, Undecodable
from pipeline.loading.sample_cache import Pictures
from pipeline.loading.shard_reader import ShardReader

DecodeAll = Callable[[Sequence[NDArray[np.uint8]], DecodeOptions], Iterator[torch.Tensor]]


class Collator:
    """Makes batches of what was decoded of sets of one shard directory."""

    def __init__(self, shards: ShardReader, options: DecodeOptions) -> None:
        """Decode the backgrounds; raises `InputError` for a damaged one, and where DALI or the device is missing."""
        self.device = torch_device(options.device)
        self.backgrounds = BackgroundCache(shards, options)
        self._planes = shards.manifest.codec == PLANES
        self._holes = shards.manifest.depth_encoding == WITH_HOLES
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # once, so that any stream may read the backgrounds

    def collate(self, rows: NDArray[np.int64], records: NDArray[np.void], parts: Pictures, gatherer: Gatherer) -> Batch:
        """The sets at these rows [N] of the index, from its records [N] and the decoded parts, which the batch keeps.

        On a GPU the host does not wait.
        """
        positions = self.backgrounds.positions(records["bg"])
        if self.device.type == "cpu":
            index, [bg] = torch.from_numpy(rows), gatherer.gather([self.backgrounds.pictures], positions)
        else:
            # Pinned: from pageable memory the copy would wait for all work on the stream.
            places = torch.from_numpy(np.stack([rows, positions])).pin_memory()
            index, background = places.to(self.device, non_blocking=True)
            bg = self.backgrounds.pictures.index_select(0, background)
        if self._planes:
            parts["fg_bg"] += bg  # they hold what differs from it
        depth = parts.get("depth")
        depth_valid = depth > 0 if depth is not None and self._holes else None
        return Batch(bg, parts["fg_bg"], parts["mask"], depth, index, depth_valid)


class BackgroundCache:
    """All backgrounds of a shard directory."""

    pictures: torch.Tensor
    """uint8 [backgrounds, 1, size, size] on the device."""

    def __init__(self, shards: ShardReader, options: DecodeOptions) -> None:
        """Read backgrounds.tar and decode it through the loader's graph; planes are decompressed.

        Raises `InputError` for a damaged background, or one that cannot be decoded.
        """
        self._ids = np.sort([background.id for background in shards.manifest.backgrounds])
        encoded = shards.read_backgrounds(self._ids.tolist())
        self.any_encoded = encoded[0].copy()  # it may be a view of all of them
        """One of them as it is stored, uint8 [bytes]."""
        decode = _decompress if shards.manifest.codec == PLANES else _decode
        try:
            self.pictures = torch.cat(list(decode(encoded, options)))
        except (Undecodable, BadFrame) as error:
            which = f"{shards.location / BACKGROUNDS}: background {self._first_bad(encoded, decode, options)}"
            raise InputError(
                f"{which} cannot be decoded ({error}), and every set on it needs it: pack again with --verify decode"
            ) from error

    def _first_bad(self, encoded: Sequence[NDArray[np.uint8]], decode: DecodeAll, options: DecodeOptions) -> str:
        """The id of the first background that cannot be decoded alone."""
        for bg, content in zip(self._ids.tolist(), encoded, strict=True):
            try:
                list(decode([content], options))
            except (Undecodable, BadFrame):
                return str(bg)
        return "of some batch"

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
