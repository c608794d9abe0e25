import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import benchmarks.baselines.process as process
import benchmarks.baselines.study as study
from benchmarks.baselines.__main__ import main
from benchmarks.baselines.chart import COLOURS, draw_chart, places
from benchmarks.baselines.plan import (
    DATA,
    NETWORKS_IN_TURN,
    Baseline,
    baselines,
    describe_budget,
    gmac,
    layers,
    parameters,
)
from benchmarks.baselines.process import CommandError, done
from benchmarks.baselines.results import Row, load_results, save_results, training_time
from benchmarks.baselines.table import tables
from pipeline.errors import InputError
from tests.samples import smooth_picture, soft_disc
from train.checkpoint import load_run
from train.evaluate import evaluate, open_split
from train.losses import RECIPES
from train.networks import build_network

IDS = 8  # the split puts background 6 and foreground 7 into test, background 5 and foreground 3 into val
COMMON = ["--size", "32", "--batch-size", "16", "--compose-sets", "128", "--device", "cpu"]
TINY = [*COMMON, "--data", "photos", "--networks", "unet-4", "--losses", "bce,bce+ssim", "--budget", "sets"]
ROW = Row(
    data="synthetic", network="unet-4", loss="bce", budget="sets", amount=320, lr=0.003, depth=True, parameters=41_234,
    gmac=0.0316, sets_seen=320, minutes=0.5, sets_per_sec=10.7, stall_share=0.01, test_sets=200, test_backgrounds=28,
    threshold=5, scores={
        "network": {
            "mask_iou": {"mean": 0.8, "low": 0.75, "high": 0.85}, "mask_dice": {"mean": 0.88},
            "boundary_f_1px": {"mean": 0.7}, "depth_ssim": {"mean": 0.9, "low": 0.88, "high": 0.91},
            "depth_rmse": {"mean": 0.06},
        },
        "trivial": {
            "mask_iou": {"mean": 0.6, "low": None, "high": None}, "mask_dice": {"mean": 0.7},
            "boundary_f_1px": {"mean": 0.5}, "depth_ssim": {"mean": 0.55}, "depth_rmse": {"mean": 0.12},
        },
    },
)  # fmt: skip


def changed(**fields: Any) -> Row:
    return Row(**{**ROW.__dict__, **fields})


def with_means(**means: float) -> dict[str, dict[str, Any]]:
    network = {name: {"mean": mean, "low": None, "high": None} for name, mean in means.items()}
    return {**ROW.scores, "network": {**ROW.scores["network"], **network}}


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
    (row,) = load_results(work / "baselines.json")
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
    (row,) = load_results(work / "baselines.json")
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
        if module == "benchmarks.baselines.score":
            cell = {"sets": 2, "backgrounds": 1, "scores": ROW.scores}
            numbers = {"threshold": 5, "cells": {"new_new": cell}}
            (note.parent / "evaluation.json").write_text(json.dumps(numbers))
        note.write_text(json.dumps({"command": [module, *flags], "seconds": 40.0}))
        return 40.0

    monkeypatch.setattr(study, "run", pretend)
    monkeypatch.setattr(study.Study, "require_test_sets", lambda *_: None)
    return commands


TWO = ["--data", "synthetic,hard", "--networks", "unet-4,unet-6", "--losses", "bce", "--sets", "320"]


def test_all_data_first_then_each_run_trained_and_scored_in_turn(started: list[Started], tmp_path: Path) -> None:
    output = printed(start(tmp_path, *TWO, "--minutes", "0.5"))
    modules = [module.rpartition(".")[2] for module, _, _ in started]
    assert modules == ["compose"] * 2 + ["train", "score"] * 8
    assert [flags[:1] for module, flags, _ in started if module == "tools.compose"] == [["--synthetic"]] * 2
    assert "--hard" in started[1][1]
    budgets = [next(flag for flag in flags if flag in ("--sets", "--minutes")) for _, flags, _ in started[2::2]]
    assert budgets == (["--sets"] * 2 + ["--minutes"] * 2) * 2
    # 32 s of training and 48 s of all else a run; 320 sets of unet-6 as 320 of unet-4, by their arithmetic
    per_set = 0.1 * gmac("unet-6", True, 128) / gmac("unet-4", True, 128)
    left = 7 * 48 + 320 * per_set + 320 * 0.1 + 320 * per_set + 4 * 30
    assert f"1/8 synthetic-unet-4-bce-320-sets: mask IoU 0.800, depth SSIM 0.900; 80 s, 7 left, about {left / 60:.0f} min" in output  # fmt: skip # noqa: E501


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
    assert [row.network for row in load_results(tmp_path / "baselines.json")] == ["unet-6"] * 2


