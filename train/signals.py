"""Interruption: the user, or a cluster, asks a run to stop, and it does so between two steps."""

import signal
import threading
from types import FrameType
from typing import Any

# What a shell makes of Ctrl-C; and 0 for a cluster that takes its machine back: it got all that it asked for.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 0}


class Interrupted(Exception):  # noqa: N818 - the user's wish, not a fault of the program
    """The run was stopped from outside. It is kept; the message says how to continue it."""

    def __init__(self, message: str, by: int) -> None:
        super().__init__(message)
        self.exit_code = EXIT_CODES[signal.Signals(by)]


class Interruption:
    """Within it, the first Ctrl-C (or SIGTERM) is a request, read between two steps; the second stops at once."""

    def __init__(self, *, patient: bool = False) -> None:
        """One that is `patient` takes the second for a request, too: torchrun sends one of its own after the user's."""
        self.by: int | None = None
        """The signal that asked for it."""
        self._patient = patient
        self._former = dict[int, Any]()

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # signals reach no other thread
            self._former = {number: signal.signal(number, self._request) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.by = self.by or number
        if not self._patient:
            signal.signal(number, self._former[number])
