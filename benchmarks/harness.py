"""The harness: one loader in a process of its own, which verifies and times it when it is told, and stops in between.

So memory, CPU time, bytes read and threads of one loader are nobody else's, and none works while another is timed.
"""

import functools
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from operator import attrgetter
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import nvidia.dali
import psutil
import torch
from PIL import Image

from pipeline.devices import torch_device
from pipeline.errors import InputError
from pipeline.format.depth import depth_table
from pipeline.format.images import decode_gray
from pipeline.format.sample import PARTS
from pipeline.loading.shard_reader import ShardReader
from tools.bench_loader import LoadOptions, drop_pages
from tools.measure import Pass, TimedLoader, process_tree

COMPARED_SETS = 256
# Levels of 255, against Pillow's gray decode and antialiased resize. Decoders round differently, and at the border
# DALI's filter repeats the edge where Pillow's leaves the outside out; a wrong picture, a missing antialiasing or a
# resize before the depth table are far outside.
MEAN_TOLERANCE, P999_TOLERANCE = 0.6, 8
END_SEC = 2.0
STILL = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)


class Loaded(NamedTuple):
    """A batch of any loader."""

    sets: int
    keys: Callable[[], list[str]]
    """Asked when pictures are verified, and not while the clock runs."""
    pictures: dict[str, torch.Tensor]
    """For each part [sets, 1 or 3, size, size], uint8 0..255 or float32 0..1."""


Make = Callable[[Path, LoadOptions], Iterable[Loaded]]
"""Makes a loader of the sets in a folder, an iteration of which is an epoch."""


class Difference(NamedTuple):
    """How far a loader's pictures are from the reference, in levels of 255."""

    mean: float
    p999: float
    max: float


class Verified(NamedTuple):
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


class Reference:
    """The slow, obvious loader: Pillow decodes to gray, looks depth up in the table and resizes."""

    def __init__(self, shards: Path, size: int) -> None:
        self._reader = ShardReader.open(shards)
        self._rows = {key.decode(): row for row, key in enumerate(self._reader.index["key"].tolist())}
        self._table = depth_table(self._reader.manifest.depth_encoding, self._reader.manifest.depth_near)
        self._size = size
        self._stored_pixels: list[tuple[int, int]] = []

    @property
    def stored_pixels(self) -> tuple[float, float]:
        """Mean pixels, as stored, of a background and of all other pictures of a set, of the sets compared so far."""
        background, others = np.mean(self._stored_pixels, axis=0).tolist()
        return background, others

    @property
    def sets(self) -> int:
        """Sets in an epoch."""
        return len(self._rows)

    def compare(self, batches: Iterable[Loaded]) -> Difference:
        """Check a whole epoch: every key once, and the pictures of the first sets; raise `InputError` if not."""
        keys, differences = list[str](), list[np.ndarray]()
        for loaded in batches:
            batch_keys = loaded.keys()
            for sample, key in enumerate(batch_keys[: max(0, COMPARED_SETS - len(keys))]):
                expected = self._pictures(key)
                for part, pictures in loaded.pictures.items():
                    found = torch.as_tensor(pictures[sample, 0]).cpu().float()
                    found = found * 255 if pictures.dtype == torch.float32 else found
                    differences.append(np.abs(found.numpy() - expected[part]).ravel())
            keys += batch_keys
        if sorted(keys) != sorted(self._rows):
            raise InputError(f"an epoch gave {len(keys):,} sets, {len(set(keys)):,} of them different; the shards hold "
                             f"{len(self._rows):,}")  # fmt: skip
        levels = np.concatenate(differences)
        difference = Difference(float(levels.mean()), float(np.quantile(levels, 0.999)), float(levels.max()))
        if difference.mean > MEAN_TOLERANCE or difference.p999 > P999_TOLERANCE:
            raise InputError(f"the pictures differ by {difference} levels: more than {MEAN_TOLERANCE} in the mean or "
                             f"{P999_TOLERANCE} in 99.9 % of the pixels")  # fmt: skip
        return difference

    def _pictures(self, key: str) -> dict[str, np.ndarray]:
        row = self._rows[key]
        background = self._reader.read_background(int(self._reader.index["bg"][row]))
        grays = [decode_gray(data.tobytes()) for data in (background, *self._reader.read(row))]
        self._stored_pixels.append((grays[0].size, sum(gray.size for gray in grays[1:])))
        grays[3] = self._table[grays[3]]
        resized = [Image.fromarray(gray).resize((self._size,) * 2, Image.Resampling.BILINEAR) for gray in grays]
        return dict(zip(("bg", *PARTS), (np.asarray(picture, dtype=np.float32) for picture in resized), strict=True))


