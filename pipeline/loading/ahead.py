"""Ahead: draws from an iterator in a thread, a bounded number of items ahead of whoever takes them."""

import atexit
import functools
import threading
from collections.abc import Generator
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
STOP_SEC = 5.0
"""Longest wait for the thread to end: it may hang in a read from storage that does not answer."""


class _End(NamedTuple):
    """Nothing comes any more; `error` says why, if it was one."""

    error: BaseException | None


class BackgroundIterator(Generic[T]):
    """Iterate it for what `source` yields, of which at most `depth` items wait; what `source` raises comes through.

    The source runs, and is closed, in a thread of its own. That ends with `close`, when this object is let go, and
    when the interpreter exits: the thread knows the source but not this object.
    """

    def __init__(self, source: Generator[T, None, None], depth: int) -> None:
        self._items: SimpleQueue[T | _End] = SimpleQueue()
        self._room = threading.Semaphore(depth)
        stopped = threading.Event()
        # A daemon, lest the interpreter wait for it before it has told it, at exit, to end.
        thread = threading.Thread(
            target=_draw, args=(source, self._items, self._room, stopped), name="fgbg-ahead", daemon=True
        )
        self._stop = functools.partial(_stop, stopped, self._room, thread)
        atexit.register(self._stop)  # the last to be registered is the first to be called: before DALI shuts down
        thread.start()

    def __iter__(self) -> "BackgroundIterator[T]":
        return self

    def __next__(self) -> T:
        item = self._items.get()
        if isinstance(item, _End):
            self._items.put(item)  # whoever asks again is told again
            raise item.error or StopIteration
        self._room.release()
        return item

    def close(self) -> None:
        """End the thread and close the source; what waited is lost."""
        atexit.unregister(self._stop)
        self._stop()

    def __del__(self) -> None:
        if hasattr(self, "_stop"):  # or it was interrupted while it was made
            self.close()


def _draw(
    source: Generator[T, None, None],
    items: "SimpleQueue[T | _End]",
    room: threading.Semaphore,
    stopped: threading.Event,
) -> None:
    end = _End(None)
    try:
        while True:
            room.acquire()
            if stopped.is_set():
                break
            items.put(next(source))
    except StopIteration:
        pass
    except BaseException as error:
        end = _End(error)
    finally:
        source.close()
        items.put(end)


def _stop(stopped: threading.Event, room: threading.Semaphore, thread: threading.Thread) -> None:
    stopped.set()
    room.release()
    # The collector runs in any thread; and an interrupt may have come before this one was started.
    if thread.is_alive() and thread is not threading.current_thread():
        thread.join(STOP_SEC)
