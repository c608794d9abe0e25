import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from benchmarks import baselines, speedrun, speedrun_training
from benchmarks.processes import CommandError
from benchmarks.speedrun import HELD_OUT, copy_photos, main, number_pictures
from benchmarks.speedrun_results import MEASURES, numbers, spread, table
from benchmarks.speedrun_training import Point, TimedTraining, Trained, config_of, train_and_test
from pipeline.composing.photos import find_pictures
from pipeline.errors import InputError
from pipeline.loading.split import BACKGROUND_SALT, group
from tests.samples import smooth_picture, soft_disc
from train.config import Config
from train.metrics import iou
from train.runtime import open_loader
from train.scoring import NETWORK, TRIVIAL
from train.train_step import Learner, StepResult
from train.trainer import Trainer

FAILING = "--clip 7.5"  # a recipe that fails
PICTURES = {"bg": 9, "fg": 10}  # one of each is left for training
TINY = ["--model", "unet-4", "--size", "32", "--batch-size", "16", "--device", "cpu",
        "--precision", "float32"]  # fmt: skip
SHORT = ["--data", "photos", "--compose-sets", "400", "--sets", "64", "--every", "40", "--seeds", "2"]


def start(work: Path, *words: str) -> Result:
    return CliRunner().invoke(main, [str(work), *words])


