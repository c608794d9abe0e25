"""Workers on a Ray cluster: a job is a Ray task, which Ray gives to another process or node when one is lost.

Every node has fgbg installed, and sees the folders that jobs read and write under the same paths. A job may run twice,
even at the same time, where a node seemed lost: what it writes appears whole, and is the same each time.
"""

import functools
import io
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import ModuleType, TracebackType
from typing import Any
from uuid import uuid4

from pipeline.ray_cluster import ClusterError, code_version, connected, node_name, one_line, require_same_code
from pipeline.resume import set_elsewhere
from pipeline.workers import Job, Result, Shared, Workers

MAX_RETRIES = 10
"""Of a job whose process or node was lost: preempted nodes are many, and a job that kills its process has an end."""
STOP_SEC = 60.0


class RayWorkers(Workers):
    """As `Workers`, on the Ray cluster of RAY_ADDRESS; see there. `count` jobs run at once, or one a core of it."""

    def __init__(self, count: int | None) -> None:
        self._count = count or 0
        self._connection = ExitStack()

    def __enter__(self) -> "RayWorkers":
        self._ray = self._connection.enter_context(connected())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.__exit__(kind, error, trace)

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """See `Workers.map`. Raises `ClusterError` for a job that has lost its process or node again and again."""
        sent, running = deque[Any](), list[Any]()
        task = _task(self._ray, function.__name__)
        parcels = _Parcels(self._ray)
        try:
            for job in jobs:
                reference = task.remote(code_version(), *parcels.pack(function, job))
                sent.append(reference)
                running.append(reference)
                while len(running) >= self._at_once() or len(sent) > 2 * self._at_once():
                    _, running = self._ray.wait(running)
                    yield from self._finished(sent, running)
            while sent:
                _, running = self._ray.wait(running)
                yield from self._finished(sent, running)
        finally:
            self._stop(running)

    def _at_once(self) -> int:
        """Jobs that may be with the cluster: without a limit, as many again wait there as it has cores just now."""
        return self._count or max(2, 2 * int(self._ray.cluster_resources().get("CPU", 0)))

    def _finished(self, sent: deque[Any], running: list[Any]) -> Iterator[Any]:
        """The results of those sent first that are no longer running."""
        while sent and sent[0] not in running:
            yield result_of(self._ray, sent.popleft())

    def _stop(self, running: list[Any]) -> None:
        # A job that is running would else still write where the caller tidies up.
        if running and self._ray.is_initialized():
            for reference in running:
                self._ray.cancel(reference)
            self._ray.wait(running, num_returns=len(running), timeout=STOP_SEC)


def result_of(ray: ModuleType, reference: Any) -> Any:
    """The result of a job that has ended; raises what the job raised, and `ClusterError` for what the cluster did."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ImportError) and (cause.name or "").partition(".")[0] == "pipeline":
            raise ClusterError("a node of the Ray cluster has no fgbg: install the same on every node") from error
        raise cause from error
    except ray.exceptions.WorkerCrashedError as error:
        why = f"the same job has lost its process or its node {MAX_RETRIES + 1} times"
        raise ClusterError(f"{why}; is memory short? try fewer --workers") from error
    except ray.exceptions.OutOfMemoryError as error:
        raise ClusterError("memory is short on a node of the Ray cluster: try fewer --workers") from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the Ray cluster has failed: {one_line(error)}") from error


def _task(ray: ModuleType, name: str) -> Any:
    def run(code: str, parcel: bytes, shared: list[Any]) -> Any:  # goes to nodes as it is: they may have no fgbg
        from pipeline.ray_workers import run_job

        return run_job(code, parcel, shared)

    options = {"num_cpus": 1, "max_retries": MAX_RETRIES, "scheduling_strategy": "SPREAD", "name": name}
    return ray.remote(**options)(run)


class _Parcels:
    """Packs jobs as bytes. What is `Shared` is put into the cluster's memory once, from which each node copies it."""

    def __init__(self, ray: ModuleType) -> None:
        self._put = functools.cache(lambda shared: (uuid4().hex, ray.put(shared.value)))

    def pack(self, function: Callable[[Job], Result], job: Job) -> tuple[bytes, list[Any]]:
        """A parcel for `run_job`, and the references to what it shares with others."""
        content, references, put = io.BytesIO(), list[Any](), self._put

        class Pickler(pickle.Pickler):
            def persistent_id(self, value: object) -> tuple[str, int] | None:
                if not isinstance(value, Shared):
                    return None
                key, reference = put(value)
                references.append(reference)
                return key, len(references) - 1

        Pickler(content, pickle.HIGHEST_PROTOCOL).dump((function, job))
        return content.getvalue(), references


@functools.lru_cache(maxsize=2)
def _received(key: str) -> Shared[Any]:
    """What a run shares; filled by the first of its jobs in this process."""
    return Shared(None)


def run_job(code: str, parcel: bytes, references: list[Any]) -> Any:
    """Do a job, in a process of a node. A failing file operation tells where it was."""
    require_same_code(code)
    import ray

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: tuple[str, int]) -> Shared[Any]:
            shared = _received(pid[0])
            if shared.value is None:
                shared.value = ray.get(references[pid[1]])
            return shared

    set_elsewhere(f"{node_name()}-{os.getpid()}")
    function, job = Unpickler(io.BytesIO(parcel)).load()
    try:
        return function(job)
    except OSError as error:
        if not isinstance(error, ClusterError):
            error.add_note(f"on node {node_name()}, which must see the same folders under the same paths as all others")
        raise
