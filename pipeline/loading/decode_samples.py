"""Decoding whole sets, of either codec, and naming the one that cannot be decoded."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.planes import PLANES
from pipeline.loading.decode import DecodeOptions, Decoder, Encoded, Table, Undecodable, depth_levels
from pipeline.loading.decode_planes import PlaneDecoder
from pipeline.loading.prefetch import EncodedBatch
from pipeline.loading.sample_cache import Pictures
from pipeline.loading.shard_reader import Damaged, ShardReader

Decoded = Generator[tuple[EncodedBatch, Pictures], None, None]
"""Batches, with the pictures of those of their sets that were not cached."""


class SampleDecoder:
    """Decodes the files of sets of one shard directory; one run of batches at a time."""

    def __init__(self, shards: ShardReader, options: DecodeOptions, stand_in: NDArray[np.uint8]) -> None:
        """`stand_in` is any encoded picture, uint8 [bytes]: DALI knows no empty batch, as of cached sets alone.

        Raises `InputError` where DALI or the device is missing.
        """
        self._shards, self._options = shards, options
        self._planes = shards.manifest.codec == PLANES
        self._tables: dict[str, Table] = dict.fromkeys(shards.parts)
        if "depth" in self._tables:
            self._tables["depth"] = depth_levels(shards.manifest.depth_encoding, shards.manifest.depth_near)
        self._stand_in = stand_in
        self.decoder = self._new_decoder(options)

    def _new_decoder(self, options: DecodeOptions) -> Decoder | PlaneDecoder:
        if self._planes:
            return PlaneDecoder(self._shards.parts, len(self._shards.manifest.parts), options)
        return Decoder(self._tables, options)

    def decode(self, encoded: Iterator[EncodedBatch]) -> Decoded:
        """Decode what is not cached of each batch; raise `InputError` that names a set which cannot be decoded."""
        under_way = deque[EncodedBatch]()

        def files() -> Iterator[Encoded]:
            for batch in encoded:
                under_way.append(batch)
                yield batch.encoded if batch.encoded[0] or self._planes else [[self._stand_in] for _ in batch.encoded]

        try:
            with closing(self.decoder.decode(files())) as decoded:
                for pictures in decoded:
                    batch = under_way.popleft()
                    count = len(batch.encoded[0])
                    yield batch, {part: picture[:count] for part, picture in pictures.items()}
        except Undecodable as error:
            rows = np.concatenate([batch.missing for batch in under_way])
            raise self._name_undecodable(rows, error) from error

    def skip(self, encoded: Iterator[EncodedBatch]) -> Decoded:
        """Pass batches on undecoded: all their sets are cached."""
        for batch in encoded:
            yield batch, {}

    def decode_rows(self, rows: Sequence[int]) -> Pictures:
        """The pictures of the sets at these rows of the index, one or more, in this order.

        Raises `InputError` where one is damaged, or cannot be decoded.
        """
        decoder = self._new_decoder(replace(self._options, batch_size=len(rows), prefetch=1))
        try:
            sets = [self._shards.read(row) for row in rows]
            [pictures] = decoder.decode(iter([[list(part) for part in zip(*sets, strict=True)]]))
        except Damaged as damage:
            raise InputError(f"{damage}: copy it again") from damage
        except Undecodable as error:
            raise self._name_undecodable(np.array(rows, np.int64), error) from error
        return pictures

    def _name_undecodable(self, rows: NDArray[np.int64], error: Undecodable) -> InputError:
        """Find the first of some sets that cannot be decoded, one at a time, since DALI does not tell."""
        name = "zstd" if self._planes else "DALI"
        alone = self._new_decoder(replace(self._options, batch_size=1, prefetch=1))
        good = 0
        try:
            for _ in alone.decode([[part] for part in self._shards.read(row)] for row in rows.tolist()):
                good += 1
        except Undecodable as reason:
            where = f"set {self._shards.key(rows[good])} in {self._shards.shard_name(rows[good])}"
            return InputError(
                f"{name} cannot decode {where}: leave it out and pack again with --verify decode ({reason})"
            )
        except Damaged as damage:  # since it was read first
            return InputError(f"{damage}: copy it again")
        return InputError(f"{name} failed once on a batch of sets that it can decode one by one: {error}")