def test_without_photos_that_data_is_left_out_and_said(started: list[Started], tmp_path: Path) -> None:
    output = printed(start(tmp_path, "--networks", "unet-4", "--losses", "bce", "--budget", "sets"))
    assert "photos: left out, there is no --photos DIR" in output
    assert {row.data for row in load_results(tmp_path / "baselines.json")} == {"synthetic", "hard"}


# --- bad input


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--networks", "unet-s,resnet"], "network 'resnet': expected one of unet-xs"),
        (["--losses", "bce,l2"], "'l2': expected some of bce, bce+ssim, combined"),
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


def test_results_that_are_none_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"runs": [{"data": "synthetic"}]}')
    with pytest.raises(InputError, match=r"not the results of tools\.baselines"):
        load_results(tmp_path / "a.json")


# --- the plan


def test_every_network_with_every_loss_and_each_budget() -> None:
    plan = baselines(["synthetic"], NETWORKS_IN_TURN, list(RECIPES), [("sets", 10), ("minutes", 2)])
    wanted = {
        Baseline("synthetic", network, loss, budget, amount)
        for network in NETWORKS_IN_TURN for loss in RECIPES for budget, amount in (("sets", 10), ("minutes", 2))
    }  # fmt: skip
    assert len(plan) == len(wanted) == 30
    assert set(plan) == wanted
    assert len({baseline.name for baseline in plan}) == 30
    assert Baseline("hard", "net", "bce", "sets", 2e6).name == "hard-net-bce-2000000-sets"


def test_without_depth_what_is_the_same_is_trained_once() -> None:
    plan = baselines(["photos"], NETWORKS_IN_TURN, list(RECIPES), [("sets", 10)])
    assert [(b.network, b.loss) for b in plan] == [
        (network, loss) for network in ("convgen", "unet-xs", "unet-s", "unet-m") for loss in ("bce", "combined")
    ]
    assert layers("net", False) == layers("convgen", False)
    assert layers("net", True) != layers("convgen", True)


def test_size_and_arithmetic_are_those_of_the_network() -> None:
    assert parameters("convgen", False) == 305_728
    assert parameters("unet-4", True) == sum(p.numel() for p in build_network("unet-4").parameters())
    assert gmac("net", True, 128) == pytest.approx(45.1, abs=0.05)
    assert gmac("convgen", True, 64) == pytest.approx(gmac("convgen", True, 128) / 4)


# --- the processes


def note_of(tmp_path: Path) -> Path:
    return tmp_path / "notes/note.json"


def test_a_command_is_noted_when_it_is_done(tmp_path: Path) -> None:
    note = note_of(tmp_path)
    assert done(note, "json.tool", ["--help"]) is None
    seconds = process.run("json.tool", ["--help"], [], note, tmp_path / "logs/log")
    assert done(note, "json.tool", ["--help"]) == pytest.approx(seconds, abs=1e-3)
    assert "usage: " in (tmp_path / "logs/log").read_text()
    with pytest.raises(InputError, match="made with --help, now it is fewer flags"):
        done(note, "json.tool", [])


def test_a_command_that_fails_tells_its_last_line_and_is_not_noted(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"No such file or directory.* \(exit code [12]; all of its output: .*log\)"):
        process.run("json.tool", [], [str(tmp_path / "nothing")], note_of(tmp_path), tmp_path / "log")
    assert not note_of(tmp_path).exists()


STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: pathlib.Path(sys.argv[1], "asked").touch())
if os.fork():
    pathlib.Path(sys.argv[1], "pid").write_text(str(os.getpid()))
    os.kill(int(sys.argv[2]), signal.SIGUSR1)
while True:
    time.sleep(0.01)
