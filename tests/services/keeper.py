"""Keeps a server running while any process uses it: `python -m tests.services.keeper SERVER FOLDER`.

Who uses a server holds a shared lock on a file until it ends, however it ends. The keeper waits for that file to be
its alone, kills the server and removes its folder.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.services import servers

FACTS, USERS, LOG = "facts.json", "users.lock", "log"
START_SEC = 150
TRIES = 3
"""Ceph's disk now and then ends as it starts, on a busy machine."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_held: list[Any] = []


def use(server: str, root: Path) -> dict[str, Any]:
    """Facts of a server by its name in `servers`, which is started if no other process has; until this one ends."""
    folder = root / server
    root.mkdir(exist_ok=True)
    with (root / f"{server}.start").open("w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        users = (root / f"{server}.{USERS}").open("w")
        fcntl.flock(users, fcntl.LOCK_SH)  # waits for a keeper that is about to end
        _held.append(users)
        if not (folder / FACTS).exists():
            _start(server, folder)
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
        return facts


def _start(server: str, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with (folder / LOG).open("wb") as log:
        command = [sys.executable, "-m", "tests.services.keeper", server, str(folder)]
        where = Path(__file__).parents[2]
        # A session of its own: Ctrl-C ends the tests, and then the lock ends it.
        keeper = subprocess.Popen(
            command, cwd=where, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    for _ in range(START_SEC * 20):
        if (folder / FACTS).exists():
            keeper.returncode = 0  # it is left to itself
            return
        if keeper.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"{server} does not start:\n{(folder / LOG).read_text(errors='replace')[-3000:]}")


class Processes:
    """The processes of a server; all are killed together, and with the keeper."""

    def __init__(self) -> None:
        self._groups: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str | Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a process that stays in the foreground."""
        libc = ctypes.CDLL(None)
        process = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        self._groups.append(process)
        return process

    def kill(self) -> None:
        """Kill them all, and what they have started."""
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group.pid, signal.SIGKILL)
            group.wait()
        self._groups.clear()
        for orphan in psutil.Process().children(recursive=True):  # such as Slurm's jobs, in sessions of their own
            orphan.kill()


def _empty(folder: Path) -> None:
    """Remove what a try has left, but the log."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOG:
            path.unlink()


def keep(server: str, folder: Path) -> None:
    """Run a server until nobody uses it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what its processes leave behind is then this one's
    processes = Processes()
    try:
        for tries_left in reversed(range(TRIES)):
            try:
                facts = getattr(servers, server)(folder, processes.start)
                break
            except (AssertionError, subprocess.SubprocessError, OSError):
                if not tries_left:
                    raise
                processes.kill()
                _empty(folder)
        (folder / "facts").write_text(json.dumps(facts))
        (folder / "facts").rename(folder / FACTS)
        with (folder.parent / f"{server}.{USERS}").open("w") as users:
            fcntl.flock(users, fcntl.LOCK_EX)
            processes.kill()
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        processes.kill()


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]))
