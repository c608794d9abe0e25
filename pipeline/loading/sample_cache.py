"""A cache of decoded sets, on the device or in host memory, from which later epochs gather them by row."""

import logging
import os
from collections.abc import Sequence
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.loading.buffers import Gatherer
from pipeline.loading.memory import available_host_memory

log = logging.getLogger(__name__)

PLACES = ("device", "host")
Pictures = dict[str, torch.Tensor]
"""Decoded parts of sets, by name: uint8 [N, 1, size, size] each."""


class SampleCache:
    """Decoded sets of one split, uint8 and not packed, as many as there is room for; bit for bit what was decoded.

    Memory is taken at the first `keep` that may: a share of what is free then, at most what all sets need. PyTorch
    holds on to the memory of a step, so that after one only what it leaves is free. Until then sets wait in memory of
    their own. One thread at a time calls all of it, but any may `allow`, or ask for slots. On a GPU everything is
    queued on that thread's current stream and nothing waits for it; take a batch before you keep it, since sets on
    their way to the host are waited for by the next `take`.

    Masks are kept as they are: at 128 x 128, 2.9 % of their pixels lie between 0 and 255 (soft edges, after resizing),
    so one bit a pixel would change them. Two bits a pixel and the soft ones apart (4.6 instead of 16 kB a mask) would
    be exact and save 24 % of a set, zstd (0.6 kB) 32 %; but then sets are not of one size, and no copy gathers them.
    """

    def __init__(
        self,
        rows: int,
        sets: int,
        parts: Sequence[str],
        size: int,
        device: torch.device,
        where: str = "auto",
        share: float = 0.6,
        gatherer: Gatherer | None = None,
        *,
        deferred: bool = False,
    ) -> None:
        """Keep up to `sets` sets, of an index of so many `rows`; each has these parts, of `size` x `size` pixels.

        `where` is "device", "host", or "auto": the device if they fit in `share` of its free memory, else the host if
        they fit in `share` of what it has available, else the one that holds more. Without a GPU all of it is the
        host. Ranks on one host divide its memory (LOCAL_WORLD_SIZE, which torchrun sets). Raises `InputError` for
        another `where`, and for a share that is not in 0..1. `gatherer` gathers from host memory. `deferred`: no memory
        is taken before `allow` or `settle`.
        """
        if where not in ("auto", *PLACES):
            raise InputError(f"decoded sets cannot stay in {where!r}: expected auto, {' or '.join(PLACES)}")
        if not 0 < share <= 1:
            raise InputError(f"{share} of the free memory cannot be taken: expected a share above 0, at most 1")
        self.sets, self.parts, self.size = sets, tuple(parts), size
        self.kept = 0
        """Sets that are kept so far; the first `kept` slots are theirs."""
        self.device, self._wanted, self._share = device, where, share
        self._slots = np.zeros(rows, dtype=np.int32)  # slot + 1: zeros take no memory until a row is kept
        self._allowed, self._settled, self._releases = not deferred, False, 0
        self._waiting: list[tuple[NDArray[np.int64], Pictures]] = []
        self._store = torch.empty(self.shape(0), dtype=torch.uint8, device=device)
        self._gatherer = gatherer or Gatherer()
        self._on_the_way: tuple[slice, torch.Tensor, torch.cuda.Event] | None = None

    @property
    def capacity(self) -> int:
        """Sets that there is room for; 0 before memory is allocated (`settle`)."""
        return self._store.shape[1]

    @property
    def settled(self) -> bool:
        """Whether memory was allocated, and the sets that were held back until then are stored."""
        return self._settled

    @property
    def released(self) -> bool:
        """Whether memory was ever given back."""
        return self._releases > 0

    @property
    def where(self) -> str:
        """Where they are, "device" or "host"; without a GPU that is "host"."""
        return "device" if self._store.is_cuda else "host"

    @property
    def holds_all(self) -> bool:
        """Whether there is room for every set of the split."""
        return self.capacity >= self.sets

    @property
    def set_bytes(self) -> int:
        """Memory that a set takes."""
        return len(self.parts) * self.size**2

    def summary(self) -> str:
        """How many sets stay where, for a user."""
        gib = self.kept * self.set_bytes / 2**30
        return f"{self.kept:,} of {self.sets:,} decoded sets stay on the {self.where} ({gib:.1f} GiB)"

    def rows(self) -> NDArray[np.int64]:
        """The rows of the index that are kept, int64 [kept], ascending."""
        return np.flatnonzero(self._slots)

    def slots(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where these rows of the index are kept, int64 [N]; -1 where they are not."""
        return self._slots[rows].astype(np.int64) - 1

    def keep(self, rows: NDArray[np.int64], pictures: Pictures) -> None:
        """Keep a copy of the sets at these rows [N] of the index, uint8 [N, 1, S, S] a part, while there is room.

        A row that is kept already stays as it is; of one that comes twice the first is kept.
        """
        if self._allowed:
            self.settle()
            self._keep(rows, pictures)
        elif len(rows):
            self._waiting.append((rows, {part: pictures[part].clone() for part in self.parts}))

    def allow(self) -> None:
        """Permit allocation at the next `keep`: the network has taken its own memory by now."""
        self._allowed = True

    def settle(self) -> None:
        """Take the memory now, unless that is done, and keep what has waited for it."""
        if self._settled:
            return
        self._allowed = True
        self._allocate()
        for rows, pictures in self._waiting:
            self._keep(rows, pictures)
        self._waiting.clear()
        self._settled = True

    def release(self) -> str | None:
        """Give the device's memory back, because it has run out, and forget all sets; what to tell the user of it.

        None, and nothing is done, where none of it is taken. The first time half the share is taken anew after the next
        `allow` or `settle`; after the second, none is.
        """
        if not self.capacity or self._store.device.type != self.device.type:
            return None
        given = f"the memory of {self.kept:,} decoded sets ({self.capacity * self.set_bytes / 2**30:.1f} GiB)"
        self.kept, self._slots = 0, np.zeros_like(self._slots)
        self._waiting.clear()
        self._store = torch.empty(self.shape(0), dtype=torch.uint8, device=self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # else PyTorch keeps it for itself, where DALI cannot have it
        self._share /= 2
        self._releases += 1
        self._allowed = self._settled = never = self._releases > 1
        later = "and no more stay" if never else f"and later up to {self._share:.0%} of what is free then taken anew"
        return f"{given} is given back, {later}"

    def _keep(self, rows: NDArray[np.int64], pictures: Pictures) -> None:
        self._finish_copy_to_host()
        new = np.flatnonzero(self._slots[rows] == 0)
        _, first = np.unique(rows[new], return_index=True)
        new = new[np.sort(first)][: self.capacity - self.kept]
        if not len(new):
            return
        slots = slice(self.kept, self.kept + len(new))
        copies, memory = [pictures[part] for part in self.parts], list(self._store[:, slots])
        if not copies[0].is_cuda and not self._store.is_cuda:
            self._gatherer.fill(memory, copies, new)
        else:
            if len(new) < len(rows):
                picked = _on(copies[0].device, new)
                copies = [copy.index_select(0, picked) for copy in copies]
            if self._store.is_cuda:
                for part, copy in zip(memory, copies, strict=True):
                    part.copy_(copy, non_blocking=True)
            else:
                self._fetch(slots, copies)
        # Last: where copying failed, nothing is kept.
        self._slots[rows[new]] = np.arange(slots.start, slots.stop) + 1
        self.kept = slots.stop

    def complete(self, slots: NDArray[np.int64], missing: NDArray[np.int64], decoded: Pictures) -> Pictures:
        """The sets at these slots [N]: those at -1 are `decoded`, of the rows `missing`, which are kept from now on."""
        taken = self.take(slots, decoded)  # before `keep`, which may wait for what is on its way to the host
        if decoded:
            self.keep(missing, decoded)
        return taken

    def take(self, slots: NDArray[np.int64], decoded: Pictures) -> Pictures:
        """The sets at these slots [N], and where a slot is -1 the next of `decoded`: uint8 [N, 1, S, S] a part.

        `decoded` has as many sets as there are slots -1. The result is on the device, contiguous, and no memory of
        what is kept; if nothing of it is kept, it is `decoded` itself.
        """
        missing = np.flatnonzero(slots < 0)
        if decoded and len(missing) == len(slots):
            return decoded
        taken = self.gather(np.maximum(slots, 0))
        if len(missing):
            index = _on(self.device, missing)
            for name, out in zip(self.parts, _words(taken), strict=True):
                out.index_copy_(0, index, _words(decoded[name]))
        return dict(zip(self.parts, taken, strict=True))

    def gather(self, slots: NDArray[np.int64]) -> torch.Tensor:
        """The sets at these slots [N], all of them kept, on the device: uint8 [P, N, 1, S, S], the parts in order."""
        self._finish_copy_to_host()
        assert not len(slots) or slots.max() < self.capacity, "slots of sets that were released"  # a GPU would not say
        if not self._store.is_cuda:
            taken = self._gatherer.gather(list(self._store), slots, pinned=self.device.type == "cuda")
            return taken.to(self.device, non_blocking=True)
        taken = torch.empty(self.shape(len(slots)), dtype=torch.uint8, device=self.device)
        index = _on(self.device, slots)
        for part, out in zip(_words(self._store), _words(taken), strict=True):
            torch.index_select(part, 0, index, out=out)
        return taken

    def shape(self, sets: int) -> tuple[int, ...]:
        """The shape of the pictures of so many sets, [P, N, 1, S, S]."""
        return (len(self.parts), sets, 1, self.size, self.size)

    def _allocate(self) -> None:
        """Take the memory: where all sets fit, the device first, else where most do; what fails is tried elsewhere."""
        free = self._free_bytes()
        room = {place: min(self.sets, int(self._share * left) // self.set_bytes) for place, left in free.items()}
        places = sorted(room, key=lambda place: -room[place])  # stable: the device first where all fit in both
        wanted = room[places[0]]
        while not self.capacity and any(room.values()):
            for place in places:
                if room[place] and self._try(place, room[place]):
                    break
                room[place] //= 2
        had = ", ".join(f"{left / 2**30:.1f} GiB free on the {place}" for place, left in free.items())
        size = f"{self.set_bytes * self.sets / 2**30:.1f} GiB"
        what = f"{self.capacity:,} of {self.sets:,} decoded sets ({size} in all) can stay on the {self.where}; {had}"
        if self.capacity < wanted or not wanted:
            log.warning("out of memory: %s; the others are decoded in every epoch", what)
        else:
            log.info("%s", what)
        if not self._store.is_cuda:
            _on_hosts.add(self)

    def _free_bytes(self) -> dict[str, int]:
        """Memory that is free for us, by the places that may be used."""
        free = {}
        if self.device.type == "cuda" and self._wanted != "host":
            free["device"] = torch.cuda.mem_get_info(self.device)[0]
        if self.device.type == "cpu" or self._wanted != "device":
            # Host memory that is promised, but not filled yet, still counts as available.
            promised = sum((other.capacity - other.kept) * other.set_bytes for other in list(_on_hosts))
            free["host"] = max(0, available_host_memory() - promised) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return free

    def _try(self, place: str, sets: int) -> bool:
        device = self.device if place == "device" else torch.device("cpu")
        try:
            self._store = torch.empty(self.shape(sets), dtype=torch.uint8, device=device)
        except (RuntimeError, MemoryError):  # what torch's allocators raise: OutOfMemoryError is a RuntimeError
            return False
        return True

    def _fetch(self, slots: slice, copies: Sequence[torch.Tensor]) -> None:
        """Begin to copy from the device to the host: into pinned memory, since into other memory it would wait."""
        shape = self.shape(slots.stop - slots.start)
        pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        for memory, copy in zip(pinned, copies, strict=True):
            memory.copy_(copy, non_blocking=True)
        self._on_the_way = slots, pinned, torch.cuda.current_stream(self.device).record_event()

    def _finish_copy_to_host(self) -> None:
        """Store the sets whose copy to pinned memory was started with the previous batch; it has long been done."""
        if self._on_the_way:
            slots, pinned, arrived = self._on_the_way
            arrived.synchronize()  # a wait for work that was queued a batch ago, not for what is queued now
            self._store[:, slots].copy_(pinned)
            self._on_the_way = None


_on_hosts = WeakSet[SampleCache]()


def _on(device: torch.device, indices: NDArray[np.int64]) -> torch.Tensor:
    """Indices on a device; from pageable memory the copy would wait for all work on the stream."""
    tensor = torch.from_numpy(indices)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _words(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 [..., 1, S, S] as [..., K] of 8 bytes each where they can be: torch moves elements, not bytes.

    In bytes, scattering takes 5 times as long, and from 182 x 182 pixels on gathering takes 1.7 times as long.
    """
    flat = pictures.flatten(-3)
    return flat.view(torch.int64) if flat.shape[-1] % 8 == 0 else flat