"""


def test_a_command_that_does_not_stop_is_killed_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(process, "GRACE_SEC", 0.3)
    former = signal.signal(signal.SIGUSR1, signal.default_int_handler)  # in the place of Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            process.run("stubborn", [], [str(tmp_path), str(os.getpid())], note_of(tmp_path), tmp_path / "log")
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert (tmp_path / "asked").exists()
    group = int((tmp_path / "pid").read_text())
    deadline_sec = time.monotonic() + 60
    while any(state(pid) not in "ZX" for pid in of_group(group)):  # the kernel takes its time to end them
        assert time.monotonic() < deadline_sec
        time.sleep(0.01)
    assert not note_of(tmp_path).exists()


def of_group(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            found.append(int(entry.parent.name))
    return found


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


# --- results


def test_training_time_is_that_of_the_lines() -> None:
    lines = [
        {"kind": "train", "sets_seen": 100, "sets_per_sec": 10.0, "stall_share": 0.5},
        {"kind": "val", "mask_iou": 0.5},
        {"kind": "train", "sets_seen": 160, "sets_per_sec": 20.0, "stall_share": 0.0},
    ]
    assert training_time(lines) == (160, 13.0, 5.0)
    assert training_time([]) == (0, 0.0, 0.0)


def test_a_budget_is_told_with_its_unit() -> None:
    told = [describe_budget(amount, budget) for amount, budget in ((1280, "sets"), (1, "minutes"), (1.5, "minutes"))]
    assert told == ["1,280 sets", "1 minute", "1.5 minutes"]


def test_a_table_from_a_file_written_by_hand(tmp_path: Path) -> None:
    better = changed(network="net", gmac=45.08, parameters=2_752_064, sets_per_sec=0.68, lr=1e-3,
                     scores=with_means(mask_iou=0.81, depth_rmse=0.07))  # fmt: skip
    alone = changed(data="photos", budget="minutes", amount=1.5, depth=False, test_backgrounds=1, test_sets=1, scores={
        "network": {"mask_iou": {"mean": None}}, "trivial": {}
    })  # fmt: skip
    save_results(tmp_path / "a.json", [alone, ROW, better], {})
    assert tables(load_results(tmp_path / "a.json")).splitlines() == [
        "### synthetic, 320 sets of training each",
        "",
        "New foregrounds on 28 new backgrounds: 200 test sets.",
        "",
        "| network | loss | parameters | GMAC | lr | sets seen | minutes | sets/s | mask IoU [95 %] | Dice | "
        "boundary F 1 px | depth SSIM [95 %] | RMSE |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        "| unet-4 | bce | 0.04 M | 0.0316 | 0.003 | 320 | 0.5 | 11 | 0.800 [0.750, 0.850] | **0.880** | **0.700** | "
        "**0.900** [0.880, 0.910] | **0.060** |",
        "| net | bce | 2.75 M | 45.1 | 0.001 | 320 | 0.5 | 0.7 | **0.810** | **0.880** | **0.700** | "
        "**0.900** [0.880, 0.910] | 0.070 |",
        "| \\|fg_bg - bg\\| > 5, mean depth | - | - | - | - | - | - | - | 0.600 | 0.700 | 0.500 | 0.550 | 0.120 |",
        "",
        "### photos, 1.5 minutes of training each",
        "",
        "New foregrounds on 1 new background: 1 test set, the mask alone.",
        "",
        "| network | loss | parameters | GMAC | lr | sets seen | minutes | sets/s | mask IoU [95 %] | Dice | "
        "boundary F 1 px |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        "| unet-4 | bce | 0.04 M | 0.0316 | 0.003 | 320 | 0.5 | 11 | - | - | - |",
        "| \\|fg_bg - bg\\| > 5 | - | - | - | - | - | - | - | - | - | - |",
    ]


def test_bars_are_as_long_as_the_scores(tmp_path: Path) -> None:
    half = changed(budget="minutes", amount=1, scores=with_means(mask_iou=0.4, depth_ssim=0.45))
    draw_chart([ROW, half], "machine", tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        drawn = np.asarray(picture.convert("RGB")).astype(int)
    drawn = drawn[len(drawn) // 3 :]  # without the legend
    of_sets, of_minutes = (
        int((np.abs(drawn - [int(colour[place : place + 2], 16) for place in (1, 3, 5)]).max(axis=2) < 3).sum())
        for colour in (COLOURS["sets"], COLOURS["minutes"])
    )
    assert 1.8 < of_sets / of_minutes < 2.2
    assert [path.name for path in tmp_path.iterdir()] == ["chart.png"]


def test_networks_stand_apart_in_the_chart() -> None:
    rows = [changed(network=network, loss=loss) for network in ("net", "unet-s") for loss in ("bce", "combined")]
    at = places([*rows, *rows])
    assert list(at) == [(row.network, row.loss) for row in rows]
    first, second, third, fourth = at.values()
    assert second - first == fourth - third == 1
    assert third - second > 1


def test_every_data_set_has_its_panels(tmp_path: Path) -> None:
    heights = []
    for count in (1, len(DATA)):
        draw_chart([changed(data=name) for name in DATA[:count]], "machine", tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as picture:
            heights.append(picture.height)
    assert heights[1] > 2 * heights[0]
