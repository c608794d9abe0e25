"""Which networks are trained with which losses on which data, and what each of these runs may spend."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from train.losses import RECIPES
from train.networks import ORIGINALS, UNETS, build_network

DATA = ("synthetic", "hard", "photos")
WITHOUT_DEPTH = "photos"
NETWORKS_IN_TURN = (*sorted(ORIGINALS), *UNETS)  # convgen first: without depth net is the same
BUDGETS = ("sets", "minutes")
RATES = {"original": 1e-3, "unet": 3e-3}
"""Highest learning rates of AdamW, for batches of 32; that of the U-Nets is `make demo`'s."""


@dataclass(frozen=True)
class Baseline:
    """One network, trained with one loss on one data set until its budget is spent."""

    data: str
    network: str
    loss: str
    budget: str
    """What `amount` counts: "sets" seen, or "minutes"."""
    amount: float

    @property
    def name(self) -> str:
        """Its folder's."""
        return f"{self.data}-{self.network}-{self.loss}-{self.spent}-{self.budget}"

    @property
    def spent(self) -> str:
        """The amount as text, a million without an exponent."""
        return f"{self.amount:.12g}"

    @property
    def depth(self) -> bool:
        """Whether depth is trained and scored, or the mask alone."""
        return self.data != WITHOUT_DEPTH

    @property
    def lr(self) -> float:
        """Highest learning rate."""
        return RATES["original" if self.network in ORIGINALS else "unet"]


def baselines(
    data: Iterable[str], networks: Sequence[str], losses: Sequence[str], budgets: Iterable[tuple[str, float]]
) -> list[Baseline]:
    """Every combination, in the order in which they are trained; `budgets` are pairs of budget and amount.

    Without depth some networks and some losses are the same: the first of each is taken.
    """
    found = list[Baseline]()
    for name in data:
        depth = name != WITHOUT_DEPTH
        different_networks = {layers(network, depth): network for network in reversed(networks)}.values()
        different_losses = {parts(loss, depth): loss for loss in reversed(losses)}.values()
        found += [
            Baseline(name, network, loss, budget, amount)
            for budget, amount in budgets
            for network in sorted(different_networks, key=networks.index)
            for loss in sorted(different_losses, key=losses.index)
        ]
    return found


def describe_budget(amount: float, budget: str) -> str:
    """1,280 sets; 1 minute."""
    return f"{amount:,.12g} {budget.removesuffix('s') if amount == 1 else budget}"


def layers(network: str, depth: bool) -> tuple[torch.Size, ...]:
    """The shapes of a network's parameters, by which `net` without depth is known to be `convgen`."""
    return tuple(parameter.shape for parameter in _on_paper(network, depth).parameters())


def parts(loss: str, depth: bool) -> frozenset[tuple[str, float]]:
    """The parts of a loss that are trained, with their weights."""
    return frozenset(part for part in RECIPES[loss].items() if depth or part[0].startswith("mask_"))


def parameters(network: str, depth: bool) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in _on_paper(network, depth).parameters())


@cache
def gmac(network: str, depth: bool, size: int) -> float:
    """Multiplications of one prediction at `size` x `size` pixels, in thousands of millions."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        picture = torch.empty((1, 1, size, size), dtype=torch.uint8)
        _on_paper(network, depth).eval()(picture, picture)
    return float(counter.get_total_flops()) / 2e9


def _on_paper(network: str, depth: bool) -> nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return build_network(network, depth)
