import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import train.trainer
from pipeline.devices import torch_device
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from train.checkpoint import load, save
from train.config import Config
from train.metrics import difference, iou
from train.signals import Interrupted, Interruption
from train.train_step import StepResult
from train.trainer import Trainer
from train.trivial_baselines import best_threshold

TIMES = ("sets_per_sec", "stall_share")  # what differs between two runs that are the same
STEPS = 8  # 2 epochs of 64 sets, 16 at a time


class CrashError(Exception):
    pass


def configuration(shards: Path, out: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "epochs": 2, "batch_size": 16, "size": 32, "model": "unet-4", "device": "cpu",
        "log_every": 3, "checkpoint_every": 3,
    }  # fmt: skip
    return Config(shards, out, **(values | changes))


def fit(trainer: Trainer, after_step: Callable[[int], None] = lambda step: None) -> Trainer:
    try:
        trainer.fit(lambda status: after_step(trainer.step))
    finally:
        trainer.close()
    return trainer


def crash_at(step: int) -> Callable[[int], None]:
    def after_step(now: int) -> None:
        if now == step:
            raise CrashError

    return after_step


def lines(out: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read]


def test_warnings_of_the_packing_are_repeated_in_a_line(packed: Path, tmp_path: Path) -> None:
    shards, said = shutil.copytree(packed, tmp_path / "shards"), list[str]()
    doubts = ["9 of 16 sampled sets look wrong", "masks are of two kinds"]
    msgspec.structs.replace(Manifest.load(shards), sha256="", warnings=doubts).save(shards)
    Trainer(configuration(shards, tmp_path / "run"), say=said.append).close()
    assert "; ".join(f"warning of the packing: {doubt}" for doubt in doubts) in said
    Trainer(configuration(packed, tmp_path / "other"), say=said.append).close()
    assert sum("warning" in line for line in said) == 1


def assert_equal_runs(out: Path, expected: Path) -> None:
    """Weights, moments, loader state and everything that was logged, to the bit."""
    a, b = load(out / "last.pt"), load(expected / "last.pt")
    assert {**a.state, "elapsed_sec": 0} == {**b.state, "elapsed_sec": 0}
    assert all(torch.equal(a.network[name], b.network[name]) for name in b.network)
    assert a.ema
    assert b.ema
    assert all(torch.equal(a.ema[name], b.ema[name]) for name in b.ema)
    for number, moments in b.optimizer["state"].items():
        assert all(torch.equal(a.optimizer["state"][number][name], moments[name]) for name in moments)


