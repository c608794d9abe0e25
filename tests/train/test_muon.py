import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train.config import Config
from train.muon import ADAMW_SHARE, ITERATIONS, MOMENTUM, A, B, C, Muon, orthogonalised, parameters_by_optimizer
from train.networks import build_network
from train.optim import build_optimizer, set_rates


def plain_iteration(matrix: Tensor) -> Tensor:
    """As Jordan has it, on the whole matrix, in float64; without the factor of tall matrices."""
    x = matrix.double() if len(matrix) <= len(matrix.T) else matrix.double().T
    x = x / x.norm()
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = A * x + (B * square + C * square @ square) @ x
    turned: Tensor = x if len(matrix) <= len(matrix.T) else x.T
    return turned


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3))


def give_gradients(network: nn.Module, seed: int) -> dict[str, Tensor]:
    found = {name: drawn(*parameter.shape, seed=seed + place)
             for place, (name, parameter) in enumerate(network.named_parameters())}  # fmt: skip
    for name, parameter in network.named_parameters():
        parameter.grad = found[name].clone()
    return found


@pytest.mark.parametrize("shape", [(16, 144), (64, 576), (128, 32), (9, 9)])
def test_each_matrix_is_orthogonalised_by_itself_as_by_the_plain_iteration(shape: tuple[int, int]) -> None:
    matrices = drawn(3, *shape)
    matrices[1, shape[0] // 2 :] *= 1e-4
    factor = max(1.0, shape[0] / shape[1]) ** 0.5
    for matrix, turned in zip(matrices, orthogonalised(matrices), strict=True):
        torch.testing.assert_close(turned.double(), factor * plain_iteration(matrix), rtol=0, atol=2e-5 * factor)
        values = torch.linalg.svdvals(matrix) / matrix.norm()
        turned_values = torch.linalg.svdvals(turned)[values > 0.01] / factor
        assert ((turned_values > 0.65) & (turned_values < 1.25)).all()


def test_nothing_comes_of_no_gradient() -> None:
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 9)), torch.zeros(1, 4, 9))


def test_steps_are_those_of_the_formula_and_all_else_is_left_to_adamw() -> None:
    network, reference = layers(), layers()
    optimizer = Muon(network, lr=0.1, weight_decay=0.5)
    others = [
        reference.get_parameter(name) for name in ("0.bias", "1.weight", "1.bias", "2.bias", "3.weight", "3.bias")
    ]
    adamw = torch.optim.AdamW(others, lr=ADAMW_SHARE * 0.1, weight_decay=0.0)
    momenta = {name: torch.zeros_like(reference.get_parameter(name)) for name in ("0.weight", "2.weight")}
    for seed in (0, 100, 200):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * group["share"]
        optimizer.param_groups[0]["weight_decay"] = 0.5
        gradients = give_gradients(network, seed)
        give_gradients(reference, seed)
        optimizer.step()
        adamw.step()
        for name, momentum in momenta.items():
            momentum += (1 - MOMENTUM) * (gradients[name] - momentum)
            ahead = gradients[name] + MOMENTUM * (momentum - gradients[name])
            matrix = ahead.flatten(1)
            turned = plain_iteration(matrix).float() * max(1.0, len(matrix) / len(matrix.T)) ** 0.5
            reference.get_parameter(name).data.mul_(1 - 0.1 * 0.5).sub_(0.1 * turned.view_as(momentum))
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, reference.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_a_step_that_overflowed_changes_no_weight() -> None:
    network = layers()
    optimizer: Any = Muon(network, lr=0.1, weight_decay=0.5)
    give_gradients(network, 0)
    optimizer.step()
    before = [parameter.clone() for parameter in network.parameters()]
    give_gradients(network, 50)
    for parameter in network.parameters():
        assert parameter.grad is not None
        parameter.grad.view(-1)[0] = torch.inf
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), None  # as torch.amp.GradScaler says it
    optimizer.step()
    assert all(torch.equal(new, old) for new, old in zip(network.parameters(), before, strict=True))
    optimizer.found_inf = torch.zeros(())
    give_gradients(network, 100)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert not any(torch.equal(new, old) for new, old in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["unet-s", "unet-8", "net", "convgen"])
def test_all_convolutions_but_the_last_are_orthogonalised(name: str) -> None:
    network = build_network(name)
    matrices, others = parameters_by_optimizer(network)
    assert {id(p) for p in (*matrices, *others)} == {id(p) for p in network.parameters()}
    assert not any(parameter.ndim == 4 and len(parameter) > 4 for parameter in others)
    assert all(parameter.ndim == 4 for parameter in matrices)
    assert sum(parameter.ndim == 4 for parameter in others) == 2


@pytest.mark.parametrize(("progress", "former", "share"), [(0.5, 1.0, 0.0), (0.4, 0.0, 0.02), (0.31, 0.3, 0.01)])
def test_no_step_forgets_as_if_it_were_a_large_part_of_the_run_or_less_than_none(
    progress: float, former: float, share: float
) -> None:
    config = Config("shards", "out", lr=0.02)
    optimizer = build_optimizer(layers(), config)
    set_rates(optimizer, config, progress, former)
    assert optimizer.param_groups[0]["weight_decay"] * config.lr == pytest.approx(config.weight_decay * share)


@pytest.mark.parametrize("steps", [64, 256])
def test_a_run_of_any_length_forgets_the_same_share_of_its_first_weights(steps: int) -> None:
    config = Config("shards", "out", weight_decay=0.1, warmup=0.0, lr=0.02)
    optimizer = build_optimizer(layers(), config)
    kept, former = 1.0, 0.0
    for step in range(steps):
        set_rates(optimizer, config, step / steps, former)
        former = step / steps
        matrices, others = optimizer.param_groups
        kept *= 1 - matrices["lr"] * matrices["weight_decay"]
        assert others["weight_decay"] == 0
    # The sum of cos^2(pi/2 k/N) for k = 1..N-1 is (N - 1) / 2.
    assert kept == pytest.approx(math.exp(-0.1 * (steps - 1) / 2 / steps), rel=2e-3)
