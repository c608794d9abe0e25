"""The compiled step of several ranks: one graph, the same decision everywhere, and what the step as it is does."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import fx, nn
from torch._dynamo.backends.common import aot_autograd

from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from tests.ranks import in_ranks
from train.config import Config
from train.distributed import Distributed
from train.networks import build_network
from train.train_step import Learner

CPU = torch.device("cpu")
BATCH = 5
# Whole batches, and in between those of which one rank has its whole share while the other misses a set, or all.
SHARES = [(3, 2), (3, 1), (3, 2), (3, 0), (3, 2)]
Steps = list[dict[str, float]]


def a_share(number: int, rank: int) -> Batch:
    first, second = SHARES[number]
    numbers = torch.Generator().manual_seed(number)
    pictures = torch.randint(0, 256, (4, BATCH, 1, 32, 32), generator=numbers, dtype=torch.uint8)
    mine = slice(first) if rank == 0 else slice(first, first + second)
    bg, fg_bg, mask, depth = pictures[:, mine]
    return Batch(bg, fg_bg, mask, depth, torch.arange(BATCH)[mine])


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Within it `torch.compile` refuses graph breaks, and counts graphs and collectives in place of making kernels."""
    graphs = Counter[str]()

    def compiler(way: str, graph: fx.GraphModule, _: object) -> Callable[..., object]:
        names = [str(node.target) for node in graph.graph.nodes]
        graphs[way] += 1
        graphs[f"{way} collectives"] += sum("all_reduce" in name for name in names)
        return graph.forward

    backend = aot_autograd(fw_compiler=partial(compiler, "forward"), bw_compiler=partial(compiler, "backward"))
    compile_ = torch.compile
    with patch.object(
        torch, "compile", lambda step, mode, dynamic: compile_(step, backend=backend, fullgraph=True, dynamic=dynamic)
    ):
        yield graphs


def take_steps(learner: Learner, rank: int) -> Steps:
    told = Steps()
    for number, shares in enumerate(SHARES):
        step = learner.train_step(a_share(number, rank), 0.5, sum(shares))
        told.append({name: loss.item() for name, loss in step.losses.items()} | {"norm": step.grad_norm.item()})
    return told


def train_step() -> tuple[Steps, Steps, dict[str, int], str]:
    """Steps as they are and compiled, graphs; and what rank 0 is told at a compiled step when the other has ended."""
    with Distributed.from_environment("cpu") as ranks, counted() as graphs:
        config = Config(Path(), Path(), model="unet-4", batch_size=BATCH, compile="off")
        plain = take_steps(Learner(config, CPU, ranks), ranks.rank)
        assert not graphs
        learner = Learner(replace(config, compile="default"), CPU, ranks)
        compiled = take_steps(learner, ranks.rank)
        all_gather = ranks.all_gather(dict(graphs))
        assert all_gather == [graphs] * 2
        if not ranks.first:
            os._exit(0)
        with pytest.raises(InputError) as told, ranks.collective():
            learner.train_step(a_share(0, 0), 0.5, BATCH)
        return plain, compiled, graphs, str(told.value)


def test_ranks_compile_whole_batches_to_one_graph() -> None:
    (plain, compiled, graphs, told), _ = in_ranks(2, train_step, ends=1)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in build_network("unet-4").modules())
    assert graphs == {"forward": 1, "forward collectives": norms, "backward": 1, "backward collectives": norms}
    for number, (step, expected) in enumerate(zip(compiled, plain, strict=True)):
        assert step == pytest.approx(expected, rel=1e-4), number
    assert told == "rank 0: another rank was killed, or its machine is gone"