class Harness(TimedLoader):
    """What is done with the loader in its process: it is verified, opened, timed and closed."""

    def __init__(self, make: Make, folder: Path, pictures: Path, options: LoadOptions) -> None:
        """`make` makes the loader of the sets in `folder`; `pictures` holds the same sets, as JPEG or PNG."""
        files = functools.partial(drop_pages, folder, options.cache.expanduser())
        super().__init__(functools.partial(make, folder, options), attrgetter("sets"), options.ahead_sets, files)
        self._pictures, self._options, self._delivered_bytes = pictures, options, 0

    def verify(self) -> Verified:
        """Compare an epoch with the reference; raise `InputError` if a set is missing or a picture another."""
        reference = Reference(self._pictures, self._options.size)
        difference = reference.compare(self._weighed(self.made()))
        self.close()
        return Verified(difference, reference.sets, *reference.stored_pixels, self._delivered_bytes / reference.sets)

    def _weighed(self, batches: Iterable[Loaded]) -> Iterator[Loaded]:
        """The same, with their bytes counted; raise `InputError` if they are not where they were asked for."""
        device = torch_device(self._options.device)
        for loaded in batches:
            for pictures in loaded.pictures.values():
                if pictures.device.type != device.type:
                    raise InputError(f"its batches are on {pictures.device}, not on {device}")
                self._delivered_bytes += pictures.nbytes
            yield loaded


class Worker:
    """The process of a `Harness`, and its methods from here. Leave the context: then no process of it is left.

    Each method lets the process go on, waits for its answer and stops it again. They raise `InputError`, one line that
    names the loader, for what the method raised there and for a process that died.
    """

    def __init__(self, name: str, make: Make, folder: Path, pictures: Path, options: LoadOptions) -> None:
        """Arguments as of `Harness`; `make` is a function that another process can import."""
        self._name = name
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, folder, pictures, options))
        # A terminal sends Ctrl-C to every process of the foreground. It is ours to handle; it is born with it blocked.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process.pid is not None
        return self._process.pid

    def verify(self) -> Verified:
        """`Harness.verify`."""
        verified: Verified = self._ask("verify")
        return verified

    def open(self) -> float:
        """`TimedLoader.open`."""
        return float(self._ask("open"))

    def warm(self, epoch_sets: int) -> Pass:
        """`TimedLoader.warm`."""
        run: Pass = self._ask("warm", epoch_sets)
        return run

    def cold(self) -> Pass:
        """`TimedLoader.cold`."""
        run: Pass = self._ask("cold")
        return run

    def close(self) -> None:
        """`TimedLoader.close`."""
        self._ask("close")

    def _ask(self, method: str, *arguments: object) -> Any:
        self._signal(signal.SIGCONT)
        try:
            self._pipe.send((method, arguments))
            wait([self._pipe, self._process.sentinel])
            good, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise InputError(f"loader {self._name}: its process {self._how_it_ended()}") from None
        if not good:
            raise InputError(f"loader {self._name}: {answer}")
        self._stop()
        return answer

    def _stop(self) -> None:
        """Let it stand still: whatever polls, keeps alive or goes on by itself costs the others nothing."""
        self._signal(signal.SIGSTOP)
        until_sec = time.monotonic() + END_SEC
        while self._moves() and time.monotonic() < until_sec:
            time.sleep(0.001)

    def _moves(self) -> bool:
        """Whether it, or a process that it started, has neither ended nor been stopped."""
        with suppress(psutil.Error):  # it may end meanwhile
            return any(process.status() not in STILL for process in process_tree(self.pid))
        return False

    def _how_it_ended(self) -> str:
        wait([self._process.sentinel], END_SEC)
        self._signal(signal.SIGKILL)  # what it has started, before its number can be another's
        self._process.join()
        code = self._process.exitcode or 0
        if code == -signal.SIGKILL:
            return "was killed; is memory short? try fewer --workers"
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it started; it leads a group of its own, once it runs."""
        with suppress(ProcessLookupError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with suppress(OSError):
                self._signal(signal.SIGCONT)
                self._pipe.send(None)
            wait([self._process.sentinel], END_SEC)
        self._signal(signal.SIGKILL)
        self._process.join()
        self._process.close()
        self._pipe.close()


def _serve(pipe: Connection, make: Make, folder: Path, pictures: Path, options: LoadOptions) -> None:
    """The process: answer each (method of `Harness`, arguments) with (True, result) or (False, line), until None."""
    # Not a session of its own: the kernel wakes and ends a stopped group whose parent, in the same session, is killed.
    os.setpgid(0, 0)
    Thread(target=_end_with_parent, daemon=True).start()
    if options.device == "gpu":
        torch.zeros(1, device="cuda")  # a start that all need alike, and no part of the time to the first batch
    assert nvidia.dali  # likewise
    harness = Harness(make, folder, pictures, options)
    while (request := pipe.recv()) is not None:
        method, arguments = request
        try:
            answer = True, getattr(harness, method)(*arguments)
        except (InputError, OSError) as error:
            answer = False, str(error)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = " ".join(str(error).split())
            answer = False, f"{type(error).__name__}: {line} ({Path(where.filename).name}:{where.lineno})"
        pipe.send(answer)
    harness.close()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os.killpg(0, signal.SIGKILL)
