"""Worker processes: a function over jobs, few of them in memory at once; progress, and how long one waits."""

import errno
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

log = logging.getLogger(__name__)
OTHER_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # whose remedies are others than a /dev/shm
Item = TypeVar("Item")
Job = TypeVar("Job")
Result = TypeVar("Result")


class Progress(NamedTuple):
    """Callbacks by which a long run over the image sets of a source tells how far it is; called now and then."""

    files_found: Callable[[int], None] = lambda total: None
    sets_found: Callable[[int], None] = lambda to_do: None
    sets_done: Callable[[int], None] = lambda more: None


def drawn_ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The same items, of which `depth` have always been drawn before they are asked for: work that was begun, say."""
    drawn = deque[Item]()
    for item in items:
        drawn.append(item)
        if len(drawn) > depth:
            yield drawn.popleft()
    while drawn:
        yield drawn.popleft()


def timed(items: Iterable[Item]) -> Iterator[tuple[Item, float]]:
    """Each item, and the seconds that `next()` took for it."""
    source = iter(items)
    while True:
        asked_sec = time.perf_counter()
        try:
            item = next(source)
        except StopIteration:
            return
        yield item, time.perf_counter() - asked_sec


def available_cores() -> int:
    """CPU cores that this process may use, which under a scheduler are often fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def end_with_parent() -> None:
    """Let this worker die when the process that started it is killed: else it would wait for jobs for ever."""

    def wait() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


class Shared(Generic[Item]):
    """What all jobs of a run have in common, and is large: a cluster gets it once a node, see `ray_workers`."""

    def __init__(self, value: Item) -> None:
        self.value = value


class Workers:
    """A number of processes to work in, started at once; with one, the work is done in this process.

    Leaving the context drops the jobs not begun and waits for the others, so that nothing is written afterwards.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if self._count > 1:
            try:
                # Fresh interpreters: a fork would copy the locks of whatever threads the caller has.
                self._pool = ProcessPoolExecutor(self._count, get_context("spawn"), initializer=end_with_parent)
            except (OSError, ImportError, NotImplementedError) as error:
                if isinstance(error, OSError) and error.errno in OTHER_LIMITS:
                    raise
                log.warning(
                    "no locks between processes (%s): one does all the work; give the machine a /dev/shm", error
                )
                self._count = 1
        for _ in range(self._count if self._count > 1 else 0):
            self._submit(int, 0)  # they start while the caller prepares its jobs
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield `function(job)` for each job, in their order; jobs are taken a few ahead of the results.

        Raises what `function` raises, once no other job is running, and `ChildProcessError` if a process is killed.
        """
        if self._count == 1:
            yield from map(function, jobs)
            return
        running: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                running.append(self._submit(function, job))
                if len(running) > 2 * self._count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except BrokenProcessPool as error:
            running.clear()  # nothing runs any more
            raise ChildProcessError("a worker process was killed; is memory short? try fewer --workers") from error
        finally:
            # A job that is running would else still write where the caller tidies up.
            wait([future for future in running if not future.cancel()])

    def _submit(self, function: Callable[[Job], Result], job: Job) -> "Future[Result]":
        # A terminal sends Ctrl-C to every process. It is ours to handle, so workers are born with it blocked, as they
        # are when jobs are submitted.
        assert self._pool, "jobs for one process are not submitted"
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(function, job)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
