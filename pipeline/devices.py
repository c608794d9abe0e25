"""Devices: "gpu" and "cpu" as torch has them, and why there may be no GPU for it although the machine has one."""

import ctypes
import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.errors import InputError
from pipeline.installation import install_hint

DEVICES = ("gpu", "cpu")  # by the names of the command line
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""The first driver on which programs built for a major version of CUDA run, whatever its minor version
(CUDA Compatibility, "minor version compatibility")."""
EXTRAS = {12: "cuda12", 13: "cuda13"}
"""Ours, by the major version of CUDA that DALI is built for."""
DALI_PACKAGES = {13: "nvidia-dali-cuda130", 12: "nvidia-dali-cuda120"}
"""By the same; of two, the one that was installed last has overwritten files of the other."""
DRIVER_VERSION = Path("/proc/driver/nvidia/version")  # of the kernel's module; WSL has none


class Driver(NamedTuple):
    """NVIDIA's driver."""

    name: str
    """Such as "driver 535.104.05 (CUDA 12.2)", or "a driver of CUDA 12.2"."""
    cuda: int
    """Major version of CUDA that it offers."""
    gpus: int
    """How many it shows to this process."""


def torch_device(device: str | torch.device) -> torch.device:
    """The torch device of "auto" (the GPU if there is one), "cpu", "cuda" or "gpu" (the current one), or "cuda:1".

    A `torch.device` is taken by its name. Raises `InputError` if it is not there.
    """
    name = str(device)
    if name == "auto":
        name = "cuda" if gpu_usable() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if (match := re.fullmatch(r"(?:cuda|gpu)(?::(\d+))?", name)) is None:
        raise InputError(f"no device called {name!r}: expected one of auto, cpu, cuda, cuda:0, cuda:1 ...")
    if not gpu_usable():
        problem = gpu_problem()
        what = f": {problem}; or use" if problem else " (torch finds no CUDA device): check driver and torch, or use"
        raise InputError(f"no usable GPU{what} --device cpu")
    index = torch.cuda.current_device() if match[1] is None else int(match[1])
    if index >= (gpus := torch.cuda.device_count()):
        raise InputError(f"no device called {name!r}: there {'is' if gpus == 1 else 'are'} {gpus}, from cuda:0 on")
    return torch.device("cuda", index)


def gpu_usable() -> bool:
    """Whether torch finds a GPU. It warns of a driver that is too old, over several lines: `gpu_problem` has one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def gpu_problem() -> str:
    """Where torch finds no GPU although the machine has one: why, and what to do, in one line; else empty."""
    driver = find_driver()
    if driver is None and DRIVER_VERSION.exists():
        return "the kernel has NVIDIA's driver, but no libcuda.so.1 is here: start the container with its GPUs"
    if driver is None or not driver.gpus:
        return ""
    found = f"GPU with {driver.name}, but torch {torch.__version__} is built"
    newest = max((cuda for cuda in EXTRAS if cuda <= driver.cuda), default=None)
    remedies = [f"install a torch built for CUDA {newest}, then {install_hint(EXTRAS[newest])}"] if newest else []
    if torch.version.cuda is None:
        return f"{found} without CUDA: {', '.join(remedies or ['update the driver, install a torch with CUDA'])}"
    found += f" for CUDA {torch.version.cuda}"
    needed = _major(torch.version.cuda)
    if driver.cuda >= needed:
        return f"{found} and cannot use it: see what nvidia-smi says"
    oldest = f"driver {OLDEST_DRIVER[needed]} or newer" if needed in OLDEST_DRIVER else "a newer driver"
    return f"{found}, which needs {oldest}: {', or '.join(['update the driver', *remedies])}"


def dali_extra() -> str:
    """The extra with the DALI that fits this torch, or the driver where torch is built without CUDA."""
    driver = find_driver()
    cuda = _major(torch.version.cuda) if torch.version.cuda else driver.cuda if driver else max(EXTRAS)
    return EXTRAS[max((known for known in EXTRAS if known <= cuda), default=min(EXTRAS))]


def dali_problem() -> str:
    """Why DALI does not go with this torch, or with the driver, on a GPU, and what to do, in one line; else empty.

    A machine without DALI has no such problem.
    """
    builds = [cuda for cuda, package in DALI_PACKAGES.items() if _is_installed(package)]
    driver, of_torch = find_driver(), torch.version.cuda
    if not builds or not driver or not of_torch:
        return ""
    found = f"DALI is built for CUDA {' and '.join(map(str, builds))}, torch {torch.__version__} for CUDA {of_torch}"
    if builds == [_major(of_torch)] and builds[0] <= driver.cuda:
        return ""
    remove = " ".join(DALI_PACKAGES[cuda] for cuda in builds)
    return f"{found}, on {driver.name}: pip uninstall {remove}, then {install_hint(dali_extra())}"


def _major(version: str) -> int:
    return int(version.split(".")[0])


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def find_driver() -> Driver | None:
    """NVIDIA's driver, asked without torch, whose CUDA may be too new for it; None where there is none."""
    try:
        libcuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version, gpus = ctypes.c_int(), ctypes.c_int()
    if libcuda.cuDriverGetVersion(ctypes.byref(version)):
        return None
    if libcuda.cuInit(0) or libcuda.cuDeviceGetCount(ctypes.byref(gpus)):
        gpus.value = 0  # there is none, or none that works
    cuda, minor = version.value // 1000, version.value % 1000 // 10
    number = re.search(r"\d{3}\.\d+(\.\d+)?", _text(DRIVER_VERSION))
    name = f"driver {number[0]} (CUDA {cuda}.{minor})" if number else f"a driver of CUDA {cuda}.{minor}"
    return Driver(name, cuda, gpus.value)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
