"""Available host memory: the least that the machine and any control group around this process leave; errors."""

from pathlib import Path

import pytest
import torch

from pipeline.loading.decode import Undecodable
from pipeline.loading.memory import available_host_memory, brief, ran_out
from tests.samples import write

MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of which 1000 MiB are available."""
    monkeypatch.setattr("pipeline.loading.memory.ROOT", tmp_path)
    lines = ["MemTotal: 9000000 kB", "MemFree: 5 kB", f"MemAvailable:   {1000 * 1024} kB", "HugePages_Total: 0"]
    write(tmp_path / "proc/meminfo", "\n".join(lines).encode())
    return tmp_path


def group_v2(root: Path, path: str, limit: str, usage: int, inactive_file: int = 0) -> None:
    """A control group, version 2; usage in MiB."""
    folder = root / "sys/fs/cgroup" / path
    write(folder / "memory.max", f"{limit}\n".encode())
    write(folder / "memory.current", f"{usage * MIB}\n".encode())
    write(folder / "memory.stat", f"anon 5\nfile 7\ninactive_file {inactive_file * MIB}\n".encode())


def group_v1(root: Path, path: str, limit: int, usage: int, inactive_file: int = 0) -> None:
    """A control group, version 1; limit and usage in MiB."""
    folder = root / "sys/fs/cgroup/memory" / path
    write(folder / "memory.limit_in_bytes", f"{limit * MIB}\n".encode())
    write(folder / "memory.usage_in_bytes", f"{usage * MIB}\n".encode())
    stat = f"inactive_file 3\ntotal_inactive_file {inactive_file * MIB}\n"  # of the group alone, and with those below
    write(folder / "memory.stat", stat.encode())


def test_this_machine_has_some() -> None:
    assert 0 < available_host_memory() < 1 << 60


def test_without_control_groups_it_is_what_the_machine_has(root: Path) -> None:
    assert available_host_memory() == 1000 * MIB
    write(root / "proc/self/cgroup", b"0::/user/job\n")
    assert available_host_memory() == 1000 * MIB


@pytest.mark.parametrize(
    ("limits", "available"),
    [
        ({"a/b": "max", "a": "max"}, 1000),
        ({"a/b": str(300 * MIB), "a": "max"}, 200),
        ({"a/b": "max", "a": str(250 * MIB)}, 150),  # of the group around
        ({"a/b": str(300 * MIB), "a": str(250 * MIB)}, 150),
        ({"a/b": str(5000 * MIB)}, 1000),
        ({"a/b": str(90 * MIB)}, 0),  # lowered below what is used
        ({"": str(400 * MIB)}, 300),  # in a container, which does not see the names outside
        ({"a/other": str(1 * MIB)}, 1000),
    ],
)
def test_every_group_around_counts(limits: dict[str, str], available: int, root: Path) -> None:
    write(root / "proc/self/cgroup", b"0::/a/b\n")
    for path, limit in limits.items():
        group_v2(root, path, limit, usage=100)
    assert available_host_memory() == available * MIB


def test_cached_files_of_a_group_are_free(root: Path) -> None:
    write(root / "proc/self/cgroup", b"0::/a\n")
    group_v2(root, "a", str(300 * MIB), usage=290, inactive_file=150)
    assert available_host_memory() == 160 * MIB


def test_version_1(root: Path) -> None:
    write(root / "proc/self/cgroup", b"12:cpu,cpuacct:/x\n4:memory:/job/1\n1:name=systemd:/a:b\n0::/\n")
    group_v1(root, "job/1", limit=(1 << 63) // MIB - 1, usage=100)  # what "no limit" looks like
    assert available_host_memory() == 1000 * MIB
    group_v1(root, "job", limit=500, usage=200, inactive_file=30)
    assert available_host_memory() == 330 * MIB
    group_v1(root, "", limit=220, usage=200)
    assert available_host_memory() == 20 * MIB


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.6"
            ),
            "CUDA out of memory. Tried to allocate 2.00 GiB",
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "CUDA error: out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), None),
        (Undecodable("CUDA allocation failed Can't allocate 1024 bytes on device 0."), None),
        (MemoryError(), "out of memory"),
    ],
)
def test_errors_of_memory_that_has_run_out_are_known_and_told_briefly(error: Exception, said: str | None) -> None:
    assert ran_out(error)
    assert brief(error) == (said or str(error))


def test_the_allocator_of_the_host_is_understood() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out(error.value)


def test_other_errors_are_not_about_memory() -> None:
    assert not any(map(ran_out, [RuntimeError("a shape is wrong"), Undecodable("truncated JPEG"), KeyError("mask")]))
