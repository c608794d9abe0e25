"""What torch.compile needs beside PyTorch, looked at before it fails in the middle of a run."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

TRITON_FROM = (7, 0)  # compute capability


def missing_for_compile(device: torch.device) -> str:
    """What torch.compile lacks here to compile for a device, and what to do, in a few words; empty if nothing.

    For a GPU it writes programs for Triton, which builds the C code that starts them (as `triton.runtime.build` looks
    for a compiler); for a CPU it writes C++ itself (as `torch._inductor.cpp_builder` does, which takes 2 s to import).
    """
    if device.type == "cuda":
        if (found := torch.cuda.get_device_capability(device)) < TRITON_FROM:
            return f"Triton needs a GPU of compute capability 7.0 or more, this one has {found[0]}.{found[1]}"
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed (pip install triton)"
        if not _program("CC", "gcc", "clang"):
            return "no C compiler found (install gcc)"
    elif not _program("CXX", "g++"):
        return "no C++ compiler found (install g++)"
    if not (_python_headers() / "Python.h").is_file():
        return "no Python.h found (install python3-dev)"
    return ""


def _program(variable: str, *names: str) -> bool:
    """Whether there is the program that an environment variable names, or without it one of `names`."""
    named = os.environ.get(variable)
    return any(shutil.which(name) for name in ([named] if named else names))


def _python_headers() -> Path:
    scheme = sysconfig.get_default_scheme()
    # Debian's own, for packages of the machine's administrator; Python's headers are elsewhere.
    return Path(sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"])
