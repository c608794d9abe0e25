"""Ranks for tests: a function run in several processes at once, which know one another as those of torchrun do."""

import os
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pipeline.workers import end_with_parent

# Its server imports torch once and forks each rank from there; it ends with this process, however that ends.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.ranks", "torch._dynamo.backends.common", "train.trainer", "nvidia.dali.fn"])
PATIENCE_SEC = 120


def in_ranks(world: int, function: Callable[..., Any], *arguments: Any, ends: int | None = None) -> list[Any]:
    """What `function(*arguments)` returns in each of `world` processes, by rank.

    `function` is a module's own, and `Distributed.from_environment` works in it. Raises `AssertionError` with the
    tracebacks of those that raised, and where a process ended otherwise; rank `ends` shall, and has
    None. None is left running.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store above is there: no rank opens one
        "GLOO_SOCKET_IFNAME": "lo",  # whatever name this host goes by
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(world)]
    processes = [
        CONTEXT.Process(
            target=_run,
            args=(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, sender, function, arguments),
            daemon=True,
        )
        for rank, (_, sender) in enumerate(pipes)
    ]
    try:
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()  # the process has its own: if it ends, nobody is left to write
        answers = [_answer(receiver, rank) for rank, (receiver, _) in enumerate(pipes)]
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
    errors = [error for rank, (_, error) in enumerate(answers) if error and rank != ends]
    assert not errors, "\n".join(errors)
    return [result for result, _ in answers]


def _answer(receiver: Connection, rank: int) -> tuple[Any, str]:
    with receiver:
        assert receiver.poll(PATIENCE_SEC), f"rank {rank} hangs"
        try:
            return receiver.recv()  # type: ignore[no-any-return]
        except EOFError:
            return None, f"rank {rank} ended without a word"


def _run(environment: dict[str, str], sender: Connection, function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(environment)
    end_with_parent()
    try:
        sender.send((function(*arguments), ""))
    except BaseException:
        sender.send((None, f"rank {environment['RANK']}: {traceback.format_exc()}"))
