import json
import os
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import process
from benchmarks.gpu.plan import DATA, PARTS, Part, in_order, limit_sec
from benchmarks.gpu.process import Context, run_part, run_parts
from benchmarks.gpu.record import Findings, load_record, save_report
from pipeline.errors import InputError

ALL = [part.name for part in PARTS if part.name not in DATA]
ROOT = Path(command.__file__).parents[2]


@pytest.fixture
def context(packed: Path, planes: Path, tmp_path: Path) -> Context:
    given = {"jpeg": str(packed), "planes": str(planes)}
    return Context(str(tmp_path / "work"), "cpu", 400, given, [], [300, 3])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command.main, [str(argument) for argument in arguments])


# --- the plan


def test_the_first_ten_minutes_reach_what_is_worth_most_even_where_all_takes_its_most() -> None:
    left_sec, begun = 600.0, dict[str, float]()
    for part in in_order(ALL, [], {}):
        if (limit := limit_sec(part, left_sec)) is not None:
            begun[part.name] = limit
            left_sec -= limit
    head = ["picture", "jpeg", "planes", "parity", "soak", "stalls", "decode"]
    assert list(begun)[: len(head) + 1] == [*head, "throughput"]
    assert all(begun[part.name] == part.most_sec for part in PARTS[: len(head)])
    assert begun["throughput"] >= 45  # of the rest a start and a compilation
    assert all(0 < part.least_sec < part.most_sec for part in PARTS)


@pytest.mark.parametrize(("left_sec", "limit"), [(9.9, None), (10.0, 10.0), (55.0, 55.0), (900.0, 60.0)])
def test_a_part_gets_what_is_left_from_its_least_to_its_most(left_sec: float, limit: float | None) -> None:
    assert limit_sec(Part("x", 10, 60, "m"), left_sec) == limit


def test_seconds_that_are_asked_for_are_the_most_and_lower_the_least() -> None:
    [soak, throughput] = in_order(["soak", "throughput"], DATA, {"soak": 8, "throughput": 400})
    assert (soak.least_sec, soak.most_sec) == (8, 8)
    assert (throughput.least_sec, throughput.most_sec) == (20, 400)


@pytest.mark.parametrize(
    ("wanted", "there", "names"),
    [
        (["throughput", "picture"], [], ["picture", "throughput"]),
        (["soak"], [], ["jpeg", "soak"]),
        (["end_to_end", "decode"], [], ["jpeg", "planes", "decode", "end_to_end"]),
        (["decode"], ["jpeg"], ["planes", "decode"]),
        (["decode"], ["jpeg", "planes"], ["decode"]),
        (["jpeg"], [], ["jpeg"]),
    ],
)
def test_data_are_made_once_and_only_those_that_are_needed(
    wanted: list[str], there: list[str], names: list[str]
) -> None:
    assert [part.name for part in in_order(wanted, there, {})] == names


# --- parts one after the other


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """The parts that were run, and their limits; each takes as long as it may by a clock of its own; decode fails."""
    now, parts = 1000.0, list[tuple[str, float]]()

    def run_part(part: Part, context: Context, limit: float) -> dict[str, Any]:
        nonlocal now
        parts.append((part.name, limit))
        now += limit
        found = Findings(Path(context.root), part.name, context.circumstances(part))
        found.row("a", {"rate": 7}, ["7"], ["it is wrong"] if part.name == "decode" else [])
        if limit < part.most_sec:
            found.late("b")
        found.end()
        if part.name in DATA and part.name not in context.given:
            context.folder(part.name).mkdir(parents=True)
            (context.folder(part.name) / "manifest.json").touch()
        return {**(load_record(Path(context.root), part.name) or {}), "seconds": limit}

    monkeypatch.setattr(process, "run_part", run_part)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    return parts


def test_parts_run_while_there_is_time_and_the_next_start_goes_on(
    begun: list[tuple[str, float]], context: Context
) -> None:
    said = list[str]()
    wanted = ["picture", "decode", "throughput", "nccl"]
    first = list(run_parts(wanted, context, {"picture": 3}, 1000.0 + 3 + 60 + 19, said.append))
    assert begun == [("picture", 3), ("decode", 60)]
    assert [found["status"] for found in first] == ["done", "failed", "postponed", "postponed"]
    assert "throughput: postponed: it takes 20 s at least, 19 s are left: give the command again" in said
    begun.clear()
    second = list(run_parts(wanted, context, {}, time.perf_counter() + 100, said.append))
    assert begun == [("decode", 60), ("throughput", 40)]
    assert [found["status"] for found in second] == ["done", "failed", "partial", "postponed"]
    assert "picture: done before" in said


