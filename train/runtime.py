"""How a run computes on this machine: its loader, number format, torch.compile, repeatable algorithms."""

import importlib.util
import os
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.devices import gpu_problem
from pipeline.errors import InputError
from pipeline.loading.augment import OFF, Augmentation
from pipeline.loading.loader import Loader
from train.config import CHOSEN_BY_DEVICE, Config
from train.distributed import SINGLE, Distributed

TENSOR_CORES = (7, 0)  # compute capability from which float16 products have units of their own
TRITON_FROM = (7, 0)  # compute capability
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # an environment variable


def describe_device(config: Config, device: torch.device, ranks: int) -> str:
    """One line for the user: device, number format and torch.compile mode; the reason where "auto" chose.

    Raises `InputError` as `compile_mode` does.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        gpu = torch.cuda.get_device_name(device)
        where = f"training on {ranks} GPUs, the first: {gpu}" if ranks > 1 else f"training on the GPU: {gpu}"
    else:
        where = f"training on {ranks} processes, on the CPU" if ranks > 1 else "training on the CPU"
        if config.device == "auto":
            where = f"{problem}; {where}" if (problem := gpu_problem()) else f"no GPU found: {where}"
    how = [describe_format(config.precision, device)]
    mode = compile_mode(config.compile, device)
    if mode or on_gpu:
        lacking = missing_for_compile(device) if config.compile == "auto" and not mode else ""
        how.append(f"torch.compile {mode or 'off'}{f': {lacking}; steps are slower' if lacking else ''}")
    if config.deterministic:
        how.insert(1, "deterministic")
    return ", ".join([where, *how])


def open_loader(
    config: Config,
    device: torch.device,
    split: str | None = None,
    *,
    shuffle: bool = True,
    ranks: Distributed = SINGLE,
) -> Loader:
    """A loader of one split of a run's shards, by default of that for training; augmented where it shuffles.

    Raises `InputError` as `Loader` does.
    """
    config = config.on_device(device.type)
    return Loader(
        config.shards,
        split or config.training_split,
        batch_size=config.batch_size,
        size=config.size,
        device=device,
        seed=config.seed,
        rank=ranks.rank,
        world=ranks.world,
        local_world=ranks.local_world,
        cache=config.cache,
        cache_size=config.cache_size,
        depth=config.depth,
        shuffle=shuffle,
        window=config.window,
        resident=config.resident,
        threads=ranks.cores,
        augmentation=augmentation_of(config) if shuffle else None,
        max_bad_share=config.max_bad_share,
        hw_decoder_load=0.0 if config.deterministic else config.hw_decoder_load,
    )


def augmentation_of(config: Config) -> Augmentation | None:
    """How training sets are changed."""
    mirror = Augmentation.mirror if config.mirror else 0.0
    if config.augment:
        return Augmentation(mirror=mirror)
    return Augmentation(**(OFF | {"mirror": mirror})) if mirror else None


def number_format(precision: str, device: torch.device) -> str:
    """Which of float32, bf16 and fp16 a precision of `config.PRECISIONS` means on a device.

    native: bf16 where the hardware has it (elsewhere convolutions crawl); else float32 on a CPU, and on a GPU fp16
    where it has tensor cores. auto, as runs of before have it: the same on a GPU, and float32 on every CPU.
    """
    if precision not in CHOSEN_BY_DEVICE:
        return precision
    if device.type != "cuda":
        return "bf16" if precision == "native" and cpu_has_bf16() else "float32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if torch.cuda.get_device_capability(device) >= TENSOR_CORES else "float32"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX); PyTorch has told since 2.13."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, object])()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def describe_format(precision: str, device: torch.device) -> str:
    """The number format; with the reason where a GPU has none that is faster."""
    found = number_format(precision, device)
    if precision not in CHOSEN_BY_DEVICE or device.type != "cuda" or found == "bf16":
        return found
    return f"{found} (no {'bfloat16' if found == 'fp16' else 'tensor cores'} in hardware)"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which convolutions are of a precision of `config.PRECISIONS`.

    bf16 and fp16 are PyTorch's automatic mixed precision. The loss of fp16 has to be scaled while training, or small
    gradients vanish (`torch.amp.GradScaler`); the range of bf16 is that of float32.
    """
    found = number_format(precision, device)
    dtype = torch.float16 if found == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=found != "float32")


def forbid_tf32() -> None:
    """Have float32 convolutions on GPUs computed in float32, SSIM's among them: cuDNN rounds to TF32 by default.

    Of matrix products PyTorch does not round by default. Set by the older of PyTorch's two interfaces, which exporters
    and `torch.backends.cudnn.flags` read: they raise where the newer one alone was used. Some versions warn of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = False


def compile_mode(mode: str, device: torch.device) -> str | None:
    """The mode of torch.compile on a device for a mode of `config.COMPILE`; None for no compilation.

    Raises `InputError` where a mode was asked for by name and there is nothing to compile with.
    """
    if mode == "off" or (mode == "auto" and device.type != "cuda"):
        return None
    missing = missing_for_compile(device)
    if mode == "auto":
        return None if missing else "default"
    if missing:
        raise InputError(f"--compile {mode}: {missing}; or train with --compile off")
    return mode


def missing_for_compile(device: torch.device) -> str:
    """What torch.compile needs on this machine and does not find, and the remedy, in a few words; else empty.

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


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """A context in which PyTorch, if `on`, uses algorithms that give the same bits in every run.

    cuDNN's gradients of weights are else sums in an order that changes. Enter it before the process first multiplies
    matrices on a GPU: cuBLAS looks at its environment variable once. Raises RuntimeError within it, where an operation
    has no such algorithm; those of our networks, losses and loader all have one, or need none.
    """
    if not on:
        yield
        return
    former = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property of the module
    workspace = os.environ.get(CUBLAS)
    os.environ.setdefault(CUBLAS, ":4096:8")
    torch.backends.cudnn.benchmark = False  # a search by time, which ends otherwise now and then
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # none is read
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(former[0], warn_only=former[1])
        torch.backends.cudnn.benchmark = benchmark
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        if workspace is None:
            del os.environ[CUBLAS]
