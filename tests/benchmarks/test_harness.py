import functools
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Timer

import psutil
import pytest

from benchmarks.harness import Harness, Loaded, Worker
from benchmarks.peers import Ours
from pipeline.errors import InputError
from tools.bench_loader import LoadOptions

OPTIONS = LoadOptions(batch_size=32, size=16, device="cpu", workers=1)


class Strange:
    """A loader that does what the name of its folder says, and has a child as DataLoader has workers."""

    def __init__(self, folder: Path) -> None:
        self.verb = folder.name
        self.child = psutil.Popen(["sleep", "1000"])

    def __iter__(self) -> Iterator[Loaded]:
        if self.verb == "raises":
            raise ZeroDivisionError("two\nlines")
        if self.verb == "dies":
            os._exit(3)
        if self.verb == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        while self.verb == "never ends":
            time.sleep(0.01)
        yield from [Loaded(50, list, {})] * 2


def strange(folder: Path, options: LoadOptions) -> Iterable[Loaded]:
    return Strange(folder)


def worker(verb: str) -> Worker:
    return Worker("odd", strange, Path(verb), Path(verb), OPTIONS)


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("raises", r"^loader odd: ZeroDivisionError: two lines \(test_harness.py:\d+\)$"),
        ("dies", "^loader odd: its process ended with exit code 3$"),
        ("is killed", "^loader odd: its process was killed; is memory short"),
    ],
)
def test_a_loader_that_fails_is_one_line(verb: str, message: str) -> None:
    with worker(verb) as one, pytest.raises(InputError, match=message):
        one.open()


def test_it_stands_still_while_it_is_not_asked() -> None:
    with worker("works") as one:
        assert one.open() > 0
        process = psutil.Process(one.pid)
        [child] = process.children()
        assert (process.status(), child.status()) == (psutil.STATUS_STOPPED, psutil.STATUS_STOPPED)
        assert one.warm(100).sets == 100
        assert process.status() == psutil.STATUS_STOPPED
    assert not process.is_running()
    assert ended(child)


def ended(process: psutil.Process) -> bool:
    """Whether a process that was killed is gone, or soon will be: a signal is on its way when it is sent."""
    until_sec = time.monotonic() + 10
    while time.monotonic() < until_sec:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_an_interrupt_ends_all_its_processes() -> None:
    one = worker("never ends")
    # When it has started its child it is at work.
    process = psutil.Process(one.pid)

    def interrupt() -> None:
        while not process.children():
            time.sleep(0.01)
        found.extend(process.children())
        os.kill(os.getpid(), signal.SIGINT)

    found = list[psutil.Process]()
    timer = Timer(0, interrupt)
    # What a shell puts into the background is born with Ctrl-C ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), one:
            timer.start()
            one.open()
        timer.join()
    finally:
        signal.signal(signal.SIGINT, former)
    assert not process.is_running()
    assert all(map(ended, found))
    assert found


# --- pictures


class Wrong:
    """Our loader with a fault."""

    def __init__(self, shards: Path, options: LoadOptions, fault: str) -> None:
        self._batches, self._fault = Ours(shards, options), fault

    def __iter__(self) -> Iterator[Loaded]:
        for batch in self._batches:
            masks, keys = batch.pictures["mask"], batch.keys()
            if self._fault == "paired by position":
                yield batch._replace(pictures={**batch.pictures, "mask": masks.roll(1, 0)})
            elif self._fault == "one set twice":
                yield batch._replace(keys=functools.partial(list, [keys[0], *keys[:-1]]))
            elif self._fault == "elsewhere":
                yield batch._replace(pictures={**batch.pictures, "mask": masks.to("meta")})
            else:
                yield batch._replace(pictures={**batch.pictures, "depth": 255 - batch.pictures["depth"]})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("paired by position", "^the pictures differ by"),
        ("one set twice", "^an epoch gave 100 sets, 96 of them different; the shards hold 100"),
        ("depth upside down", "^the pictures differ by"),
        ("elsewhere", "^its batches are on meta, not on cpu"),
    ],
)
def test_a_loader_that_is_wrong_is_refused(fault: str, message: str, packed: Path) -> None:
    with pytest.raises(InputError, match=message):
        Harness(functools.partial(Wrong, fault=fault), packed, packed, OPTIONS).verify()


def test_what_was_verified_tells_what_a_set_is(packed: Path) -> None:
    verified = Harness(Ours, packed, packed, OPTIONS).verify()
    assert verified.sets == 100
    assert (verified.background_pixels, verified.other_pixels) == (48 * 48, 3 * 48 * 48)
    assert verified.delivered_bytes == 4 * 16 * 16
    assert verified.difference.mean <= 0.6
