"""Several ranks train what one would; gloo on the CPU stands for NCCL."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import tools.train
from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from pipeline.storage import location_of
from tests.ranks import CONTEXT, PATIENCE_SEC, in_ranks
from train.checkpoint import load
from train.config import Config
from train.distributed import Distributed, RankLost
from train.run_folder import Resume
from train.signals import Interrupted, Interruption
from train.trainer import Trainer

BATCH = 21  # 64 sets in 4 batches: shares differ by a set, and the last batch has 1, so that ranks are left with none
LOSSES = ("mask_loss", "depth_loss", "loss", "grad_norm")


def configuration(shards: Path, out: Path) -> Config:
    return Config(
        shards, out, epochs=2, batch_size=BATCH, size=32, model="unet-4", device="cpu", precision="float32",
        log_every=1, checkpoint_every=2,
    )  # fmt: skip


def train(config: Config, resume: Resume = False, stop_at: int | None = None, asked: int = 0) -> list[str]:
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


def test_a_loader_that_fails_on_any_rank_keeps_the_run(packed: Path, alone: Path, tmp_path: Path) -> None:
    config = configuration(packed, tmp_path / "run")
    said = in_ranks(3, fail_at, config, 3, 1)
    others = [f"rank {rank}: another rank has failed; see its message" for rank in range(3)]
    assert said == [others[0], "too many are damaged", others[2]]
    assert load(location_of(config.out) / "last.pt").state["step"] == 3
    said = in_ranks(2, fail_at, config, 5, 0)
    assert said == ["too many are damaged", others[1]]
    assert load(location_of(config.out) / "last.pt").state["step"] == 5
    train(config, True)
    assert_alike(tmp_path / "run", alone)


def fail_at(config: Config, step: int, failing: int) -> str:
    """What ends one rank, where the loader of the rank `failing` fails after a step."""
    taken = Loader._next

    def fails(loader: Loader) -> Batch:
        if ranks.rank == failing and trainer.step == step:
            raise InputError("too many are damaged")
        return taken(loader)

    with Distributed.from_environment("cpu") as ranks:
        trainer = Trainer(config, resume="auto", ranks=ranks, say=lambda line: None)
        with patch.object(Loader, "_next", fails), pytest.raises(InputError) as failed:
            trainer.fit()
    return str(failed.value)


def test_the_command_of_each_rank_says_that_the_run_is_unfinished(packed: Path, tmp_path: Path) -> None:
    config = configuration(packed, tmp_path / "run")
    assert in_ranks(2, stopped_on_the_second, config) == [os.EX_TEMPFAIL] * 2
    assert load(tmp_path / "run" / "last.pt").state["step"] == 1


def stopped_on_the_second(config: Config) -> int:
    """The exit code of fgbg-train, where the second rank is told to stop before the first step."""

    def enter(interruption: Interruption) -> Interruption:
        if os.environ["RANK"] == "1":
            interruption.by = signal.SIGTERM
        return interruption

    with patch.object(Interruption, "__enter__", enter):
        return tools.train.train(config, False, (), override=False, report=False)


@pytest.mark.parametrize(("step", "code"), [(1, 1), (3, os.EX_TEMPFAIL)])
def test_ranks_that_have_lost_another_are_unfinished_once_there_is_a_checkpoint(
    step: int, code: int, packed: Path, tmp_path: Path
) -> None:
    """So that each time they begin again, they get farther."""
    assert in_ranks(3, killed_at, configuration(packed, tmp_path / "run"), step, ends=1) == [code, None, code]


def killed_at(config: Config, step: int) -> int:
    """The exit code of fgbg-train, where the second rank is killed in a step."""
    learn = Trainer._learn

    def killed(trainer: Trainer, *arguments: Any) -> Any:
        if trainer.step == step - 1 and trainer.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(trainer, *arguments)

    with patch.object(Trainer, "_learn", killed):
        try:
            return tools.train.train(config, False, (), override=False, report=False)
        except RankLost:
            return 1


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


def test_a_lost_machine_leaves_the_run_to_the_others(packed: Path, alone: Path, tmp_path: Path) -> None:
    config = configuration(packed, tmp_path / "run")
    with agents(3, config, tmp_path / "starts") as started:
        for process in started:
            process.join(PATIENCE_SEC)
        assert sorted(process.exitcode or 0 for process in started) == [-signal.SIGKILL, 0, 0]
    assert_alike(tmp_path / "run", alone)
    starts = (tmp_path / "starts").read_text().splitlines()
    assert starts[-2:] == ["3 ranks from step 0", "2 ranks from step 4"]


@contextmanager
def agents(count: int, config: Config, starts: Path) -> Iterator[list[ForkServerProcess]]:
    """What runs on each of `count` machines: an agent of torchrun with one rank. None is left running."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # by which they find one another
    started = [CONTEXT.Process(target=agent, args=(store.port, count, config, starts)) for _ in range(count)]
    try:
        for process in started:
            process.start()
        yield started
    finally:
        for process in started:
            process.kill()  # which ends its rank: see torch/multiprocessing/spawn.py
            process.join()


def agent(port: int, count: int, config: Config, starts: Path) -> None:
    """As torchrun --nnodes 2:COUNT --max-restarts 1, but that it forks its rank."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    quick = {"is_host": False, "last_call_timeout": 2, "keep_alive_interval": 1, "keep_alive_max_attempt": 2}
    launch = LaunchConfig(
        min_nodes=2, max_nodes=count, nproc_per_node=1, run_id="lost", rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{port}", rdzv_configs=quick, local_addr="127.0.0.1",
        max_restarts=1, monitor_interval=0.1, start_method="fork",
    )  # fmt: skip
    elastic_launch(launch, train_until_lost)(config, starts)


def train_until_lost(config: Config, starts: Path) -> None:
    """Train as one rank; of three, the first is lost after step 5, with its agent, and the others are not told."""
    with Distributed.from_environment("cpu") as ranks:
        trainer = Trainer(config, resume="auto", ranks=ranks, say=lambda line: None)
        if ranks.first:
            with starts.open("a") as file:
                file.write(f"{ranks.world} ranks from step {trainer.step}\n")

        def after(_: str) -> None:
            if (ranks.world, ranks.first, trainer.step) == (3, True, 5):
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.fit(after)
