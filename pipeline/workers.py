"""Worker processes: a function over jobs, results in the order of the jobs, few of them in memory at once."""

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from pipeline.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")


def map_in_order(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Generator[Result, None, None]:
    """Yield `function(job)` for each job, computed in `workers` processes (in this one if that is 1).

    Jobs are taken a few ahead of the results. Closing the generator drops jobs not begun and waits for the others, so
    that nothing is written afterwards; close it (`contextlib.closing`) before cleaning up. Raises what `function`
    raises, and `InputError` if a worker is killed.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    # Fresh interpreters: a fork would copy the locks of whatever threads the caller has.
    pool = ProcessPoolExecutor(workers, get_context("spawn"))
    running: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            running.append(_submit(pool, function, job))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool as error:
        raise InputError("a worker process was killed; is memory short? try fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable[[Job], Result], job: Job) -> "Future[Result]":
    # A terminal sends Ctrl-C to every process. It is ours to handle, so workers are born with it blocked, as they are
    # when jobs are submitted.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, job)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
