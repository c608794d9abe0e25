"""The examples do on tiny shards what they say, as a user starts them."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.commands import ROOT

SMALL = ["--epochs", "2", "--batch-size", "16", "--size", "32"]
LOSSES = r"mask_loss (\d+\.\d+),? depth_loss (\d+\.\d+)"


def run(example: str, *flags: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(ROOT / "examples" / example), *SMALL, *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def need(package: str) -> None:
    """Skip where a package of the extra `examples` is missing."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (pip install '.[examples]')")


def test_a_network_of_ones_own_learns_from_the_loader(packed: Path) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "own_loop.py"))["main"]
    result = CliRunner().invoke(main, [*SMALL, "--shards", str(packed), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    losses = re.findall(LOSSES, result.output)
    assert len(losses) == 2
    assert sum(map(float, losses[1])) < sum(map(float, losses[0]))


def test_lightning_drives_the_loader(packed: Path, tmp_path: Path) -> None:
    need("lightning")
    flags = ["--shards", str(packed), "--out", str(tmp_path), "--width", "4", "--accelerator", "cpu"]
    [line] = [line for line in run("lightning_loop.py", *flags).splitlines() if line.startswith("trained")]
    assert re.fullmatch(f"trained 2 epochs, 8 steps: {LOSSES}", line)


def test_the_notebook_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("nbclient")
    need("ipykernel")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples" / "fgbg.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before the notebook is committed"
    [settings] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    names = re.findall(r"^(\w+) =", settings.source, flags=re.MULTILINE)
    small = {"SETS": 100, "EPOCHS": 1, "SIZE": 32, "MODEL": "unet-4"}
    assert set(names) == small.keys()
    settings.source = "\n".join(f"{name} = {value!r}" for name, value in small.items())
    # Its shell commands are those of this environment, on the code of this checkout.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert {kind for output in outputs for kind in output.get("data", {})} >= {"image/png", "image/jpeg"}
    text = "".join(output.get("text", "") for output in outputs)
    assert "packed 100 sets" in text
    assert "trained 1 epoch" in text
    assert (tmp_path / "runs" / "first" / "report.html").exists()
