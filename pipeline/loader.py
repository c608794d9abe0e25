"""The loader: joins order, store, decoder and bank; yields batches on the device and remembers where it is."""

import copy
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bank import Bank
from pipeline.batch import Batch
from pipeline.decode import DecodeOptions, Decoder, Encoded, Table, Undecodable, torch_device
from pipeline.depth import depth_table
from pipeline.errors import InputError
from pipeline.inflate import PlaneDecoder
from pipeline.order import Order
from pipeline.planes import PLANES
from pipeline.split import split_rows
from pipeline.store import Damaged, Store
from pipeline.workers import available_cores

log = logging.getLogger(__name__)
STATE_VERSION = 1


class Loader:
    """Iterate it for the rest of the current epoch; iterate again for the next. Every set comes once an epoch.

    Batches depend on (data, split, seed, epoch, position) alone. `batch_size` is the global batch, of which each of
    `world` ranks gets its share (which may be empty in the last batch of an epoch). A set whose bytes are not those
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
        threads: int | None = None,
        prefetch: int = 2,
        max_bad_share: float = 0.01,
    ) -> None:
        """Open shards for reading; `size` in pixels, `device` "gpu" or "cpu".

        Without `depth`, no byte of it is read (of planes: none is handed on) and batches have none, whether the data
        have it or not. `threads` are those that decode (default: one a core); when more than `max_bad_share` of the
        split's sets are damaged the run stops.
        Raises `InputError` for a directory that is no shard directory or does not belong together, data without the
        depth that is asked for, planes of another size, a split without sets, settings out of range, and a missing
        device.
        """
        if not (batch_size >= world > rank >= 0 and size > 0 and prefetch > 0):
            got = f"batch size {batch_size}, rank {rank} of {world}, size {size}, prefetch {prefetch}"
            raise InputError(f"{got}: expected 0 <= rank < world <= batch size, and the others above 0")
        self._store = Store.open(shards, depth=depth)
        self.manifest = self._store.manifest
        if depth and "depth" not in self._store.parts:
            add = f"add it (fgbg-depth {shards} --model FILE.onnx --shards NEW)"
            raise InputError(f"the sets of {shards} have no depth: {add}, or train the mask alone (--no-depth)")
        self._planes = self.manifest.codec == PLANES
        if self._planes and size != (stored := self.manifest.plane_size):
            held = f"{shards} holds planes of {stored} x {stored} pixels, size {size} was asked for"
            raise InputError(f"{held}: ask for {stored}, or pack again with --size {size}")
        self._device = torch_device(device)
        self.batch_size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._max_bad_share = max_bad_share
        self._options = DecodeOptions(-(-batch_size // world), size, device, threads or available_cores(), prefetch)
        self._tables: dict[str, Table] = dict.fromkeys(self._store.parts)
        if depth:
            self._tables["depth"] = depth_table(self.manifest.depth_encoding, self.manifest.depth_near)
        self._start(split, shuffle)
        self._bank = Bank(self._store, self._options)

    def _start(self, split: str, shuffle: bool) -> None:
        """Stand before the first batch of a split; raise `InputError` if it is empty."""
        self._rows = split_rows(self._store.index["bg"], self._store.index["fg"], split)
        if not len(self._rows):
            have = f"{self.manifest.sets:,} sets on {len(self.manifest.backgrounds)} backgrounds"
            raise InputError(
                f"no set of {self._store.shards} is in the split {split} ({have}): "
                f"more backgrounds and foregrounds needed"
            )
        self._split = split
        self._order = Order(len(self._rows), self.batch_size, f"{self.manifest.sha256}/{split}/{self._seed}", shuffle)
        self._bad: dict[int, str] = {}
        self._decoder = self._new_decoder(self._options)
        self.epoch = 0
        self._position = 0

    def _new_decoder(self, options: DecodeOptions) -> Decoder | PlaneDecoder:
        """A decoder of what is stored."""
        if self._planes:
            return PlaneDecoder(tuple(self._tables), len(self.manifest.parts), options)
        return Decoder(self._tables, options)

    def sibling(self, split: str, *, shuffle: bool = True) -> "Loader":
        """A loader of another split, or of the same, with all else alike; it shares open files and backgrounds.

        Raises `InputError` for a split without sets.
        """
        other = copy.copy(self)
        other._start(split, shuffle)
        return other

    @property
    def sets(self) -> int:
        """Sets in this split."""
        return len(self._rows)

    @property
    def quarantined(self) -> list[str]:
        """What is wrong with each set that was left out so far, its key first."""
        return list(self._bad.values())

    def key(self, row: int) -> str:
        """The name of the set at a row of the index."""
        return self._store.key(row)

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return self._order.batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch.

        Raises `InputError` if too many sets are damaged, or one cannot be decoded.
        """
        in_flight: deque[NDArray[np.int64]] = deque()
        try:
            for pictures in self._decoder.decode(self._read_ahead(in_flight)):
                rows = in_flight.popleft()
                self._position += 1
                if self._position == len(self):
                    self.epoch, self._position = self.epoch + 1, 0
                yield self._batch(rows, pictures)
        except Undecodable as error:
            raise self._name_undecodable(np.concatenate(in_flight), error) from error

    def _batch(self, rows: NDArray[np.int64], pictures: dict[str, torch.Tensor]) -> Batch:
        """The pictures of these rows of the index, without those that stand in, and what else a batch has."""
        places = torch.from_numpy(np.stack([rows, self._bank.positions(rows)]))
        if self._device.type == "cuda":
            places = places.pin_memory()  # from pageable memory the copy would wait for all work on the stream
        index, background = places.to(self._device, non_blocking=True)
        parts = {part: picture[: len(rows)] for part, picture in pictures.items()}
        bg = self._bank.pictures.index_select(0, background)
        if self._planes:
            parts["fg_bg"] += bg  # they hold what differs from it
        return Batch(bg, parts["fg_bg"], parts["mask"], parts.get("depth"), index)

    def pick(self, rows: Sequence[int]) -> Batch:
        """The sets at these rows of the index (one or more, of any split), in this order; the loader stays where it is.

        Raises `InputError` where one is damaged, or cannot be decoded.
        """
        picked = np.array(rows, dtype=np.int64)
        decoder = self._new_decoder(replace(self._options, batch_size=len(rows), prefetch=1))
        try:
            sets = [self._store.read(row) for row in rows]
            [pictures] = decoder.decode(iter([[list(part) for part in zip(*sets, strict=True)]]))
        except Damaged as damage:
            raise InputError(f"{damage}: copy it again") from damage
        except Undecodable as error:
            raise self._name_undecodable(picked, error) from error
        return self._batch(picked, pictures)

    def _name_undecodable(self, rows: NDArray[np.int64], error: Undecodable) -> InputError:
        """Find the first of some sets that cannot be decoded, one at a time, since DALI does not tell."""
        decoder = "zstd" if self._planes else "DALI"
        alone = self._new_decoder(replace(self._options, batch_size=1, prefetch=1))
        good = 0
        try:
            for _ in alone.decode([[part] for part in self._store.read(row)] for row in rows.tolist()):
                good += 1
        except Undecodable as reason:
            error = reason
            where = f"set {self._store.key(rows[good])} in {self._store.shard_name(rows[good])}"
            remedy = "leave it out and pack again with --verify decode"
            return InputError(f"{decoder} cannot decode {where}: {remedy} ({error})")
        return InputError(f"{decoder} failed once on a batch of sets that it can decode one by one: {error}")

    def _read_ahead(self, in_flight: deque[NDArray[np.int64]]) -> Iterator[Encoded]:
        """Read the shares of the epoch's remaining batches, telling in `in_flight` which rows each of them holds."""
        epoch = self.epoch
        for number in range(self._position, len(self)):
            rows, encoded = list[int](), Encoded([] for _ in self._store.members)
            for row in self._rows[self._order.batch(epoch, number, self._rank, self._world)].tolist():
                try:
                    parts = self._store.read(row)
                except Damaged as damage:
                    self._quarantine(row, damage)
                    continue
                rows.append(row)
                for part, content in zip(encoded, parts, strict=True):
                    part.append(content)
            in_flight.append(np.array(rows, dtype=np.int64))
            # DALI knows no empty batch: a picture stands in, which _batch cuts off again.
            yield encoded if rows or self._planes else [[self._bank.any_encoded] for _ in encoded]

    def _quarantine(self, row: int, damage: Damaged) -> None:
        if row not in self._bad:
            self._bad[row] = str(damage)
            log.warning("left out %s", damage)
        if len(self._bad) > self._max_bad_share * len(self._rows):
            shards = [self._store.shard_name(bad) for bad in self._bad]
            worst = max(sorted(set(shards)), key=shards.count)
            raise InputError(
                f"{len(self._bad)} of {len(self._rows):,} sets (split {self._split}) are damaged, "
                f"at most {self._max_bad_share:.1%} may be; "
                f"{shards.count(worst)} of them in {worst} (the last: {damage}): copy it again, or allow more"
            )

    def state_dict(self) -> dict[str, int | str]:
        """Where the loader is: batches handed out, not those read ahead. Plain values, safe to store as JSON."""
        return {**self._identity(), "epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on where another loader was, on any number of ranks.

        Raises `InputError` if that one had other data, another split, seed or batch size.
        """
        expected = self._identity()
        for name, value in expected.items():
            if state.get(name) != value:
                raise InputError(f"loader state has {name} {state.get(name)!r}, this loader {value!r}: use the same")
        self.epoch, self._position = int(state["epoch"]), int(state["position"])

    def _identity(self) -> dict[str, int | str]:
        return {
            "version": STATE_VERSION,
            "manifest": self.manifest.sha256,
            "split": self._split,
            "seed": self._seed,
            "batch_size": self.batch_size,
        }
