"""How long a run is, what a resumed one may change, and what it goes on from."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import train.trainer
from pipeline.errors import InputError
from tests.train.test_trainer import fit
from train.checkpoint import load, load_run
from train.config import Config
from train.logging import read_lines
from train.trainer import Trainer


def configuration(shards: Path, out: Path, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "epochs": None, "batch_size": 16, "size": 32, "model": "unet-4", "device": "cpu", "log_every": 1,
        "checkpoint_every": 2,
    }  # fmt: skip
    return Config(shards, out, **(values | changes))


class Clock:
    """A second a look."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(("sets", "steps", "epochs"), [(16, 1, [1]), (65, 5, [1, 2]), (128, 8, [1, 2])])
def test_a_run_of_so_many_sets_ends_with_the_batch_that_reaches_them(
    packed: Path, tmp_path: Path, sets: int, steps: int, epochs: list[int]
) -> None:
    trainer = fit(Trainer(configuration(packed, tmp_path, sets=sets)))
    assert (trainer.step, trainer.sets_seen) == (steps, 16 * steps)
    read = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in read if line["kind"] == "train"] == list(range(1, steps + 1))
    assert [line["epoch"] for line in read if line["kind"] == "val"] == epochs
    assert load(tmp_path / "last.pt").state["step"] == steps
    again = fit(Trainer(configuration(packed, tmp_path, sets=sets), resume=True))
    assert again.step == steps
    assert again.summary() == trainer.summary()


