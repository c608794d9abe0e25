import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.processes import CommandError, Exit, last_line, run_command, seconds_taken
from pipeline.errors import InputError


def record_of(tmp_path: Path) -> Path:
    return tmp_path / "records/record.json"


def test_a_command_is_recorded_when_it_is_seconds_taken(tmp_path: Path) -> None:
    record = record_of(tmp_path)
    assert seconds_taken(record, "json.tool", ["--help"]) is None
    seconds = processes.run("json.tool", ["--help"], [], record, tmp_path / "logs/log")
    assert seconds_taken(record, "json.tool", ["--help"]) == pytest.approx(seconds, abs=1e-3)
    assert "usage: " in (tmp_path / "logs/log").read_text()
    with pytest.raises(InputError, match="made with --help, now it is fewer flags"):
        seconds_taken(record, "json.tool", [])


def test_a_command_that_fails_tells_its_last_line_and_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"No such file or directory.* \(exit code [12]; all of its output: .*log\)"):
        processes.run("json.tool", [], [str(tmp_path / "nothing")], record_of(tmp_path), tmp_path / "log")
    assert not record_of(tmp_path).exists()


STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: pathlib.Path(sys.argv[1], "asked").touch())
if os.fork():
    pathlib.Path(sys.argv[1], "pid").write_text(str(os.getpid()))
    os.kill(int(sys.argv[2]), signal.SIGUSR1)
while True:
    time.sleep(0.01)
"""


def test_a_command_that_does_not_stop_is_killed_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(processes, "GRACE_SEC", 0.3)
    former = signal.signal(signal.SIGUSR1, signal.default_int_handler)  # in the place of Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            processes.run("stubborn", [], [str(tmp_path), str(os.getpid())], record_of(tmp_path), tmp_path / "log")
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert (tmp_path / "asked").exists()
    group = int((tmp_path / "pid").read_text())
    deadline_sec = time.monotonic() + 60
    while any(state(pid) not in "ZX" for pid in of_group(group)):  # the kernel takes its time to end them
        assert time.monotonic() < deadline_sec
        time.sleep(0.01)
    assert not record_of(tmp_path).exists()


def of_group(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            found.append(int(entry.parent.name))
    return found


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


ESCAPING = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
%s
"""


@pytest.mark.parametrize(("end", "found"), [("", Exit(0, True)), ("sys.exit(3)", Exit(3, True))])
def test_what_a_command_leaves_in_a_session_of_its_own_ends_with_it(tmp_path: Path, end: str, found: Exit) -> None:
    log = tmp_path / "logs" / "log"
    assert run_command([sys.executable, "-c", ESCAPING % end], log) == found
    child, deadline = int(last_line(log)), time.monotonic() + 30
    while state(child) not in "ZX":  # it is killed, and may not have heard of it yet
        assert time.monotonic() < deadline


def test_a_command_is_stopped_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SEC", 60)
    ended = run_command(["sleep", "600"], tmp_path / "log", limit_sec=0.2, environment={"A": "b"})
    assert ended == Exit(-signal.SIGINT, False)
    assert last_line(tmp_path / "log") == "no output"
