"""Our commands in processes of their own: done once, and stopped when we are."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.errors import InputError
from pipeline.resume import atomic_file

GRACE_SEC = 5.0  # between the wish that a command stops, and its end


class CommandError(InputError):
    """A command ended with an error; the message is its last line."""


def done(note: Path, module: str, flags: Sequence[str]) -> float | None:
    """The seconds that a command took which has been done with these flags; None if it has not been done.

    Raises `InputError` where it has been done with other flags.
    """
    if not note.exists():
        return None
    noted = json.loads(note.read_text())
    wanted = [module, *flags]
    if noted["command"] != wanted:
        was, now = _beside(noted["command"], wanted), _beside(wanted, noted["command"])
        raise InputError(f"{note}: made with {was}, now it is {now}: continue with the same, or give another WORK")
    return float(noted["seconds"])


def run(module: str, flags: Sequence[str], places: Sequence[str], note: Path, log: Path) -> float:
    """Run `python -m module`, its output added to the file `log`; then write `note`, and return the seconds it took.

    `flags` decide the result and are noted, `places` (paths, the device) are not. Raises `CommandError` where it ends
    with another exit code than 0. On Ctrl-C it is asked to stop as by Ctrl-C, and killed if it takes GRACE_SEC.
    """
    started_sec = time.perf_counter()
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, *flags, *places]
    with log.open("ab") as output:
        # A session of its own: Ctrl-C in a terminal reaches us alone, and the command once, from us.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = child.wait()
        except BaseException:
            _stop(child)
            raise
    if code:
        lines = log.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        raise CommandError(f"{last.strip()} (exit code {code}; all of its output: {log})")
    seconds = time.perf_counter() - started_sec
    note.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(note) as file:
        file.write(json.dumps({"command": [module, *flags], "seconds": round(seconds, 3)}).encode())
    return seconds


def _beside(command: Sequence[str], other: Sequence[str]) -> str:
    """The flags of a command, with their values, that another has not."""
    flags, others = (re.split(" (?=--)", " ".join(words)) for words in (command, other))
    return " ".join(flag for flag in flags if flag not in others) or "fewer flags"


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """End a command and all that it has started."""
    try:
        _signal(child, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SEC)
    finally:  # of a second Ctrl-C, too
        _signal(child, signal.SIGKILL)
        child.wait()


def _signal(child: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError):  # nobody is left
        os.killpg(child.pid, number)
