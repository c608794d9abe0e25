"""What an engine adds to the work: composing, packing and depth in this machine's processes, and on Ray.

`python -m benchmarks.engines` starts a Ray cluster of virtual nodes, of one core each, on this machine's loopback, and
gives the same command to it and to local workers in turn. CPU seconds are those of the command, and of all processes of
the cluster, over the time of the command; the nodes' own idle load is measured before, and told.
"""

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import click
import psutil

from pipeline.ray_workers import RayWorkers
from tools.cli import Command, echo

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Keeps Ray to 127.0.0.1."""
NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 100 << 20}
JOBS = 200
"""That do nothing, for the overhead of one."""
SHARDS = ["--sets-per-shard", 1000]
COMPOSE = ["tools.compose", "--synthetic", "--streets", 8, "--cars", 8]
LOOK_SEC, IDLE_SEC = 0.1, 5.0


class Cost(NamedTuple):
    """Of one run of a command, seconds."""

    wall: float
    cpu: float


@contextmanager
def cluster(nodes: int) -> Iterator[Any]:
    """A Ray cluster of so many nodes."""
    os.environ.update(LOOPBACK)
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        started = Cluster(True, head_node_args=NODE | {"temp_dir": folder})
        for _ in range(nodes - 1):
            started.add_node(**NODE)
        os.environ["RAY_ADDRESS"] = str(started.address)
        try:
            yield started
        finally:
            started.shutdown()


class CpuMeter:
    """CPU seconds of this process's descendants while the context is open.

    They are looked at ten times a second: of a process whose parent does not wait for it the system forgets them.
    """

    def __enter__(self) -> "CpuMeter":
        self._spent = dict[psutil.Process, float]()
        self._look()
        self._before = sum(self._spent.values())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SEC):
            self._look()

    def _look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                times = process.cpu_times()
                self._spent[process] = times.user + times.system

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        self.seconds = sum(self._spent.values()) - self._before


def idle_load() -> float:
    """CPU seconds a second that the cluster takes without work."""
    with CpuMeter() as meter:
        time.sleep(IDLE_SEC)
    return meter.seconds / IDLE_SEC


def measure(words: Sequence[Any]) -> Cost:
    """Run `python -m ...`."""
    begin_sec = time.perf_counter()
    with CpuMeter() as meter:
        subprocess.run([sys.executable, "-m", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return Cost(time.perf_counter() - begin_sec, meter.seconds)


def overhead_ms() -> float:
    """Milliseconds that a job which does nothing takes, beside others."""
    with RayWorkers(None) as workers:
        list(workers.map(abs, range(8)))
        begin_sec = time.perf_counter()
        list(workers.map(abs, range(JOBS)))
        return (time.perf_counter() - begin_sec) / JOBS * 1e3


@click.command(cls=Command)
@click.option("--sets", default=4000, show_default=True, help="Image sets of each work.")
@click.option("--nodes", type=int, multiple=True, default=(1, 2, 3), show_default=True, help="Sizes of the cluster.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each, in turn.")
@click.option("--model", type=click.Path(path_type=Path), help="Network for depth; without, there is none.")
@click.option("--work", "chosen", multiple=True, help="Only these: compose, pack, depth.")
@click.option("--recovery", is_flag=True, help="Kill a node as well.")
def main(
    sets: int, nodes: tuple[int, ...], rounds: int, model: Path | None, chosen: tuple[str, ...], recovery: bool
) -> None:
    """Print wall and CPU time of the works with both engines, median and range, as a table."""
    echo(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}: {' '.join(sys.argv)}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fgbg-engines-")))
        works = dict[str, list[tuple[int, list[Any]]]]()
        for number in (sets // 4, sets):
            compose, loose, shards = (
                [*COMPOSE, "--sets", number],
                folder / f"loose-{number}",
                folder / f"shards-{number}",
            )
            works.setdefault("compose", []).append((number, [*compose, *SHARDS]))
            works.setdefault("pack", []).append((number, ["tools.pack", loose, *SHARDS]))
            measure([*compose, loose])
            if model:
                works.setdefault("depth", []).append((number, ["tools.depth", shards, "--model", model]))
                measure([*compose, *SHARDS, "--shards", shards])
        echo(
            "| work | engine | workers | CPU ms a set | ... to start, s | seconds | sets/s |",
            "|---|---|---|---|---|---|---|",
        )
        for count in nodes:
            with cluster(count):
                for name, sizes in works.items():
                    if not chosen or name in chosen:
                        compare(sizes, name, folder / "result", count, rounds)
                echo(f"cluster of {count}: {overhead_ms():.1f} ms a job, idle load {idle_load():.3f} of a core")
        if recovery:
            echo(f"a node of three killed: {recovery_sec():.1f} s longer, with jobs of 1 s")


def compare(works: list[tuple[int, list[Any]]], name: str, result: Path, count: int, rounds: int) -> None:
    """Run a work of two sizes, by (sets, words), with both engines in turn, and print a row for each.

    What a set costs is the difference of the two sizes by the difference of their sets: without starting anything.
    """
    costs: dict[str, list[list[Cost]]] = {"local": [], "ray": []}
    for _ in range(rounds):
        for engine, of_engine in costs.items():
            how = ["--engine", engine, "--workers", count, "--shards", result]
            of_engine.append([])
            for _, words in works:
                of_engine[-1].append(measure([*words, *how]))
                shutil.rmtree(result)
    sets = [number for number, _ in works]
    for engine, of_engine in costs.items():
        cpu = [(large.cpu - small.cpu) / (sets[1] - sets[0]) * 1e3 for small, large in of_engine]
        start = [small.cpu - one / 1e3 * sets[0] for (small, _), one in zip(of_engine, cpu, strict=True)]
        wall = statistics.median(large.wall for _, large in of_engine)
        spread = f"{statistics.median(cpu):.3f} ({min(cpu):.3f} - {max(cpu):.3f}) | {statistics.median(start):.1f}"
        echo(f"| {name} | {engine} | {count} | {spread} | {wall:.1f} | {sets[1] / wall:.0f} |")


def recovery_sec() -> float:
    """How much longer jobs of a second each take on three nodes, one of which is killed half a second after."""
    took = list[float]()
    for lost in (False, True):
        with cluster(2) as nodes, RayWorkers(3) as workers:
            extra = nodes.add_node(**NODE)
            list(workers.map(time.sleep, [0.1] * 9))
            begin_sec = time.perf_counter()
            killer = threading.Timer(0.5, nodes.remove_node, (extra, False))
            if lost:
                killer.start()
            list(workers.map(time.sleep, [1.0] * 12))
            took.append(time.perf_counter() - begin_sec)
    return took[1] - took[0]


if __name__ == "__main__":
    main()
