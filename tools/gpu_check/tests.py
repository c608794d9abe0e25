"""Part `tests`: the project's own tests that need a GPU."""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from pipeline.errors import InputError
from tools.gpu_check.context import Context, Result
from tools.gpu_check.report import ROOT

MARKED = "gpu"


class Counts(NamedTuple):
    """What pytest says of its tests."""

    passed: int
    failed: list[str]
    """Their names, and the first line of what went wrong."""
    skipped: list[str]
    """Their names, and why."""
    seconds: float


def measure(context: Context, folder: Path = ROOT) -> Result:
    """Run the tests of a project that are marked `gpu`; every one of them has to run and to pass."""
    path = context.work / "junit.xml"
    path.unlink(missing_ok=True)
    flags = ["-q", "-m", MARKED, "--junitxml", path, "--rootdir", folder, "-p", "no:cacheprovider"]
    try:
        context.command("pytest", "-c", folder / "setup.cfg", *flags, folder / "tests")
    except InputError:
        if not path.exists():  # it did not get so far; else the file tells what failed
            raise
    counts = read_junit(path)
    failures = [f"test {name}" for name in (*counts.failed, *counts.skipped)]
    if not counts.passed and not failures:
        failures = [f"no test in {folder / 'tests'} is marked {MARKED}"]
    cells = [str(counts.passed), str(len(counts.failed)), str(len(counts.skipped)), f"{counts.seconds:.0f}"]
    return Result(counts._asdict(), ["passed", "failed", "skipped", "s"], {f"pytest -m {MARKED}": cells}, (), failures)


def read_junit(path: Path) -> Counts:
    """The counts in a file that `pytest --junitxml` has written."""
    passed, failed, skipped, seconds = 0, list[str](), list[str](), 0.0
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        wrong = [child for child in case if child.tag in ("failure", "error")]
        left_out = case.find("skipped")
        seconds += float(case.get("time", 0))
        if wrong:
            failed.append(f"{name}: {_first_line(wrong[0])}")
        elif left_out is not None:
            skipped.append(f"{name}: {_first_line(left_out)}")
        else:
            passed += 1
    return Counts(passed, failed, skipped, seconds)


def _first_line(element: ElementTree.Element) -> str:
    return next(iter((element.get("message") or element.text or "no reason").strip().splitlines()), "no reason")