def test_what_cannot_run_is_named_with_the_reason(
    begun: list[tuple[str, float]], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    bare = replace(context, given={})
    [tests, *_] = list(run_parts(["tests"], bare, {}, 9000.0, said.append))
    assert (said, tests["status"], begun) == (["tests: skipped: no GPU"], "skipped", [])
    assert load_record(Path(bare.root), "tests") is None
    said.clear()
    found = list(run_parts(["soak"], bare, {}, time.perf_counter() + 12, said.append))
    assert [record["status"] for record in found] == ["postponed", "postponed"]
    assert "soak: postponed: it needs jpeg, not made yet" in said


@pytest.mark.parametrize("other", ["machine", "data"])
@pytest.mark.parametrize("status", ["done", "partial"])
def test_figures_of_another_machine_or_of_other_data_are_not_mixed(
    begun: list[tuple[str, float]], context: Context, other: str, status: str
) -> None:
    [decode] = in_order(["decode"], DATA, {})
    now = context.circumstances(decode)
    now[other]["gpu" if other == "machine" else "jpeg"] = "another"
    found = Findings(Path(context.root), "decode", now)
    if status == "done":
        found.end()
    with pytest.raises(InputError, match=r"^decode was measured on the .*another.* give another WORK$"):
        list(run_parts(["decode"], context, {}, 9000.0, print))
    assert not begun


def test_other_cases_are_measured_beside_those_that_are_known(begun: list[tuple[str, float]], context: Context) -> None:
    list(run_parts(["throughput"], context, {}, 9000.0, print))
    list(run_parts(["throughput"], context, {}, 9000.0, print))
    assert len(begun) == 1
    [found] = run_parts(["throughput"], replace(context, cases=["unet-s,256,off"]), {}, 9000.0, print)
    assert (len(begun), list(found["rows"])) == (2, ["a"])


# --- records


def test_every_row_is_on_disk_at_once_and_good_ones_are_taken_over(context: Context) -> None:
    work, [part] = Path(context.root), in_order(["decode"], DATA, {})
    found = Findings(work, "decode", context.circumstances(part))
    found.columns = ["sets/s"]
    found.row("good", {"rate": 7}, ["7"])
    found.row("a|b", {"rate": 9}, ["9"], ["it is wrong"])
    record = load_record(work, "decode") or {}
    assert (record["status"], list(record["rows"])) == ("partial", ["good", "a|b"])
    again = Findings(work, "decode", context.circumstances(part))
    assert (list(again.rows), again.columns) == (["good"], ["sets/s"])
    changed = context.circumstances(part)
    changed["program"] = {"version": "another", "source_sha256": "0"}
    assert not Findings(work, "decode", changed).rows


def test_a_report_has_all_rows_failures_and_sentences(context: Context) -> None:
    work, [part] = Path(context.root), in_order(["decode"], DATA, {})
    found = Findings(work, "decode", context.circumstances(part))
    found.columns = ["sets/s", "CPU s"]
    found.row("a|b", {"rate": 9}, ["9"], ["it is wrong"])
    found.note("it is fast")
    found.end()
    text = save_report(work, "the command", [load_record(work, "decode") or {}])
    assert "### decode: failed\n\n|  | sets/s | CPU s |\n| --- | --- | --- |\n| a\\|b | 9 |  |\n\n" in text
    assert "- FAILED: a|b: it is wrong\n- it is fast\n- no GPU: a small form" in text
    assert (work / "gpu-report.md").read_text() == f"{text}\n"
    report = json.loads((work / "gpu-report.json").read_text())
    assert report["parts"][0]["rows"]["a|b"]["figures"] == {"rate": 9}


def test_the_load_that_later_parts_use_is_0_until_the_soak_has_passed(context: Context) -> None:
    work, [part] = Path(context.root), in_order(["soak"], DATA, {})
    assert context.load == 0
    found = Findings(work, "soak", context.circumstances(part))
    found.figures = {"recommended": 0.65}
    found.end()
    assert context.load == 0.65
    found.fail("wrong")
    found.end()
    assert context.load == 0


# --- processes

MADE_UP = """
import os, signal, subprocess, sys, time

def part(context, found):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with open(context.work + "/child", "w") as file:
        file.write(str(child.pid))
    for row in %s:
        if row not in found.rows:
            found.row(row, {}, [row])
    open(context.work + "/ready", "w").close()
    %s

crashes = hangs = raises = ends = part
"""
ENDS = {
    "crashes": "os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "time.sleep(600)",
    "raises": "raise SystemExit('first\\nthe last line\\n')",
    "ends": "pass",
}


def gone(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.mark.parametrize(
    ("name", "rows", "status", "told"),
    [
        ("hangs", ["a"], "partial", "stopped after 600 s"),
        ("hangs", [], "failed", "nothing found in 600 s"),
        ("raises", ["a"], "failed", "SystemExit: the last line"),
    ],
)
def test_a_part_ends_alone_with_all_that_it_has_started_and_keeps_its_rows(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, rows: list[str], status: str, told: str,
) -> None:  # fmt: skip
    (tmp_path / "made_up.py").write_text(MADE_UP % (rows, ENDS[name]))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    wait, ready = subprocess.Popen.wait, Path(context.root) / name / "ready"

    def until_it_hangs(child: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
        while name == "hangs" and timeout == 600 and child.poll() is None:
            if ready.exists():
                raise subprocess.TimeoutExpired(name, timeout)
            time.sleep(0.01)
        return wait(child, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", until_it_hangs)
    found = run_part(Part(name, 1, 600, "made_up"), context, 600.0)
    assert (found["status"], list(found["rows"])) == (status, rows)
    assert told in "".join([*found["failures"], *found["notes"]])
    assert found == load_record(Path(context.root), name)
    child = int((Path(context.root) / name / "child").read_text())
    assert gone(child)  # though it has a session of its own, and of a part that has crashed no parent


def test_a_part_that_was_stopped_goes_on_from_its_rows(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    for rows, end, status in ((["a"], "crashes", "failed"), (["a", "b"], "ends", "done")):
        (tmp_path / "made_up.py").write_text(MADE_UP % (rows, ENDS[end]))
        found = run_part(Part("part", 1, 60, "made_up"), context, 60.0)
        assert (found["status"], list(found["rows"])) == (status, rows)
        assert "ended by SIGSEGV" in "".join(found["failures"]) if status == "failed" else not found["failures"]
        assert found == load_record(Path(context.root), "part")
        assert gone(int((Path(context.root) / "part/child").read_text()))
    assert "a: a" not in (Path(context.root) / "logs/part.log").read_text()  # it was not measured again


# --- the command


def test_the_command_reports_all_that_is_known_and_fails_with_what_failed(
    begun: list[tuple[str, float]], packed: Path, planes: Path, tmp_path: Path
) -> None:
    data = ("--shards", packed, "--planes", planes, "--device", "cpu")
    assert run(tmp_path, *data, "--only", "picture", "--minutes", 60).exit_code == 0
    result = run(tmp_path, *data, "--only", "decode,soak", "--minutes", 60, "--seconds", "soak=7")
    assert result.exit_code == 1
    assert result.output.strip().splitlines()[-1] == "Error: 1 of 2 parts failed: decode: a: it is wrong"
    report = json.loads((tmp_path / "gpu-report.json").read_text())
    assert [part["name"] for part in report["parts"]] == ["picture", "soak", "decode"]
    assert begun == [("picture", 40), ("soak", 7), ("decode", 60)]


def test_ctrl_c_leaves_a_report_of_what_is_done(
    begun: list[tuple[str, float]], packed: Path, planes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    data = ("--shards", packed, "--planes", planes, "--device", "cpu")
    run(tmp_path, *data, "--only", "picture", "--minutes", 60)
    (tmp_path / "gpu-report.md").unlink()
    monkeypatch.setattr(process, "run_part", interrupted)
    result = run(tmp_path, *data, "--only", "picture,soak")
    assert result.exit_code == 130
    assert "the same command goes on" in result.output
    assert "### picture: done" in (tmp_path / "gpu-report.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "soak,speed"], "no speed: expected some of picture, jpeg"),
        (["--only", "soak", "--skip", "soak"], "leave no part"),
        (["--shards", "x"], "--shards and --planes go together"),
        (["--shards", "x", "--planes", "y", "--sets", "100"], "--sets is for synthetic sets"),
        (["--minutes", "0"], "--minutes"),
        (["--seconds", "soak"], "'soak': expected PART=N"),
        (["--seconds", "speed=3"], "'speed=3': expected PART=N"),
        (["--seconds", "soak=-3"], "'soak=-3': expected PART=N"),
        (["--cases", "unet-s,256,default unet-s,256"], "'unet-s,256': expected MODEL,SETS,COMPILE"),
        (["--cases", "unet-s,0,default"], "'unet-s,0,default': expected"),
        (["--cases", "unet-s,2,auto"], "'unet-s,2,auto': expected"),
        (["--whole-epochs", "1"], "--whole-epochs"),
    ],
)
def test_wrong_usage_is_refused(tmp_path: Path, flags: list[str], message: str) -> None:
    result = run(tmp_path / "work", *flags)
    assert result.exit_code == 2
    assert message in click.unstyle(result.output)
    assert not (tmp_path / "work").exists()


def test_data_that_are_given_have_to_be_there(tmp_path: Path) -> None:
    result = run(tmp_path / "work", "--shards", tmp_path, "--planes", tmp_path, "--device", "cpu")
    assert (result.exit_code, "no shards in" in result.output) == (1, True)
    assert not (tmp_path / "work").exists()
