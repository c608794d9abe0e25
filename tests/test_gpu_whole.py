import json
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from tools.gpu_check import whole
from tools.gpu_check.context import Context, Result
from tools.gpu_check.original import FOUND
from tools.gpu_check.whole import FULL, Form, epoch_sec, measure, score, steps, training

TINY = Form(120, "unet-4", 2, 16, 32, 2, 5)
CPU = torch.device("cpu")


def a_context(work: Path) -> Context:
    work.mkdir(parents=True, exist_ok=True)
    return Context(work, Path("nowhere"), Path("nowhere"), CPU, 60.0, lambda line: None)


def in_this_process(module: str, flags: Sequence[str], places: Sequence[str], note: Path, log: Path) -> float:
    """What `benchmarks.baselines.process.run` does, without the seconds in which torch and DALI are loaded."""
    more = ["--streets", "10", "--cars", "10", "--workers", "1"] if module == "tools.compose" else []
    result = CliRunner().invoke(import_module(module).main, [*flags, *places, *more])
    assert result.exit_code == 0, result.output
    log.write_text(result.output)
    note.write_text(json.dumps({"command": [module, *flags], "seconds": 1.0}))
    return 1.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Result]]:
    """A folder in which everything is done on a few sets, and the result."""
    work = tmp_path_factory.mktemp("check") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole, "SMALL", TINY)
        patch.setattr(whole, "run", in_this_process)
        yield work, measure(a_context(work))


def test_sets_are_composed_trained_on_and_scored(finished: tuple[Path, Result]) -> None:
    work, result = finished
    assert Manifest.load(work / "shards").sets == TINY.sets
    figures = result.figures
    lines = [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()]
    assert figures["sets_seen"] == [line["sets_seen"] for line in lines if line["kind"] == "train"][-1]
    assert figures["sets_seen"] == TINY.epochs * figures["sets_an_epoch"]
    assert len(figures["epoch_sec"]) == TINY.epochs - 1
    assert 0 < figures["end_to_end_sets_per_sec"] < figures["later"]["sets_per_sec"]
    evaluation = json.loads((work / "test/evaluation.json").read_text())
    assert figures["scores"] == evaluation["cells"]["new_new"]["scores"]
    assert set(figures["spent_sec"]) == {"compose", "train", "evaluate"}
    assert result.notes == ["400,000 sets, 20 epochs of unet-s: skipped: no GPU"]
    assert result.rows["against the original's loop"] == ["not measured: the part original"]
    assert {len(cells) for cells in result.rows.values()} == {len(result.columns)}
    json.dumps(figures, allow_nan=False)


