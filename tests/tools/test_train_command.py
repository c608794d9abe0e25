import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from pipeline.errors import InputError
from pipeline.locks import locked
from tests.samples import without_depth
from tools.train import main
from train.checkpoint import load
from train.distributed import Distributed
from train.logging import read_lines
from train.signals import Interruption

SMALL = ["--epochs", "1", "--batch-size", "16", "--size", "32", "--model", "unet-4", "--device", "cpu",
         "--precision", "float32"]  # fmt: skip


def run(shards: Path, out: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, ["--shards", str(shards), "--out", str(out), *flags])


def printed(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output


def trained_on(shards: Path, out: Path, *flags: str) -> Path:
    """The folder of a small run."""
    printed(run(shards, out, *SMALL, *flags))
    return out


@pytest.fixture
def small_run(trained: Path, tmp_path: Path) -> Path:
    """A small run without its report, to go on with."""
    return Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("report.html")))


def one_line_error(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.output.count("\n") == 1
    assert result.output.startswith("Error: ")
    return result.output


@pytest.fixture(scope="module")
def finished(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run's folder and what it printed."""
    out = tmp_path_factory.mktemp("command") / "run"
    result = run(packed, out, *SMALL)
    assert result.exit_code == 0, result.output
    return out, result.output


def test_a_run_ends_in_a_summary_of_numbers_and_places(finished: tuple[Path, str]) -> None:
    out, printed = finished
    scores = [line for line in read_lines(out / "metrics.jsonl") if line["kind"] == "val"][-1]
    assert f"mask IoU {scores['mask_iou']:.3f}, depth SSIM {scores['depth_ssim']:.3f}" in printed
    assert f"mask IoU {scores['baseline_iou']:.3f}" in printed
    assert "baseline |fg_bg - bg| > " in printed
    summary = printed[printed.index("trained 1 epoch, 4 steps, 64 sets") :]
    for place in ("pictures", "curves.png", "metrics.jsonl", "last.pt", "best.pt", "report.html"):
        assert str(out / place) in summary
        assert (out / place).exists()


def test_in_a_pipe_there_is_no_progress_bar(finished: tuple[Path, str]) -> None:
    assert "\r" not in finished[1]
    assert "%" not in finished[1]


def test_a_finished_run_resumes_to_its_summary(packed: Path, finished: tuple[Path, str]) -> None:
    out, printed = finished
    before = (out / "last.pt").read_bytes()
    result = run(packed, out, "--resume")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-6:] == printed.splitlines()[-6:]
    assert (out / "last.pt").read_bytes() == before


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("more", [(), ("--resume", "auto"), ("--log-every", "7")])
def test_the_same_command_again_says_that_the_run_is_complete(
    packed: Path, finished: tuple[Path, str], more: tuple[str, ...]
) -> None:
    out, before = finished[0], files(finished[0])
    told = printed(run(packed, out, *SMALL, *more))
    assert "already complete: trained 1 epoch, 4 steps, 64 sets" in told
    assert files(out) == before


def test_a_report_that_a_kill_prevented_is_written_by_the_same_command(packed: Path, small_run: Path) -> None:
    assert "report: " in printed(run(packed, small_run, *SMALL))
    assert (small_run / "report.html").exists()


def test_another_run_in_the_folder_of_a_complete_one_is_refused_by_name(
    packed: Path, finished: tuple[Path, str]
) -> None:
    out, before = finished[0], files(finished[0])
    message = one_line_error(run(packed, out, *SMALL, "--seed", "3", "--lr", "0.1"))
    assert f"--lr 0.1 --seed 3: the complete run in {out} has --lr 0.03 --seed 0; give --resume --override" in message
    message = one_line_error(run(packed, out, "--device", "cpu"))
    assert "--epochs 10 --batch-size 8 --size 128 --model unet-24x2 --precision native: the complete run in" in message
    assert files(out) == before


def begun(out: Path) -> Path:
    """The folder of a run that was killed before its first checkpoint."""
    for name, content in (("metrics.jsonl", b'{"kind": "train", "st'), ("tensorboard/events.out.tfevents.1", b"x")):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    (out / "new-last.pt").write_bytes(b"half")
    (out / ".curves.png.partial").write_bytes(b"half")
    (out / "pictures").mkdir()
    return out


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--resume", "auto")])
def test_a_run_killed_before_its_first_checkpoint_starts_again(
    packed: Path, finished: tuple[Path, str], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    out = begun(tmp_path / "run")
    told = printed(run(packed, out, *SMALL, "--no-report", *flags))
    assert f"{out}: its run was stopped before the first checkpoint, and starts again" in told
    assert "trained 1 epoch, 4 steps, 64 sets" in told
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert not (out / "new-last.pt").exists()
    losses = [[line["loss"] for line in read_lines(of / "metrics.jsonl")] for of in (out, finished[0])]
    assert losses[0] == losses[1]


def test_pictures_of_the_user_are_no_run(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for flags in ((), ("--resume", "auto")):
        message = one_line_error(run(packed, tmp_path, *SMALL, *flags))
        assert "not empty (it holds pictures), and no run: another --out starts a new one" in message
    begun(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert "not empty" in one_line_error(run(packed, tmp_path / "run", *SMALL))


def test_a_run_that_has_a_checkpoint_goes_on_with_resume_auto(packed: Path, tmp_path: Path) -> None:
    out = trained_on(packed, tmp_path / "run", "--no-report", "--resume", "auto")
    told = printed(run(packed, out, "--resume", "auto", "--override", "--epochs", "2", "--no-report"))
    assert "trained 2 epochs, 8 steps, 128 sets" in told
    message = one_line_error(run(packed, out, *SMALL))
    assert "--epochs 1: the complete run in" in message


def test_at_the_end_of_the_first_epoch_best_may_be_all_that_there_is(packed: Path, small_run: Path) -> None:
    (small_run / "last.pt").unlink()
    told = printed(run(packed, small_run, *SMALL, "--no-report"))
    assert f"{small_run / 'last.pt'}: missing; going on from the one before, best.pt, of step 4" in told


def test_what_torchrun_restarts_goes_on(packed: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--epochs", "2", "--override", "--no-report"]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert "give --resume" in one_line_error(run(packed, small_run, *flags))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    told = printed(run(packed, small_run, *flags))
    assert "trained 2 epochs, 8 steps, 128 sets" in told
    assert "warning: " not in told


@pytest.mark.parametrize(("restarts", "shared"), [("3", "True"), ("0", "True"), ("3", "False")])
def test_a_store_that_hinders_restarts_is_told(
    packed: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch, restarts: str, shared: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    told = printed(run(packed, small_run, *SMALL, "--no-report"))
    warning = "works only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment\n"
    assert (warning in told) == ((restarts, shared) == ("3", "True"))


def test_a_second_trainer_in_the_folder_is_refused(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with locked(out):
        for flags in ((), ("--resume",), ("--resume", "auto")):
            message = one_line_error(run(packed, out, *SMALL, *flags))
            assert f"another process is at work in {out}: wait for it, or stop it" in message
    printed(run(packed, out, *SMALL, "--no-report"))


def test_another_width_is_refused_with_both(packed: Path, finished: tuple[Path, str]) -> None:
    message = one_line_error(run(packed, finished[0], "--resume", "--model", "unet-8", "--device", "cpu"))
    assert "--model unet-8: the run in" in message
    assert "has --model unet-4" in message


def test_a_run_has_one_length(packed: Path, tmp_path: Path) -> None:
    message = one_line_error(run(packed, tmp_path / "run", *SMALL, "--sets", "16"))
    assert "--epochs 1 --sets 16: expected one of --epochs, --sets, --minutes" in message
    assert not (tmp_path / "run").exists()


def test_another_length_is_another_setting_unless_it_is_to_override(packed: Path, tmp_path: Path) -> None:
    out = trained_on(packed, tmp_path / "run", "--no-report")
    assert not (out / "report.html").exists()
    message = one_line_error(run(packed, out, "--resume", "--sets", "96"))
    assert message.startswith(f"Error: no --epochs --sets 96: the run in {out} has --epochs 1 no --sets; leave out")
    result = printed(run(packed, out, "--resume", "--sets", "96", "--override", "--no-report"))
    assert "trained 1.5 epochs, 6 steps, 96 sets" in result
    assert "trained 1.5 epochs" in printed(run(packed, out, "--resume", "--no-report"))


def test_resuming_without_a_checkpoint_is_refused(packed: Path, tmp_path: Path) -> None:
    assert "last.pt: no such checkpoint" in one_line_error(run(packed, tmp_path / "run", "--resume"))


def test_a_checkpoint_cut_short_is_named(packed: Path, finished: tuple[Path, str], tmp_path: Path) -> None:
    whole = (finished[0] / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[: len(whole) // 2])
    assert f"{tmp_path / 'last.pt'}: not a whole checkpoint" in one_line_error(run(packed, tmp_path, "--resume"))


def test_missing_shards_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    one_line_error(run(tmp_path / "nothing", tmp_path / "run", *SMALL))
    assert not (tmp_path / "run").exists()


def test_sets_without_depth_are_one_line_and_leave_nothing_or_train_the_mask_alone(
    source: Path, tmp_path: Path
) -> None:
    bare = without_depth(source, tmp_path / "bare")
    message = one_line_error(run(bare, tmp_path / "run", *SMALL))
    assert f"the sets of {bare} have no depth: add it (fgbg-depth {bare} --model FILE.onnx --shards NEW)" in message
    assert not (tmp_path / "run").exists()
    result = run(bare, tmp_path / "run", *SMALL, "--no-depth")
    assert result.exit_code == 0, result.output
    assert "depth" not in result.output.replace(str(tmp_path), "")
    assert "mask IoU" in result.output
    message = one_line_error(run(bare, tmp_path / "run", "--resume", "--depth"))
    assert message.startswith(f"Error: --depth: the run in {tmp_path / 'run'} has --no-depth; the network's weights")
    result = run(bare, tmp_path / "run", "--resume")
    assert result.exit_code == 0, result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_one_line_and_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    assert "no usable GPU" in one_line_error(run(packed, tmp_path / "run", "--device", "gpu"))
    assert not (tmp_path / "run").exists()


def test_a_size_that_the_network_cannot_take_is_one_line(packed: Path, tmp_path: Path) -> None:
    assert "--size 100: expected a multiple of 16" in one_line_error(run(packed, tmp_path / "run", "--size", "100"))


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_run_prints_how_to_continue_and_the_next_command_completes_it(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, exit_code: int
) -> None:
    def lost(ranks: Distributed) -> None:
        raise InputError("rank 0: another rank has ended; see its message")

    monkeypatch.setattr(Distributed, "barrier", lost)
    monkeypatch.setattr(Interruption, "__enter__", stopped_by(number))
    flags = [*SMALL, "--resume", "auto"]
    result = run(packed, tmp_path / "run", *flags)
    assert result.exit_code == exit_code
    assert "stopped after step 1, 25% of the run; continue with: fgbg-train --shards" in result.output
    assert "Traceback" not in result.output
    monkeypatch.undo()
    monkeypatch.setattr(Distributed, "barrier", lost)
    assert "\ntrained 1 epoch, 4 steps, 64 sets" in printed(run(packed, tmp_path / "run", *flags))
    assert "already complete: trained 1 epoch, 4 steps, 64 sets" in printed(run(packed, tmp_path / "run", *flags))


def stopped_by(number: signal.Signals) -> Callable[[Interruption], Interruption]:
    def enter(interruption: Interruption) -> Interruption:
        interruption.by = number
        return interruption

    return enter


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("where", ["train.trainer.Trainer._open", "train.report.write_report"])
def test_a_signal_outside_the_steps_ends_the_command_at_once_as_unfinished(
    packed: Path,
    small_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    where: str,
    number: signal.Signals,
) -> None:
    def stop(*_: object) -> None:
        os.kill(os.getpid(), number)

    former = signal.getsignal(number)
    monkeypatch.setattr(where, stop)
    result = run(packed, small_run, *SMALL, "--resume", "auto")
    assert (result.exit_code, signal.getsignal(number)) == (75, former)
    told = f"stopped by {number.name}: the same command with --resume auto goes on from the last checkpoint\n"
    assert capfd.readouterr().err == told
    with locked(small_run):
        pass


def test_a_run_may_be_behind_a_url_with_its_report(packed: Path, bucket: Path) -> None:
    command = ["--shards", str(packed), "--out", "s3://bucket/run", *SMALL]
    told = printed(CliRunner().invoke(main, command))
    assert told.splitlines()[-1] == "report: s3://bucket/run/report.html"
    assert "checkpoint: s3://bucket/run/last.pt (best mask IoU" in told
    before = files(bucket)
    assert {"run/report.html", "run/last.pt", "run/curves.png"} <= before.keys()
    told = printed(CliRunner().invoke(main, command))
    assert "already complete: trained 1 epoch, 4 steps, 64 sets" in told
    assert "report: " not in told
    after = files(bucket)
    assert {name: after[name] for name in before if ".writers" not in name} == {
        name: before[name] for name in before if ".writers" not in name
    }


def test_ctrl_c_puts_the_checkpoint_behind_the_url(packed: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Interruption, "__enter__", stopped_by(signal.SIGINT))
    result = CliRunner().invoke(main, ["--shards", str(packed), "--out", "s3://bucket/run", *SMALL])
    assert result.exit_code == 130
    assert "--out s3://bucket/run --resume" in result.output
    assert load(bucket / "run/last.pt").state["step"] == 1


def test_help_names_the_defaults() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "[default: 128]" in result.output
