"""The loader: batches of a split on the device, ahead of whoever takes them; it remembers where it is."""

import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed import ProcessGroup

from pipeline.errors import InputError
from pipeline.loading.augment import Augmenter
from pipeline.loading.batch import Batch
from pipeline.loading.batches import DeviceBatch, Stages, start_batches
from pipeline.loading.buffers import Gatherer
from pipeline.loading.cache_sync import sync
from pipeline.loading.caching.shard_cache import ShardCache
from pipeline.loading.caching.statistics import CacheStatistics
from pipeline.loading.config import LoaderConfig, shards_at_a_time
from pipeline.loading.decode_samples import SampleDecoder
from pipeline.loading.memory import brief, ran_out
from pipeline.loading.opening import OpenedShards, on_device, open_shards
from pipeline.loading.prefetch import BackgroundIterator, PrefetchReader, Quarantine
from pipeline.loading.sample_cache import SampleCache
from pipeline.loading.sampler import Sampler
from pipeline.loading.split import Split
from pipeline.storage import Location, StrLocation
from pipeline.words import plural

log = logging.getLogger(__name__)
STATE_VERSION, LANES_STATE_VERSION = 2, 3
"""Of the order of a whole set, and of one in lanes: version 2 with a window had windows of another order."""
FIRST_STEPS = 3
"""Batches after whose use the consumer has taken the memory that it needs: CUDA graphs are recorded in these steps."""