def test_the_learning_rate_falls_over_the_whole_length(packed: Path, tmp_path: Path) -> None:
    fit(Trainer(configuration(packed, tmp_path, sets=128, warmup=0.0, lr=0.5)))
    rates = [line["lr"] for line in read_lines(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert rates == sorted(rates, reverse=True)
    assert rates[3] == pytest.approx(0.25)  # after half of the sets
    assert rates[-1] == pytest.approx(0, abs=1e-6)


def test_a_run_of_minutes_counts_the_time_of_all_its_sessions(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.trainer, "time", Clock())
    config = configuration(packed, tmp_path, minutes=0.5)  # 30 seconds, of which a step takes some

    def crash(step: int) -> None:
        if step == 4:
            raise KeyError

    with pytest.raises(KeyError):
        fit(Trainer(config), crash)
    before = load(tmp_path / "last.pt").state["elapsed_sec"]
    assert before > 0
    trainer = fit(Trainer(config, resume=True))
    assert 30 <= trainer.elapsed_sec < 40
    assert trainer.step > 4
    read = [line for line in read_lines(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in read] == list(range(1, trainer.step + 1))
    assert read[-1]["lr"] < 0.1 * max(line["lr"] for line in read)


@pytest.mark.parametrize("lengths", [{}, {"epochs": 2, "sets": 5}, {"sets": 5, "minutes": 1.0}])
def test_a_run_has_one_length(lengths: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected one of --epochs, --sets, --minutes"):
        configuration(Path(), Path(), **lengths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": 0}, "--sets 0: expected 1 or more"),
        ({"minutes": 0.0}, "--minutes 0.0: expected a number above 0"),
        ({"minutes": float("nan")}, "--minutes nan"),
        ({"epochs": 1, "clip": -1.0}, "--clip -1.0"),
        ({"epochs": 1, "ema": 1.0}, "--ema 1.0: expected a decay below 1"),
        ({"epochs": 1, "schedule": "none"}, "--schedule none: expected one of cosine, one-cycle"),
        ({"epochs": 1, "precision": "fp8"}, "--precision fp8: expected one of native, auto, float32, bf16, fp16"),
        ({"epochs": 1, "compile": "fast"}, "--compile fast: expected one of auto, off"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configuration(Path(), Path(), **changes)


@pytest.fixture(scope="module")
def one_epoch(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, with its checkpoints; read only."""
    out = tmp_path_factory.mktemp("one_epoch") / "run"
    fit(Trainer(configuration(packed, out, epochs=1)))
    return out


@pytest.fixture
def half(one_epoch: Path, tmp_path: Path) -> Path:
    """The same, to go on with."""
    return Path(shutil.copytree(one_epoch, tmp_path / "run"))


@pytest.fixture(scope="module")
def seven_steps(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 7 steps that was never damaged; read only."""
    out = tmp_path_factory.mktemp("seven_steps") / "run"
    fit(Trainer(configuration(packed, out, sets=112)))
    return out


def test_all_that_differs_is_listed_and_may_be_overridden(packed: Path, half: Path) -> None:
    config = configuration(packed, half, epochs=None, sets=128, lr=0.5, loss="bce")
    given = {"epochs", "sets", "lr", "loss"}
    asked, has = "no --epochs --sets 128 --lr 0.5 --loss bce", "--epochs 1 no --sets --lr 0.03 --loss sharp"
    with pytest.raises(InputError, match=rf"^{asked}: the run in .* has {has}; leave out what differs .* --override"):
        Trainer(config, resume=True, given=given)
    trainer = fit(Trainer(config, resume=True, given=given, override=True))
    assert trainer.sets_seen == 128
    settings = load(half / "last.pt").state["settings"]
    assert [settings[name] for name in ("epochs", "sets", "lr", "loss")] == [None, 128, 0.5, "bce"]
    assert "mask_dice_loss" not in read_lines(half / "metrics.jsonl")[-2]
    assert trainer.config.model == "unet-4"  # not given


@pytest.mark.parametrize(("name", "value", "what"), [("model", "unet-8", "the network's weights"),
                                                     ("optimizer", "adamw", "the optimiser's state"),
                                                     ("batch_size", 8, "the order of the sets"),
                                                     ("peer_protocol", True, "the order of the sets")])  # fmt: skip
def test_what_makes_it_another_run_cannot_be_overridden(
    packed: Path, half: Path, name: str, value: object, what: str
) -> None:
    config = configuration(packed, half, epochs=1, **{name: value})
    with pytest.raises(InputError, match=rf"{what} would be another; leave out"):
        Trainer(config, resume=True, given={name}, override=True)


def test_a_run_without_average_may_begin_one(packed: Path, tmp_path: Path) -> None:
    fit(Trainer(configuration(packed, tmp_path, epochs=1, ema=0.0)))
    assert load(tmp_path / "last.pt").ema is None
    config = configuration(packed, tmp_path, epochs=2, ema=0.5)
    fit(Trainer(config, resume=True, given={"epochs", "ema"}, override=True))
    assert load(tmp_path / "last.pt").ema


def damaged(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if how == "cut short" else 0)


@pytest.mark.parametrize("how", ["cut short", "empty", "missing"])
def test_after_a_damaged_checkpoint_the_one_before_is_gone_on_from(
    packed: Path, seven_steps: Path, tmp_path: Path, how: str
) -> None:
    run = Path(shutil.copytree(seven_steps, tmp_path / "run"))
    assert [load(run / name).state["step"] for name in ("previous.pt", "last.pt")] == [6, 7]
    damaged(run / "last.pt", how)
    os.truncate(run / "best.pt", 1000)
    said: list[str] = []
    trainer = Trainer(configuration(packed, run, sets=112), resume=True, say=said.append)
    assert any("last.pt" in line and "going on from the one before, previous.pt, of step 6" in line for line in said)
    assert f"{run / 'best.pt'}: damaged; written anew after the next validation" in said
    fit(trainer)
    for name in ("best", "last"):  # whoever uses them is told
        [fallback] = load_run(run, name, torch.device("cpu")).fallbacks
        assert fallback.startswith("last.pt: ")
        assert fallback.endswith("going on from the one before, previous.pt, of step 6")
    last, expected = load(run / "last.pt"), load(seven_steps / "last.pt")
    assert all(torch.equal(last.network[name], weights) for name, weights in expected.network.items())
    assert load(run / "previous.pt").state["step"] == 6  # not the damaged one
    damaged(run / "last.pt", "cut short")
    damaged(run / "previous.pt", "cut short")
    damaged(run / "best.pt", "cut short")
    with pytest.raises(InputError, match=r"last\.pt: not a whole checkpoint"):
        Trainer(configuration(packed, run, sets=112), resume=True)


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(packed, tmp_path, epochs=1, checkpoint_every=1)

    def full(step: int) -> None:
        if step == 2:
            monkeypatch.setattr(os, "fsync", no_space)

    with pytest.raises(OSError, match="No space left") as error:
        fit(Trainer(config), full)
    assert "kept up to its last checkpoint; continue with: fgbg-train --shards" in error.value.__notes__[0]
    assert load(tmp_path / "last.pt").state["step"] == 2
    monkeypatch.undo()
    assert not [path.name for path in tmp_path.iterdir() if "new" in path.name or "partial" in path.name]
    assert fit(Trainer(config, resume=True)).step == 4


def no_space(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def times_infinity(gradient: torch.Tensor) -> torch.Tensor:
    return gradient * float("inf")


def test_a_gradient_that_is_no_number_ends_the_run_before_it_is_kept(packed: Path, tmp_path: Path) -> None:
    trainer = Trainer(configuration(packed, tmp_path, epochs=1, checkpoint_every=1))

    def spoil(step: int) -> None:
        if step == 2:  # finite losses, infinite slope
            next(trainer.learner.network.parameters()).register_hook(times_infinity)  # type: ignore[no-untyped-call]

    with pytest.raises(InputError, match=r"the gradient's norm is (nan|inf) at step 3; .*last\.pt is from before"):
        fit(trainer, spoil)
    checkpoint = load(tmp_path / "last.pt")
    assert checkpoint.state["step"] == 2
    assert all(weights.isfinite().all() for weights in checkpoint.network.values())


def test_the_peer_protocol_trains_and_validates_on_a_random_split(packed: Path, tmp_path: Path) -> None:
    trainer = fit(Trainer(configuration(packed, tmp_path, epochs=1, peer_protocol=True)))
    assert trainer.loader.state_dict()["split"] == "peer-train"
    (line,) = [line for line in read_lines(tmp_path / "metrics.jsonl") if line["kind"] == "val"]
    assert line["sets"] == trainer.loader.sibling("peer-val").sets
    assert any("LEAKING" in line for line in trainer.summary())


def test_tensorboard_has_rates_norms_stalls_and_the_settings_with_what_came_of_them(half: Path) -> None:
    board = EventAccumulator(str(half / "tensorboard")).Reload()
    scalars = {f"{name}/train" for name in ("lr", "grad_norm", "sets_per_sec", "stall_share", "mask_bce_loss")}
    assert scalars <= set(board.Tags()["scalars"])
    assert board.Scalars("final/mask_iou")[0].value == pytest.approx(load(half / "last.pt").state["scores"]["mask_iou"])
    assert "_hparams_/session_start_info" in board.summary_metadata
