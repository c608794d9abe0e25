"""One training step on one batch: forward pass, losses, backward pass, optimiser."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.loading.batch import Batch
from train.checkpoint import Checkpoint, load_network
from train.config import Config
from train.distributed import SINGLE, Distributed, SharedBatch, synced
from train.losses import Criterion
from train.networks import build_network
from train.optim import Ema, build_optimizer, learning_rate, set_rates
from train.runtime import autocast, compile_mode, forbid_tf32, number_format


class StepResult(NamedTuple):
    """Losses and gradient of a step, on the device; with CUDA graphs valid until the next step begins."""

    losses: Mapping[str, Tensor]
    """By the names of `Losses.named`: sums over this rank's sets."""
    grad_norm: Tensor
    """The gradient's 2-norm over all weights, before clipping; 0 of a step that is skipped."""
    skipped: Tensor
    """1.0 where the weights stayed as they were since fp16 overflowed in the gradient, else 0.0."""


class Learner:
    """A network with its criterion and optimiser. Nothing in it knows where sets come from or results go."""

    def __init__(self, config: Config, device: torch.device, ranks: Distributed = SINGLE) -> None:
        """Build the network with the weights that `config.seed` decides, the same on all ranks."""
        self.config = config = config.on_device(device.type)
        self.device, self._ranks = device, ranks
        forbid_tf32()
        torch.manual_seed(config.seed)  # for the first weights; nothing after them is drawn at random
        # channels_last: convolutions of many channels are faster so, on both devices.
        self.network = build_network(config.model, config.depth)
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        ranks.copy_from_first(self.network.parameters())  # processors of two kinds may draw other weights
        self.ema = Ema(self.network, config.ema) if config.ema else None
        self._shared = SharedBatch()
        self.network = synced(self.network, ranks, self._shared)  # after the copy, which is never trained
        self.criterion = Criterion(config.loss, config.mask_weight, config.depth_weight).to(device)
        self.optimizer = build_optimizer(self.network, config)
        self.step = 0
        """Steps done, those that were skipped among them."""
        self._progress: float | None = None  # of the last step
        self._format = ranks.broadcast(number_format(config.precision, device))  # machines may be of two kinds
        self._scaler = self._new_scaler()
        self._never = torch.zeros((), device=device)
        self._parameters = list(self.network.parameters())
        mode = compile_mode(config.compile, device)
        self._compiled = torch.compile(self._sums, mode=mode, dynamic=False) if mode else self._sums

    def train_step(self, batch: Batch, progress: float, sets: int) -> StepResult:
        """One step of the optimiser at `progress`, 0..1, of the run. Nothing in it waits for the device.

        `sets` are those of all ranks, of which `batch` holds this one's.
        """
        set_rates(self.optimizer, self.config, progress, progress if self._progress is None else self._progress)
        self._shared.sets = sets
        # A smaller batch, an epoch's last or one with damaged sets, is not worth a compilation of its own. Of the whole
        # batch, a rank's share always has the same size, so that all ranks compile at the same step, and once.
        loss_sums = self._compiled if sets >= self.config.batch_size else self._sums
        losses = loss_sums(batch.bg, batch.fg_bg, batch.mask, batch.depth, batch.depth_valid)
        loss = losses["loss"] * (1 / sets)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._ranks.sum_gradients(self._parameters)
        self._scaler.unscale_(self.optimizer)  # after the sum: what overflows on one rank is skipped by all
        limit = self.config.clip or float("inf")
        grad_norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit, foreach=True)
        self._scaler.step(self.optimizer)  # the fused optimiser skips by itself: nothing waits to know
        self._scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        self._progress = progress
        if self.ema:
            self.ema.update(self.step)
        skipped = self._never
        if self._scaler.is_enabled():
            skipped = 1 - grad_norm.isfinite().float()
            grad_norm = grad_norm.where(skipped == 0, 0)
        return StepResult({**losses, "loss": losses["loss"].detach()}, grad_norm.detach(), skipped)

    def undo(self, step: int) -> bool:
        """Undo what a failed `train_step` after `step` steps has changed, so that it can be repeated; whether it could.

        It is not where weights have changed. Batch norm's buffers are those before, where weights are averaged; else
        the layers that the failed pass has reached count the batch twice in their averages, which no step reads.
        """
        moments = self.optimizer.state
        if self.step > step or any("step" in of and of["step"] > step for of in moments.values()):
            return False
        self.optimizer.zero_grad()
        if not step:  # the optimiser takes its memory in the first step: it may have got some of it
            moments.clear()
        if self.ema:
            self.ema.restore_buffers()
        former, self._scaler = self._scaler, self._new_scaler()  # which may have unscaled gradients of this step
        self._scaler.load_state_dict(former.state_dict())
        return True

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self._format == "fp16")  # else it does nothing

    def _sums(
        self, bg: Tensor, fg_bg: Tensor, mask: Tensor, depth: Tensor | None, depth_valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The sum of each loss over the batch; that of "loss" alone has a gradient."""
        with autocast(self._format, self.device):
            prediction = self.network(bg, fg_bg)
        losses = self.criterion.per_sample(prediction, mask, depth, depth_valid)
        sums = {name: per_sample.sum() for name, per_sample in losses.named().items()}
        # Else the compiled backward pass would ask for a gradient of each, which PyTorch makes of zeros in every step.
        return {name: found if name == "loss" else found.detach() for name, found in sums.items()}

    def rate(self, progress: float) -> float:
        """The learning rate at `progress`, 0..1, of the run."""
        return learning_rate(progress, self.config.lr, self.config.warmup, self.config.schedule)

    @property
    def loss_scale(self) -> float:
        """What the loss of fp16 is multiplied by, halved by each skipped step; 1 of others. Waits for the device."""
        return self._scaler.get_scale()

    @property
    def averaged(self) -> nn.Module:
        """The network to be validated and used: that of the averaged weights, where they are averaged."""
        return self.ema.network if self.ema else self.network

    def checkpoint(self, state: Mapping[str, Any]) -> Checkpoint:
        """Weights, optimiser state and loss scale as a checkpoint, with the entries of `state`."""
        ema = self.ema.network.state_dict() if self.ema else None
        scaler = {"scaler": self._scaler.state_dict()} if self._scaler.is_enabled() else {}
        state = {"step": self.step, "progress": self._progress, **scaler, **state}
        return Checkpoint(self.network.state_dict(), self.optimizer.state_dict(), state, ema)

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Load a checkpoint; raises `InputError` where the weights at `path` are of another network."""
        load_network(self.network, checkpoint.network, path)
        if self.ema:  # a run that is averaged from now on begins with its weights
            load_network(self.ema.network, checkpoint.ema or checkpoint.network, path)
        # Copies, which no two tensors of the file share; and groups as they are: rate and decay are the settings'.
        moments = {
            number: {name: value.clone() for name, value in of.items()}
            for number, of in checkpoint.optimizer["state"].items()
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        if scaler := checkpoint.state.get("scaler"):  # of a run in fp16
            self._scaler.load_state_dict(scaler)
        self.step, self._progress = checkpoint.state["step"], checkpoint.state.get("progress")
