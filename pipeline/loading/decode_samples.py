"""Decoding whole sets, of either codec; those that cannot be decoded are left out by name."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.images import BadImage, check_image
from pipeline.format.planes import PLANES
from pipeline.loading.decode import DecodeOptions, Decoder, Encoded, Table, Undecodable, depth_levels
from pipeline.loading.decode_planes import PlaneDecoder
from pipeline.loading.prefetch import EncodedBatch, Quarantine
from pipeline.loading.sample_cache import Pictures
from pipeline.loading.shard_reader import Damaged, ShardReader

Decoded = Generator[tuple[EncodedBatch, Pictures], None, None]
"""Batches, with the pictures of those of their sets that were not cached."""


class SampleDecoder:
    """Decodes the files of sets of one shard directory; one run of batches at a time."""

    def __init__(
        self, shards: ShardReader, options: DecodeOptions, stand_in: NDArray[np.uint8], quarantine: Quarantine
    ) -> None:
        """`stand_in` is any encoded picture, uint8 [bytes]: DALI knows no empty batch, as of cached sets alone.

        What cannot be decoded goes into `quarantine`. Raises `InputError` where DALI or the device is missing.
        """
        self._shards, self._options, self._quarantine = shards, options, quarantine
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
        """Decode what is not cached of each batch; a set that cannot be decoded is left out, as a damaged one is.

        Raises `InputError` if too many are, or a batch fails none of whose sets does.
        """
        under_way, again = deque[EncodedBatch](), deque[EncodedBatch]()

        def files() -> Iterator[Encoded]:
            while batch := again.popleft() if again else next(encoded, None):
                under_way.append(batch)
                yield batch.encoded if batch.encoded[0] or self._planes else [[self._stand_in] for _ in batch.encoded]

        while True:
            try:
                with closing(self.decoder.decode(files())) as decoded:
                    for pictures in decoded:
                        batch = under_way.popleft()
                        count = len(batch.encoded[0])
                        yield batch, {part: picture[:count] for part, picture in pictures.items()}
                return
            except Undecodable as error:  # the run is over: the next begins with what was under way
                again.extendleft(reversed(self._without_undecodable(under_way, error)))
                under_way.clear()

    def _without_undecodable(self, batches: Iterable[EncodedBatch], error: Undecodable) -> list[EncodedBatch]:
        """Batches without their sets that cannot be decoded; these go into quarantine.

        Raises `InputError` if there are none, or too many.
        """
        left, any_found = list[EncodedBatch](), False
        for batch in batches:
            sets, decodable = list(zip(*batch.encoded, strict=True)), np.ones(len(batch.rows), np.bool_)
            for place, damage in self._undecodable(batch.missing, sets):
                self._quarantine.add(int(batch.missing[place]), damage)
                decodable[np.flatnonzero(batch.slots < 0)[place]] = False
            left.append(batch.only(decodable))
            any_found |= not decodable.all()
        if not any_found:
            raise self._failed_once(error)
        return left

    def _undecodable(
        self, rows: NDArray[np.int64], sets: Sequence[Sequence[NDArray[np.uint8]]]
    ) -> Iterator[tuple[int, Damaged]]:
        """Which of the sets with these files, at these rows of the index, cannot be decoded, and what is wrong.

        They are decoded one at a time, since DALI does not tell.
        """
        first = 0
        while first < len(sets):
            alone = self._new_decoder(replace(self._options, batch_size=1, prefetch=1))
            try:
                for _ in alone.decode([[part] for part in files] for files in sets[first:]):
                    first += 1
            except Undecodable as error:
                yield first, self._describe(int(rows[first]), sets[first], error)
                first += 1

    def _describe(self, row: int, files: Sequence[NDArray[np.uint8]], error: Undecodable) -> Damaged:
        what, why = "a part", str(error)
        for member, content in zip(self._shards.members, files, strict=True):
            try:
                if self._planes:
                    raise BadImage(why)
                check_image(content.tobytes())
            except BadImage as bad:
                what, why = member, str(bad)
                break
        shard = self._shards.shard_name(row)
        what = f"{what} in {shard} cannot be decoded ({why})"
        return Damaged(self._shards.key(row), what, shard, "pack again with --verify decode")

    def _failed_once(self, error: Undecodable) -> InputError:
        name = "zstd" if self._planes else "DALI"
        return InputError(f"{name} failed once on a batch of sets that it can decode one by one: {error}")

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
            raise InputError(f"{damage}: {damage.remedy}") from damage
        except Undecodable as error:
            for _, found in self._undecodable(np.array(rows, np.int64), sets):
                raise InputError(f"{found}: {found.remedy}") from error
            raise self._failed_once(error) from error
        return pictures