def last_line(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output.splitlines()[-1]


# --- for real


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of as few backgrounds and foregrounds as will do, no two alike."""
    folder = tmp_path_factory.mktemp("photos")
    for name, amount in PICTURES.items():
        (folder / name).mkdir()
        for number in range(amount):
            pixels = smooth_picture(number)
            if name == "fg":
                pixels = np.concatenate([smooth_picture(100 + number), soft_disc(number)], axis=2)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


Started = list[tuple[str, list[str]]]


@pytest.fixture(scope="module")
def started() -> Started:
    """The commands that were run, in this process."""
    return []


@pytest.fixture(scope="module")
def finished(
    photos: Path, started: Started, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Result]]:
    """Starts the command, always in one folder."""
    work = tmp_path_factory.mktemp("speedrun") / "work"

    def run(module: str, flags: Sequence[str], places: Sequence[str], record: Path, log: Path) -> float:
        started.append((module, [*flags, *places]))
        if any(FAILING in flag for flag in flags):
            raise CommandError("the loss is nan")
        import_module(module).main([*flags, *places], standalone_mode=False)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"command": [module, *flags], "seconds": 1.0}))
        return 1.0

    def again(*words: str) -> tuple[Path, Result]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(baselines, "run", run)
            return work, start(work, "--photos", str(photos), *SHORT, *words)

    return again


Finished = Callable[..., tuple[Path, Result]]
BOTH = ["--against", "--model unet-5 --size 32 --batch-size 16 --device cpu --epochs 1", "--", *TINY]


def test_two_recipes_are_trained_in_turn_scored_tabled_and_drawn(finished: Finished, started: Started) -> None:
    work, result = finished(*BOTH)
    assert result.exit_code == 0, result.output
    modules = [module.rpartition(".")[2] for module, _ in started]
    assert modules == ["compose", *["speedrun_training"] * 4]
    recipes = [words[1] for module, words in started if module == "benchmarks.speedrun_training"]
    assert [("unet-4" in recipe, recipe[-8:]) for recipe in recipes] == [
        (True, "--seed 0"), (False, "--seed 0"), (True, "--seed 1"), (False, "--seed 1"),
    ]  # fmt: skip
    assert "4/4 photos, run 2 of --model unet-5" in result.output
    assert "| sets to mask IoU 0.90 |" in result.output
    assert "depth" not in result.output[result.output.index("###") :]
    content = json.loads((work / "results.json").read_text())
    ours, other = content["data"]["photos"].values()
    assert ours["seeds"] == [0, 1]
    assert ours["sets seen"] == [64, 64]
    assert [point[0] for point in ours["runs"][0]["points"]] == [48, 64]  # 40 sets are full at the third step
    assert [run["settings"]["seed"] for run in other["runs"]] == [0, 1]
    assert other["runs"][0]["settings"]["epochs"] == 1
    assert ours["test mask IoU"] == [run["test"]["scores"]["network"]["mask_iou"]["mean"] for run in ours["runs"]]
    trivial = ours["runs"][0]["test"]["scores"]["trivial"]["mask_iou"]["mean"]
    assert f"| {trivial:.3f} (\\|fg_bg - bg\\| > " in result.output
    with Image.open(work / "speedrun.png") as picture:
        picture.load()


def test_what_is_done_is_not_done_again(finished: Finished, started: Started) -> None:
    _, result = finished(*BOTH)
    count, output = len(started), result.output[result.output.index("###") :]
    _, result = finished(*BOTH)
    assert result.exit_code == 0, result.output
    assert len(started) == count
    assert "4/4 photos, run 2" in result.output
    assert ", done before" in result.output
    assert result.output[result.output.index("###") :] == output


def test_other_code_is_trained_anew_and_none_may_change_meanwhile(
    finished: Finished, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(*BOTH)
    count = len(started)
    monkeypatch.setattr(speedrun, "code_hash", lambda: "other")
    _, result = finished("--seeds", "1", "--", *TINY)
    assert result.exit_code == 0, result.output
    assert len(started) == count + 1
    hashes = iter(["one", "one", "two"])
    monkeypatch.setattr(speedrun, "code_hash", lambda: next(hashes))
    _, result = finished("--", *TINY)
    assert "speedrun_training.py has changed since this began: runs would not" in last_line(result, 1)


def test_each_data_set_is_composed_by_its_flags(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = list[list[str]]()

    def pretend(module: str, flags: list[str], places: list[str], record: Path, log: Path) -> float:
        composed.append([*flags, *places])
        raise CommandError("enough")

    monkeypatch.setattr(baselines, "run", pretend)
    for name in speedrun.DATA:
        start(tmp_path, "--photos", str(photos), "--data", name)
    pictures = ["--backgrounds", str(tmp_path / "photos/bg"), "--foregrounds", str(tmp_path / "photos/fg")]
    kinds = {"synthetic": ["--synthetic"], "hard": ["--synthetic", "--hard"], "photos": pictures, "photos-hard": [*pictures, "--hard"]}  # fmt: skip # noqa: E501
    assert composed == [
        [*flags, "--sets", "20000", "--seed", "0", "--shards", str(tmp_path / "data" / name)]
        for name, flags in kinds.items()
    ]
    recipe = speedrun.SpeedRun(tmp_path, photos, compose_sets=1, every=1, budget=["--sets", "9"])
    assert recipe.flags(["--lr", "1"], "photos-hard", 2) == ["--sets", "9", "--lr", "1", "--no-depth", "--seed", "2"]
    assert recipe.flags(["--seed", "4", "--epochs", "1"], "hard", 1) == ["--seed", "4", "--epochs", "1", "--seed", "5"]


def test_a_run_that_fails_is_named_and_the_others_go_on(finished: Finished) -> None:
    _, result = finished("--seeds", "1", "--against", f"{' '.join(TINY)} {FAILING}", "--", *TINY)
    told = last_line(result, 1)
    assert told.startswith("Error: 1 of 2 runs failed: 2/2 photos, run 1 of --model unet-4"), told
    assert "FAILED: the loss is nan" in result.output
    assert "| sets seen | 64 |" in result.output


def test_code_is_told_apart_by_every_file_that_decides_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("pipeline/a.py", "train/deep/b.py", "tools/before_torch.py", "benchmarks/speedrun_training.py")
    files = [tmp_path / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("1")
    monkeypatch.setattr(speedrun, "ROOT", tmp_path)
    hashes = [speedrun.code_hash()]
    for file in files:
        file.write_text("2")
        hashes.append(speedrun.code_hash())
    assert len(set(hashes)) == len(names) + 1
    (tmp_path / "benchmarks/speedrun.py").write_text("tables are none of it")
    assert speedrun.code_hash() == hashes[-1]
    assert speedrun.commit() == "unknown"


def test_ctrl_c_is_one_line_and_the_shells_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(speedrun, "compose", interrupted)
    result = start(tmp_path / "work", "--data", "synthetic")
    assert f"what is done is kept in {tmp_path / 'work'}: the same command goes on" in last_line(result, 130)


# --- a run


def test_a_run_learns_what_fgbg_train_does(packed: Path, tmp_path: Path) -> None:
    config = config_of([*TINY, "--sets", "128"], packed, tmp_path / "run")
    with open_loader(config, torch.device("cpu")) as loader:
        learner = Learner(config, torch.device("cpu"))
        points = TimedTraining(config, loader, learner).run(32, lambda: {"sets": 1})
    assert [point.sets for point in points] == [32, 64, 96, 128]
    trainer = Trainer(config, say=lambda line: None)
    trainer.fit()
    for name, ours in learner.averaged.state_dict().items():
        assert torch.equal(ours, trainer.learner.averaged.state_dict()[name]), name
    assert trainer.scores
    trained = train_and_test(config, 64, torch.device("cpu"))
    assert trained.end.scores == trainer.scores
    assert (trained.end.sets, trained.settings) == (128, config.settings())
    with open_loader(config, torch.device("cpu"), "test", shuffle=False) as loader:
        [batch] = loader
        with torch.no_grad():
            mask = learner.averaged.eval()(batch.bg, batch.fg_bg).mask_logits > 0
    assert trained.tested("mask_iou", NETWORK) is not None
    assert trained.test["scores"][NETWORK]["mask_iou"]["mean"] == pytest.approx(iou(mask, batch.mask).mean().item())
    assert trained.test["sets"] == len(batch.bg) == 1
    assert trained.tested("depth_ssim", TRIVIAL) is not None


def test_the_clock_stands_while_sets_are_scored(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_sec = 0.0

    def ticking() -> float:
        nonlocal now_sec
        now_sec += 0.1
        return now_sec

    def score() -> dict[str, float]:
        nonlocal now_sec
        now_sec += 1000
        return {"sets": 1}

    monkeypatch.setattr(speedrun_training, "time", SimpleNamespace(perf_counter=ticking))
    config = config_of([*TINY, "--minutes", "0.1"], packed, tmp_path)
    with open_loader(config, torch.device("cpu")) as loader:
        training = TimedTraining(config, loader, Learner(config, torch.device("cpu")))
        points = training.run(16, score)
    minutes = [point.minutes for point in points]
    assert len(points) > 5
    assert minutes == sorted(minutes)
    assert 0.1 <= minutes[-1] < 0.12
    assert training.progress == 1


@pytest.mark.parametrize("what", ["depth_ssim", "mask_loss"])
def test_a_score_or_a_loss_that_is_no_number_is_told(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    config = config_of([*TINY, "--sets", "64"], packed, tmp_path)
    with open_loader(config, torch.device("cpu")) as loader:
        learner = Learner(config, torch.device("cpu"))
        step = learner.train_step

        def broken(*given: Any) -> StepResult:
            done = step(*given)
            return done._replace(losses={**done.losses, "mask_loss": torch.tensor(torch.nan)})

        if what == "mask_loss":
            monkeypatch.setattr(learner, "train_step", broken)
        training = TimedTraining(config, loader, learner)
        with pytest.raises(InputError, match=f"{what} is nan at step 2: try a smaller --lr"):
            training.run(32, lambda: {"depth_ssim": math.nan} if what == "depth_ssim" else {"sets": 1})


def test_a_recipe_is_what_fgbg_train_makes_of_its_flags(tmp_path: Path) -> None:
    config = config_of(["--sets", "100", "--lr", "0.01", "--no-depth"], tmp_path / "shards", tmp_path)
    assert config == Config(tmp_path / "shards", tmp_path, epochs=None, sets=100, lr=0.01, depth=False)
    assert config_of(["--epochs", "3"], tmp_path, tmp_path) == replace(Config(tmp_path, tmp_path), epochs=3)
    with pytest.raises(InputError, match="--size 33: expected a multiple of 16"):
        config_of(["--size", "33", "--sets", "1"], tmp_path, tmp_path)
    with pytest.raises(click.UsageError, match="--resume=auto is of no recipe"):
        config_of(["--resume=auto"], tmp_path, tmp_path)


# --- photographs


def test_no_picture_is_in_two_splits_and_enough_are_held_out() -> None:
    for salt, held_out in HELD_OUT.values():
        for amount in (sum(held_out.values()) + 1, 22, 30, 300):
            pictures = [f"{number}.jpg" for number in range(amount)]
            numbered = number_pictures(pictures, salt, held_out)
            groups = {(picture, group(salt, number)) for number, picture in enumerate(numbered)}
            counts = Counter(split for _, split in groups)
            assert counts == {**held_out, "train": amount - sum(held_out.values())}
            assert len(groups) == len(pictures)
    test = [number for number in range(len(numbered)) if group(BACKGROUND_SALT, number) == "test"]
    assert len(test) >= 6
    with pytest.raises(InputError, match="8 pictures, expected 9 or more"):
        number_pictures(["a"] * 8, *HELD_OUT["bg"])


def test_photographs_are_copied_in_the_order_of_their_numbers(photos: Path, tmp_path: Path) -> None:
    copy_photos(photos, tmp_path / "out")
    for name, (salt, held_out) in HELD_OUT.items():
        source = [f"{number}.png" for number in range(PICTURES[name])]
        copied = find_pictures(tmp_path / "out" / name)
        wanted = number_pictures(source, salt, held_out)
        assert [(tmp_path / "out" / name / picture).read_bytes() for picture in copied] == [
            (photos / name / picture).read_bytes() for picture in wanted
        ]
    copy_photos(photos, tmp_path / "out")
    (photos_of_others := tmp_path / "others").mkdir()
    for name in HELD_OUT:
        (photos_of_others / name).mkdir()
        for number in range(12):
            (photos_of_others / name / f"{number}.png").touch()
    with pytest.raises(InputError, match="has other pictures than"):
        copy_photos(photos_of_others, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


# --- figures


def trained(seed: int, *ious: float, minutes: float = 1.0) -> Trained:
    """A run scored every 100 sets."""
    points = [
        Point(100 * number, minutes * number, {"sets": 5, "mask_iou": value}) for number, value in enumerate(ious, 1)
    ]
    scores: dict[str, Any] = {
        NETWORK: {"mask_iou": {"mean": ious[-1]}},
        TRIVIAL: {"mask_iou": {"mean": 0.8}, "depth_ssim": {"mean": 0.65}},
    }
    cell = {"sets": 40, "backgrounds": 6, "foregrounds": 7, "threshold": 5, "scores": scores}
    return Trained({"seed": seed}, points, 6.0, cell)


OURS = {0: trained(0, 0.8, 0.91, 0.94), 1: trained(1, 0.9, 0.92, 0.92), 2: trained(2, 0.85, 0.89, 0.9)}
OTHERS = {0: trained(0, 0.5, 0.6, 0.8, 0.90, minutes=2), 1: trained(1, 0.5, 0.9), 2: trained(2, 0.1, 0.2, 0.3, 0.9)}


def test_the_first_scoring_that_reaches_a_target_counts() -> None:
    assert [run.reached("mask_iou", 0.9) for run in OURS.values()] == [OURS[0].points[1], *(
        [OURS[1].points[0], OURS[2].points[2]]
    )]  # fmt: skip
    assert OURS[1].reached("mask_iou", 0.93) is None
    assert OURS[0].sets_per_sec == pytest.approx(300 / 180)


def test_medians_ranges_and_ratios_by_seed() -> None:
    lines = table("synthetic", {"": OURS, "--lr 1": OTHERS}, 100).splitlines()
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in lines if line.startswith("| ")}
    assert rows["sets to mask IoU 0.90"][:3] == ["200 (100 - 300)", "400 (200 - 400)", "0.50 (0.50 - 0.75)"]
    assert rows["sets to mask IoU 0.93"][:3] == ["not reached (300 - not reached)", "not reached", "-"]
    assert rows["minutes to mask IoU 0.90"][:3] == ["2.00 (1.00 - 3.00)", "4.00 (2.00 - 8.00)", "0.50 (0.25 - 0.75)"]
    trivial = "0.800 (\\|fg_bg - bg\\| > 5) |"
    assert rows["test mask IoU"] == ["0.920 (0.900 - 0.940)", "0.900", "-", trivial]
    assert "sets to depth SSIM 0.90" not in rows
    assert spread([1.0, math.inf], str) == "inf (1.0 - inf)"
    assert spread([], str) == "-"


def test_json_has_null_where_a_target_was_not_reached() -> None:
    found = numbers(OURS)
    assert found["sets to mask IoU 0.93"] == [300, None, None]
    assert found["test mask IoU"] == [0.94, 0.92, 0.9]
    assert found.keys() == {"seeds", "runs", *(measure.title for measure in MEASURES)}


# --- bad input


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sets", "5", "--minutes", "1"], "give --sets or --minutes, not both"),
        (["--data", "streets"], "'streets': expected some of synthetic, hard, photos, photos-hard"),
        (["--data", "photos,photos-hard"], "--data photos,photos-hard needs --photos DIR"),
        (["--against", "--lr 0.1", "--", "--lr", "0.1"], "there is nothing to compare"),
        (["--", "--learning", "0.1"], "No such option '--learning'"),
        (["--", "--out", "x"], "--out is of no recipe"),
        (["--against", "--resume"], "--resume is of no recipe"),
        (["--against", "--lr '1"], "No closing quotation"),
    ],
)
def test_wrong_usage_is_told_and_leaves_nothing(words: list[str], told: str, tmp_path: Path) -> None:
    assert told in last_line(start(tmp_path / "work", *words), 2)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--", "--size", "100"], "--size 100: expected a multiple of 16"),
        (["--", "--sets", "5", "--epochs", "2"], "--epochs 2 --sets 5: expected one of"),
        (["--photos", "nowhere"], "no such folder: nowhere/bg"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str, tmp_path: Path) -> None:
    assert told in last_line(start(tmp_path / "work", *words), 1)
    assert not (tmp_path / "work").exists()


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "work").touch()
    assert "work is a file: give a folder" in last_line(start(tmp_path / "work"), 1)
