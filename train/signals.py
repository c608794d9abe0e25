"""Ctrl-C, SIGTERM and SIGHUP: a run that is asked to stop does so between two steps, with a checkpoint."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

# What a shell makes of Ctrl-C; and 0 for a cluster that takes its machine back, or a terminal that closes: it got all
# that it asked for.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 0, signal.SIGHUP: 0}


ACKNOWLEDGED = "stopping: finishing the step, then writing the checkpoint"


class Interrupted(Exception):  # noqa: N818 - the user's wish, not a fault of the program
    """The run was stopped by a signal. It can be continued; the message says how."""

    def __init__(self, message: str, by: int) -> None:
        super().__init__(message)
        self.exit_code = EXIT_CODES[signal.Signals(by)]


def ignored(number: int) -> bool:
    """Whether the process ignores a signal."""
    return signal.getsignal(number) is signal.SIG_IGN


class Interruption:
    """A context in which the first Ctrl-C (or SIGTERM, SIGHUP) is only recorded; the second stops the program."""

    def __init__(self, *, patient: bool = False, quiet: bool = False) -> None:
        """With `patient`, further signals are only recorded, too: torchrun sends one of its own after the user's.

        The first one is acknowledged on standard error at once, unless `quiet`.
        """
        self.by: int | None = None
        """The first signal that came; None without."""
        self._patient, self._quiet = patient, quiet
        self._former = dict[int, Any]()

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # signals reach no other thread
            # nohup has SIGHUP ignored: such a run goes on when its terminal closes.
            caught = [number for number in EXIT_CODES if number != signal.SIGHUP or not ignored(number)]
            self._former = {number: signal.signal(number, self._request) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _request(self, number: int, _frame: FrameType | None) -> None:
        if not self.by and not self._quiet:
            again = "" if self._patient else "; once more: stop at once, without it"
            text = f"{ACKNOWLEDGED}{again}\n"
            # Over the bar, and not by print: a signal may come while that is at work.
            with suppress(OSError, ValueError):  # of a terminal that has closed
                os.write(2, (f"\r\033[2K{text}" if sys.stderr.isatty() else text).encode())
        self.by = self.by or number
        if not self._patient:
            signal.signal(number, self._former[number])
