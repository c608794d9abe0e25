import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from benchmarks import baselines as study
from benchmarks.baseline_results import BaselineResult, gmac, network_shapes
from benchmarks.baselines import NETWORKS, Baseline, baselines, main, seconds_left
from benchmarks.processes import CommandError
from tests.benchmarks.test_baseline_results import RESULT
from tests.samples import smooth_picture, soft_disc
from train.checkpoint import load_run
from train.evaluate import evaluate, open_split
from train.losses import RECIPES
from train.networks import build_network

IDS = 8  # the split puts background 6 and foreground 7 into test, background 5 and foreground 3 into val
COMMON = ["--size", "32", "--batch-size", "16", "--compose-sets", "128", "--device", "cpu"]
TINY = [*COMMON, "--data", "photos", "--networks", "unet-4", "--losses", "bce,bce+ssim", "--budget", "sets"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of 8 backgrounds and 8 foregrounds with alpha."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("bg", "fg"):
        (folder / name).mkdir()
    for number in range(IDS):
        Image.fromarray(smooth_picture(number)).save(folder / f"bg/{number}.jpg", quality=90)
        pixels = np.concatenate([smooth_picture(100 + number), soft_disc(number)], axis=2)
        Image.fromarray(pixels).save(folder / f"fg/{number}.png")
    return folder


def start(work: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, [str(work), *flags])


def printed(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output


def one_line_error(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.output
    return result.output.splitlines()[-1]


def results_in(work: Path) -> list[BaselineResult]:
    return [BaselineResult(**run) for run in json.loads((work / "baselines.json").read_text())["runs"]]


def wrong_usage(work: Path, *flags: str) -> str:
    result = start(work, *flags)
    assert result.exit_code == 2, result.output
    assert not work.exists() or work.is_file()
    return result.output


# --- for real


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which one tiny run is finished, and what was printed."""
    work = tmp_path_factory.mktemp("baselines") / "work"
    return work, printed(start(work, "--photos", str(photos), "--sets", "128", *TINY))


def test_a_run_is_composed_trained_scored_tabled_and_drawn(finished: tuple[Path, str]) -> None:
    work, output = finished
    assert "photos: without depth, net is convgen and bce+ssim is bce" in output
    assert "1/1 photos-unet-4-bce-128-sets: mask IoU 0." in output
    assert "### photos, 128 sets of training each" in output
    assert "2 test sets, the mask alone." in output
    evaluation = json.loads((work / "runs/photos-unet-4-bce-128-sets/test/evaluation.json").read_text())
    (row,) = results_in(work)
    assert row.scores == evaluation["cells"]["new_new"]["scores"]
    assert (row.test_sets, row.test_backgrounds, row.depth) == (2, 1, False)
    assert 128 <= row.sets_seen < 128 + 16
    assert row.minutes * 60 * row.sets_per_sec == pytest.approx(row.sets_seen)
    with Image.open(work / "baselines.png") as picture:
        picture.load()


def test_a_second_start_does_nothing_again(finished: tuple[Path, str], photos: Path) -> None:
    work, output = finished
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.parent != work}
    again = printed(start(work, "--photos", str(photos), "--sets", "128", *TINY))
    assert "done before, 0 left" in again
    assert again[again.index("###") :] == output[output.index("###") :]
    assert before == {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.parent != work}


def test_other_settings_are_refused_with_both(finished: tuple[Path, str], photos: Path) -> None:
    work, _ = finished
    flags = ["--photos", str(photos), "--sets", "128", *TINY]
    message = one_line_error(start(work, *flags, "--batch-size", "8"))
    assert "trained.json: made with --batch-size 16, now it is --batch-size 8: continue with the same" in message
    message = one_line_error(start(work, *flags, "--compose-sets", "64"))
    assert "photos.json: made with --sets 128, now it is --sets 64" in message


def test_the_scores_are_those_of_the_headline_of_an_evaluation(finished: tuple[Path, str]) -> None:
    work, _ = finished
    device, shards = torch.device("cpu"), work / "data/photos"
    run = load_run(work / "runs/photos-unet-4-bce-128-sets", "last", device, shards)
    whole = evaluate(run, "test", open_split(run, "test", device)).cells["new_new"]
    (row,) = results_in(work)
    assert row.test_sets == whole.sets
    for who, scores in whole.scores.items():
        for name, summary in scores.items():
            assert row.scores[who][name]["mean"] == pytest.approx(summary["mean"], nan_ok=True, abs=1e-5), name


def test_data_without_a_test_set_is_refused_before_training(photos: Path, tmp_path: Path) -> None:
    message = one_line_error(start(tmp_path, "--photos", str(photos), *TINY, "--compose-sets", "2"))
    assert "photos: of 2 sets none is of a background and a foreground of the split test; make more" in message
    assert not (tmp_path / "runs").exists()


# --- what is started, and when


Started = tuple[str, list[str], list[str]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    """The commands that would be run: their results are written by hand."""
    commands = list[Started]()

    def pretend(module: str, flags: Sequence[str], places: Sequence[str], note: Path, log: Path) -> float:
        commands.append((module, list(flags), list(places)))
        note.parent.mkdir(parents=True, exist_ok=True)
        if "unet-5" in flags:
            raise CommandError("the loss is nan")
        if module == "tools.train":
            line = {"kind": "train", "step": 1, "sets_seen": 320, "sets_per_sec": 10.0, "stall_share": 0.5}
            (note.parent / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        if module == "benchmarks.baseline_results":
            cell = {"sets": 2, "backgrounds": 1, "scores": RESULT.scores}
            numbers = {"threshold": 5, "cells": {"new_new": cell}}
            (note.parent / "evaluation.json").write_text(json.dumps(numbers))
        note.write_text(json.dumps({"command": [module, *flags], "seconds": 40.0}))
        return 40.0

    monkeypatch.setattr(study, "run", pretend)
    monkeypatch.setattr(study, "require_test_sets", lambda *_: None)
    return commands


TWO = ["--data", "synthetic,hard", "--networks", "unet-4,unet-6", "--losses", "bce", "--sets", "320"]


def test_all_data_first_then_each_run_trained_and_scored_in_turn(started: list[Started], tmp_path: Path) -> None:
    output = printed(start(tmp_path, *TWO, "--minutes", "0.5"))
    modules = [module.rpartition(".")[2] for module, _, _ in started]
    assert modules == ["compose"] * 2 + ["train", "baseline_results"] * 8
    assert [flags[:1] for module, flags, _ in started if module == "tools.compose"] == [["--synthetic"]] * 2
    assert "--hard" in started[1][1]
    budgets = [next(flag for flag in flags if flag in ("--sets", "--minutes")) for _, flags, _ in started[2::2]]
    assert budgets == (["--sets"] * 2 + ["--minutes"] * 2) * 2
    told = "1/8 synthetic-unet-4-bce-320-sets: mask IoU 0.800, depth SSIM 0.900; 80 s, 7 left, about 9.3 min"
    assert told in output
    assert "done before" not in output


def test_a_run_takes_as_long_as_those_of_its_network_and_budget_before() -> None:
    small, large = (Baseline("synthetic", network, "bce", "sets", 320) for network in ("unet-4", "net"))
    other, minutes = replace(small, data="hard"), replace(small, budget="minutes")
    assert seconds_left([other, replace(large, data="hard")], {small: 10.0, large: 100.0}) == 110.0
    assert seconds_left([minutes], {small: 10.0, large: 100.0}) == 55.0
    assert seconds_left([], {small: 10.0}) == 0


def test_a_stopped_run_of_sets_is_resumed_and_one_of_minutes_starts_anew(started: list[Started], tmp_path: Path) -> None:  # fmt: skip # noqa: E501
    kept, anew = (tmp_path / f"runs/synthetic-unet-4-bce-{name}" for name in ("320-sets", "0.5-minutes"))
    for run in (kept, anew):
        run.mkdir(parents=True)
        (run / "last.pt").touch()
    printed(start(tmp_path, *TWO, "--minutes", "0.5"))
    resumed = [places for module, _, places in started if module == "tools.train" and "--resume" in places]
    assert [places[places.index("--out") + 1] for places in resumed] == [str(kept)]
    assert (kept / "last.pt").exists()
    assert not (anew / "last.pt").exists()


def test_a_run_that_fails_is_named_and_the_others_go_on(started: list[Started], tmp_path: Path) -> None:
    result = start(tmp_path, *TWO, "--networks", "unet-5,unet-6", "--budget", "sets")
    assert "1 of 4 runs failed" not in result.output
    assert "2 of 4 runs failed: synthetic-unet-5-bce-320-sets, hard-unet-5-bce-320-sets" in one_line_error(result)
    assert "1/4 synthetic-unet-5-bce-320-sets: FAILED: the loss is nan" in result.output
    assert [row.network for row in results_in(tmp_path)] == ["unet-6"] * 2


def test_without_photos_that_data_is_left_out_and_said(started: list[Started], tmp_path: Path) -> None:
    output = printed(start(tmp_path, "--networks", "unet-4", "--losses", "bce", "--budget", "sets"))
    assert "photos: left out, there is no --photos DIR" in output
    assert {row.data for row in results_in(tmp_path)} == {"synthetic", "hard"}


# --- bad input


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--networks", "unet-s,resnet"], "network 'resnet': expected one of unet-xs"),
        (["--losses", "bce,l2"], "'l2': expected some of bce, bce+ssim, combined, sharp"),
        (["--data", "streets"], "'streets': expected some of synthetic, hard, photos"),
        (["--data", "photos"], "--data photos needs --photos DIR"),
        (["--minutes", "0"], "0.0 is not in the range x>0"),
        (["--budget", "epochs"], "'epochs' is not one of"),
    ],
)
def test_wrong_usage_is_told_and_leaves_nothing(flags: list[str], told: str, tmp_path: Path) -> None:
    assert told in wrong_usage(tmp_path / "work", *flags)


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "work").touch()
    assert "work is a file: give a folder" in one_line_error(start(tmp_path / "work", *TWO))


def test_a_size_of_no_network_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    assert "--size 100: expected a multiple of 16" in one_line_error(start(tmp_path / "work", *TWO, "--size", "100"))
    assert not (tmp_path / "work").exists()


def test_photos_without_pictures_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    flags = ["--photos", str(tmp_path), "--data", "photos"]
    assert f"no such folder: {tmp_path / 'bg'}" in one_line_error(start(tmp_path / "work", *flags))
    (tmp_path / "bg").mkdir()
    assert f"no picture in {tmp_path / 'bg'}" in one_line_error(start(tmp_path / "work", *flags))
    assert not (tmp_path / "work").exists()


# --- the plan


def test_every_network_with_every_loss_and_each_budget() -> None:
    plan = list(baselines(["synthetic"], NETWORKS, list(RECIPES), [("sets", 10), ("minutes", 2)]))
    wanted = {
        Baseline("synthetic", network, loss, budget, amount)
        for network in NETWORKS for loss in RECIPES for budget, amount in (("sets", 10), ("minutes", 2))
    }  # fmt: skip
    assert len(plan) == len(wanted) == 40
    assert set(plan) == wanted
    assert len({baseline.name for baseline in plan}) == 40
    assert Baseline("hard", "net", "bce", "sets", 2e6).name == "hard-net-bce-2000000-sets"


def test_without_depth_what_is_the_same_is_trained_once() -> None:
    plan = list(baselines(["photos"], NETWORKS, list(RECIPES), [("sets", 10)]))
    assert [(b.network, b.loss) for b in plan] == [
        (network, loss)
        for network in ("convgen", "unet-xs", "unet-s", "unet-m")
        for loss in ("bce", "combined", "sharp")
    ]
    assert network_shapes("net", False) == network_shapes("convgen", False)
    assert network_shapes("net", True) != network_shapes("convgen", True)


def test_size_and_arithmetic_are_those_of_the_network() -> None:
    assert sum(shape.numel() for shape in network_shapes("convgen", False)) == 305_728
    parameters = build_network("unet-4").parameters()
    assert network_shapes("unet-4", True) == tuple(parameter.shape for parameter in parameters)
    assert gmac("net", True, 128) == pytest.approx(45.1, abs=0.05)
    assert gmac("convgen", True, 64) == pytest.approx(gmac("convgen", True, 128) / 4)