class Loader:
    """Iterable over the batches of one epoch, each on the device; iterate again for the next epoch.

    Batches depend on (data, split, seed, epoch, step) alone, and every set comes once an epoch. Each `for` is an epoch
    from its first batch on, also after one that was left early: the one after, unless `set_epoch` has named another.
    `load_state_dict` alone begins within an epoch. A loader has one iteration at a time: an earlier one that is gone on
    with raises `RuntimeError`.

    Batches are made in threads, ahead of whoever takes them and across epochs; leaving an iteration early ends these
    threads. A set whose bytes are not those that were packed is left out, named in `quarantined` and logged.

        with Loader("shards", split="train", batch_size=256, device="cuda") as loader:
            for batch in loader:
                batch.bg, batch.fg_bg, batch.mask, batch.depth  # uint8 [256, 1, 128, 128]
    """

    def __init__(
        self,
        shards: StrLocation,
        split: str = "train",
        config: LoaderConfig | None = None,
        **settings: Any,
    ) -> None:
        """Open a shard directory for reading one `split`: "train", "val", "test", "all" (see `split.Split`).

        `shards` is its folder, or its URL: "s3://bucket/shards", gs://, az://, http(s)://.

        `settings` are fields of `LoaderConfig`; they win over those of `config`, if there is one.

        Raises `InputError` for a setting out of range, a directory that is no shard directory or does not belong
        together, data without the depth that is asked for, planes of another size, a split without sets, and a missing
        device.
        """
        config = replace(config or LoaderConfig(), **settings)
        self._build(open_shards(shards, config), split, config)

    def _build(
        self, opened: OpenedShards, split: str, config: LoaderConfig, picked: NDArray[np.int64] | None = None
    ) -> None:
        """Build all stages that batches pass through; the next batch is the first of epoch 0."""
        shards, collator, options = opened
        manifest, device = shards.manifest, collator.device
        members = Split(shards.index, [shard.sets for shard in manifest.shards], split, picked)
        if not members.count:
            have = f"{plural(manifest.sets, 'set')} on {plural(len(manifest.backgrounds), 'background')}"
            more = "more backgrounds and foregrounds needed"
            raise InputError(f"no set of {shards.location} is in the split {split} ({have}): {more}")
        name = split if picked is None else f"{split}, {len(picked)} rows {zlib.crc32(picked.tobytes()):08x}"
        key = f"{manifest.sha256}/{name}/{config.seed}"
        self._window = shards_at_a_time(config.window, shards.location)
        sampler = Sampler(members.sizes, config.batch_size, key, config.shuffle, self._window)
        quarantine = Quarantine(split, members.count, config.max_bad_share)
        gatherer, cache = Gatherer(options.threads), None
        if config.resident != "off":
            cache = SampleCache(
                manifest.sets, members.count, shards.parts, config.size, device, config.resident,
                config.resident_share, gatherer, deferred=True,
            )  # fmt: skip
        augmenter = Augmenter(config.augmentation, config.seed, device) if config.augmentation else None
        reader = PrefetchReader(
            shards, sampler, members, quarantine, cache, config.rank, config.world, config.local_world, config.readers
        )
        with on_device(device):
            decoder = SampleDecoder(shards, options, collator.backgrounds.any_encoded, quarantine)
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._stages = Stages(reader, decoder, cache, collator, augmenter, gatherer, stream, config.prefetch)
        self._opened, self._members, self._sampler, self._quarantine = opened, members, sampler, quarantine
        self.config, self.manifest, self._split, self._asked = config, manifest, name, (split, picked)
        self._running: BackgroundIterator[DeviceBatch] | None = None
        self._batches_requested = 0  # since the beginning, or since the cache gave its memory back
        # Where the next batch is, of the iteration that runs or that was left, or where it was loaded to be.
        self._epoch, self._step = 0, 0
        self._place_loaded = True
        self._chosen_epoch: int | None = None  # for the next iteration, while one runs
        self._iteration: object | None = None  # the one that runs

    def __reduce__(self) -> tuple[Callable[..., "Loader"], tuple[Any, ...]]:
        """A copy, or what is unpickled, is a loader that opens the shards anew, where this one is in its epoch."""
        return _reopened, (self._opened.reader.location, self.config, *self._asked, self.state_dict())

    def sibling(
        self, split: str, *, shuffle: bool = True, resident: str = "off", picked: NDArray[np.int64] | None = None
    ) -> "Loader":
        """A loader of another split, or of the same, without augmentation and with all else alike.

        With `picked`, rows of that split in ascending order, int64 [N], it yields these alone. It shares open files and
        backgrounds. Raises `InputError` for a split without sets.
        """
        config = replace(self.config, shuffle=shuffle, resident=resident, augmentation=None)
        loader = Loader.__new__(Loader)
        loader._build(self._opened, split, config, picked)
        return loader

    @property
    def epoch(self) -> int:
        """The epoch that the next batch is of, from 0: of the iteration that runs, or else of the next."""
        left_early = self._step and not self._iteration and not self._place_loaded
        return self._next_epoch() if left_early else self._epoch

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return self._stages.collator.device

    @property
    def batch_size(self) -> int:
        """Sets in a global batch."""
        return self.config.batch_size

    @property
    def index(self) -> NDArray[np.void]:
        """All rows of the index, of `manifest.row_type`, mapped: copy what you need of it at once."""
        return self._opened.reader.index

    def rows(self) -> NDArray[np.int64]:
        """Rows of the index of this split's sets, ascending, int64 [sets]."""
        self._opened.reader.check_index()
        return self._members.all_rows()

    @property
    def sets(self) -> int:
        """Sets in this split."""
        return self._sampler.count

    @property
    def quarantined(self) -> list[str]:
        """What is wrong with each set that was left out so far, its key first."""
        return self._quarantine.found

    @property
    def residency(self) -> str | None:
        """How many decoded sets stay, and where, for a user; None where none are asked to."""
        return self._stages.cache.summary() if self._stages.cache else None

    @property
    def cache_statistics(self) -> CacheStatistics | None:
        """What came from the local cache of shards behind a URL, and what from there; None of shards in a folder."""
        storage = self._opened.reader.storage
        return storage.statistics() if isinstance(storage, ShardCache) else None

    def key(self, row: int) -> str:
        """The name of the set at a row of the index."""
        return self._opened.reader.key(row)

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return self._sampler.batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of an epoch; after `load_state_dict`, the rest of the one that was loaded.

        Raises `InputError` if too many sets are damaged or cannot be decoded, or there is no memory for a batch, and
        `RuntimeError` if meanwhile another iteration began or a state was loaded: its batches would be others.
        """
        if self._step and not self._place_loaded:  # one runs, or was left early
            self._move(self._next_epoch())
        this = self._iteration = object()
        self._place_loaded = False
        try:
            last = False
            while not last:
                if this is not self._iteration:
                    raise RuntimeError("another iteration of this loader has begun, or a state was loaded: leave this")
                batch = self._next()
                self._step += 1
                last = self._step == len(self)
                if last:
                    self._move(self._next_epoch())
                yield batch
            self._settle()  # after an epoch too short for that
        except BaseException:  # whoever leaves early may never come back
            if this is self._iteration:
                self._stop()
            raise
        finally:
            if this is self._iteration:
                self._iteration = None

    def _next(self) -> Batch:
        """The next batch. Where there is no memory for it, the cache is given up, and it is begun anew."""
        self._batches_requested += 1
        if self._stages.cache and self._batches_requested > FIRST_STEPS:
            self._stages.cache.allow()
        while True:
            if self._running is None:
                self._running = start_batches(self._stages, self._epoch, self._step)
            try:
                return next(self._running).batch()
            except StopIteration:  # what comes next depends on what the epoch has cached
                self._stop()
                self._settle()
            except Exception as error:
                if not ran_out(error):
                    raise
                what = f"no memory for a batch of {self.batch_size} sets of {self.config.size} pixels"
                what = f"{what} ({brief(error)})"
                if (told := self.release()) is None:
                    raise InputError(f"{what}: ask for fewer sets a batch, or smaller pictures") from error
                log.warning("%s: %s", what, told)

    def _settle(self) -> None:
        """Let the cache take its memory at the end of an epoch, unless it has just been told to give it back."""
        cache = self._stages.cache
        if cache and not cache.settled and (self._batches_requested >= FIRST_STEPS or not cache.released):
            self._stop()
            with torch.cuda.stream(self._stages.stream):
                cache.settle()

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be the whole of `epoch`, from 0, which decides the order of its sets.

        One that runs stays as it is. A place within that epoch that was loaded by `load_state_dict` is kept. Raises
        `InputError` for a number below 0.
        """
        if epoch < 0:
            raise InputError(f"epoch {epoch}: expected 0 or more")
        if self._iteration and self._step:  # one runs, and has not handed out its last batch
            self._chosen_epoch = epoch
        elif epoch != self._epoch or not self._place_loaded:
            self._move(epoch)

    def _next_epoch(self) -> int:
        """The epoch of the iteration after this one."""
        return self._epoch + 1 if self._chosen_epoch is None else self._chosen_epoch

    def _move(self, epoch: int) -> None:
        """Let the next batch be the first of `epoch`."""
        made_ahead = (self._epoch, self._step) if self._step < len(self) else (self._epoch + 1, 0)
        if (epoch, 0) != made_ahead:
            self._stop()
        self._epoch, self._step, self._chosen_epoch = epoch, 0, None

    def release(self) -> str | None:
        """Give back the memory that cached sets take where batches are made, if it has run out; what to tell the user.

        None where they take none. Between any two batches, also within an epoch: those handed out stay valid, and those
        that follow are the same. After FIRST_STEPS more, half the share is taken; after a second call none is.
        """
        if self._stages.cache is None:
            return None
        self._stop()  # batches that were made ahead know where cached sets were
        self._batches_requested = 0
        return self._stages.cache.release()

    def pick(self, rows: Sequence[int]) -> Batch:
        """The sets at these rows of the index (one or more, of any split), in this order; the loader stays where it is.

        Raises `InputError` where one is damaged, or cannot be decoded.
        """
        picked = np.array(rows, dtype=np.int64)
        with on_device(self.device):
            pictures = self._stages.decoder.decode_rows(rows)
            records = self._opened.reader.records(picked)
            return self._stages.collator.collate(picked, records, pictures, Gatherer())

    def sync_cache(self, group: ProcessGroup | None = None) -> None:
        """Let every rank keep what any rank keeps, so that none decodes it again; see `cache_sync.sync`.

        A collective: all ranks call it between the same two batches, best after the first epoch. A loader that keeps
        nothing has nothing to do.
        """
        self._stop()
        if self._stages.cache:
            with torch.cuda.stream(self._stages.stream):
                sync(self._stages.cache, group)

    def close(self) -> None:
        """End all threads and let go of files and connections; iterating begins anew. Letting it go does the same."""
        self._stop()
        self._opened.reader.close()

    def _stop(self) -> None:
        """End the threads that make batches ahead."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def state_dict(self) -> dict[str, int | str]:
        """Where the iteration is that runs, or was left: batches handed out, not those read ahead.

        Plain values, safe to store as JSON.
        """
        return {**self._identity(), "epoch": self._epoch, "position": self._step}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on where another loader was, on any number of ranks: the next iteration is the rest of that epoch.

        Raises `InputError` if that one had other data, another split, seed, batch size or window.
        """
        if state.get("version") == STATE_VERSION and (window := state.get("window")):
            gone = f"loader state has an order in windows of {window} that this fgbg no longer has"
            raise InputError(f"{gone}: start anew, or go on with the fgbg that saved it")
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise InputError(f"loader state has {name} {state.get(name)!r}, this loader {value!r}: use the same")
        epoch, step = state.get("epoch"), state.get("position")
        if type(epoch) is not int or type(step) is not int or epoch < 0 or not 0 <= step < len(self):
            raise InputError(f"loader state is damaged: epoch {epoch}, position {step} of {len(self)}")
        self._stop()
        self._epoch, self._step, self._place_loaded = epoch, step, True
        self._iteration = self._chosen_epoch = None

    def _identity(self) -> dict[str, int | str]:
        return {
            "version": LANES_STATE_VERSION if self._window else STATE_VERSION,
            "manifest": self.manifest.sha256,
            "split": self._split,
            "seed": self.config.seed,
            "batch_size": self.config.batch_size,
            "window": self._window or 0,
        }


def _reopened(
    shards: Location, config: LoaderConfig, split: str, picked: NDArray[np.int64] | None, state: dict[str, int | str]
) -> Loader:
    loader = Loader.__new__(Loader)
    loader._build(open_shards(shards, config), split, config, picked)
    loader.load_state_dict(state)
    return loader
