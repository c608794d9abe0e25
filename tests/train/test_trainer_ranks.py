"""Several ranks train what one would; gloo on the CPU stands for NCCL."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.storage import location_of
from tests.ranks import in_ranks
from train.checkpoint import load
from train.config import Config
from train.distributed import Distributed
from train.signals import Interrupted
from train.trainer import Trainer

BATCH = 21  # 64 sets in 4 batches: shares differ by a set, and the last batch has 1, so that ranks are left with none
LOSSES = ("mask_loss", "depth_loss", "loss", "grad_norm")


def configuration(shards: Path, out: Path) -> Config:
    return Config(
        shards, out, epochs=2, batch_size=BATCH, size=32, model="unet-4", device="cpu", log_every=1, checkpoint_every=2
    )


def train(config: Config, resume: bool = False, stop_at: int | None = None, asked: int = 0) -> list[str]:
    """What one rank said; at a step, the rank `asked` is told to stop."""
    said: list[str] = []
    with Distributed.from_environment("cpu") as ranks:
        trainer = Trainer(config, resume=resume, ranks=ranks, say=said.append)

        def after(_: str) -> None:
            if trainer.step == stop_at and ranks.rank == asked:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            trainer.fit(after)
        except Interrupted as stop:
            said.append(str(stop))
        finally:
            trainer.close()
    return said


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["kind"] == kind]


def assert_alike(out: Path, expected: Path, first: float = 1e-5, norm: float = 0.02) -> None:
    """The same losses at each step, up to the order in which floats are added, and the same sets.

    `first` is how far those of the first step may be apart, before any step has spread rounding errors; `norm` how far
    the norm of a later gradient may be.
    """
    ours, theirs = lines(out, "train"), lines(expected, "train")
    assert [(line["step"], line["sets_seen"]) for line in ours] == [(x["step"], x["sets_seen"]) for x in theirs]
    for our, their in zip(ours, theirs, strict=True):
        for name in LOSSES:
            most = norm if name == "grad_norm" else 0.02
            assert our[name] == pytest.approx(their[name], rel=most), (our["step"], name)
    assert [ours[0][name] for name in LOSSES] == pytest.approx([theirs[0][name] for name in LOSSES], rel=first)
    for our, their in zip(lines(out, "val"), lines(expected, "val"), strict=True):
        assert (our["sets"], our["baseline_iou"]) == (their["sets"], pytest.approx(their["baseline_iou"]))
        assert our["loss"] == pytest.approx(their["loss"], rel=0.02)


@pytest.fixture(scope="module")
def alone(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(configuration(packed, out))
    return out


@pytest.mark.parametrize("world", [3])  # with two: the tests of stopping, and of the norm
def test_ranks_learn_what_one_learns_and_one_of_them_writes(
    packed: Path, alone: Path, tmp_path: Path, world: int
) -> None:
    said = in_ranks(world, train, configuration(packed, tmp_path / "run"))
    assert_alike(tmp_path / "run", alone)
    assert said[0][0] == f"training on {world} processes, on the CPU, float32"
    assert any(line.startswith("64 of 64 decoded sets stay") for line in said[0])
    assert said[1:] == [[]] * (world - 1)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == len(list((alone / "tensorboard").iterdir()))


def test_a_run_stopped_on_any_rank_goes_on_with_another_number_of_them(
    packed: Path, alone: Path, tmp_path: Path
) -> None:
    config = configuration(packed, tmp_path / "run")
    for world, resume, stop_at, asked in ((2, False, 1, 1), (3, True, 5, 2), (1, True, None, 0)):
        said = in_ranks(world, train, config, resume, stop_at, asked)
        if stop_at:
            assert [lines[-1].split(";")[0].split(",")[0] for lines in said] == [
                f"stopped after step {stop_at + 1}"
            ] * world
            assert load(location_of(config.out) / "last.pt").state["step"] == stop_at + 1
    assert_alike(tmp_path / "run", alone)


def test_a_folder_in_use_is_refused_by_the_first_and_none_hangs(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    answers = in_ranks(2, refused, configuration(packed, tmp_path))
    assert "not empty (it holds letter.txt), and no run" in answers[0]
    assert "another rank has ended" in answers[1]
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def refused(config: Config) -> str:
    try:
        train(config)
    except InputError as error:
        return str(error)
    return ""
