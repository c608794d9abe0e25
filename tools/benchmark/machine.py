"""What figures were measured on: the machine and the versions of what matters."""

import os
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pipeline.workers import available_cores

DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
PACKAGES = (
    "torch", "numpy", "pillow", "webdataset", "simplejpeg", "zstandard", "mosaicml-streaming", "litdata",
)  # fmt: skip
DRIVER = Path("/proc/driver/nvidia/version")


def machine() -> dict[str, str | int]:
    """Processor, memory, GPU, and the versions of what is installed."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    found: dict[str, str | int] = {
        "cpu": model[0] if model else platform.processor(),
        "cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if DRIVER.exists() and (number := re.search(r"\d+\.\d+[.\d]*", DRIVER.read_text())):
        found["driver"] = number[0]
    for name in (*DALI, *PACKAGES):
        with suppress(PackageNotFoundError):
            found["dali" if name in DALI else name] = version(name)
    return found


def describe(found: dict[str, str | int]) -> str:
    """The machine in a few words."""
    gpu = "no GPU" if found["gpu"] == "none" else found["gpu"]
    return f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB, {gpu}"
