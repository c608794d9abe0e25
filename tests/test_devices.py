"""Which device, and why not: a driver is played by an object with the functions of libcuda that are called."""

import warnings
from ctypes import CDLL
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import devices
from pipeline.devices import dali_extra, dali_problem, find_driver, gpu_problem, gpu_usable, torch_device
from pipeline.errors import InputError

OPEN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)  Sun Jul 27"
)
MODULE = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.3.0\n"
)


class Libcuda:
    """Answers of libcuda: an error code each, and a number where there is one."""

    def __init__(self, version: int, gpus: int, init: int = 0) -> None:
        self.version, self.gpus, self.init = version, gpus, init

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802 - libcuda's name
        number._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.init

    def cuDeviceGetCount(self, number: Any) -> int:  # noqa: N802
        number._obj.value = self.gpus
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Sets what the machine has: libcuda, the text in /proc, the CUDA version of torch."""

    def set_up(libcuda: Libcuda | None, proc: str | None, cuda: str | None) -> None:
        def load(name: str) -> Any:
            assert name == "libcuda.so.1"
            if libcuda is None:
                raise OSError(name)
            return libcuda

        if proc is not None:
            (tmp_path / "version").write_text(proc)
        monkeypatch.setattr("ctypes.CDLL", load)
        monkeypatch.setattr(devices, "DRIVER_VERSION", tmp_path / "version")
        monkeypatch.setattr(torch, "__version__", "2.13.0")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(devices, "install_hint", lambda extra: f"pip install 'x[{extra}]'")

    return set_up


@pytest.mark.parametrize(
    ("libcuda", "proc", "cuda", "problem"),
    [
        (
            Libcuda(12020, 1), MODULE, "13.0",
            "GPU with driver 535.104.05 (CUDA 12.2), but torch 2.13.0 is built for CUDA 13.0, which needs driver 580 "
            "or newer: update the driver, or install a torch built for CUDA 12, then pip install 'x[cuda12]'",
        ),
        (
            Libcuda(11040, 2), None, "12.8",
            "GPU with a driver of CUDA 11.4, but torch 2.13.0 is built for CUDA 12.8, which needs driver 525 or newer: "
            "update the driver",
        ),
        (
            Libcuda(13000, 1), OPEN_MODULE, "14.1",
            "GPU with driver 580.65.06 (CUDA 13.0), but torch 2.13.0 is built for CUDA 14.1, which needs a newer "
            "driver: update the driver, or install a torch built for CUDA 13, then pip install 'x[cuda13]'",
        ),
        (
            Libcuda(13010, 1), OPEN_MODULE, None,
            "GPU with driver 580.65.06 (CUDA 13.1), but torch 2.13.0 is built without CUDA: install a torch built for "
            "CUDA 13, then pip install 'x[cuda13]'",
        ),
        (
            Libcuda(11040, 1), None, None,
            "GPU with a driver of CUDA 11.4, but torch 2.13.0 is built without CUDA: update the driver, install a "
            "torch with CUDA",
        ),
        (
            Libcuda(12080, 1), None, "12.6",
            "GPU with a driver of CUDA 12.8, but torch 2.13.0 is built for CUDA 12.6 and cannot use it: see what "
            "nvidia-smi says",
        ),
        (
            None, MODULE, "13.0",
            "the kernel has NVIDIA's driver, but no libcuda.so.1 is here: start the container with its GPUs",
        ),
        (None, None, "13.0", ""),
        (Libcuda(12020, 0), MODULE, "13.0", ""),
        (Libcuda(12020, 1, init=100), MODULE, "13.0", ""),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_cannot_use_is_told_with_what_to_do(
    libcuda: Libcuda | None, proc: str | None, cuda: str | None, problem: str, machine: Any
) -> None:
    machine(libcuda, proc, cuda)
    assert gpu_problem() == problem
    with pytest.raises(InputError) as refused:
        torch_device("gpu")
    expected = f"no usable GPU: {problem}; or use --device cpu" if problem else "no usable GPU (torch finds no CUDA dev"
    assert str(refused.value).startswith(expected)


@pytest.mark.parametrize(
    ("driver", "torch_cuda", "dali", "problem"),
    [
        (13000, "13.0", [13], ""),
        (13000, "12.6", [12], ""),
        (12020, "12.6", [12], ""),
        (13000, "13.0", [], ""),
        (None, "13.0", [12], ""),
        (13000, None, [12], ""),
        (
            13000, "13.0", [12],
            "DALI is built for CUDA 12, torch 2.13.0 for CUDA 13.0, on a driver of CUDA 13.0: "
            "pip uninstall nvidia-dali-cuda120, then pip install 'x[cuda13]'",
        ),
        (
            12020, "12.6", [13],
            "DALI is built for CUDA 13, torch 2.13.0 for CUDA 12.6, on a driver of CUDA 12.2: "
            "pip uninstall nvidia-dali-cuda130, then pip install 'x[cuda12]'",
        ),
        (
            13000, "13.0", [13, 12],
            "DALI is built for CUDA 13 and 12, torch 2.13.0 for CUDA 13.0, on a driver of CUDA 13.0: "
            "pip uninstall nvidia-dali-cuda130 nvidia-dali-cuda120, then pip install 'x[cuda13]'",
        ),
    ],
)  # fmt: skip
def test_a_dali_of_another_cuda_is_told_with_all_three(
    driver: int | None, torch_cuda: str | None, dali: list[int], problem: str, machine: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    machine(driver and Libcuda(driver, 1), None, torch_cuda)
    monkeypatch.setattr(
        devices, "_is_installed", lambda package: package in {f"nvidia-dali-cuda{cuda}0" for cuda in dali}
    )
    assert dali_problem() == problem


@pytest.mark.parametrize(
    ("driver", "torch_cuda", "extra"),
    [
        (None, None, "cuda13"), (12020, None, "cuda12"), (13000, None, "cuda13"), (14000, None, "cuda13"),
        (13000, "12.6", "cuda12"), (12020, "13.0", "cuda13"), (13000, "14.1", "cuda13"), (11040, None, "cuda12"),
    ],
)  # fmt: skip
def test_the_dali_to_install_is_that_of_torch_or_else_of_the_driver(
    driver: int | None, torch_cuda: str | None, extra: str, machine: Any
) -> None:
    machine(driver and Libcuda(driver, 1), None, torch_cuda)
    assert dali_extra() == extra


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_where_there_is_no_driver_none_is_found() -> None:
    try:
        CDLL("libcuda.so.1")
    except OSError:
        assert find_driver() is None
    else:
        pytest.skip("this machine has a driver")


@pytest.mark.gpu
def test_the_driver_of_this_machine_is_found() -> None:
    driver = find_driver()
    assert driver is not None
    assert driver.gpus == torch.cuda.device_count()
    assert driver.cuda >= 11
    assert "CUDA" in driver.name


def test_what_torch_warns_of_is_no_second_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    assert not gpu_usable()  # else a warning would fail the test


def test_a_device_by_another_name_is_refused() -> None:
    for name in ("tpu", "cuda:", "cuda:x", "cpu:1"):
        with pytest.raises(InputError, match=f"no device called '{name}': expected one of auto, cpu, cuda, cuda:0"):
            torch_device(name)
    assert torch_device("cpu") == torch_device(torch.device("cpu")) == torch.device("cpu")


def test_a_gpu_goes_by_several_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert {torch_device(name) for name in ("auto", "gpu", "cuda", "cuda:1")} == {torch.device("cuda", 1)}
    assert torch_device(torch.device("cuda", 0)) == torch_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(InputError, match=r"^no device called 'cuda:2': there are 2, from cuda:0 on$"):
        torch_device("cuda:2")


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto") == torch.device("cpu")
