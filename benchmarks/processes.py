"""Commands in processes of their own: output in a log, an end after a time, nothing left behind, done only once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import click

from pipeline.errors import InputError
from pipeline.resume import atomic_file
from tools.cli import echo

INTERRUPTED = 130  # what a shell makes of Ctrl-C
GRACE_SEC = 10.0  # between the wish that a command stops, and its end


@contextmanager
def stoppable(work: Path) -> Iterator[None]:
    """A context in which Ctrl-C and SIGTERM end the program by one line and the exit code INTERRUPTED.

    Nothing that `run_command` has started may outlive us. The line says that what is done is kept in `work`.
    """
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        echo("", f"stopped; what is done is kept in {work}: the same command goes on", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, former)


class CommandError(InputError):
    """A command ended with an error; the message is its last line."""


class Exit(NamedTuple):
    """How a command ended."""

    code: int
    """Its exit code; of one that a signal ended, the negative number of the signal."""
    in_time: bool
    """Whether it ended by itself within its time."""


def run_command(
    words: Sequence[str], log: Path, limit_sec: float | None = None, environment: Mapping[str, str] | None = None
) -> Exit:
    """Run a command, its output added to the file `log`, for so many seconds at most.

    When its time is over, and when we are interrupted, it is asked to stop as by Ctrl-C, and killed if it takes more
    than GRACE_SEC. Whatever it has started ends with it, in sessions of their own too, as ranks of torchrun are.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    mark = f"FGBG_COMMAND_{os.getpid()}_{time.time_ns()}"  # in the environment of all that it starts
    in_time = True
    with log.open("ab") as output:
        # A session of its own: Ctrl-C in a terminal reaches us alone, and the command once, from us.
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **(environment or {}), mark: "1"},
        )  # fmt: skip
        try:
            child.wait(limit_sec)
        except subprocess.TimeoutExpired:
            in_time = False
        finally:
            _end(child, mark)
    return Exit(child.returncode, in_time)


def _end(child: "subprocess.Popen[bytes]", mark: str) -> None:
    """End a command and all that it has started; of a command that has ended by itself, what it has left."""
    try:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_SEC)
    finally:  # of a second Ctrl-C, too
        for _ in range(100):  # what was just being started is found the next time
            for pid in (pids := _marked(mark)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            child.poll()
            if not pids:
                break
            time.sleep(0.02)
        child.wait()


def _marked(mark: str) -> list[int]:
    """Processes in whose environment it is: orphans, and those in sessions of their own, too."""
    line, found = f"{mark}=1".encode(), list[int]()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if line in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def last_line(log: Path) -> str:
    """The last line of a file that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def run(module: str, flags: Sequence[str], places: Sequence[str], record: Path, log: Path) -> float:
    """Run `python -m module`, its output added to the file `log`; then write `record`, and return the seconds it took.

    `flags` decide the result and are recorded, `places` (paths, the device) are not. Raises `CommandError` where it
    ends with another exit code than 0.
    """
    started_sec = time.perf_counter()
    code = run_command([sys.executable, "-m", module, *flags, *places], log).code
    if code:
        raise CommandError(f"{last_line(log)} (exit code {code}; all of its output: {log})")
    seconds = time.perf_counter() - started_sec
    record.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(record) as file:
        file.write(json.dumps({"command": [module, *flags], "seconds": round(seconds, 3)}).encode())
    return seconds


def seconds_taken(record: Path, module: str, flags: Sequence[str]) -> float | None:
    """The seconds that a command took which has been run with these flags; None if it has not been run to its end.

    Raises `InputError` where it has been run with other flags.
    """
    if not record.exists():
        return None
    recorded = json.loads(record.read_text())
    wanted = [module, *flags]
    if recorded["command"] != wanted:
        was, now = _differing(recorded["command"], wanted), _differing(wanted, recorded["command"])
        raise InputError(f"{record}: made with {was}, now it is {now}: continue with the same, or give another WORK")
    return float(recorded["seconds"])


def _differing(command: Sequence[str], other: Sequence[str]) -> str:
    """The flags of a command, with their values, that another has not."""
    flags, others = (re.split(" (?=--)", " ".join(words)) for words in (command, other))
    return " ".join(flag for flag in flags if flag not in others) or "fewer flags"
