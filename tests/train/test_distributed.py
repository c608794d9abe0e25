"""Ranks: what torchrun tells is understood or refused, words reach all ranks, and the end of one ends the others."""

import os
import signal
from collections.abc import Iterable
from datetime import timedelta
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pipeline.errors import InputError
from pipeline.workers import available_cores
from tests.ranks import in_ranks
from train.distributed import Distributed, RankLost

TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def started_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("told", [{}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}])
def test_alone_there_is_no_group(told: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    network, threads = nn.Linear(1, 1), torch.get_num_threads()
    with Distributed.from_environment("cpu") as ranks:
        assert (ranks.rank, ranks.world, ranks.local, ranks.first, ranks.group) == (0, 1, 0, True, None)
        assert ranks.cores == available_cores()
        assert torch.get_num_threads() == threads
        assert ranks.sums([0.1, 2]) == [0.1, 2]
        assert ranks.all_gather("word") == ["word"]
        assert ranks.broadcast({"a": 1}) == {"a": 1}
        ranks.barrier()
        weight = network.weight.clone()
        network(torch.ones(1, 1)).sum().backward()
        ranks.copy_from_first(network.parameters())
        ranks.sum_gradients(network.parameters())
        assert torch.equal(network.weight, weight)
        assert network.weight.grad is not None
        assert network.weight.grad.item() == 1
        assert not dist.is_initialized()
    ranks.close()


GOOD = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"RANK": None},
            "the environment has WORLD_SIZE but no RANK: start the ranks with torchrun, or unset WORLD_SIZE",
        ),
        (
            {"WORLD_SIZE": None},
            "the environment has RANK but no WORLD_SIZE: start the ranks with torchrun, or unset RANK",
        ),
        (
            {"LOCAL_RANK": None},
            "the environment has RANK but no LOCAL_RANK: start the ranks with torchrun, or unset RANK",
        ),
        ({"RANK": "one"}, "RANK is 'one' in the environment: expected 0 or more; start the ranks with torchrun"),
        (
            {"WORLD_SIZE": "-4"},
            "WORLD_SIZE is '-4' in the environment: expected 0 or more; start the ranks with torchrun",
        ),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is '' in the environment: expected 0 or more; start the ranks with torchrun"),
        ({"RANK": "4"}, "RANK 4 of WORLD_SIZE 4, LOCAL_RANK 1 of LOCAL_WORLD_SIZE 2: each must be below what it is of"),
        ({"LOCAL_RANK": "2"}, "RANK 1 of WORLD_SIZE 4, LOCAL_RANK 2 of LOCAL_WORLD_SIZE 2: each must be below"),
        ({"LOCAL_WORLD_SIZE": "5"}, "RANK 1 of WORLD_SIZE 4, LOCAL_RANK 1 of LOCAL_WORLD_SIZE 5: each must be below"),
        ({}, "WORLD_SIZE 4, but no MASTER_ADDR: start the ranks with torchrun"),
        ({"MASTER_ADDR": "localhost"}, "WORLD_SIZE 4, but no MASTER_PORT: start the ranks with torchrun"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(
    told: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (GOOD | told).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused:
        Distributed.from_environment("cpu")
    assert str(refused.value).startswith(message)
    assert not dist.is_initialized()


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = list[int]()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    for name, value in (GOOD | {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"^4 processes on this machine, but 2 GPUs: torchrun --nproc-per-node 2, or "):
        Distributed.from_environment("gpu")
    assert not chosen
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="no MASTER_ADDR"):
        Distributed.from_environment("auto")
    assert chosen == [1]
    with pytest.raises(InputError, match="no MASTER_ADDR"):
        Distributed.from_environment("cpu")
    assert chosen == [1]


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="no usable GPU"):
        Distributed.from_environment("gpu")


def test_ranks_that_are_not_reached_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port  # the store is gone again
    for name, value in (GOOD | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(closed)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("train.distributed.TIMEOUT", timedelta(0))
    threads = torch.get_num_threads()
    try:
        with pytest.raises(InputError, match=rf"^rank 1 does not reach the others by 127.0.0.1 port {closed}: .+$"):
            Distributed.from_environment("cpu")
    finally:
        torch.set_num_threads(threads)
    assert not dist.is_initialized()


def words(folder: Path) -> tuple[Any, ...]:
    """What a rank hears."""
    with Distributed.from_environment("cpu") as ranks:
        rank = ranks.rank
        (folder / str(rank)).touch()
        ranks.barrier()
        here = len(list(folder.iterdir()))
        with pytest.raises(RuntimeError, match=r"^of another kind$"), ranks.collective():
            raise RuntimeError("of another kind")
        heard = (
            ranks.sums([rank, 0.1 * rank, 2**30 + 2**-20]),
            ranks.sums([]),
            ranks.all_gather({"rank": rank, "first": ranks.first, "text": "x" * 1000 * rank}),
            ranks.broadcast(["of", rank]),
            (torch.get_num_threads(), ranks.cores, here),
        )
    ranks.close()
    assert not dist.is_initialized()
    assert ranks.group is None
    return heard


@pytest.mark.parametrize("world", [2, 3])
def test_all_ranks_hear_the_same(world: int, tmp_path: Path) -> None:
    heard = in_ranks(world, words, tmp_path)
    assert all(of_rank == heard[0] for of_rank in heard)
    sums, nothing, all_gather, first, (threads, cores, here) = heard[0]
    ranks = range(world)
    assert sums == [sum(ranks), pytest.approx(sum(0.1 * rank for rank in ranks)), world * (2**30 + 2**-20)]
    assert nothing == []
    assert all_gather == [{"rank": rank, "first": rank == 0, "text": "x" * 1000 * rank} for rank in ranks]
    assert first == ["of", 0]
    assert threads == cores == max(1, available_cores() // world)
    assert here == world


def a_stack() -> nn.Module:
    """Three convolutions, 54 weights and 3 biases, 3 weights, 1 weight and 1 bias."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 1, 1, bias=False), nn.Conv2d(1, 1, 1))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def values(tensors: Iterable[Tensor]) -> list[list[float]]:
    return [tensor.flatten().tolist() for tensor in tensors]


def exchange_tensors() -> tuple[list[list[float]], list[list[float]]]:
    """A rank's weights and gradients after it has exchanged them; the last convolution has no gradients."""
    with Distributed.from_environment("cpu") as ranks:
        torch.manual_seed(ranks.rank)
        network = a_stack()
        ranks.copy_from_first(network.parameters())
        *used, _, _ = network.parameters()
        for parameter in used:
            gradient = torch.arange(parameter.numel()) * 10.0**-ranks.rank
            parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter))
        ranks.sum_gradients(network.parameters())
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        return values(network.parameters()), values(gradients)


def test_ranks_have_the_weights_of_the_first_and_the_sum_of_the_gradients() -> None:
    first, *others = in_ranks(3, exchange_tensors)
    assert all(other == first for other in others)
    weights, gradients = first
    torch.manual_seed(0)
    assert weights == values(a_stack().parameters())
    assert gradients == [pytest.approx([1.11 * place for place in range(size)]) for size in (54, 3, 3)]


def outlive(end: str, what: str) -> str:
    """Rank 1 ends; what the others are told."""
    with Distributed.from_environment("cpu") as ranks:
        network = nn.Linear(3, 3)
        network(torch.ones(1, 3)).sum().backward()
        ranks.barrier()
        if ranks.rank == 1:
            if end == "exit":
                os._exit(0)
            if end == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise InputError("as of bad data")
        with pytest.raises(InputError) as told:
            if what == "sums":
                ranks.sums([1.0])
            elif what == "everyones":
                ranks.all_gather(1)
            elif what == "barrier":
                ranks.barrier()
            else:
                ranks.sum_gradients(network.parameters())
        return f"{told.type.__name__}: {told.value}"


LOST = "was killed, or its machine is gone"


@pytest.mark.parametrize(
    ("end", "what"),
    [("exit", "sums"), ("exit", "barrier"), ("killed", "sums"), ("killed", "gradients"), ("raised", "everyones")],
)
def test_the_end_of_a_rank_ends_the_others(end: str, what: str) -> None:
    first, none, third = in_ranks(3, outlive, end, what, ends=1)
    kind, said = ("InputError", "has ended; see its message") if end == "raised" else ("RankLost", LOST)
    assert (first, none, third) == (
        f"{kind}: rank 0: another rank {said}",
        None,
        f"{kind}: rank 2: another rank {said}",
    )


def test_a_rank_that_is_lost_with_the_store_may_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Distributed(1, 2)
    monkeypatch.setattr(ranks, "group", object())
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(ranks, "_store", TCPStore("127.0.0.1", store.port, wait_for_workers=False))
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    with pytest.raises(RankLost), ranks.collective():
        raise closed
    del store
    with pytest.raises(InputError, match="another rank has ended; see its message"), ranks.collective():
        raise closed


def fall() -> None:
    with Distributed.from_environment("cpu") as ranks:
        ranks.barrier()
        if ranks.first:
            raise ValueError("a fault")
        ranks.barrier()


def hang() -> None:
    signal.pause()


def test_what_goes_wrong_in_ranks_shows_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        AssertionError, match=r"(?s)^rank 0: Traceback.*ValueError: a fault.*rank 1: .*another rank has ended"
    ):
        in_ranks(2, fall)
    with pytest.raises(AssertionError, match=r"^rank 1 ended without a word$"):
        in_ranks(2, outlive, "exit", "sums")
    monkeypatch.setattr("tests.ranks.PATIENCE_SEC", 0.1)
    with pytest.raises(AssertionError, match=r"^rank 0 hangs$"):
        in_ranks(2, hang)
    assert not active_children()
