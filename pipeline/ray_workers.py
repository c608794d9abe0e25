"""Workers on a Ray cluster: a job is a Ray task, which Ray gives to another process or node when one is lost.

Every node has fgbg installed, and sees the folders that jobs read and write under the same paths. A job may run twice,
even at the same time, where a node seemed lost: what it writes appears whole, and is the same each time.
"""

import functools
import io
import logging
import os
import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Generic, TypeVar
from uuid import uuid4

from pipeline.errors import MachineError
from pipeline.ray_cluster import ClusterError, code_version, connected, node_name, one_line, require_same_code
from pipeline.resume import set_elsewhere
from pipeline.workers import Job, Result, Shared, Workers

MAX_RETRIES = 10
"""Of a job whose process or node was lost: preempted nodes are many, and a job that kills its process has an end."""
STOP_SEC = 600.0
WAITING = 2
MOST_CORES = 8
"""That an actor with a GPU has for decoding and encoding."""
NO_JOB = -1
LOST = "the same job has lost its process or its node {} times; is memory short? try fewer --workers"
State = TypeVar("State")
log = logging.getLogger(__name__)


class ActorLostError(Exception):
    """An actor, or its node, was lost."""


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
        task, parcels = _task(self._ray, function.__name__), _Parcels(self._ray)
        try:
            for job in jobs:
                reference = task.remote(*parcels.pack(function, job))
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
        """Jobs that may be with the cluster: without a limit, a few more than it has cores just now."""
        return self._count or WAITING + int(self._ray.cluster_resources().get("CPU", 0))

    def _finished(self, sent: deque[Any], running: list[Any]) -> Iterator[Any]:
        """The results of those sent first that are no longer running."""
        while sent and sent[0] not in running:
            yield result_of(self._ray, sent.popleft())

    def _stop(self, running: list[Any]) -> None:
        # A job that is running would else still write where the caller tidies up. They are not cancelled: Ray 2.60 ends
        # the whole process now and then where it cancels a task that is just beginning or ending.
        if running and self._ray.is_initialized():
            self._ray.wait(running, num_returns=len(running), timeout=STOP_SEC)


def result_of(ray: ModuleType, reference: Any) -> Any:
    """The result of a job that has ended; raises what the job raised, and `ClusterError` for what the cluster did."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ImportError) and (cause.name or "").partition(".")[0] == "pipeline":
            raise ClusterError("a node of the Ray cluster has no fgbg: install the same on every node") from error
        if isinstance(cause, ImportError):
            found = f"a node of the Ray cluster lacks a library ({one_line(cause)})"
            raise ClusterError(f"{found}: install the same on every node") from error
        raise cause from error
    except ray.exceptions.WorkerCrashedError as error:
        raise ClusterError(LOST.format(MAX_RETRIES + 1)) from error
    except ray.exceptions.RayActorError as error:
        raise ActorLostError(one_line(error)) from error
    except ray.exceptions.OutOfMemoryError as error:
        raise ClusterError("memory is short on a node of the Ray cluster: try fewer --workers") from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the Ray cluster has failed: {one_line(error)}") from error


def _task(ray: ModuleType, name: str) -> Any:
    def run(*parcel: Any) -> Any:  # it goes to nodes as it is: they may have no fgbg
        from pipeline.ray_workers import run_job

        return run_job(*parcel)

    options = {"num_cpus": 1, "max_retries": MAX_RETRIES, "scheduling_strategy": "SPREAD", "name": name}
    return ray.remote(**options)(run)


Parcel = tuple[str, str, bytes, list[Any]]
"""The sender's `code_version` and working folder, function and job, and references to what is shared."""


