"""A contestant: a loader in a process group of its own, which does what it is told and stands still in between.

So memory, CPU time, bytes read and threads of one loader are nobody else's, and none works while another is timed.
"""

import os
import signal
import time
import traceback
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import nvidia.dali
import torch

from pipeline.errors import InputError
from tools.benchmark.seat import Make, Seat
from tools.benchmark.usage import moving, used
from tools.peers.options import LoadOptions

SETTLE_SEC, QUIET_CPU_SEC, LONGEST_SETTLE_SEC = 0.1, 0.01, 2.0
END_SEC = 2.0


class Contestant:
    """Start it, `ask` it, and leave the context: then no process of it is left."""

    def __init__(self, name: str, make: Make, folder: Path, pictures: Path, options: LoadOptions) -> None:
        """Arguments as of `Seat`; `make` is a function that another process can import."""
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

    def ask(self, verb: str, *arguments: object) -> Any:
        """Let it call a method of its `Seat` and return the result, when what it has read ahead is at rest too.

        Raises `InputError`, one line that names the loader, for what that raised and for a process that died.
        """
        self._signal(signal.SIGCONT)
        try:
            self._pipe.send((verb, arguments))
            wait([self._pipe, self._process.sentinel])
            good, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise InputError(f"loader {self._name}: its process {self._how_it_ended()}") from None
        if not good:
            raise InputError(f"loader {self._name}: {answer}")
        self._settle()
        self._stop()
        return answer

    def _settle(self) -> None:
        """Wait until its queues are full: every loader shall start its next turn from there."""
        until_sec = time.monotonic() + LONGEST_SETTLE_SEC
        before_sec, quiet = used(self.pid).cpu_sec, False
        while not quiet and time.monotonic() < until_sec:
            time.sleep(SETTLE_SEC)
            now_sec = used(self.pid).cpu_sec
            quiet, before_sec = now_sec - before_sec <= QUIET_CPU_SEC, now_sec

    def _stop(self) -> None:
        """Let it stand still: whatever polls, keeps alive or goes on by itself costs the others nothing."""
        self._signal(signal.SIGSTOP)
        until_sec = time.monotonic() + END_SEC
        while moving(self.pid) and time.monotonic() < until_sec:
            time.sleep(0.001)

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

    def __enter__(self) -> "Contestant":
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
    """The process: answer each (method of `Seat`, arguments) with (True, result) or (False, line), until None comes."""
    # Not a session of its own: the kernel wakes and ends a stopped group whose parent, in the same session, is killed.
    os.setpgid(0, 0)
    Thread(target=_end_with_parent, daemon=True).start()
    if options.device == "gpu":
        torch.zeros(1, device="cuda")  # a start that all need alike, and no part of the time to the first batch
    assert nvidia.dali  # likewise
    seat = Seat(make, folder, pictures, options)
    while (request := pipe.recv()) is not None:
        verb, arguments = request
        try:
            answer = True, getattr(seat, verb)(*arguments)
        except (InputError, OSError) as error:
            answer = False, str(error)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = " ".join(str(error).split())
            answer = False, f"{type(error).__name__}: {line} ({Path(where.filename).name}:{where.lineno})"
        pipe.send(answer)
    seat.close()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os.killpg(0, signal.SIGKILL)
