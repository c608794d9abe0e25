"""Number formats: which one auto takes, TF32 for nothing, and float16 with its scaled loss, on the CPU."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError
from tests.ranks import in_ranks
from tests.tools.test_train_command import trained_on
from tests.train.test_train_step import CPU, a_batch, a_learner, weights
from tests.train.test_trainer import CrashError, assert_equal_runs, configuration, crash_at, fit, lines
from tests.train.test_trainer_ranks import assert_alike
from train.checkpoint import load, load_run
from train.distributed import SINGLE, Distributed
from train.logging import Meter
from train.runtime import autocast, describe_format, number_format
from train.train_step import Learner
from train.trainer import LEAST_SCALE, Trainer

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "precision", "format_", "told"),
    [
        ((8, 0), "auto", "bf16", "bf16"),
        ((7, 5), "auto", "fp16", "fp16 (no bfloat16 in hardware)"),
        ((7, 0), "auto", "fp16", "fp16 (no bfloat16 in hardware)"),
        ((6, 1), "auto", "float32", "float32 (no tensor cores in hardware)"),
        ((7, 5), "bf16", "bf16", "bf16"),
        ((8, 0), "fp16", "fp16", "fp16"),
        ((8, 0), "float32", "float32", "float32"),
    ],
)
def test_auto_takes_what_the_hardware_has(
    capability: tuple[int, int], precision: str, format_: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or capability >= (8, 0)

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert number_format(precision, GPU) == format_
    assert describe_format(precision, GPU) == told
    if precision == "auto":
        assert (number_format("native", GPU), describe_format("native", GPU)) == (format_, told)


@pytest.mark.parametrize(("has", "format_"), [({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
                                              ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
                                              ({"avx512_bf16": False, "amx_bf16": False}, "float32"),
                                              ({"architecture": "aarch64"}, "float32"), (None, "float32")])  # fmt: skip
def test_native_takes_bf16_on_a_cpu_that_has_it(
    has: dict[str, object] | None, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has is None:  # PyTorch before 2.13
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert number_format("native", CPU) == describe_format("native", CPU) == format_
    assert number_format("float32", CPU) == number_format("auto", CPU) == "float32"  # of runs of before


@pytest.mark.parametrize(("precision", "dtype"), [("float32", None), ("bf16", torch.bfloat16),
                                                  ("fp16", torch.float16)])  # fmt: skip
def test_products_are_of_the_format(precision: str, dtype: torch.dtype | None) -> None:
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (dtype or torch.float32)


def test_convolutions_of_float32_are_not_rounded(packed: Path, tmp_path: Path) -> None:
    run = trained_on(packed, tmp_path / "run", "--no-report")
    for opened in (lambda: a_learner(), lambda: load_run(run, "last", CPU)):
        torch.backends.cudnn.allow_tf32 = True
        opened()
        assert not torch.backends.cudnn.allow_tf32
        newer = getattr(torch.backends.cudnn, "conv", None)  # since PyTorch 2.9
        assert newer is None or newer.fp32_precision != "tf32"


def overflow(learner: Learner) -> None:
    """Have the next step overflow in its gradients."""
    learner._scaler.load_state_dict(learner._scaler.state_dict() | {"scale": 2.0**60})


def spoil(learner: Learner) -> None:
    """Have every step overflow, however the loss is scaled."""
    weight = next(learner.network.parameters())
    weight.register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[no-untyped-call]


def test_a_step_that_overflows_is_skipped_and_the_next_is_not() -> None:
    learner, batch = a_learner(precision="fp16", ema=0.0), a_batch(4)
    assert learner.train_step(batch, 0.5, 4).skipped.item() == 0
    before = {name: parameter.clone() for name, parameter in learner.network.named_parameters()}
    overflow(learner)
    step = learner.train_step(batch, 0.5, 4)
    assert (step.skipped.item(), step.grad_norm.item()) == (1, 0)
    assert step.losses["loss"].isfinite()
    assert all(torch.equal(parameter, before[name]) for name, parameter in learner.network.named_parameters())
    assert all(state["step"] == 1 for state in learner.optimizer.state.values())
    assert learner.loss_scale == 2.0**59
    assert learner.step == 2
    learner._scaler.update(2.0**10)
    step = learner.train_step(batch, 0.5, 4)
    assert step.skipped.item() == 0
    assert step.grad_norm > 0
    assert not any(torch.equal(parameter, before[name]) for name, parameter in learner.network.named_parameters())


def test_the_gradient_is_clipped_by_its_length_before_scaling() -> None:
    norms = {precision: a_learner(precision=precision).train_step(a_batch(4), 0.5, 4).grad_norm.item()
             for precision in ("float32", "fp16")}  # fmt: skip
    assert norms["fp16"] == pytest.approx(norms["float32"], rel=0.02)


def test_the_meter_counts_skipped_steps_and_means_are_over_the_others() -> None:
    learner, meter = a_learner(precision="fp16"), Meter(CPU, SINGLE)
    norms = list[float]()
    for number in range(3):
        if number == 1:
            overflow(learner)
        step = learner.train_step(a_batch(4, number), 0.5, 4)
        learner._scaler.update(2.0**10)
        norms.append(step.grad_norm.item())
        meter.add(step, 4, 0.0)
    values = meter.compute()
    assert values["skipped_steps"] == 1
    assert values["grad_norm"] == pytest.approx((norms[0] + norms[2]) / 2)
    meter.reset()
    meter.add(learner.train_step(a_batch(4), 0.5, 4), 4, 0.0)
    assert "skipped_steps" not in meter.compute()


def test_of_other_formats_nothing_is_scaled_nor_skipped() -> None:
    learner = a_learner()
    spoil(learner)
    step = learner.train_step(a_batch(4), 0.5, 4)
    assert step.skipped.item() == 0
    assert step.grad_norm.isnan()
    assert learner.loss_scale == 1
    assert "scaler" not in learner.checkpoint({}).state


def test_a_run_in_float16_resumes_to_the_same_bits(packed: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(Trainer(configuration(packed, whole, precision="fp16")))
    for crash, resume in ((2, False), (5, True)):
        trainer = Trainer(configuration(packed, stopped, precision="fp16", checkpoint_every=1), resume=resume)
        with pytest.raises(CrashError):
            fit(trainer, crash_at(crash))
    fit(Trainer(configuration(packed, stopped), resume=True))
    assert_equal_runs(stopped, whole)
    state = load(whole / "last.pt").state
    assert state["settings"]["precision"] == "fp16"
    assert state["scaler"]["_growth_tracker"] > 0


def in_float16(shards: Path, out: Path) -> None:
    with Distributed.from_environment("cpu") as ranks:
        # AdamW: Muon makes steps of one length of any gradient, and rounding decides where they lead.
        config = configuration(shards, out, precision="fp16", optimizer="adamw", log_every=1)
        fit(Trainer(config, ranks=ranks, say=lambda line: None))


def test_ranks_learn_in_float16_what_one_learns(packed: Path, tmp_path: Path) -> None:
    in_ranks(1, in_float16, packed, tmp_path / "alone")
    in_ranks(2, in_float16, packed, tmp_path / "two")
    # Half a batch's gradient is rounded otherwise: the losses of later steps differ by 0.1 %, their gradients by 7 %.
    assert_alike(tmp_path / "two", tmp_path / "alone", first=0.01, norm=0.2)


def test_a_checkpoint_without_a_scale_begins_with_the_first(packed: Path, tmp_path: Path) -> None:
    run = trained_on(packed, tmp_path / "run", "--no-report")
    saved = load(run / "last.pt")
    assert "scaler" not in saved.state
    learner = a_learner(precision="fp16")
    learner.restore(saved, run / "last.pt")
    assert learner.loss_scale == a_learner(precision="fp16").loss_scale > 1
    assert all(torch.equal(of, saved.network[name]) for name, of in weights(learner.network).items())


def test_a_run_that_only_skips_steps_ends(packed: Path, tmp_path: Path) -> None:
    trainer = Trainer(configuration(packed, tmp_path, precision="fp16", checkpoint_every=1, log_every=1))
    spoil(trainer.learner)
    trainer.learner._scaler.load_state_dict(trainer.learner._scaler.state_dict() | {"scale": 4 * LEAST_SCALE})
    with pytest.raises(InputError, match=r"^fp16 overflows .* at step 3; .*last\.pt is from before; try --precision"):
        fit(trainer)
    skipped = [line["skipped_steps"] for line in lines(tmp_path) if line["kind"] == "train"]
    assert skipped == [1, 1]
