"""The wheel holds what a user needs and no more, and works in a folder where the user has names like ours."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.commands import ROOT, console_scripts, settings

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it may name the checkout
DECOY = "raise SystemExit('a file of the user was imported')\n"
TRAINING = [
    "--epochs",
    "1",
    "--batch-size",
    "16",
    "--size",
    "32",
    "--model",
    "unet-4",
    "--device",
    "cpu",
    "--no-report",
]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `make dist`: the source archive, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    [wheel] = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are of an environment that holds the wheel, and sees what else is installed here."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, env=ENVIRONMENT)
    packages = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # The .pth files of a folder that a .pth file names are not read: the checkout, installed as editable, stays out.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project of the user's own, with modules called like our packages."""
    for module in ("pipeline/__init__.py", "tools/__init__.py", "train.py"):
        (tmp_path / module).parent.mkdir(exist_ok=True)
        (tmp_path / module).write_text(DECOY)
    return tmp_path


def test_the_wheel_holds_packages_and_their_data_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    ours = [name for name in names if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in ours} == {"pipeline", "train", "tools"}
    assert {Path(name).suffix for name in ours} == {".py", ".toml", ".j2", ".typed"}
    packages = ("pipeline", "train", "tools")
    checkout = {str(file.relative_to(ROOT)) for package in packages for file in (ROOT / package).rglob("*")}
    expected = {name for name in checkout if Path(name).suffix in {".py", ".toml", ".j2", ".typed"}}
    assert set(ours) == expected
    assert {"pipeline/py.typed", "train/py.typed", "train/report.html.j2"} <= expected


def test_the_source_archive_holds_no_tests_pictures_and_benchmarks(dist: Path) -> None:
    [archive] = dist.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = [member.name.partition("/")[2] for member in members if member.isfile()]
    metadata = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert metadata <= set(names)
    assert {name.split("/")[0] for name in names} - metadata == {"pipeline", "train", "tools", "fgbg.egg-info"}


def test_the_commands_of_the_wheel_work_among_files_of_the_user_with_our_names(bin_folder: Path, folder: Path) -> None:
    environment = ENVIRONMENT | {"PATH": f"{bin_folder}{os.pathsep}{ENVIRONMENT['PATH']}"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert {name for name in console_scripts() if (bin_folder / name).exists()} == set(console_scripts())
    place = run(str(bin_folder / "python"), "-P", "-c", "import pipeline; print(pipeline.__file__)")
    assert place.startswith(str(bin_folder.parent))
    assert run("fgbg-compose", "--version") == f"fgbg-compose {settings()['metadata']['version']}\n"
    run("fgbg-compose", "sets", "--synthetic", "--sets", "64", "--workers", "2")
    assert "packed 64 sets" in run("fgbg-pack", "sets", "--shards", "shards", "--workers", "2")
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    script = ["--nproc-per-node", "1", "--no-python", "fgbg-train"]  # a rank is this command as a user starts it
    run(*torchrun, *script, "--shards", "shards", "--out", "run", *TRAINING)
    assert (folder / "run" / "last.pt").exists()
