import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.loading.batch import Batch
from train.config import Config
from train.distributed import Distributed
from train.muon import ADAMW_SHARE
from train.train_step import Learner

CPU = torch.device("cpu")
OF_TORCH = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:The .grad attribute")  # its own


def a_learner(**settings: Any) -> Learner:
    values: dict[str, Any] = {"model": "unet-4", "lr": 0.01, "precision": "float32"}
    return Learner(Config(Path(), Path(), **(values | settings)), CPU)


def a_batch(sets: int, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    bg, fg_bg, mask, depth = torch.randint(0, 256, (4, sets, 1, 32, 32), generator=random, dtype=torch.uint8)
    return Batch(bg, fg_bg, mask, depth, torch.arange(sets))


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def gradients_at_the_step(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    monkeypatch.setattr(learner.optimizer, "step", lambda: found.extend(
        p.grad.clone() for p in learner.network.parameters() if p.grad is not None))  # fmt: skip
    learner.train_step(a_batch(4), 0.5, 4)
    return found


def test_a_step_changes_every_weight_and_tells_the_sums_of_the_losses() -> None:
    learner, batch = a_learner(), a_batch(4)
    before = weights(learner.network)
    expected = learner.criterion.per_sample(learner.network(batch.bg, batch.fg_bg), batch.mask, batch.depth).named()
    learner.network.load_state_dict(before)  # batch norm has seen the batch
    step = learner.train_step(batch, 0.5, 4)
    for name, per_sample in expected.items():
        torch.testing.assert_close(step.losses[name], per_sample.sum().detach())
    changed = [name for name, old in before.items() if not torch.equal(old, learner.network.state_dict()[name])]
    assert changed == list(before)
    assert all(parameter.grad is None for parameter in learner.network.parameters())
    assert learner.step == 1


def test_the_gradient_is_clipped_to_its_longest_and_its_length_told(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradients_at_the_step(a_learner(clip=0.0), monkeypatch)
    norm = torch.cat([gradient.flatten() for gradient in whole]).norm().item()
    for clip in (norm / 3, norm * 3):
        learner = a_learner(clip=clip)
        shortened = gradients_at_the_step(learner, monkeypatch)
        for gradient, full in zip(shortened, whole, strict=True):
            torch.testing.assert_close(gradient, full * min(1.0, clip / norm), rtol=1e-4, atol=1e-8)
    assert a_learner(clip=norm / 3).train_step(a_batch(4), 0.5, 4).grad_norm.item() == pytest.approx(norm, rel=1e-5)


def test_the_average_follows_the_weights_by_its_formula() -> None:
    learner = a_learner(ema=0.35)
    reference = {name: tensor.double() for name, tensor in weights(learner.network).items()}
    for number in range(1, 7):
        learner.train_step(a_batch(4, number), 0.5, 4)
        share = 1 - min(0.35, (1 + number) / (10 + number))
        for name, parameter in learner.network.named_parameters():
            reference[name] += share * (parameter.detach().double() - reference[name])
    for name, parameter in learner.averaged.named_parameters():
        torch.testing.assert_close(parameter.double(), reference[name], rtol=1e-4, atol=1e-6)
        assert not torch.equal(parameter, learner.network.get_parameter(name))
    for name, buffer in learner.averaged.named_buffers():
        assert torch.equal(buffer, learner.network.get_buffer(name))
    assert not learner.averaged.training


def fail_at(call: int, function: Any) -> Any:
    """`function`, which finds no memory when it is called for the `call`th time, from 1."""
    calls = itertools.count(1)

    def failing(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(*arguments, **options)

    return failing


FAILURES = {  # what a step calls, and at which call it finds no memory
    "in the forward pass": (torch.nn.functional, "batch_norm", 5),
    "after the backward pass": (torch.nn.utils, "clip_grad_norm_", 1),
    "for the optimiser's first moments": (torch, "zeros_like", 3),
}


@pytest.mark.parametrize(("ema", "precision"), [(0.9, "float32"), (0.0, "float32"), (0.9, "fp16")])
@pytest.mark.parametrize("done", [0, 2])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_step_that_is_undone_and_repeated_is_as_if_it_had_not_failed(
    failure: str, done: int, ema: float, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, undisturbed = a_learner(ema=ema, precision=precision), a_learner(ema=ema, precision=precision)
    for number in range(done):
        learner.train_step(a_batch(4, number), 0.5, 4)
    module, name, call = FAILURES[failure]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail_at(call, getattr(module, name)))
        if done and name == "zeros_like":  # it has its memory
            learner.train_step(a_batch(4, done), 0.5, 4)
        else:
            with pytest.raises(torch.OutOfMemoryError):
                learner.train_step(a_batch(4, done), 0.5, 4)
            assert learner.undo(done)
            learner.train_step(a_batch(4, done), 0.5, 4)
    for number in range(done + 1):
        undisturbed.train_step(a_batch(4, number), 0.5, 4)
    averages = {name for name, _ in learner.network.named_buffers()}
    for name, tensor in undisturbed.network.state_dict().items():
        if ema or name not in averages:
            assert torch.equal(tensor, learner.network.state_dict()[name]), name
    for moments, expected in zip(learner.optimizer.state.values(), undisturbed.optimizer.state.values(), strict=True):
        assert all(torch.equal(moments[name], expected[name]) for name in expected)
    assert learner.step == done + 1
    assert learner.checkpoint({}).state == undisturbed.checkpoint({}).state


def test_a_step_that_has_changed_weights_cannot_be_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = a_learner(optimizer="adamw")
    decayed = len(learner.optimizer.param_groups[0]["params"])  # their weights change before the others get moments
    monkeypatch.setattr(torch, "zeros_like", fail_at(2 * decayed + 1, torch.zeros_like))
    before = weights(learner.network)
    with pytest.raises(torch.OutOfMemoryError):
        learner.train_step(a_batch(4), 0.5, 4)
    assert not torch.equal(before["stem.0.0.weight"], learner.network.state_dict()["stem.0.0.weight"])
    assert not learner.undo(0)
    learner = a_learner()
    learner.train_step(a_batch(4), 0.5, 4)
    assert not learner.undo(0)


def test_without_average_the_weights_themselves_are_used() -> None:
    learner = a_learner(ema=0.0)
    assert learner.averaged is learner.network
    assert learner.checkpoint({}).ema is None


def test_the_learning_rate_is_that_of_the_share_done() -> None:
    learner = a_learner(schedule="one-cycle")
    learner.train_step(a_batch(2), 0.3, 2)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [0.01, ADAMW_SHARE * 0.01]
    learner.train_step(a_batch(2), 0.9, 2)
    rate = learner.rate(0.9)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [rate, ADAMW_SHARE * rate]
    learner = a_learner(optimizer="adamw")
    learner.train_step(a_batch(2), 0.0, 2)
    assert {group["lr"] for group in learner.optimizer.param_groups} == {learner.rate(0.0)}
    assert learner.rate(0.9) < 0.001


@OF_TORCH
@pytest.mark.parametrize("model", ["unet-4", "net", "convgen"])
@pytest.mark.parametrize("holes", [False, True])
def test_torch_compile_takes_network_and_losses_as_one_graph(model: str, holes: bool) -> None:
    learner, batch = a_learner(model=model), a_batch(2)
    assert batch.depth is not None
    arguments = (batch.bg, batch.fg_bg, batch.mask, batch.depth, batch.depth > 99 if holes else None)
    compiled = torch.compile(learner._sums, backend="eager", fullgraph=True, dynamic=False)
    state = weights(learner.network)
    expected = learner._sums(*arguments)
    learner.network.load_state_dict(state)
    for name, loss in compiled(*arguments).items():
        torch.testing.assert_close(loss, expected[name])


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16),
                                                  ("fp16", torch.float16)])  # fmt: skip
def test_convolutions_alone_are_of_the_precision(precision: str, dtype: torch.dtype) -> None:
    learner = a_learner(precision=precision)
    computed = list[torch.dtype]()
    for module in learner.network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: computed.append(output.dtype))
    losses = learner.train_step(a_batch(4), 0.5, 4).losses
    assert set(computed) == {dtype}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {parameter.dtype for parameter in learner.network.parameters()} == {torch.float32}
    expected = a_learner(precision="float32").train_step(a_batch(4), 0.5, 4).losses
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.02), name


def test_the_first_rank_decides_the_format_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Distributed, "broadcast", lambda _, value: {"bf16": "float32"}.get(value, value))
    learner, computed = a_learner(precision="bf16"), set[torch.dtype]()
    first = next(module for module in learner.network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda _, inputs, output: computed.add(output.dtype))
    learner.train_step(a_batch(2), 0.5, 2)
    assert computed == {torch.float32}


def test_the_sum_alone_has_a_gradient() -> None:
    learner, batch = a_learner(), a_batch(2)
    losses = learner._sums(batch.bg, batch.fg_bg, batch.mask, batch.depth)
    assert [name for name, loss in losses.items() if loss.requires_grad] == ["loss"]


def test_batches_that_are_not_whole_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = list[int]()

    def compile_(function: Any, **_: object) -> Any:
        def counted(bg: torch.Tensor, *more: Any) -> Any:
            compiled.append(len(bg))
            return function(bg, *more)

        return counted

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr("train.runtime.missing_for_compile", lambda device: "")
    learner = a_learner(compile="default", batch_size=4)
    for sets in (4, 3, 4, 1):
        learner.train_step(a_batch(sets), 0.5, sets)
    assert compiled == [4, 4]
