"""Runs whose place is a URL; a folder stands for the storage, but in the last test."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train.remote_run
import train.trainer
from pipeline.errors import InputError
from pipeline.lease import Lease
from pipeline.loading.batch import Batch
from pipeline.loading.loader import Loader
from pipeline.storage import Folder, Url, storage_of
from pipeline.workers import end_with_parent
from tests.conftest import stand_for_object_storage
from tests.ranks import CONTEXT, in_ranks
from tests.train.test_trainer import CrashError, assert_equal_runs, configuration, crash_at, fit, lines
from train.checkpoint import load, load_run
from train.config import Config
from train.distributed import Distributed
from train.remote_run import local_folder
from train.report import write_report
from train.trainer import Trainer

URL = Url("s3://bucket/runs/first")


@pytest.fixture(autouse=True)
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads without pauses, and no curves, which take half of a small run's time."""
    monkeypatch.setattr(train.remote_run, "PAUSE_SEC", 0.0)
    monkeypatch.setattr(train.trainer, "draw_curves", lambda _, path: path.write_bytes(b"curves"))


@pytest.fixture
def there(bucket: Path) -> Path:
    """What is behind URL."""
    return bucket / "runs/first"


@pytest.fixture(scope="module")
def whole(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a folder that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(Trainer(configuration(packed, out)))
    return out


def remote(packed: Path, **changes: Any) -> Config:
    return replace(configuration(packed, Path("unused"), **changes), out=URL)


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


def checkpoint_of(there: Path, step: int) -> bool:
    return (there / "last.pt").exists() and load(there / "last.pt").state["step"] == step


def lease_of_another_machine(there: Path, renewed: float) -> None:
    name = sorted((there / ".writers").iterdir())[-1] if there.exists() else there / ".writers/000001"
    name.parent.mkdir(parents=True, exist_ok=True)
    name.write_text(json.dumps([["elsewhere", 77, "boot 1 2"], renewed, False]))


def test_a_run_is_behind_its_url_and_nothing_stays_here(packed: Path, whole: Path, there: Path) -> None:
    said = list[str]()
    trainer = fit(Trainer(remote(packed), say=said.append))
    assert_equal_runs(there, whole)
    assert lines(there) == lines(whole)
    names = {name for name in Folder(there).names() if "tfevents" not in name and not name.startswith(".")}
    pictures = {f"pictures/epoch_000{epoch}.png" for epoch in (1, 2)}
    assert names == {"best.pt", "curves.png", "last.pt", "metrics.jsonl", *pictures}
    assert len(list((there / "tensorboard").iterdir())) == 1
    assert not local_folder(URL).exists()
    assert f"checkpoint: {URL}/last.pt (best mask IoU, {trainer.best_iou:.3f}: {URL}/best.pt)" in trainer.summary()
    assert not any("cache/" in line for line in said)
    again = Trainer(remote(packed))
    assert again.complete_before
    assert not again.has("report.html")
    again.close()
    assert write_report(URL, packed, torch.device("cpu")) == URL / "report.html"
    assert "best.pt of step" in (there / "report.html").read_text()


@pytest.mark.parametrize("kept", [3, 4, 6])
def test_what_a_killed_run_has_put_goes_on_elsewhere_to_the_same_bits(
    packed: Path, whole: Path, there: Path, tmp_path: Path, kept: int
) -> None:
    def keep(step: int) -> None:
        if step == kept + 1:
            wait_for(lambda: checkpoint_of(there, kept))
            shutil.copytree(there, tmp_path / "killed")
            raise CrashError

    with pytest.raises(CrashError):
        fit(Trainer(remote(packed)), keep)
    shutil.rmtree(there)
    shutil.copytree(tmp_path / "killed", there)
    lease_of_another_machine(there, 0.0)
    said = list[str]()
    fit(Trainer(remote(packed), resume=True, say=said.append))
    assert any("process 77 of elsewhere, which was at work in it, is gone" in line for line in said)
    assert_equal_runs(there, whole)
    assert lines(there) == lines(whole)


def test_where_shards_fail_the_run_is_put_and_said_to_be_there(
    packed: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Loader) -> Batch:
        raise OSError(errno.EREMOTEIO, "nothing answers")

    def after_step(step: int) -> None:
        if step == 2:
            monkeypatch.setattr(Loader, "_next", fails)

    with pytest.raises(OSError, match="nothing answers") as failed:
        fit(Trainer(remote(packed)), after_step)
    assert failed.value.__notes__ == [
        f"the run is kept up to its last checkpoint; continue with: fgbg-train --shards {packed} --out {URL} --resume"
    ]
    assert load(there / "last.pt").state["step"] == 2


def test_a_start_that_came_to_nothing_leaves_nothing(packed: Path, there: Path) -> None:
    (there / "tensorboard").mkdir(parents=True)
    (there / "tensorboard/events.out.tfevents.1").write_bytes(b"old")
    (there / "metrics.jsonl").write_bytes(b"")
    said = list[str]()
    trainer = Trainer(remote(packed), resume=True, say=said.append)
    assert f"{URL}: its run was stopped before the first checkpoint, and starts again" in said
    trainer.close()
    assert [path.read_bytes() for path in (there / "tensorboard").iterdir()] != [b"old"]
    assert not (there / "last.pt").exists()


def test_errors_name_the_url(packed: Path, there: Path) -> None:
    with pytest.raises(InputError, match=rf"^{URL}/last\.pt: no such checkpoint; to start a new run"):
        Trainer(remote(packed), resume=True)
    (there / "notes").mkdir(parents=True)
    (there / "notes/1.txt").write_text("mine")
    with pytest.raises(InputError, match=rf"^{URL}: not empty \(it holds notes\), and no run"):
        Trainer(remote(packed), resume="auto")
    assert not local_folder(URL).exists()


def test_a_run_that_is_there_is_not_written_over(packed: Path, whole: Path, there: Path) -> None:
    shutil.copytree(whole, there)
    with pytest.raises(InputError, match=f"--seed 3: the complete run in {URL} has --seed 0"):
        Trainer(remote(packed, seed=3))
    (there / "last.pt").write_bytes(b"damaged")
    said = list[str]()
    Trainer(remote(packed), resume=True, say=said.append).close()
    assert f"{URL}/last.pt: damaged; going on from the one before, best.pt, of step" in " ".join(said)


def test_one_trainer_at_a_time(packed: Path, there: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer = Trainer(remote(packed))
    with pytest.raises(InputError, match=f"another process is at work in {URL}: wait for it"):
        Trainer(remote(packed))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of another user"))
    with pytest.raises(InputError, match="is at work in"):
        Trainer(remote(packed))
    trainer.close()
    Trainer(remote(packed)).close()


def test_a_run_that_another_has_gone_on_with_stops_and_writes_no_more(packed: Path, there: Path) -> None:
    def after_step(step: int) -> None:
        if step == 1:
            lease_of_another_machine(there, 0.0)
            Lease(Folder(there), lambda line: None)

    with pytest.raises(InputError, match="another process has gone on with it"):
        fit(Trainer(remote(packed)), after_step)
    assert not (there / "last.pt").exists()


def test_what_fails_in_passing_is_said_once_and_made_up_for(packed: Path, whole: Path, there: Path) -> None:
    """What hinders the upload is a file where a folder has to be."""
    said = list[str]()

    def after_step(step: int) -> None:
        if step == 1:
            (there / "pictures").write_bytes(b"")
        if step == 8:
            return
        if step == 7:
            wait_for(lambda: any("tried again at its next checkpoint" in line for line in said))
            (there / "pictures").unlink()

    fit(Trainer(remote(packed), say=said.append), after_step)
    assert sum("tried again at its next checkpoint" in line for line in said) == 1
    assert_equal_runs(there, whole)
    assert len(list((there / "pictures").iterdir())) == 2


def test_what_cannot_be_put_at_the_end_is_kept_and_put_by_the_same_command(
    packed: Path, whole: Path, there: Path
) -> None:
    there.mkdir(parents=True)
    trainer = Trainer(remote(packed))
    (there / "pictures").write_bytes(b"")
    with pytest.raises(OSError, match="exists") as raised:
        fit(trainer)
    kept = f"all files of the run are kept in {local_folder(URL)}"
    assert kept in raised.value.__notes__
    assert f"--out {URL} --resume" in raised.value.__notes__[-1]
    (there / "pictures").unlink()
    said = list[str]()
    trainer = Trainer(remote(packed), say=said.append)
    assert trainer.complete_before
    assert "since not all of it was put at the URL before" in said[0]
    trainer.close()
    assert_equal_runs(there, whole)
    assert lines(there) == lines(whole)
    assert not local_folder(URL).exists()


def test_why_a_run_ended_is_told_beside_why_it_could_not_be_put(packed: Path, there: Path) -> None:
    def after_step(step: int) -> None:
        if step == 5:
            wait_for(lambda: checkpoint_of(there, 4))
            shutil.rmtree(there / "pictures")
            (there / "pictures").write_bytes(b"")
        if step == 9:
            raise InputError("the loss is nan")

    with pytest.raises(OSError, match="exists") as raised:
        fit(Trainer(remote(packed, epochs=3)), after_step)
    assert "the loss is nan" in raised.value.__notes__


def test_local_files_of_a_run_that_others_went_on_with_are_not_used(packed: Path, whole: Path, there: Path) -> None:
    with pytest.raises(CrashError):
        fit(Trainer(remote(packed)), crash_at(4))
    folder = local_folder(URL)
    shutil.copytree(there, folder, ignore=shutil.ignore_patterns(".writers"))
    (folder / "last.pt").write_bytes(b"other")
    fit(Trainer(remote(packed), resume=True))
    assert_equal_runs(there, whole)


def test_ranks_on_other_machines_go_on_from_the_same_checkpoint(packed: Path, there: Path, tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        fit(Trainer(remote(packed)), crash_at(4))
    assert checkpoint_of(there, 3)
    answers = in_ranks(2, opened_on_a_machine_of_its_own, remote(packed), tmp_path)
    assert answers == [(3, 48), (3, 48)]


def opened_on_a_machine_of_its_own(config: Config, folder: Path) -> tuple[int, int]:
    """Steps and sets of the run, on a rank that shares no local file with others."""
    ranks = Distributed.from_environment("cpu")
    with pytest.MonkeyPatch.context() as patch, ranks:
        stand_for_object_storage(patch, folder / "bucket", folder / f"cache of rank {ranks.rank}")
        with closing(Trainer(config, resume=True, ranks=ranks)) as trainer:
            return trainer.step, trainer.sets_seen


def test_a_run_that_is_killed_goes_on_from_s3_on_another_machine(
    packed: Path, whole: Path, s3: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(remote(packed), out=s3 / "runs/first")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    process = CONTEXT.Process(target=train_and_stand_still, args=(config, dict(os.environ)), daemon=True)
    process.start()
    storage = storage_of(s3 / "runs/first")
    wait_for(lambda: "last.pt" in storage.names() and load(s3 / "runs/first/last.pt").state["step"] == 4)
    process.kill()
    process.join()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    said = list[str]()
    fit(Trainer(config, resume=True, say=said.append))
    assert any(f"process {process.pid} of" in line and "is gone; this one goes on" in line for line in said)
    for name in storage.names():
        Folder(tmp_path / "copy").put(name, storage.read_all(name))
    assert_equal_runs(tmp_path / "copy", whole)
    assert lines(tmp_path / "copy") == lines(whole)
    assert load_run(s3 / "runs/first", "best", torch.device("cpu")).step in (4, 8)


def train_and_stand_still(config: Config, environment: dict[str, str]) -> None:
    """Train in a process that will be killed in the second epoch."""
    os.environ.update(environment)
    train.remote_run.PAUSE_SEC = 0.0
    end_with_parent()
    fit(Trainer(config), lambda step: time.sleep(600) if step == 5 else None)
