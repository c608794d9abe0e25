import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import tools.gpu_check.check
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from tools.gpu_check import __main__ as command
from tools.gpu_check.check import Check
from tools.gpu_check.context import Context
from tools.gpu_check.context import Result as Found
from tools.gpu_check.data import compose
from tools.gpu_check.parts import PARTS, Part
from tools.gpu_check.process import last_line, measure, run_part
from tools.gpu_check.report import circumstances, load_record, markdown, program, save_record

GOOD = Found({"rate": 7}, ["sets/s"], {"a|b": ["7"]}, ["it is fast"])
MADE_UP = """
import os, signal, subprocess, sys, time
from tools.gpu_check.context import Result

def measure(context):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (context.work / "child").write_text(str(child.pid))
    if context.work.name == "crashes":
        child.kill()
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(600)
"""


def record(name: str, status: str, packed: Path, planes: Path, **more: Any) -> dict[str, Any]:
    found = {"name": name, "status": status, "seconds": 1.0, **GOOD._asdict(), **circumstances(packed, planes)}
    return found | more


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command.main, [str(argument) for argument in arguments])


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, packed: Path, planes: Path) -> list[tuple[str, float]]:
    """The parts that were run, and their limits; each takes as long as it may, by a clock of its own, and is done."""
    now, parts = 1000.0, list[tuple[str, float]]()

    def run_part(part: Part, work: Path, *place: object) -> dict[str, Any]:
        nonlocal now
        limit_sec = place[-1]
        assert isinstance(limit_sec, float)
        parts.append((part.name, limit_sec))
        now += limit_sec
        status = "unfinished" if part.resumable else "failed" if part.name == "bad" else "done"
        failures = ["it is wrong"] if status == "failed" else []
        found = record(part.name, status, packed, planes, failures=failures)
        save_record(work, found)
        return found

    monkeypatch.setattr(tools.gpu_check.check, "run_part", run_part)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    return parts


def test_parts_run_in_order_while_there_is_time_and_the_next_start_goes_on(
    begun: list[tuple[str, float]], packed: Path, planes: Path, tmp_path: Path
) -> None:
    parts = [
        Part("one", 100.0),
        Part("bad", 50.0),
        Part("long", 300.0),
        Part("short", 40.0),
        Part("rest", 900.0, False, True),
    ]
    said = list[str]()
    check = Check(tmp_path, packed, planes, "cpu", said.append)
    first = check.run(parts, 1000.0 + 350)
    # After one and bad 200 s are left: too few for long.
    assert begun == [("one", 100.0), ("bad", 50.0), ("short", 40.0), ("rest", 160.0)]
    assert [found["status"] for found in first] == ["done", "failed", "postponed", "done", "unfinished"]
    assert "long: postponed: it may take 300 s, 200 s are left: give the command again" in said
    begun.clear()
    second = check.run(parts, time.perf_counter() + 2000)
    assert begun == [("bad", 50.0), ("long", 300.0), ("rest", 900.0)]  # neither what is done, nor less than all else
    assert [found["status"] for found in second] == ["done", "failed", "done", "done", "unfinished"]
    third = check.run(parts[:1] + parts[-1:], time.perf_counter() + 59)
    assert [found["status"] for found in third] == ["done", "postponed"]


def test_what_needs_a_gpu_is_skipped_by_name_and_not_kept(
    begun: list[tuple[str, float]], packed: Path, planes: Path, tmp_path: Path
) -> None:
    said = list[str]()
    [found] = Check(tmp_path, packed, planes, "cpu", said.append).run([Part("fast", 1.0, needs_gpu=True)], 2000.0)
    assert said == ["fast: skipped: no GPU"]
    assert (found["status"], load_record(tmp_path, "fast"), begun) == ("skipped", None, [])
    assert "### fast: skipped\n\n- skipped: no GPU" in markdown([found])


@pytest.mark.parametrize("other", ["machine", "data"])
def test_figures_of_another_machine_or_of_other_data_are_not_mixed(
    begun: list[tuple[str, float]], packed: Path, planes: Path, tmp_path: Path, other: str
) -> None:
    found = record("one", "done", packed, planes)
    found[other]["gpu" if other == "machine" else "shards"] = "another"
    save_record(tmp_path, found)
    with pytest.raises(InputError, match=r"^one was measured on the .*another.* give another WORK$"):
        Check(tmp_path, packed, planes, "cpu", print).run([Part("one", 1.0)], 2000.0)
    assert not begun


def test_the_command_reports_all_that_is_known_and_fails_with_what_failed(
    begun: list[tuple[str, float]], packed: Path, planes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PARTS", (Part("one", 1.0), Part("bad", 1.0), Part("two", 1.0)))
    data = ("--shards", packed, "--planes", planes, "--device", "cpu")
    result = run(tmp_path, *data, "--skip", "bad,two")
    assert result.exit_code == 0
    result = run(tmp_path, *data, "--only", "bad")
    assert result.exit_code == 1
    assert result.output.strip().splitlines()[-1] == "Error: 1 of 1 parts failed: bad"
    assert "- FAILED: it is wrong" in result.output
    report = json.loads((tmp_path / "gpu-report.json").read_text())
    assert [part["name"] for part in report["parts"]] == ["one", "bad"]
    assert report["parts"][0]["figures"] == {"rate": 7}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "soak,speed"], "no speed: expected some of tests, agreement"),
        (["--only", "soak", "--skip", "soak"], "leave no part"),
        (["--shards", "x"], "--shards and --planes go together"),
        (["--shards", "x", "--planes", "y", "--sets", "100"], "--sets is for synthetic sets"),
        (["--minutes", "0"], "--minutes"),
    ],
)
def test_wrong_usage_is_refused(tmp_path: Path, flags: list[str], message: str) -> None:
    result = run(tmp_path / "work", *flags)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "work").exists()


