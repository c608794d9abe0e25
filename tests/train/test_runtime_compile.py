"""What torch.compile lacks is told before the run, and auto goes without."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import devices
from pipeline.errors import InputError
from tests.tools.test_train_command import SMALL, one_line_error, run
from train import runtime
from train.config import Config
from train.runtime import _python_headers, compile_mode, describe_device, missing_for_compile

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Sets what the machine has: programs, Triton, Python's headers, a GPU."""

    def set_up(
        programs: set[str], triton: bool = True, headers: bool = True, capability: tuple[int, int] = (8, 0)
    ) -> None:
        for name in ("CC", "CXX"):
            monkeypatch.delenv(name, raising=False)
        if headers:
            (tmp_path / "Python.h").touch()
        monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if triton and name == "triton" else None)
        monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(tmp_path)})
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")

    return set_up


@pytest.mark.parametrize(
    ("device", "has", "missing"),
    [
        (GPU, {"programs": {"gcc"}}, ""),
        (GPU, {"programs": {"clang"}}, ""),
        (GPU, {"programs": {"g++"}}, "no C compiler found (install gcc)"),
        (GPU, {"programs": {"gcc"}, "triton": False}, "Triton is not installed (pip install triton)"),
        (GPU, {"programs": {"gcc"}, "headers": False}, "no Python.h found (install python3-dev)"),
        (GPU, {"programs": {"gcc"}, "capability": (6, 1)},
         "Triton needs a GPU of compute capability 7.0 or more, this one has 6.1"),
        (CPU, {"programs": {"g++"}, "triton": False}, ""),
        (CPU, {"programs": {"gcc"}}, "no C++ compiler found (install g++)"),
        (CPU, {"programs": {"g++"}, "headers": False}, "no Python.h found (install python3-dev)"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told(device: torch.device, has: dict[str, Any], missing: str, machine: Any) -> None:
    machine(**has)
    assert missing_for_compile(device) == missing


@pytest.mark.parametrize(("device", "variable"), [(GPU, "CC"), (CPU, "CXX")])
def test_the_compiler_that_the_environment_names_is_the_one(
    device: torch.device, variable: str, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine({"gcc", "g++", "icx"})
    monkeypatch.setenv(variable, "icx")
    assert not missing_for_compile(device)
    monkeypatch.setenv(variable, "gone")
    assert "compiler found" in missing_for_compile(device)


@pytest.mark.parametrize(("scheme", "asked"), [("posix_local", "posix_prefix"), ("venv", "venv")])
def test_headers_are_looked_for_where_pythons_own_are(
    scheme: str, asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sysconfig.get_default_scheme", lambda: scheme)
    monkeypatch.setattr("sysconfig.get_paths", {asked: {"include": str(tmp_path)}}.__getitem__)
    assert _python_headers() == tmp_path


@pytest.mark.parametrize(
    ("asked", "device", "mode", "told"),
    [
        ("auto", GPU, "default",
         "training on the GPU: Tesla T4, fp16 (no bfloat16 in hardware), torch.compile default"),
        ("off", GPU, None, "training on the GPU: Tesla T4, fp16 (no bfloat16 in hardware), torch.compile off"),
        ("reduce-overhead", GPU, "reduce-overhead",
         "training on the GPU: Tesla T4, fp16 (no bfloat16 in hardware), torch.compile reduce-overhead"),
        ("auto", CPU, None, "no GPU found: training on the CPU, float32"),
        ("default", CPU, "default", "no GPU found: training on the CPU, float32, torch.compile default"),
    ],
)  # fmt: skip
def test_the_first_line_says_how_a_run_computes(
    asked: str, device: torch.device, mode: str | None, told: str, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine({"gcc", "g++"}, capability=(7, 5))
    monkeypatch.setattr(runtime, "gpu_problem", lambda: "")
    settings = Config(Path(), Path(), compile=asked, precision="auto" if device == GPU else "float32")
    assert compile_mode(settings.compile, device) == mode
    assert describe_device(settings, device, 1) == told


def test_without_a_compiler_auto_is_off_and_says_why(machine: Any) -> None:
    machine(set(), capability=(7, 5))
    settings = Config(Path(), Path(), device="gpu", deterministic=True)
    assert compile_mode(settings.compile, GPU) is None
    assert describe_device(settings, GPU, 2) == (
        "training on 2 GPUs, the first: Tesla T4, fp16 (no bfloat16 in hardware), deterministic, torch.compile off: no "
        "C compiler found (install gcc); steps are slower"
    )


def test_a_gpu_that_cannot_be_used_is_told_in_the_first_line(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = devices.Driver("driver 535.104.05 (CUDA 12.2)", 12, 1)
    monkeypatch.setattr(devices, "find_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    line = describe_device(Config(Path(), Path(), precision="float32"), CPU, 1)
    assert line.startswith("GPU with driver 535.104.05 (CUDA 12.2), but torch ")
    assert line.endswith(
        "install a torch built for CUDA 12, then pip install '.[cuda12]'; training on the CPU, float32"
    )
    assert "\n" not in line
    asked = Config(Path(), Path(), device="cpu", precision="float32")
    assert describe_device(asked, CPU, 2) == "training on 2 processes, on the CPU, float32"


@pytest.mark.parametrize("device", [CPU, GPU])
def test_what_is_asked_for_by_name_is_refused_without_a_compiler(device: torch.device, machine: Any) -> None:
    machine(set())
    with pytest.raises(InputError, match=r"^--compile default: no C.* compiler found \(install .*; or train with --co"):
        compile_mode("default", device)


def test_the_command_refuses_it_in_one_line_and_leaves_nothing(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "gone"))
    message = one_line_error(run(packed, tmp_path / "run", *SMALL, "--compile", "default"))
    assert message.startswith("Error: --compile default: no C++ compiler found (install g++); or train with")
    assert not (tmp_path / "run").exists()
