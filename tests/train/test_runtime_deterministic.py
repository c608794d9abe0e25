"""--deterministic: the same bits on a GPU, nothing else on a CPU, and nothing left behind."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import InputError
from tests.train.test_trainer import CrashError, assert_equal_runs, configuration, crash_at, fit
from train.checkpoint import load, save
from train.config import Config
from train.runtime import CUBLAS, deterministic, open_loader
from train.trainer import Trainer


def state() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        os.environ.get(CUBLAS),
    )


def test_what_it_sets_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv(CUBLAS, raising=False)
    before = state()
    with deterministic(False):
        assert state() == before
    with pytest.raises(CrashError), deterministic(True):
        assert state() == (True, False, False, ":4096:8")
        raise CrashError
    assert state() == before
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic(True):
        assert os.environ[CUBLAS] == ":16:8"
    assert os.environ[CUBLAS] == ":16:8"


def test_on_a_cpu_it_changes_no_bit_and_ends_with_the_run(packed: Path, tmp_path: Path) -> None:
    asked, before = {"plain": False, "asked": True}, state()
    seen = list[bool]()
    for name, on in asked.items():
        trainer = Trainer(configuration(packed, tmp_path / name, epochs=1, augment=True, deterministic=on))
        fit(trainer, lambda step: seen.append(torch.are_deterministic_algorithms_enabled()))
        assert state() == before
    assert seen == [False] * 4 + [True] * 4
    (tmp_path / "same").mkdir()
    saved = load(tmp_path / "asked" / "last.pt")
    saved.state["settings"]["deterministic"] = False
    save(tmp_path / "same" / "last.pt", saved)
    assert_equal_runs(tmp_path / "same", tmp_path / "plain")


def test_a_run_is_so_from_its_beginning(packed: Path, tmp_path: Path) -> None:
    fit(Trainer(configuration(packed, tmp_path, epochs=1)))
    with pytest.raises(InputError, match=r"--deterministic: the run in .* has --no-deterministic"):
        Trainer(configuration(packed, tmp_path, epochs=1, deterministic=True), resume=True, given={"deterministic"})
    checkpoint = load(tmp_path / "last.pt")
    del checkpoint.state["settings"]["deterministic"]  # as of before there was the choice
    save(tmp_path / "last.pt", checkpoint)
    trainer = Trainer(configuration(packed, tmp_path, epochs=1, deterministic=True), resume=True)
    trainer.close()
    assert not trainer.config.deterministic


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, None),
        ({"hw_decoder_load": 0.25}, 0.25),
        ({"hw_decoder_load": 0.0}, 0.0),
        ({"deterministic": True}, 0.0),
    ],
)
def test_the_loader_is_told_the_share_of_the_hardware_engine(
    changes: dict[str, Any], passed: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("train.runtime.Loader", lambda *_, **options: told.append(options))
    open_loader(configuration(Path(), Path(), **changes), torch.device("cpu"))
    [options] = told
    assert options["hw_decoder_load"] == passed


def test_the_share_may_be_another_when_a_run_is_resumed(packed: Path, tmp_path: Path) -> None:
    fit(Trainer(configuration(packed, tmp_path, epochs=1, hw_decoder_load=0.5)))
    assert "hw_decoder_load" not in load(tmp_path / "last.pt").state["settings"]
    config = configuration(packed, tmp_path, epochs=1, hw_decoder_load=1.0)
    trainer = Trainer(config, resume=True, given={"hw_decoder_load"})
    trainer.close()
    assert trainer.config.hw_decoder_load == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hw_decoder_load": 1.5}, "--hw-decoder-load 1.5: expected a share of the JPEGs from 0 to 1"),
        ({"hw_decoder_load": float("nan")}, "--hw-decoder-load nan"),
        ({"hw_decoder_load": 0.5, "deterministic": True}, "--deterministic --hw-decoder-load 0.5: expected 0, since"),
    ],
)
def test_shares_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configuration(Path(), Path(), **changes)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{"precision": "auto"}, {"precision": "fp16", "compile": "off"}, {"model": "net"},
                                      {"loss": "bce+ssim", "augment": True}])  # fmt: skip
def test_on_a_gpu_runs_are_alike_to_the_bit(packed: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    def config(name: str, **changes: Any) -> Config:
        values = {"device": "gpu", "deterministic": True, "size": 64, "model": "unet-16"} | settings | changes
        return configuration(packed, tmp_path / name, **values)

    for name in ("first", "second"):
        fit(Trainer(config(name)))
    with pytest.raises(CrashError):
        fit(Trainer(config("stopped", checkpoint_every=1)), crash_at(6))
    fit(Trainer(config("stopped"), resume=True))
    for name in ("second", "stopped"):
        assert_equal_runs(tmp_path / name, tmp_path / "first")
