"""Tests on a machine with a GPU: which of them see it, and which warnings are failures.

All are, but for known ones of others; of tests that need a GPU none.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFTEST = """
import pytest
import torch

import tests.conftest
from tests.conftest import pytest_runtest_protocol

@pytest.hookimpl
def pytest_collection_modifyitems(config, items):
    torch.cuda.is_available = lambda: True  # so that nothing is skipped
    tests.conftest.pytest_collection_modifyitems(config, items)
"""
TESTS = """
import os
import warnings

import pytest
import torch

NPP = "nvidia-dali-cuda120 is no longer shipped with CUDA runtime. You need to install it separately. NPP is typically"
SYNC = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"

def foreign():
    warnings.warn_explicit(NPP, Warning, "backend.py", 140, "nvidia.dali.backend")
    warnings.warn_explicit(SYNC, UserWarning, "__init__.py", 1333, "torch.cuda")

def test_known():
    foreign()
    assert not torch.cuda.is_available()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""

def test_unknown():
    warnings.warn("out of fashion", DeprecationWarning)

@pytest.mark.gpu
def test_on_a_gpu():
    foreign()
    assert torch.cuda.is_available()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    warnings.warn("out of fashion on a GPU", DeprecationWarning)

@pytest.mark.gpu
@pytest.mark.filterwarnings("error:of its own")
def test_strict_on_a_gpu():
    warnings.warn("of its own", DeprecationWarning)
"""


def test_only_tests_that_need_a_gpu_see_it_and_its_own_warnings_are_no_failures(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_warning.py").write_text(TESTS)
    flags = ["-c", "setup.cfg", "--rootdir", ".", "-o", f"pythonpath={ROOT}", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *flags, "."]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "2 failed, 2 passed, 1 warning" in done.stdout, done.stdout + done.stderr
    assert "FAILED test_warning.py::test_unknown - DeprecationWarning: out of fashion" in done.stdout
    assert "FAILED test_warning.py::test_strict_on_a_gpu - DeprecationWarning: of its own" in done.stdout
    assert "DeprecationWarning: out of fashion on a GPU" in done.stdout
