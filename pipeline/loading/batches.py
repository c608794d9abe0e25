"""The stream: one rank's batches, epoch after epoch, made ahead of whoever takes them."""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch.distributed import ProcessGroup

from pipeline.loading.augment import Augmenter
from pipeline.loading.batch import Batch
from pipeline.loading.buffers import Gatherer
from pipeline.loading.cache_sync import exchange
from pipeline.loading.collate import Collator, Pictures
from pipeline.loading.decode import Encoded, Undecodable
from pipeline.loading.prefetch import EncodedBatch, PrefetchReader
from pipeline.loading.sample_cache import SampleCache


class DeviceBatch(NamedTuple):
    """A batch that was made on another CUDA stream, or on the CPU."""

    made: Batch
    event: torch.cuda.Event | None
    """Happens when the device has made it."""

    def batch(self) -> Batch:
        """The batch, for work on the current CUDA stream. The host does not wait."""
        if self.event:
            current = torch.cuda.current_stream(self.made.index.device)
            current.wait_event(self.event)
            for part in vars(self.made).values():
                if part is not None:
                    part.record_stream(current)  # its memory is not handed out again before this stream is done with it
        return self.made


class Stream:
    """Makes batches: what the reader brings is decoded, what is resident gathered, and the whole augmented."""

    def __init__(
        self,
        reader: PrefetchReader,
        decoder: Collator,
        resident: SampleCache | None,
        augmenter: Augmenter | None,
        gatherer: Gatherer,
    ) -> None:
        self._reader, self._sets, self._resident = reader, decoder, resident
        self._augmenter, self._gatherer = augmenter, gatherer
        self._decoder = decoder.new_decoder(decoder.options)
        device = decoder.device
        # One for all runs: what one run keeps resident is there before the next gathers it.
        self._cuda = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def batches(self, epoch: int, number: int) -> Generator[DeviceBatch, None, None]:
        """Yield from batch `number` of `epoch` on; to be run in a thread of its own.

        Without end, but that of an epoch after which `settle` is still to be called. Raises `InputError` if too many
        sets are damaged, or one cannot be decoded.
        """
        with closing(self._gatherer), torch.cuda.stream(self._cuda):  # None: no other than the current one
            while True:  # for each epoch, until none has to wait for the next
                gather = self._reader.all_resident
                shares = self._reader.shares(epoch, number)
                prepared = self._undecoded(shares) if gather else self._decoded(shares)
                with closing(shares), closing(prepared):
                    for share, pictures in prepared:
                        yield self._ready(share, pictures)
                        epoch, number = share.epoch + 1, 0
                if self._resident is not None and not self._resident.settled:
                    return

    def settle(self) -> None:
        """See `SampleCache.settle`; no run of `batches` may be under way."""
        if self._resident is not None:
            with torch.cuda.stream(self._cuda):
                self._resident.settle()

    def exchange(self, group: ProcessGroup | None) -> None:
        """See `exchange.exchange`; no run of `batches` may be under way."""
        if self._resident is not None:
            with torch.cuda.stream(self._cuda):
                exchange(self._resident, group)

    def _undecoded(self, shares: Iterator[EncodedBatch]) -> Generator[tuple[EncodedBatch, Pictures], None, None]:
        for share in shares:
            yield share, {}

    def _decoded(self, shares: Iterator[EncodedBatch]) -> Generator[tuple[EncodedBatch, Pictures], None, None]:
        """Each share with the pictures of what is not resident of it."""
        under_way = deque[EncodedBatch]()

        def encoded() -> Iterator[Encoded]:
            for share in shares:
                under_way.append(share)
                yield self._sets.decodable(share.encoded)

        try:
            with closing(self._decoder.decode(encoded())) as decoded:
                for pictures in decoded:
                    share = under_way.popleft()
                    count = len(share.encoded[0])
                    yield share, {part: picture[:count] for part, picture in pictures.items()}
        except Undecodable as error:
            rows = np.concatenate([share.missing for share in under_way])
            raise self._sets.name_undecodable(rows, error) from error

    def _ready(self, share: EncodedBatch, pictures: Pictures) -> DeviceBatch:
        if self._resident is not None:
            decoded, pictures = pictures, self._resident.take(share.slots, pictures)
            if decoded:
                self._resident.keep(share.missing, decoded)
        batch = self._sets.batch(share.rows, share.records, pictures, self._gatherer)
        if self._augmenter is not None:
            batch = self._augmenter(batch, share.epoch)
        return DeviceBatch(batch, self._cuda.record_event() if self._cuda else None)
