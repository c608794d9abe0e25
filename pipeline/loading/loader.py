"""The loader: joins order, store, decoder and bank; yields batches on the device and remembers where it is."""

import copy
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.distributed import ProcessGroup

from pipeline.errors import InputError
from pipeline.format.planes import PLANES
from pipeline.loading.ahead import BackgroundIterator
from pipeline.loading.augment import Augmentation, Augmenter
from pipeline.loading.batch import Batch
from pipeline.loading.batches import DeviceBatch, Stream
from pipeline.loading.buffers import Gatherer
from pipeline.loading.collate import Collator
from pipeline.loading.decode import DecodeOptions
from pipeline.loading.memory import brief, ran_out
from pipeline.loading.prefetch import PrefetchReader, Quarantine
from pipeline.loading.sample_cache import SampleCache
from pipeline.loading.sampler import Sampler
from pipeline.loading.shard_reader import ShardReader
from pipeline.loading.split import Split
from pipeline.workers import available_cores

log = logging.getLogger(__name__)
STATE_VERSION = 2
FIRST_STEPS = 3
"""Batches after whose use the consumer has taken the memory that it needs: CUDA graphs are recorded in these steps."""


class Loader:
    """Iterate it for the rest of the current epoch; iterate again for the next. Every set comes once an epoch.

    Batches depend on (data, split, seed, epoch, position) alone. `batch_size` is the global batch, of which each of
    `world` ranks gets its share (which may be empty in the last batch of an epoch). They are made in threads, ahead of
    whoever takes them and across epochs; leaving an iteration early ends these threads. A set whose bytes are not those
    that were packed is left out, named in `quarantined` and logged.
    """

    def __init__(
        self,
        shards: Path,
        split: str = "train",
        batch_size: int = 64,
        size: int = 128,
        device: str = "cpu",
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        *,
        depth: bool = True,
        shuffle: bool = True,
        window: int | None = None,
        resident: str = "off",
        resident_share: float = 0.6,
        augmentation: Augmentation | None = None,
        threads: int | None = None,
        readers: int = 16,
        prefetch: int = 2,
        hw_decoder_load: float | None = None,
        max_bad_share: float = 0.01,
    ) -> None:
        """Open shards for reading; `size` in pixels, `device` "gpu" or "cpu".

        Without `depth`, no byte of it is read (of planes: none is handed on) and batches have none, whether the data
        have it or not. With `window`, sets are shuffled within windows of so many shards, which are read one after the
        other. `resident` ("auto", "device", "host" or "off", see `resident.SampleCache`) keeps decoded sets in up to
        `resident_share` of the memory that is free once FIRST_STEPS batches have been used, or an epoch: later epochs
        gather them, the same bits without storage and decoder. Where memory runs out, `release` gives it back.

        `threads` are those that decode (default: one a core), `readers` the most that read, as many as the storage is
        slow. `prefetch` batches wait for the consumer, as many are being decoded, and `reader.AHEAD` are being read.
        `hw_decoder_load` is the share of the JPEGs for a GPU's hardware engine (None: `decode.hardware_load`).
        When more than `max_bad_share` of the split's sets are damaged the run stops.

        Raises `InputError` for a directory that is no shard directory or does not belong together, data without the
        depth that is asked for, planes of another size, a split without sets, settings out of range, and a missing
        device.
        """
        if not (batch_size >= world > rank >= 0 and size > 0 and prefetch > 0 and readers > 0):
            got = (
                f"batch size {batch_size}, rank {rank} of {world}, size {size}, prefetch {prefetch}, readers {readers}"
            )
            raise InputError(f"{got}: expected 0 <= rank < world <= batch size, and the others above 0")
        if window is not None and window < 1:
            raise InputError(f"window {window}: expected 1 or more shards, or none for the whole set")
        store = ShardReader.open(shards, depth=depth)
        self.manifest = store.manifest
        if depth and "depth" not in store.parts:
            add = f"add it (fgbg-depth {shards} --model FILE.onnx --shards NEW)"
            raise InputError(f"the sets of {shards} have no depth: {add}, or train the mask alone (--no-depth)")
        if self.manifest.codec == PLANES and size != (stored := self.manifest.plane_size):
            held = f"{shards} holds planes of {stored} x {stored} pixels, size {size} was asked for"
            raise InputError(f"{held}: ask for {stored}, or pack again with --size {size}")
        self._store, self.batch_size, self._seed, self._rank, self._world = store, batch_size, seed, rank, world
        self._window, self._readers, self._max_bad_share = window, readers, max_bad_share
        self._resident_share = resident_share
        threads = threads or available_cores()
        options = DecodeOptions(-(-batch_size // world), size, device, threads, prefetch, hw_decoder_load)
        self._decoder = Collator(store, options)
        self._start(split, shuffle, resident, augmentation)

    def _start(
        self,
        split: str,
        shuffle: bool,
        resident: str,
        augmentation: Augmentation | None,
        picked: NDArray[np.int64] | None = None,
    ) -> None:
        """Stand before the first batch of a split; raise `InputError` if it is empty."""
        members = Split(self._store.index, [shard.sets for shard in self.manifest.shards], split, picked)
        if not members.count:
            have = f"{self.manifest.sets:,} sets on {len(self.manifest.backgrounds)} backgrounds"
            raise InputError(
                f"no set of {self._store.shards} is in the split {split} ({have}): "
                f"more backgrounds and foregrounds needed"
            )
        self._members = members
        self._split = split if picked is None else f"{split}, {len(picked)} rows {zlib.crc32(picked.tobytes()):08x}"
        key = f"{self.manifest.sha256}/{self._split}/{self._seed}"
        self._order = Sampler(members.sizes, self.batch_size, key, shuffle, self._window)
        self._quarantine = Quarantine(split, members.count, self._max_bad_share)
        self.resident = resident
        self._kept: SampleCache | None = None
        options, device = self._decoder.options, self._decoder.device
        gatherer = Gatherer(options.threads)
        if resident != "off":
            self._kept = SampleCache(
                self.manifest.sets, members.count, self._decoder.parts, options.size,
                device, resident, self._resident_share, gatherer, deferred=True,
            )  # fmt: skip
        augmenter = Augmenter(augmentation, self._seed, device) if augmentation else None
        reader = PrefetchReader(
            self._store, self._order, members, self._quarantine, self._kept, self._rank, self._world, self._readers
        )
        self._stream = Stream(reader, self._decoder, self._kept, augmenter, gatherer)
        self._ahead: BackgroundIterator[DeviceBatch] | None = None
        self._asked = 0  # batches, until resident sets may take memory
        self.epoch = 0
        self._position = 0

    def sibling(
        self, split: str, *, shuffle: bool = True, resident: str = "off", picked: NDArray[np.int64] | None = None
    ) -> "Loader":
        """A loader of another split, or of the same, without augmentation and with all else alike.

        With `picked`, rows of that split in ascending order, it yields these alone. It shares open files and
        backgrounds. Raises `InputError` for a split without sets.
        """
        other = copy.copy(self)
        other._start(split, shuffle, resident, None, picked)
        return other

    @property
    def index(self) -> NDArray[np.void]:
        """All rows of the index, of `index.row_type`, mapped: copy what you need of it at once."""
        return self._store.index

    def rows(self) -> NDArray[np.int64]:
        """Rows of the index of this split's sets, ascending, int64 [sets]."""
        self._store.check_index()
        return self._members.all_rows()

    @property
    def sets(self) -> int:
        """Sets in this split."""
        return self._order.count

    @property
    def quarantined(self) -> list[str]:
        """What is wrong with each set that was left out so far, its key first."""
        return self._quarantine.found

    @property
    def residency(self) -> str | None:
        """How many decoded sets stay, and where, for a user; None where none are asked to."""
        return self._kept.summary() if self._kept is not None else None

    def key(self, row: int) -> str:
        """The name of the set at a row of the index."""
        return self._store.key(row)

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return self._order.batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch.

        Raises `InputError` if too many sets are damaged, one cannot be decoded, or there is no memory for a batch.
        """
        try:
            last = False
            while not last:
                batch = self._next()
                self._position += 1
                last = self._position == len(self)
                if last:
                    self.epoch, self._position = self.epoch + 1, 0
                yield batch
            if self._kept is not None and not self._kept.settled:  # an epoch too short for that
                self.close()
                self._stream.settle()
        except BaseException:  # whoever leaves early may never come back
            self.close()
            raise

    def _next(self) -> Batch:
        """The next batch. Where there is no memory for it, resident sets are given up, and it is begun anew."""
        self._asked += 1
        if self._kept is not None and self._asked > FIRST_STEPS:
            self._kept.allow()
        while True:
            if self._ahead is None:
                self._ahead = BackgroundIterator(
                    self._stream.batches(self.epoch, self._position), self._decoder.options.prefetch
                )
            try:
                return next(self._ahead).batch()
            except Exception as error:
                if not ran_out(error):
                    raise
                what = f"no memory for a batch of {self.batch_size} sets of {self._decoder.options.size} pixels"
                what = f"{what} ({brief(error)})"
                if (told := self.release()) is None:
                    raise InputError(f"{what}: ask for fewer sets a batch, or smaller pictures") from error
                log.warning("%s: %s", what, told)

    def release(self) -> str | None:
        """Give back the device's memory that resident sets take, where it has run out; what to tell the user of it.

        None where they take none. Between any two batches, also within an epoch: those handed out stay valid, and those
        that follow are the same. After FIRST_STEPS more, half the share is taken; after a second call none is.
        """
        if self._kept is None:
            return None
        self.close()  # batches that were made ahead know where resident sets were
        self._asked = 0
        return self._kept.release()

    def pick(self, rows: Sequence[int]) -> Batch:
        """The sets at these rows of the index (one or more, of any split), in this order; the loader stays where it is.

        Raises `InputError` where one is damaged, or cannot be decoded.
        """
        return self._decoder.pick(rows)

    def exchange(self, group: ProcessGroup | None = None) -> None:
        """Let every rank keep what any rank keeps, so that none decodes it again; see `exchange.exchange`.

        A collective: all ranks call it between the same two batches, best after the first epoch. A loader that keeps
        nothing has nothing to do.
        """
        self.close()
        self._stream.exchange(group)

    def close(self) -> None:
        """End the threads that read ahead, which also end when the loader is let go; iterating begins anew."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def state_dict(self) -> dict[str, int | str]:
        """Where the loader is: batches handed out, not those read ahead. Plain values, safe to store as JSON."""
        return {**self._identity(), "epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on where another loader was, on any number of ranks.

        Raises `InputError` if that one had other data, another split, seed, batch size or window.
        """
        expected = self._identity()
        for name, value in expected.items():
            if state.get(name) != value:
                raise InputError(f"loader state has {name} {state.get(name)!r}, this loader {value!r}: use the same")
        epoch, position = int(state.get("epoch", -1)), int(state.get("position", -1))
        if epoch < 0 or not 0 <= position < len(self):
            raise InputError(f"loader state is damaged: epoch {epoch}, position {position} of {len(self)}")
        self.close()
        self.epoch, self._position = epoch, position

    def _identity(self) -> dict[str, int | str]:
        return {
            "version": STATE_VERSION,
            "manifest": self.manifest.sha256,
            "split": self._split,
            "seed": self._seed,
            "batch_size": self.batch_size,
            "window": self._window or 0,
        }
