"""Decoding whole sets: the files of their pictures, with the backgrounds from the bank, become a batch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.devices import torch_device
from pipeline.errors import InputError
from pipeline.format.depth import depth_table
from pipeline.format.planes import PLANES
from pipeline.loading.bank import BackgroundCache
from pipeline.loading.batch import Batch
from pipeline.loading.buffers import Gatherer
from pipeline.loading.decode import DecodeOptions, Decoder, Encoded, Table, Undecodable
from pipeline.loading.decode_planes import PlaneDecoder
from pipeline.loading.shard_reader import Damaged, ShardReader

Pictures = dict[str, torch.Tensor]
"""For each part uint8 [N, 1, size, size] on the device."""


class Collator:
    """What the sets of one shard directory are decoded with, whichever of them are asked for."""

    def __init__(self, store: ShardReader, options: DecodeOptions) -> None:
        """Decode the backgrounds; raises `InputError` for a damaged one, and where DALI or the device is missing."""
        self.store, self.options = store, options
        self.device = torch_device(options.device)
        self.parts = store.parts
        manifest = store.manifest
        self._planes = manifest.codec == PLANES
        self._tables: dict[str, Table] = dict.fromkeys(self.parts)
        if "depth" in self._tables:
            self._tables["depth"] = depth_table(manifest.depth_encoding, manifest.depth_near)
        self._bank = BackgroundCache(store, options)
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # once, so that any stream may read the bank

    def new_decoder(self, options: DecodeOptions) -> Decoder | PlaneDecoder:
        """A decoder of what is stored of a set."""
        if self._planes:
            return PlaneDecoder(self.parts, len(self.store.manifest.parts), options)
        return Decoder(self._tables, options)

    def decodable(self, encoded: Encoded) -> Encoded:
        """What to give to a decoder for these files: DALI knows no empty batch, so that a picture stands in."""
        return encoded if encoded[0] or self._planes else [[self._bank.any_encoded] for _ in encoded]

    def batch(self, rows: NDArray[np.int64], records: NDArray[np.void], parts: Pictures, gatherer: Gatherer) -> Batch:
        """The sets at these rows of the index, from its records and the decoded parts, which become the batch's own."""
        positions = self._bank.positions(records["bg"])
        if self.device.type == "cpu":
            index, [bg] = torch.from_numpy(rows), gatherer.gather([self._bank.pictures], positions)
        else:
            # Pinned: from pageable memory the copy would wait for all work on the stream.
            places = torch.from_numpy(np.stack([rows, positions])).pin_memory()
            index, background = places.to(self.device, non_blocking=True)
            bg = self._bank.pictures.index_select(0, background)
        if self._planes:
            parts["fg_bg"] += bg  # they hold what differs from it
        return Batch(bg, parts["fg_bg"], parts["mask"], parts.get("depth"), index)

    def pick(self, rows: Sequence[int]) -> Batch:
        """The sets at these rows of the index, one or more, in this order.

        Raises `InputError` where one is damaged, or cannot be decoded.
        """
        picked = np.array(rows, dtype=np.int64)
        decoder = self.new_decoder(replace(self.options, batch_size=len(rows), prefetch=1))
        try:
            records = self.store.records(picked)
            sets = [self.store.read(row) for row in rows]
            [pictures] = decoder.decode(iter([[list(part) for part in zip(*sets, strict=True)]]))
        except Damaged as damage:
            raise InputError(f"{damage}: copy it again") from damage
        except Undecodable as error:
            raise self.name_undecodable(picked, error) from error
        return self.batch(picked, records, pictures, Gatherer())

    def name_undecodable(self, rows: NDArray[np.int64], error: Undecodable) -> InputError:
        """Find the first of some sets that cannot be decoded, one at a time, since DALI does not tell."""
        decoder = "zstd" if self._planes else "DALI"
        alone = self.new_decoder(replace(self.options, batch_size=1, prefetch=1))
        good = 0
        try:
            for _ in alone.decode([[part] for part in self.store.read(row)] for row in rows.tolist()):
                good += 1
        except Undecodable as reason:
            error = reason
            where = f"set {self.store.key(rows[good])} in {self.store.shard_name(rows[good])}"
            remedy = "leave it out and pack again with --verify decode"
            return InputError(f"{decoder} cannot decode {where}: {remedy} ({error})")
        except Damaged as damage:  # since it was read first
            return InputError(f"{damage}: copy it again")
        return InputError(f"{decoder} failed once on a batch of sets that it can decode one by one: {error}")