@pytest.fixture(scope="module")
def whole(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(Trainer(configuration(packed, out)))
    return out


@pytest.fixture(scope="module")
def mask_alone(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on sets without depth that was never stopped."""
    out = tmp_path_factory.mktemp("mask_alone") / "run"
    fit(Trainer(configuration(bare, out, depth=False)))
    return out


@pytest.fixture
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a small run's time is for curves, at which a test may not look."""
    monkeypatch.setattr(train.trainer, "draw_curves", lambda *_: None)


@pytest.fixture(scope="module")
def crashed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders, by the step, of a run that keeps a checkpoint of each, as a crash after that step leaves them."""
    folder = tmp_path_factory.mktemp("crashed")

    def keep_and_crash(step: int) -> None:
        shutil.copytree(folder / "run", folder / str(step))
        crash_at(STEPS)(step)

    with pytest.raises(CrashError):
        fit(Trainer(configuration(packed, folder / "run", checkpoint_every=1)), keep_and_crash)
    return folder


@pytest.mark.usefixtures("without_curves")
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_run_that_crashes_at_any_step_and_resumes_ends_in_the_same_bits(
    packed: Path, tmp_path: Path, whole: Path, crashed: Path, step: int
) -> None:
    shutil.copytree(crashed / str(step), tmp_path, dirs_exist_ok=True)
    if step == 1:
        assert load(tmp_path / "last.pt").state["step"] == 1
    fit(Trainer(configuration(packed, tmp_path), resume=True))
    assert_equal_runs(tmp_path, whole)


@pytest.mark.usefixtures("without_curves")
@pytest.mark.parametrize("failure", [OSError(errno.EREMOTEIO, "nothing answers"), InputError("too many are damaged")])
def test_a_loader_that_fails_between_checkpoints_keeps_the_run(
    packed: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    trainer = Trainer(configuration(packed, tmp_path / "run"))
    taken = Loader._next

    def fails(loader: Loader) -> Batch:
        if trainer.step == 5:
            raise failure
        return taken(loader)

    monkeypatch.setattr(Loader, "_next", fails)
    with pytest.raises(type(failure), match=r"nothing answers|too many are damaged") as failed:
        fit(trainer)
    assert failed.value.__notes__[-1].startswith("the run is kept up to its last checkpoint; continue with: ")
    monkeypatch.undo()
    assert load(tmp_path / "run/last.pt").state["step"] == 5
    fit(Trainer(configuration(packed, tmp_path / "run"), resume=True))
    assert_equal_runs(tmp_path / "run", whole)


@pytest.mark.usefixtures("without_curves")
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
@pytest.mark.parametrize("step", [1, 4])
def test_a_signal_keeps_the_run_and_resuming_ends_in_the_same_bits(
    packed: Path, tmp_path: Path, whole: Path, step: int, number: signal.Signals, exit_code: int
) -> None:
    def send(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), number)

    former = signal.getsignal(number)
    stopped = step if step == 4 else step + 1  # at the end of an epoch what is due is done first
    with pytest.raises(Interrupted, match=rf"stopped after step {stopped}, .*; continue with: .* --resume") as stop:
        fit(Trainer(configuration(packed, tmp_path)), send)
    assert (signal.getsignal(number), stop.value.exit_code) == (former, exit_code)
    assert str(tmp_path) in str(stop.value)
    fit(Trainer(configuration(packed, tmp_path), resume=True))
    assert_equal_runs(tmp_path, whole)


def test_a_closed_terminal_leaves_the_run_unfinished() -> None:
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
    assert interruption.by == signal.SIGHUP
    assert Interrupted("", interruption.by).exit_code == os.EX_TEMPFAIL


def test_a_run_under_nohup_goes_on_when_its_terminal_closes() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.by is None
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_resumed_run_logs_every_step_once(packed: Path, tmp_path: Path, whole: Path) -> None:
    with pytest.raises(CrashError):
        fit(Trainer(configuration(packed, tmp_path, checkpoint_every=5, log_every=1)), crash_at(7))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # the write that the crash cut short
    fit(Trainer(configuration(packed, tmp_path, log_every=1), resume=True))
    trained = [line["step"] for line in lines(tmp_path) if line["kind"] == "train"]
    assert trained == list(range(1, STEPS + 1))
    assert [line for line in lines(tmp_path) if line["kind"] == "val"] == [
        line for line in lines(whole) if line["kind"] == "val"
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("mask_loss/train")] == trained
    assert [event.step for event in board.Scalars("mask_iou/val")] == [4, 8]


def test_the_run_leaves_numbers_pictures_curves_and_checkpoints(whole: Path) -> None:
    read = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"], line["epoch"]) for line in read] == [
        ("train", 3, 1), ("train", 4, 1), ("val", 4, 1), ("train", 6, 2), ("train", 8, 2), ("val", 8, 2),
    ]  # fmt: skip
    for line in read:
        assert line["loss"] == pytest.approx(6 * line["mask_loss"] + line["depth_loss"], rel=1e-5)
        if line["kind"] == "train":
            assert line["sets_seen"] == 16 * line["step"]
            assert 0 <= line["stall_share"] <= 1
            assert line["sets_per_sec"] > 0
        else:
            assert {"mask_iou", "depth_ssim", "depth_rmse", "baseline_iou"} <= line.keys()
    for epoch in (1, 2):
        picture = np.asarray(Image.open(whole / "pictures" / f"epoch_{epoch:04}.png"))
        assert picture.shape[1] > 6 * 128
        assert picture[:16].min() < 100  # titles
        assert picture[16 + 128 : -4].min() < 200  # the set's IoU
    assert np.asarray(Image.open(whole / "curves.png")).shape[1] > 600
    assert (whole / "best.pt").exists()
    board = EventAccumulator(str(whole / "tensorboard")).Reload()
    assert [event.step for event in board.Images("predictions")] == [4, 8]


def test_without_depth_no_trace_of_it_is_left(mask_alone: Path, whole: Path) -> None:
    read = lines(mask_alone)
    assert [(line["kind"], line["step"]) for line in read] == [(line["kind"], line["step"]) for line in lines(whole)]
    for line in read:
        assert not [name for name in line if "depth" in name]
        assert line["loss"] == pytest.approx(6 * line["mask_loss"], rel=1e-6)
        assert all(np.isfinite(value) for value in line.values() if not isinstance(value, str))
    checkpoint = load(mask_alone / "last.pt")
    assert checkpoint.state["settings"]["depth"] is False
    assert not [name for name in checkpoint.network if "depth" in name]
    board = EventAccumulator(str(mask_alone / "tensorboard")).Reload()
    assert "mask_loss/train" in board.Tags()["scalars"]
    assert not [name for name in board.Tags()["scalars"] if "depth" in name]
    for name, columns in (("pictures/epoch_0002.png", (4, 6)), ("curves.png", (1, 2))):
        with Image.open(mask_alone / name) as ours, Image.open(whole / name) as theirs:
            assert ours.width / theirs.width == pytest.approx(columns[0] / columns[1], abs=0.01)


def test_a_run_without_depth_resumes_so_to_the_same_bits(bare: Path, mask_alone: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(CrashError):
        fit(Trainer(configuration(bare, tmp_path, depth=False, checkpoint_every=1)), crash_at(6))
    trainer = fit(Trainer(configuration(bare, tmp_path), resume=True, say=said.append))  # depth is not given
    assert not trainer.config.depth
    assert_equal_runs(tmp_path, mask_alone)
    told = "\n".join([*said, *trainer.summary()]).replace(str(tmp_path), "")
    assert "mask IoU" in told
    assert not {"depth", "nan", "None"} & set(told.replace(",", " ").split())


@pytest.mark.parametrize(("run", "given", "flags"), [("whole", False, ("--no-depth", "--depth")),
                                                     ("mask_alone", True, ("--depth", "--no-depth"))])  # fmt: skip
def test_resuming_with_the_other_kind_of_depth_is_refused(
    packed: Path, run: str, given: bool, flags: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    out: Path = request.getfixturevalue(run)
    with pytest.raises(InputError, match=rf"^{flags[0]}: the run in .* has {flags[1]}; the network's weights"):
        Trainer(configuration(packed, out, depth=given), resume=True, given={"depth"})


def test_data_without_the_depth_that_is_asked_for_leave_nothing_written(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"have no depth: .*--no-depth"):
        Trainer(configuration(bare, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_from_before_there_was_a_choice_has_depth(packed: Path, whole: Path, tmp_path: Path) -> None:
    checkpoint = load(whole / "last.pt")
    del checkpoint.state["settings"]["depth"]
    save(tmp_path / "last.pt", checkpoint)
    trainer = Trainer(configuration(packed, tmp_path), resume=True)
    trainer.close()
    assert trainer.config.depth
    assert trainer.scores == checkpoint.state["scores"]


def test_logged_losses_are_means_over_the_sets_since_the_last_line(packed: Path, tmp_path: Path) -> None:
    seen: list[tuple[StepResult, int]] = []
    trainer = Trainer(configuration(packed, tmp_path, epochs=1, batch_size=24, log_every=100))
    add = trainer.meter.add

    def remember(step: StepResult, sets: int, wait_sec: float) -> None:
        seen.append((step, sets))
        add(step, sets, wait_sec)

    trainer.meter.add = remember  # type: ignore[method-assign]
    fit(trainer)
    assert [sets for _, sets in seen] == [24, 24, 16]
    (line,) = [line for line in lines(tmp_path) if line["kind"] == "train"]
    for name in ("mask_loss", "depth_loss", "loss"):
        expected = sum(step.losses[name].item() for step, _ in seen) / 64
        assert line[name] == pytest.approx(expected, rel=1e-5)


def test_the_trainings_loader_starts_at_its_first_batch(packed: Path, tmp_path: Path) -> None:
    trainer = Trainer(configuration(packed, tmp_path))
    trainer.close()
    fresh = Loader(packed, "train", batch_size=16, size=32, device="cpu", seed=0)
    assert trainer.loader.state_dict() == fresh.state_dict()
    assert torch.equal(next(iter(trainer.loader)).index, next(iter(fresh)).index)


def test_the_baselines_threshold_is_the_best_of_the_grid(packed: Path) -> None:
    grid = range(0, 200, 20)
    means = []
    for threshold in grid:
        batches = Loader(packed, "train", batch_size=16, size=32)
        scores = [iou(difference(b.bg, b.fg_bg) > threshold, b.mask) for b in batches]
        means.append(torch.cat(scores).mean().item())
    assert best_threshold(Loader(packed, "train", batch_size=16, size=32), grid) == grid[means.index(max(means))]


def test_too_few_sets_for_validation_train_without(s15: Path, tmp_path: Path) -> None:
    pack(s15, tmp_path / "shards", PackOptions(workers=1))
    said: list[str] = []
    config = configuration(tmp_path / "shards", tmp_path / "run", epochs=1)
    trainer = fit(Trainer(config, say=said.append))
    assert any(line.startswith("training without validation: no set of") for line in said)
    assert not any(line["kind"] == "val" for line in lines(tmp_path / "run"))
    assert (tmp_path / "run" / "pictures" / "epoch_0001.png").exists()
    assert (tmp_path / "run" / "last.pt").exists()
    assert "validation" not in "\n".join(trainer.summary())


def test_a_folder_in_use_is_refused_untouched(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"not empty \(it holds letter.txt\), and no run"):
        Trainer(configuration(packed, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_resuming_nothing_is_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        Trainer(configuration(packed, tmp_path / "run"), resume=True)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_takes_its_settings_from_the_checkpoint(packed: Path, whole: Path) -> None:
    trainer = Trainer(Config(packed, whole, epochs=99, model="unet-64", device="cpu"), resume=True)
    trainer.close()
    assert trainer.config == configuration(packed, whole, log_every=20, checkpoint_every=1000)


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "unet-8"), ("loss", "bce"), ("lr", 0.5), ("epochs", 3), ("seed", 1), ("batch_size", 8)],
)
def test_other_settings_are_refused_with_both_values(packed: Path, whole: Path, name: str, value: object) -> None:
    config = configuration(packed, whole, **{name: value})
    flag, saved = name.replace("_", "-"), getattr(configuration(packed, whole), name)
    with pytest.raises(InputError, match=rf"--{flag} {value}: the run in .* has --{flag} {saved};"):
        Trainer(config, resume=True, given={name})


def test_another_data_set_is_refused_with_both_hashes(packed: Path, source: Path, whole: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "shards", PackOptions(sets_per_shard=16, workers=1, seed=1))
    folders = packed, tmp_path / "shards"
    hashes = [Loader(shards, "train", batch_size=16, size=32).manifest.sha256 for shards in folders]
    with pytest.raises(InputError, match=rf"the data set is {hashes[0]}, but here it is {hashes[1]}"):
        Trainer(configuration(tmp_path / "shards", whole), resume=True)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(packed: Path, tmp_path: Path) -> None:
    trainer = Trainer(configuration(packed, tmp_path, checkpoint_every=1))

    def spoil(step: int) -> None:
        if step == 2:
            next(trainer.learner.network.parameters()).data.fill_(float("nan"))

    with pytest.raises(InputError, match=r"the loss is nan at step 3; .*last\.pt is from before"):
        fit(trainer, spoil)
    assert load(tmp_path / "last.pt").state["step"] == 2


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_on_a_gpu_no_step_waits_for_the_device(packed: Path, tmp_path: Path, precision: str) -> None:
    trainer = Trainer(configuration(packed, tmp_path, device="gpu", precision=precision))
    batches = iter(trainer.loader)
    trainer.learner.train_step(next(batches), 0.0, 16)  # the first allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = next(batches)
        trainer.meter.add(trainer.learner.train_step(batch, 0.5, 16), len(batch.bg), 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        trainer.close()
    assert trainer.meter.compute()["loss"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_auto_says_so_and_gpu_is_refused(packed: Path, tmp_path: Path) -> None:
    said: list[str] = []
    Trainer(configuration(packed, tmp_path / "run", device="auto", precision="float32"), say=said.append).close()
    assert said[:1] == ["no GPU found: training on the CPU, float32"]
    assert said[1].startswith("validation: 1 set on 1 background")
    with pytest.raises(InputError, match=r"no usable GPU.* use --device cpu"):
        torch_device("gpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs 0: expected 1 or more"),
        ({"batch_size": 0}, "--batch-size 0: expected 1"),
        ({"size": 100}, "--size 100: expected a multiple of 16"),
        ({"size": 16}, "--size 16: .* from 32"),
        ({"lr": 0.0}, "--lr 0.0: expected a number above 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"weight_decay": -1.0}, "--weight-decay -1.0: expected a number from 0"),
        ({"warmup": 1.0}, "--warmup 1.0"),
        ({"seed": -1}, "--seed -1"),
        ({"device": "tpu"}, "--device tpu: expected one of auto, gpu, cpu"),
    ],
)
def test_settings_out_of_range_are_named_by_their_flag(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configuration(Path("shards"), Path("run"), **changes)


@pytest.mark.parametrize(("patient", "quiet"), [(False, False), (True, False), (False, True)])
def test_a_signal_is_acknowledged_at_once_and_once(
    patient: bool, quiet: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with Interruption(patient=patient, quiet=quiet) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        if patient:
            os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.by == signal.SIGTERM
    again = "" if patient else "; once more: stop at once, without it"
    said = f"stopping: finishing the step, then writing the checkpoint{again}\n"
    assert capfd.readouterr().err == ("" if quiet else said)
