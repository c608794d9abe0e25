"""Figures are drawn whatever backend the environment names, and without pyplot, which would look for a display."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRAW = """
import os, sys
from pathlib import Path
from train.curves import LOSSES, draw_curves, draw_svg
lines = [{"kind": "train", "step": 1, "epoch": 1, "mask_loss": 0.5}]
draw_curves(lines, Path(sys.argv[1]))
assert draw_svg(LOSSES[0], lines).startswith("<svg")
assert "matplotlib.pyplot" not in sys.modules
print(os.environ["MPLBACKEND"])
"""


@pytest.mark.parametrize("backend", ["module://no_such_package.backend_inline", "no-such-backend", "tkagg"])
def test_a_backend_that_is_not_there_is_no_hindrance(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    command = [sys.executable, "-c", DRAW, str(path)]
    done = subprocess.run(
        command, env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == backend  # for whoever uses matplotlib later in this process
    assert path.read_bytes().startswith(b"\x89PNG")