def test_every_part_has_a_module_of_its_name() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        assert (Path(command.__file__).parent / f"{part.name}.py").exists()


def test_a_part_is_given_its_place_and_what_it_finds_is_kept_with_the_circumstances(
    packed: Path, planes: Path, tmp_path: Path
) -> None:
    given = list[Context]()

    def function(context: Context) -> Found:
        given.append(context)
        return GOOD

    found = measure(function, "one", tmp_path, packed, planes, "cpu", 60.0)
    assert (given[0].work, given[0].flag, given[0].on_gpu, given[0].size) == (tmp_path / "one", "cpu", False, 16)
    assert given[0].work.is_dir()
    assert (found["status"], found["figures"], found["program"]) == ("done", {"rate": 7}, program())
    assert found["data"]["shards"] == Manifest.load(packed).sha256
    save_record(tmp_path, found)
    text = markdown([load_record(tmp_path, "one") or {}])
    table = "|  | sets/s |\n| --- | --- |\n| a\\|b | 7 |"
    assert f"### one: done\n\n{table}\n\n- it is fast\n- no GPU: a small form" in text


@pytest.mark.parametrize("error", [ValueError("first\nthe last line\n"), SystemExit("the last line")])
def test_a_part_that_raises_has_failed_with_its_last_line(
    packed: Path, planes: Path, tmp_path: Path, error: BaseException
) -> None:
    def function(_: Context) -> Found:
        raise error

    found = measure(function, "one", tmp_path, packed, planes, "cpu", 60.0)
    assert (found["status"], found["failures"]) == ("failed", [f"{type(error).__name__}: the last line"])


def test_what_a_part_finds_wrong_makes_it_fail(packed: Path, planes: Path, tmp_path: Path) -> None:
    found = measure(lambda _: GOOD._replace(failures=["wrong"]), "one", tmp_path, packed, planes, "cpu", 60.0)
    assert (found["status"], found["figures"]) == ("failed", {"rate": 7})


@pytest.mark.parametrize(("name", "resumable", "status"), [("crashes", False, "failed"), ("hangs", True, "unfinished")])
def test_a_part_that_crashes_or_hangs_ends_alone_and_with_all_that_it_has_started(
    packed: Path, planes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, resumable: bool, status: str,
) -> None:  # fmt: skip
    package = tmp_path / "made_up"
    package.mkdir()
    (package / f"{name}.py").write_text(MADE_UP)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(command.__file__).parents[2]}")
    work, limit_sec = tmp_path / "work", 60.0 if name == "crashes" else 2.5
    found = run_part(Part(name, limit_sec, False, resumable, "made_up"), work, packed, planes, "cpu", limit_sec)
    assert found["status"] == status
    assert found == load_record(work, name)
    if name == "crashes":
        assert "ended by SIGSEGV" in found["failures"][0]
    child = work / name / "child"
    if child.exists():  # on a slow machine it may have been stopped before
        with pytest.raises(ProcessLookupError):
            for _ in range(1000):  # the killed is there until init has buried it
                os.kill(int(child.read_text()), 0)
                time.sleep(0.01)


def test_the_last_line_is_the_last_that_says_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\nlast\n\n  \n")
    assert last_line(log) == "last"
    log.write_text("")
    assert last_line(log) == "no output"


def test_a_command_gives_its_output_or_its_last_line(tmp_path: Path) -> None:
    context = Context(tmp_path, tmp_path, tmp_path, torch.device("cpu"), 60.0, print)
    assert context.command("json.tool", "--help").startswith("usage")
    with pytest.raises(InputError, match=r"^json\.tool: .*No such file.* \(exit code 2; all of its output: .*log\)$"):
        context.command("json.tool", tmp_path / "nothing")
    log = (tmp_path / "commands.log").read_text()
    assert log.index("$ python -m json.tool --help") < log.index("usage") < log.index("No such file")


def test_data_are_composed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = list[tuple[str, list[str]]]()

    def run(module: str, flags: list[str], places: list[str], note: Path, log: Path) -> float:
        ran.append((module, [*flags, *places]))
        note.parent.mkdir(exist_ok=True)
        note.write_text(json.dumps({"command": [module, *flags], "seconds": 1.0}))
        return 1.0

    monkeypatch.setattr("tools.gpu_check.data.run", run)
    said = list[str]()
    shards, planes = compose(tmp_path / "data", 100, "cpu", said.append)
    assert [module for module, _ in ran] == ["tools.compose", "tools.pack", "tools.pack"]
    assert (ran[1][1][-1], ran[2][1][-1]) == (str(shards), str(planes))
    assert compose(tmp_path / "data", 100, "cpu", said.append) == (shards, planes)
    assert len(ran) == 3
    with pytest.raises(InputError, match="made with --sets 100, now it is --sets 200"):
        compose(tmp_path / "data", 200, "cpu", said.append)
