"""Signals: a run that is asked to stop does so between two steps, with a checkpoint, and its exit code says so."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

UNFINISHED = os.EX_TEMPFAIL
"""75, "temporary failure, the user is invited to retry" (sysexits.h): the same command goes on with the run."""

# What a shell makes of Ctrl-C; and for all that comes from elsewhere UNFINISHED, upon which a scheduler queues the run
# again: a cluster takes its machine back, a terminal closes, Slurm warns of the time limit (--signal=USR1@90).
EXIT_CODES = {
    signal.SIGINT: 130,
    signal.SIGTERM: UNFINISHED,
    signal.SIGHUP: UNFINISHED,
    signal.SIGUSR1: UNFINISHED,
}

PR_SET_PDEATHSIG = 1  # prctl(2)
ACKNOWLEDGED = "stopping: finishing the step, then writing the checkpoint"


class Interrupted(Exception):  # noqa: N818 - the user's wish, not a fault of the program
    """The run was stopped by a signal. It can be continued; the message says how."""

    def __init__(self, message: str, by: int) -> None:
        super().__init__(message)
        self.exit_code = EXIT_CODES[signal.Signals(by)]


def ignored(number: int) -> bool:
    """Whether the process ignores a signal."""
    return signal.getsignal(number) is signal.SIG_IGN


def _heeded() -> list[signal.Signals]:
    """The signals of EXIT_CODES that can be caught here, and should be."""
    if threading.current_thread() is not threading.main_thread():  # signals reach no other thread
        return []
    # nohup has SIGHUP ignored: such a run goes on when its terminal closes.
    return [number for number in EXIT_CODES if number != signal.SIGHUP or not ignored(number)]


@contextmanager
def exit_unfinished() -> Iterator[None]:
    """Within it, signals that would kill the process end it with UNFINISHED, its locks released; Ctrl-C is left alone.

    For what a command does outside the steps of `Interruption`: it starts, or writes its report.
    """
    former = {number: signal.signal(number, _exit) for number in _heeded() if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        name = signal.Signals(number).name
        _write(f"stopped by {name}: the same command with --resume auto goes on from the last checkpoint\n")
    raise SystemExit(UNFINISHED)  # no `Exception`, of which a damaged file might be made


def _write(text: str) -> None:
    """Over the bar, and not by print: a signal may come while that is at work."""
    with suppress(OSError, ValueError):  # of a terminal that has closed
        os.write(2, (f"\r\033[2K{text}" if sys.stderr.isatty() else text).encode())


def end_with_launcher() -> None:
    """Have torchrun's end, however it comes, reach this rank as a SIGTERM: else all would train on unseen, or hang."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Interruption:
    """A context in which the first of the signals is only recorded; the second stops the program."""

    def __init__(self, *, patient: bool = False, quiet: bool = False) -> None:
        """With `patient`, further signals are only recorded, too: torchrun sends one of its own after the user's.

        The first one is acknowledged on standard error at once, unless `quiet`.
        """
        self.by: int | None = None
        """The first signal that came; None without."""
        self._patient, self._quiet = patient, quiet
        self._former = dict[int, Any]()

    def __enter__(self) -> "Interruption":
        self._former = {number: signal.signal(number, self._request) for number in _heeded()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _request(self, number: int, _frame: FrameType | None) -> None:
        if not self.by and not self._quiet:
            again = "" if self._patient else "; once more: stop at once, without it"
            _write(f"{ACKNOWLEDGED}{again}\n")
        self.by = self.by or number
        if not self._patient:
            signal.signal(number, self._former[number])
