"""Synced batch norm: ranks that share a batch, in whatever shares, do what one process does with all of it."""

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import in_ranks
from train.distributed import Distributed, SharedBatch, SyncedNorm, synced
from train.losses import Criterion
from train.networks import build_network

SETS = 5
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.02}
NONE = slice(0)  # no sets
Found = dict[str, NDArray[Any]]


class Case(NamedTuple):
    network: str
    dtype: torch.dtype = torch.float64
    """Of everything; bfloat16: of the network's arithmetic, by autocast, and float32 of the rest."""
    steps: int = 4
    size: int = 16

    @property
    def kept(self) -> torch.dtype:
        """Of weights and losses."""
        return torch.promote_types(self.dtype, torch.float32)


CASES = [
    Case("layer"),
    Case("layer", torch.float32),
    Case("unet-4"),
    Case("unet-4", torch.float32),
    Case("unet-xs", steps=1),  # its heads pad by replicating
    Case("convgen", steps=1),
    Case("net", torch.float32, steps=1),
    Case("convgen", torch.bfloat16, steps=1),
]
SHARES: dict[int, list[tuple[int, ...]]] = {2: [(3, 2), (5, 0)], 3: [(2, 2, 1), (0, 4, 1)]}
"""Sets of each rank, by the number of ranks."""


class Layer(nn.Module):
    """Two batch norms in turn, of values whose mean is far from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3, eps=0.1, momentum=0.3)

    def forward(self, bg: Tensor, fg_bg: Tensor) -> Tensor:
        x = torch.cat([bg, fg_bg, bg + fg_bg], 1).to(self.first.weight.dtype)
        return self.second(self.first(x).square())  # type: ignore[no-any-return]


def build(case: Case) -> nn.Module:
    torch.manual_seed(1)
    network = Layer() if case.network == "layer" else build_network(case.network)
    return network.to(case.kept, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def train_step(case: Case, ranks: Distributed | None = None, share: slice = slice(None), sync: bool = True) -> Found:
    """Some steps with this share of each batch: the first one's output and gradients, and what is learnt in the end."""
    network = build(case)
    if ranks and sync:
        network = synced(network, ranks, SharedBatch(SETS if share != NONE else 0))
    # By the usual eps, 1e-8, a float32 gradient that is all rounding moves its weight as far as any other.
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, eps=1e-4)
    criterion = Criterion().to(case.kept)
    found = Found()
    numbers = np.random.default_rng(7)
    for step in range(case.steps):
        batch = torch.from_numpy(numbers.integers(0, 256, (4, SETS, 1, case.size, case.size), np.uint8))
        bg, fg_bg, mask, depth = (part[share] for part in batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == torch.bfloat16):
            prediction = network(bg, fg_bg)
        if isinstance(prediction, Tensor):
            weight = torch.arange(1, 4, dtype=case.kept).view(1, 3, 1, 1) + depth.to(case.kept)
            per_sample = (prediction * weight).square().mean((1, 2, 3))
            output = prediction
        else:
            per_sample = criterion.per_sample(prediction, mask, depth).total
            output = torch.cat(prediction, 1)
        (per_sample.sum() / SETS).backward()
        if ranks:
            ranks.sum_gradients(network.parameters())
        if step == 0:
            found["output"] = output.detach().numpy()
            found |= {
                f"gradient of {n}": p.grad.numpy().copy() for n, p in network.named_parameters() if p.grad is not None
            }
        optimizer.step()
        optimizer.zero_grad()
    return found | {f"{name} in the end": value.numpy() for name, value in network.state_dict().items()}


def of_rank(case: Case, ranks: Distributed | None = None, share: slice = slice(None), sync: bool = True) -> Found:
    """`train_step`, all of it in the precision of the case: networks and losses turn what they get into float32."""
    cast, to_float = patch.object(Tensor, "float", lambda x: x.to(case.kept)), lambda label: label.to(case.kept) / 255
    with cast, patch("train.losses.to_float", to_float):
        return train_step(case, ranks, share, sync)


def part_of(rank: int, shares: tuple[int, ...]) -> slice:
    return slice(sum(shares[:rank]), sum(shares[: rank + 1]))


def rank_does() -> list[Found]:
    """What a process does: all cases with all shares, then one with norms that are not synced."""
    with Distributed.from_environment("cpu") as ranks:
        found = list[Found]()
        for case in CASES:
            found += [of_rank(case, ranks, part_of(ranks.rank, shares)) for shares in SHARES[ranks.world]]
        found.append(of_rank(CASES[0], ranks, slice(ranks.rank, ranks.rank + 1), sync=False))
        with pytest.raises(
            ValueError, match=r"^expected 2 values a channel or more over all ranks when training, got 0$"
        ):
            of_rank(CASES[0], ranks, NONE)
        return found


def alone_does() -> list[Found]:
    return [of_rank(case) for case in CASES]


@pytest.fixture(scope="module")
def alone() -> list[Found]:
    """What one process does with all sets, by case."""
    return in_ranks(1, alone_does)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("world", SHARES)
