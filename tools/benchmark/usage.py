"""What a process and all that it started have used: CPU time, bytes read, memory."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

try:
    import psutil
except ImportError:
    raise SystemExit("fgbg-bench needs psutil, which is not installed: pip install 'fgbg[bench]'") from None

RESET_PEAK = "5"  # what /proc/PID/clear_refs takes for it, see proc(5)


class Usage(NamedTuple):
    """Used so far, or between two moments."""

    cpu_sec: float
    """User and system time, of children that have ended too."""
    read_bytes: int
    """Read by system calls, from the page cache or from below it; what is read through a memory map is not counted."""
    disk_bytes: int
    """Fetched from storage, however it was asked for."""

    def since(self, earlier: "Usage") -> "Usage":
        """What was used after `earlier`."""
        return Usage(
            self.cpu_sec - earlier.cpu_sec, self.read_bytes - earlier.read_bytes, self.disk_bytes - earlier.disk_bytes
        )


NOTHING = Usage(0.0, 0, 0)


def used(pid: int | None = None) -> Usage:
    """What a process (default: this one) and its children have used; bytes read by children that ended are missing."""
    this = psutil.Process(pid)
    ended = this.cpu_times()
    cpu_sec, read_bytes, disk_bytes = ended.children_user + ended.children_system, 0, 0
    for process in _family(pid):
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            times, counters = process.cpu_times(), process.io_counters()
            cpu_sec += times.user + times.system
            read_bytes += counters.read_chars
            disk_bytes += counters.read_bytes
    return Usage(cpu_sec, read_bytes, disk_bytes)


def forget_peak(pid: int | None = None) -> None:
    """Let the peak memory of a process and its children begin anew, where the system allows it."""
    for process in _family(pid):
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/clear_refs").write_text(RESET_PEAK)


def peak_mib(pid: int | None = None) -> float:
    """The sum of the largest resident memory of a process and of each of its children, MiB.

    Pages that processes share, such as those of libraries, count once for each of them.
    """
    peak_kib = 0
    for process in _family(pid):
        with contextlib.suppress(OSError, IndexError):  # it may end meanwhile
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak_kib += int(status.split("VmHWM:")[1].split()[0])
    return peak_kib / 1024


def moving(pid: int) -> bool:
    """Whether a process, or one that it started, has neither ended nor been stopped."""
    still = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    with contextlib.suppress(psutil.Error):  # it may end meanwhile
        return any(process.status() not in still for process in _family(pid))
    return False


def _family(pid: int | None) -> Iterator[psutil.Process]:
    this = psutil.Process(pid)
    yield from (this, *this.children(recursive=True))
