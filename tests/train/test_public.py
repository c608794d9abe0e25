"""The public names of training, as other people's programs use them."""

import subprocess
import sys
from pathlib import Path

import pytest

import train
from train import Config, Trainer
from train.logging import read_lines


def test_a_run_needs_no_command_line(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"epochs": 1, "batch_size": 16, "size": 32}
    trainer = Trainer(Config(shards=str(packed), out=str(tmp_path / "run"), model="unet-4", device="cpu", **settings))  # type: ignore[arg-type]
    trainer.fit()
    assert trainer.over
    assert {line["kind"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")} == {"train", "val"}
    assert (tmp_path / "run" / "best.pt").exists()
    assert "epoch 1/1: mask IoU" in capsys.readouterr().out
    assert "trained 1 epoch, 4 steps" in trainer.summary()[0]


def test_public_names_are_loaded_when_they_are_asked_for() -> None:
    code = """
import sys, train
train.Config
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(train.__all__) == {"Config", "Trainer"}
    with pytest.raises(AttributeError, match=r"^module 'train' has no attribute 'Trainers'$"):
        _ = train.Trainers
