"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum, orthogonalised.

A convolution's gradient, as a matrix of [outputs, inputs x pixels], has a few large singular values, along which AdamW
does nearly all of its steps. Here each step has singular values of about 1: what is seldom seen is learnt as fast.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

MOMENTUM = 0.9
A, B, C = 3.4445, -4.7750, 2.0315
"""Coefficients of the iteration, by Jordan: five steps bring singular values from 0.002 up to between 0.7 and 1.2."""
ITERATIONS = 5
FEWEST = 5  # rows of a matrix; the last layers have at most 4, and orthogonal rows would tie them to each other
ADAMW_SHARE = 0.1  # of the rate
TINY = 1e-7


class Muon(AdamW):
    """Muon for the weights of convolutions; AdamW, at a tenth of the rate and without decay, for all other weights.

    These are biases, norms, and the last layers. As AdamW's, its step waits for nothing on the device, and can be
    skipped there by `torch.amp.GradScaler`. Its momentum then decays all the same, which no step's length depends on.
    """

    def __init__(self, network: nn.Module, lr: float, weight_decay: float) -> None:
        """`weight_decay` is that of a whole run, see `optim.set_rates`, which decides what each step takes off."""
        matrices, others = parameters_by_optimizer(network)
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": 0.0, "share": 1.0, "decay_of_run": weight_decay},
            {"params": others, "weight_decay": 0.0, "share": ADAMW_SHARE},
        ]
        super().__init__(groups, lr=lr, fused=True)
        shapes = [tuple(matrix.flatten(1).shape) for matrix in matrices]
        self._alike = [[i for i, found in enumerate(shapes) if found == shape] for shape in dict.fromkeys(shapes)]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient; matrices all have one, or none has."""
        matrices, others = self.param_groups
        for matrix in matrices["params"]:  # all the memory that is kept, before any weight changes
            if not self.state[matrix]:
                zero = torch.zeros((), device=matrix.device)
                self.state[matrix].update(step=zero, momentum=torch.zeros_like(matrix))
        self.param_groups = [others]
        try:
            super().step(closure)  # first: its counts tell that weights have changed
        finally:
            self.param_groups = [matrices, others]
        if matrices["params"] and matrices["params"][0].grad is not None:
            self._step_matrices(matrices["params"], matrices["lr"], matrices["weight_decay"])

    def _step_matrices(self, parameters: list[Tensor], rate: float | Tensor, weight_decay: float) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        counted: float | Tensor = 1.0
        if (overflowed := getattr(self, "found_inf", None)) is not None:  # set by GradScaler: 1 where fp16 overflowed
            gradients = [torch.where(overflowed > 0, 0.0, gradient) for gradient in gradients]
            counted = 1 - overflowed
            rate = rate * counted
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        each = len(parameters)  # lists: of a single number on the device, PyTorch would ask what it is
        torch._foreach_add_([self.state[parameter]["step"] for parameter in parameters], [counted] * each)  # type: ignore[list-item]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
        torch._foreach_mul_(parameters, [1 - rate * weight_decay] * each)  # type: ignore[list-item]
        for places in self._alike:  # as one product of many matrices, which takes fewer calls
            turned = orthogonalised(torch.stack([ahead[place].flatten(1) for place in places])) * rate
            for place, step in zip(places, turned.unbind(), strict=True):
                parameters[place].sub_(step.view_as(parameters[place]))


def parameters_by_optimizer(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those that Muon orthogonalises, and those that it leaves to AdamW, in the order in which it counts them."""
    parameters = list(network.parameters())
    chosen = [parameter.ndim == 4 and len(parameter) >= FEWEST for parameter in parameters]
    matrices = [parameter for parameter, matrix in zip(parameters, chosen, strict=True) if matrix]
    return matrices, [parameter for parameter, matrix in zip(parameters, chosen, strict=True) if not matrix]


def orthogonalised(matrices: Tensor) -> Tensor:
    """[N,rows,columns] -> with the same singular vectors and singular values of about max(1, rows / columns)^(1/2).

    By that factor a step changes a layer's output alike, whatever its width. The iteration of Newton and Schulz,
    X <- (A + B X X^T + C (X X^T)^2) X, is done with the small square matrices X X^T alone, which all commute: that
    takes a third of the arithmetic, and in float32 has the same error, 1e-5 of the largest value at most.
    """
    rows, columns = matrices.shape[-2:]
    wide = matrices.float() if rows <= columns else matrices.float().mT
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + TINY)
    gram = wide @ wide.mT
    identity = torch.eye(gram.shape[-1], device=gram.device)
    whole = identity
    for _ in range(ITERATIONS):
        polynomial = A * identity + B * gram + C * (gram @ gram)
        gram, whole = polynomial @ polynomial @ gram, polynomial @ whole
    turned: Tensor = whole @ wide * max(1.0, rows / columns) ** 0.5
    return turned if rows <= columns else turned.mT