def test_ranks_learn_what_one_process_does(world: int, alone: list[Found]) -> None:
    *found, unsynced = zip(*in_ranks(world, rank_does), strict=True)
    cases = [(*case, shares) for case in zip(CASES, alone, strict=True) for shares in SHARES[world]]
    for (case, expected, shares), of_ranks in zip(cases, found, strict=True):
        tolerance = TOLERANCE[case.dtype]
        for rank, of_this in enumerate(of_ranks):
            assert of_this.keys() == expected.keys()
            for name, value in expected.items():
                what = f"{case} {shares} rank {rank}: {name}"
                if name == "output":
                    value = value[part_of(rank, shares)]
                else:
                    assert np.array_equal(of_this[name], of_ranks[0][name]), what  # to the last bit
                np.testing.assert_allclose(of_this[name], value, tolerance, tolerance, err_msg=what)
    name = "first.running_mean in the end"
    assert not np.allclose(unsynced[0][name], alone[0][name], 1e-3), "the test would see norms that are not synced"


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is done, and tells what of it would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations, self.found = 0, list[str]()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.operations += 1
        by_mask = operation.overloadpacket is torch.ops.aten.index and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]
        )
        if by_mask or {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(operation.tags):
            self.found.append(str(operation))
        return operation(*arguments, **(named or {}))


def normalise(dtype: torch.dtype, ranks: Distributed | None = None, share: slice = slice(None)) -> Found:
    """A norm's output and gradients for one batch, whose means are up to 1,000 times as far from 0 as it spreads."""
    numbers = torch.Generator().manual_seed(3)
    x = torch.randn(SETS, 4, 6, 5, generator=numbers) + torch.tensor([0.0, 1, -30, 1000]).view(-1, 1, 1)
    gradient = torch.randn(x.shape, generator=numbers)
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2, 0.5, 3]))
        norm.bias.copy_(torch.tensor([0.0, 1, 2, 3]))
    x, gradient = (whole.to(dtype, memory_format=torch.channels_last)[share] for whole in (x, gradient))
    module: nn.Module = norm
    if ranks:
        module = synced(norm, ranks, SharedBatch(SETS))
    else:  # PyTorch's own in float64 is what we mean
        norm.double()
        x, gradient = x.double(), gradient.double()
    x.requires_grad_()
    with Waits() as waits:
        y = module(x)
        y.backward(gradient)
    assert y.dtype == x.dtype
    assert not waits.found
    assert waits.operations
    if ranks:
        ranks.sum_gradients(norm.parameters())
    gradients = {"x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found = {"y": y.detach(), **gradients, "mean": norm.running_mean, "variance": norm.running_var}
    return {name: tensor.double().numpy() for name, tensor in found.items() if tensor is not None}


def rank_normalises(dtype: torch.dtype) -> list[Found]:
    with Distributed.from_environment("cpu") as ranks:
        of_one_value = torch.linspace(1e6, 1e8, 32).view(1, -1, 1, 1).expand(2 - ranks.rank, -1, 5, 7)
        norm = synced(nn.BatchNorm2d(32), ranks, SharedBatch(3))
        assert norm(of_one_value).isfinite().all()  # no variance is rounded to below 0
        return [normalise(dtype, ranks, part_of(ranks.rank, shares)) for shares in SHARES[ranks.world]]


@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"), [(torch.float32, 1e-5, 2e-4), (torch.bfloat16, 2**-8, 2**-8)]
)
def test_it_is_batch_norm_of_the_joined_batch_and_never_waits(
    dtype: torch.dtype, relative: float, absolute: float
) -> None:
    expected = normalise(dtype)
    assert len(expected) == 6
    for shares, *of_ranks in zip(SHARES[2], *in_ranks(2, rank_normalises, dtype), strict=True):
        for rank, found in enumerate(of_ranks):
            for name, value in expected.items():
                mine = value[part_of(rank, shares)] if name in ("x", "y") else value
                np.testing.assert_allclose(found[name], mine, relative, absolute, err_msg=f"{shares} {rank} {name}")


@pytest.mark.parametrize("does", [Tensor.item, Tensor.nonzero, lambda x: x[x > 0]])
def test_what_waits_is_told(does: Callable[[Tensor], object]) -> None:
    with Waits() as waits:
        does(torch.ones(1) + 1)
    assert len(waits.found) == 1


def test_synced_norm_keeps_the_tensors_and_the_mode() -> None:
    network = build(Case("unet-4")).eval()
    before = network.state_dict(keep_vars=True)
    pictures = torch.full((2, 1, 16, 16), 9, dtype=torch.uint8)
    with patch.object(Tensor, "float", Tensor.double):
        expected = network(pictures, pictures).mask_logits
    converted = synced(network, Distributed(rank=1, world=2), SharedBatch())
    after = converted.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    norms = [module for module in converted.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(type(norm) is SyncedNorm and not norm.training for norm in norms)
    with patch.object(Tensor, "float", Tensor.double):  # in eval it needs no other rank
        assert torch.equal(converted(pictures, pictures).mask_logits, expected)


def test_alone_nothing_is_replaced() -> None:
    network = build(Case("unet-4"))
    modules = list(network.modules())
    assert list(synced(network, Distributed(), SharedBatch()).modules()) == modules
    assert not any(isinstance(module, SyncedNorm) for module in modules)