def test_what_is_done_is_not_done_again(finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    work, result = finished
    monkeypatch.setattr(whole, "run", lambda *_: pytest.fail("run again"))
    monkeypatch.setattr(whole, "SMALL", TINY)
    (work.parent / "original").mkdir()
    found = {"sets_per_sec": {"median": result.figures["end_to_end_sets_per_sec"] / 20}}
    (work.parent / "original" / FOUND).write_text(json.dumps(found))
    again = measure(a_context(work))
    assert again.figures.pop("ratio_to_original") == pytest.approx(20)
    assert again.rows["against the original's loop"] == ["20 x"]
    assert again.figures == {name: value for name, value in result.figures.items() if name != "ratio_to_original"}
    monkeypatch.setattr(whole, "SMALL", TINY._replace(epochs=3))
    with pytest.raises(InputError, match="made with --epochs 2, now it is --epochs 3"):
        measure(a_context(work))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would be run; each is interrupted."""
    commands = list[list[str]]()

    def run(module: str, flags: Sequence[str], places: Sequence[str], note: Path, log: Path) -> float:
        commands.append([module, *flags, *places])
        raise KeyboardInterrupt

    monkeypatch.setattr(whole, "run", run)
    return commands


@pytest.mark.parametrize("name", ["last", "previous"])
def test_a_training_that_was_stopped_goes_on_and_its_seconds_add_up(
    name: str, started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([10.0, 13.0, 20.0, 24.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    [compose, *_] = steps(whole.SMALL, tmp_path, "cpu")
    note = json.dumps({"command": [compose.module, *compose.flags], "seconds": 1.0})
    (tmp_path / "compose.json").write_text(note)
    left = tmp_path / "run/pictures/epoch_0001.png"  # of a training that had no checkpoint yet
    left.parent.mkdir(parents=True)
    left.touch()
    with pytest.raises(KeyboardInterrupt):
        measure(a_context(tmp_path))
    assert not left.exists()
    (tmp_path / "run").mkdir()
    checkpoint = tmp_path / f"run/{name}.pt"
    checkpoint.touch()
    with pytest.raises(KeyboardInterrupt):
        measure(a_context(tmp_path))
    assert checkpoint.exists()
    assert [command[0] for command in started] == ["tools.train"] * 2
    assert ["--resume" in command for command in started] == [False, True]
    assert whole.spent_sec(tmp_path) == {"train": 7.5}


def test_sets_that_the_disk_has_no_room_for_are_refused_before_they_are_made(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "SMALL", FULL._replace(sets=10**12))
    with pytest.raises(InputError, match=r"sets may take 40000000 GB, .* GB free: give a WORK with more room"):
        measure(a_context(tmp_path))
    assert not started


def test_every_command_takes_the_flags_that_it_is_given(tmp_path: Path) -> None:
    for form, device in ((FULL, "gpu"), (whole.SMALL, "cpu")):
        for step in steps(form, tmp_path, device):
            parsed = import_module(step.module).main.make_context(step.name, [*step.flags, *step.places])
            assert parsed.params["shards"] == tmp_path / "shards"


def line(kind: str, epoch: int, sets_seen: int = 0, sets_per_sec: float = 1.0, stall_share: float = 0.0) -> Any:
    return {"kind": kind, "epoch": epoch, "sets_seen": sets_seen, "sets_per_sec": sets_per_sec,
            "stall_share": stall_share}  # fmt: skip


def test_rates_are_those_of_epoch_1_and_of_all_after_it() -> None:
    lines = [
        line("train", 1, 100, 10, 0.5), line("train", 1, 150, 5, 0.1), line("val", 1), line("train", 2, 300, 50, 0.0),
        line("val", 2), line("train", 3, 450, 75, 0.1), line("val", 3),
    ]  # fmt: skip
    found = training(lines, {"elapsed_sec": 30.0})
    assert found["epoch_1"] == pytest.approx({"sets_per_sec": 150 / 20, "stall_share": (5 + 1) / 20})
    assert found["later"] == pytest.approx({"sets_per_sec": 300 / 5, "stall_share": 0.2 / 5})
    assert (found["sets_seen"], found["sets_an_epoch"], found["elapsed_sec"]) == (450, 150, 30.0)
    assert training(lines[:3], {"elapsed_sec": 1.0})["later"] is None


def test_an_epoch_lasts_from_one_picture_to_the_next(tmp_path: Path) -> None:
    for number, moment in ((10, 100.0), (2, 61.5), (1, 60.0)):
        path = tmp_path / f"epoch_{number:04}.png"
        path.touch()
        os.utime(path, (moment, moment))
    assert epoch_sec(tmp_path) == [1.5, 38.5]
    assert epoch_sec(tmp_path / "none") == []


def test_a_score_stands_beside_the_trivial_one() -> None:
    of = {"mean": 0.9, "low": 0.85, "high": 0.95}
    none = {"mean": 0.9, "low": None, "high": None}
    assert score({"network": {"iou": of}, "trivial": {"iou": {"mean": 0.8}}}, "iou") == "0.900 [0.850, 0.950] (trivial 0.800)"  # fmt: skip # noqa: E501
    assert score({"network": {"iou": none}, "trivial": {}}, "iou") == "0.900"
    assert score({}, "iou") == "-"


def test_on_a_gpu_the_goals_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.log").write_text(
        "x\n9 of 9 decoded sets stay on the device (1.0 GiB): later epochs gather them\n"
    )
    context = Context(tmp_path, tmp_path, tmp_path, torch.device("cuda"), 1.0, print)
    told = list(whole.notes(context, FULL, {"end_to_end_sets_per_sec": 19_999.0, "elapsed_sec": 599.0}))
    assert told == [
        "goal of 20,000 sets/s end to end from epoch 2 on: missed",
        "goal of 20 epochs in 10 minutes: reached",
        "9 of 9 decoded sets stay on the device (1.0 GiB): later epochs gather them",
    ]
