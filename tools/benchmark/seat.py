"""What is done with one loader, in a process of its own: it is compared, made, timed and let go."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.devices import torch_device
from pipeline.errors import InputError
from tools.benchmark.pages import drop_pages
from tools.benchmark.reference import Difference, Reference
from tools.benchmark.usage import forget_peak
from tools.measure import DRAINS, Pass, cold_pass, synchronize, warm_pass
from tools.peers.options import Loaded, LoadOptions

Make = Callable[[Path, LoadOptions], Iterable[Loaded]]
QUEUE_BATCHES = 2  # what a worker of a DataLoader has ready, unless told otherwise


class Judged(NamedTuple):
    """What came of the comparison with the reference."""

    difference: Difference
    sets: int
    """Sets in an epoch."""
    background_pixels: float
    """Mean pixels of a background, as stored."""
    other_pixels: float
    """Mean pixels of all other pictures of a set, as stored."""
    delivered_bytes: float
    """Bytes of the pictures of a set, as the loader delivers them."""


class Seat:
    """A loader, and the verbs that its process is told."""

    def __init__(self, make: Make, folder: Path, pictures: Path, options: LoadOptions) -> None:
        """`make` makes the loader of the sets in `folder`; `pictures` holds the same sets, as JPEG or PNG."""
        self._make, self._folder, self._pictures, self._options = make, folder, pictures, options
        self._loader: Iterable[Loaded] | None = None
        self._batches: Iterator[Loaded] = iter(())
        self._closing = False
        self._delivered_bytes = 0

    def judge(self) -> Judged:
        """Compare an epoch with the reference; raise `InputError` if a set is missing or a picture another."""
        reference = Reference(self._pictures, self._options.size)
        difference = reference.compare(self._weighed(self._made()))
        self.close()
        return Judged(difference, reference.sets, *reference.stored_pixels, self._delivered_bytes / reference.sets)

    def open(self) -> float:
        """Make the loader and let it run one epoch; return the seconds to its first batch."""
        forget_peak()
        started_sec, first_sec = time.perf_counter(), 0.0
        loader = self._made()
        for _ in loader:
            if not first_sec:
                synchronize()
                first_sec = time.perf_counter() - started_sec
        self._batches = self._epochs(loader)
        return first_sec

    def _epochs(self, loader: Iterable[Loaded]) -> Iterator[Loaded]:
        while not self._closing:
            yield from loader

    def warm(self, epoch_sets: int) -> Pass:
        """Time an epoch's length of the open loader, from wherever the last pass has left it."""
        ahead = self._options.batch_size * (self._options.prefetch + QUEUE_BATCHES * self._options.workers)
        return warm_pass(self._batches, max(epoch_sets / 2, DRAINS * ahead), epoch_sets)

    def cold(self) -> Pass:
        """Make a loader, time its first epoch with its files out of the page cache, let it go."""
        forget_peak()
        files = self._folder, self._options.cache.expanduser()
        run = cold_pass(self._made, lambda: drop_pages(*files))
        self.close()
        return run

    def close(self) -> None:
        """Let the loader go, with its processes, threads and memory maps."""
        self._closing = True
        for _ in self._batches:  # a DataLoader that is left in the middle of an epoch may see its workers abort
            pass
        close = getattr(self._loader, "close", None)
        if close:
            close()
        self._loader, self._batches = None, iter(())
        gc.collect()  # workers end, and files are unmapped, when nobody holds them any more

    def _made(self) -> Iterable[Loaded]:
        self._closing = False
        self._loader = self._make(self._folder, self._options)
        return self._loader

    def _weighed(self, batches: Iterable[Loaded]) -> Iterator[Loaded]:
        """The same, with their bytes counted; raise `InputError` if they are not where they were asked for."""
        device = torch_device(self._options.device)
        for loaded in batches:
            for pictures in loaded.pictures.values():
                if pictures.device.type != device.type:
                    raise InputError(f"its batches are on {pictures.device}, not on {device}")
                self._delivered_bytes += pictures.nbytes
            yield loaded
