"""The way of a batch, from a row of the index to tensors on the device: START READING HERE."""

from collections.abc import Generator
from contextlib import closing
from typing import NamedTuple

import torch

from pipeline.loading.augment import Augmenter
from pipeline.loading.batch import Batch
from pipeline.loading.buffers import Gatherer
from pipeline.loading.collate import Collator
from pipeline.loading.decode_samples import SampleDecoder
from pipeline.loading.prefetch import BackgroundIterator, PrefetchReader
from pipeline.loading.sample_cache import SampleCache


class DeviceBatch(NamedTuple):
    """A batch that was made on another CUDA stream, or on the CPU."""

    made: Batch
    event: torch.cuda.Event | None
    """Recorded after the batch's last operation; whoever uses the batch waits for it first."""

    def batch(self) -> Batch:
        """The batch, for work on the current CUDA stream. The host does not wait."""
        if self.event:
            current = torch.cuda.current_stream(self.made.index.device)
            current.wait_event(self.event)
            for tensor in self.made.asdict().values():
                tensor.record_stream(current)  # its memory is not reused before this stream is done with it
        return self.made


class Stages(NamedTuple):
    """What the batches of one split pass through."""

    reader: PrefetchReader
    decoder: SampleDecoder
    cache: SampleCache | None
    collator: Collator
    augmenter: Augmenter | None
    gatherer: Gatherer
    stream: "torch.cuda.Stream | None"
    """One for all iterations: what one of them caches is there before the next gathers it. None on the CPU."""
    prefetch: int
    """Batches that are made ahead of whoever takes them."""


def start_batches(stages: Stages, epoch: int, step: int) -> BackgroundIterator[DeviceBatch]:
    """One rank's batches from number `step` of `epoch` on, epoch after epoch, made in a thread that starts now.

    They end only where the next epoch depends on what this one has cached. Raises, when they are taken, `InputError` if
    too many sets are damaged or cannot be decoded, and what CUDA or DALI raise for faults of their own.
    """
    reader, decoder, cache, collator, augmenter, gatherer, stream, prefetch = stages

    def in_order(epoch: int, step: int) -> Generator[DeviceBatch, None, None]:
        with closing(gatherer), torch.cuda.stream(stream):
            while True:  # once, or for each epoch that had to wait for the cache
                # 1. Sample: which sets come next is pure arithmetic of (seed, epoch, step, rank).
                samples = reader.samples(epoch, step)
                # 2. Read and check: threads read the files that are not cached; CRCs are compared, damage left out.
                encoded = reader.read(samples)
                # 3. Decode: DALI (or zstd, of planes) -> uint8 [N, 1, H, W] on the device, in batches of its own.
                decoded = decoder.skip(encoded) if reader.all_cached else decoder.decode(encoded)
                with closing(encoded), closing(decoded):
                    for sets, pictures in decoded:
                        # 4. Cache: sets decoded in an earlier epoch are gathered, those of now stored.
                        complete = cache.complete(sets.slots, sets.missing, pictures) if cache else pictures
                        # 5. Collate: each set gets its background, from all backgrounds decoded once.
                        batch = collator.collate(sets.rows, sets.records, complete, gatherer)
                        # 6. Augment: on the device, the same for a set in whatever batch it comes.
                        batch = augmenter(batch, sets.epoch) if augmenter else batch
                        yield DeviceBatch(batch, stream.record_event() if stream else None)
                        epoch, step = sets.epoch + 1, 0
                if cache and not cache.settled:
                    return

    # 7. Read ahead: all of the above in a thread, a bounded number of batches ahead of the training step.
    return BackgroundIterator(in_order(epoch, step), prefetch)
