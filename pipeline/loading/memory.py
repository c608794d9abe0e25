"""Memory: how much of the host's this process may still take, and which errors say that some has run out."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

ROOT = Path("/")

Limit = tuple[str, str, str]
"""What a control group calls its limit, its usage, and the file pages in that usage which it would give up first."""
V1: Limit = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2: Limit = ("memory.max", "memory.current", "inactive_file")

SIGNS = ("out of memory", "allocation failed", "alloc_failed", "can't allocate", "cannot allocate")
"""In what CUDA, its libraries, DALI and PyTorch's allocator on the host say when they get no memory; in lower case."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory has run out: PyTorch, CUDA's libraries and DALI have no type in common."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error).lower() for sign in SIGNS)


def brief(error: BaseException) -> str:
    """What an error of memory that has run out says first: PyTorch's goes on with figures and advice."""
    lines = str(error).splitlines() or ["out of memory"]
    return ". ".join(lines[0].split(". ")[:2])


def available_host_memory() -> int:
    """Bytes that this process can take without swapping, or being killed for them.

    The least of what the machine has (MemAvailable of proc_meminfo(5)) and of what the limits of the control groups of
    this process and of all groups around them leave (cgroups(7), version 1 or 2); cached files that the kernel would
    drop count as free. Untouched memory, which malloc has promised, counts as free too.
    """
    machine = _values(ROOT / "proc/meminfo")["MemAvailable:"] * 1024
    return max(0, min([machine, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Bytes that each control group with a limit leaves."""
    try:
        groups = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, group in (line.split(":", 2) for line in groups):
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, names = (ROOT / "sys/fs/cgroup/memory", V1) if controllers else (ROOT / "sys/fs/cgroup", V2)
        # In a container a group may be told by its name outside, where it is not: its limit stands at the mount then.
        path = PurePosixPath(group.lstrip("/"))
        for inner in (path, *path.parents):
            try:
                limit, usage = (int((mount / inner / name).read_text()) for name in names[:2])
                files = _values(mount / inner / "memory.stat").get(names[2], 0)
            except (OSError, ValueError):  # not there, or "max"
                continue
            yield limit - usage + files


def _values(file: Path) -> dict[str, int]:
    """The numbers of a file whose lines are a name, a number and maybe a unit."""
    return {name: int(value) for name, value, *_ in map(str.split, file.read_text().splitlines())}