class RayActors(Generic[State]):
    """Processes of a Ray cluster that keep something for their jobs, such as a network on a GPU; see `RayWorkers`.

    An actor that is lost is replaced, and its job given to another one. It has one GPU, where the cluster has any.
    """

    def __init__(self, count: int | None, accelerator: str | None) -> None:
        """`count`: None: one a GPU, or one a core; `accelerator`: Ray's `accelerator_type`, None: any."""
        self._count, self._accelerator = count, accelerator
        self._connection = ExitStack()
        self._actors = list[Any]()

    def __enter__(self) -> "RayActors[State]":
        self._ray = self._connection.enter_context(connected())
        resources = self._ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        self.on_gpu = bool(gpus or self._accelerator)
        self.cores = max(1, min(MOST_CORES, cores // gpus)) if gpus else 1
        """Of each actor."""
        self._count = self._count or gpus or cores or 1
        options: dict[str, Any] = {"num_cpus": self.cores, "num_gpus": int(self.on_gpu), "max_restarts": 0}
        if self._accelerator:
            options["accelerator_type"] = self._accelerator
            if f"accelerator_type:{self._accelerator}" not in resources:
                log.warning("no node of the Ray cluster has an accelerator %s: waiting for one", self._accelerator)
        self._class = _actor_class(self._ray).options(**options)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.__exit__(kind, error, trace)

    def map(
        self, load: Callable[[Any], State], what: object, function: Callable[[State, Job], Result], jobs: Iterable[Job]
    ) -> Iterator[Result]:
        """Yield `function(state, job)` for each job, in their order, where `state` is an actor's `load(what)`.

        Errors as for `RayWorkers.map`.
        """
        parcels, source = _Parcels(self._ray), enumerate(jobs)
        begin = parcels.pack(load, what)
        starting, running, idle = dict[Any, Any](), dict[Any, tuple[Any, int, Parcel]](), list[Any]()
        again, losses, results, turn, ended = deque[tuple[int, Parcel]](), Counter[int](), dict[int, Any](), 0, False
        try:
            while True:
                while idle and (again or not ended) and len(running) + len(results) <= 2 * (self._count or 1):
                    if again:
                        number, parcel = again.popleft()
                    elif item := next(source, None):
                        number, parcel = item[0], parcels.pack(function, item[1])
                    else:
                        ended = True
                        break
                    actor = idle.pop()
                    running[actor.do.remote(*parcel)] = actor, number, parcel
                if ended and not running and not again:
                    return
                while len(starting) + len(running) + len(idle) < (self._count or 1):
                    actor = self._class.remote()
                    starting[actor.start.remote(*begin)] = actor
                [reference], _ = self._ray.wait([*starting, *running])
                actor, number, parcel = running.pop(reference) if reference in running else (None, NO_JOB, begin)
                actor = starting.pop(reference) if actor is None else actor
                try:
                    result = result_of(self._ray, reference)
                except ActorLostError as error:
                    losses[number] += 1
                    if losses[number] > MAX_RETRIES:
                        raise ClusterError(LOST.format(losses[number])) from error
                    if number != NO_JOB:
                        again.append((number, parcel))
                    continue
                del losses[number]  # of a start, each is counted anew
                idle.append(actor)
                if number != NO_JOB:
                    results[number] = result
                while turn in results:
                    yield results.pop(turn)
                    turn += 1
        finally:
            for actor in (*starting.values(), *idle, *(actor for actor, *_ in running.values())):
                self._ray.kill(actor)
            if running:  # nothing is written afterwards
                self._ray.wait(list(running), num_returns=len(running), timeout=STOP_SEC)


def _actor_class(ray: ModuleType) -> Any:
    class Actor:  # it goes to nodes as it is
        def start(self, *parcel: Any) -> None:
            from pipeline.ray_workers import run_job

            self.state = run_job(*parcel)

        def do(self, *parcel: Any) -> Any:
            from pipeline.ray_workers import run_job

            return run_job(*parcel, self.state)

    return ray.remote(Actor)


class _Parcels:
    """Packs jobs as bytes. What is `Shared` is put into the cluster's memory once, from which each node copies it."""

    def __init__(self, ray: ModuleType) -> None:
        self._put = functools.cache(lambda shared: (uuid4().hex, ray.put(shared.value)))

    def pack(self, function: Callable[..., Any], job: object) -> Parcel:
        """What `run_job` takes."""
        content, references, put = io.BytesIO(), list[Any](), self._put

        class Pickler(pickle.Pickler):
            def persistent_id(self, value: object) -> tuple[str, int] | None:
                if not isinstance(value, Shared):
                    return None
                key, reference = put(value)
                references.append(reference)
                return key, len(references) - 1

        Pickler(content, pickle.HIGHEST_PROTOCOL).dump((function, job))
        return code_version(), str(Path.cwd()), content.getvalue(), references


@functools.lru_cache(maxsize=2)
def _received(key: str) -> Shared[Any]:
    """What a run shares; filled by the first of its jobs in this process."""
    return Shared(None)


def run_job(code: str, folder: str, parcel: bytes, references: list[Any], *state: object) -> Any:
    """Do a job, in a process of a node; what an actor keeps for its jobs is `state`. A failing file tells the node."""
    require_same_code(code)
    with suppress(OSError):  # else paths that are relative are not there, either
        os.chdir(folder)
    import ray

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: tuple[str, int]) -> Shared[Any]:
            shared = _received(pid[0])
            if shared.value is None:
                shared.value = ray.get(references[pid[1]])
            return shared

    set_elsewhere(f"{node_name()}-{os.getpid()}")
    try:
        function, job = Unpickler(io.BytesIO(parcel)).load()
        return function(*state, job)
    except MachineError as error:  # what is done elsewhere is to be kept
        raise ClusterError(f"node {node_name()}: {error}") from error
    except OSError as error:
        if error.errno is not None:
            error.add_note(f"on node {node_name()}, which must see the same folders under the same paths as all others")
        raise
