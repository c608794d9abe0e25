"""Training: sets in, steps of the optimiser, and after each epoch numbers, pictures and a checkpoint."""

import math
import shlex
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from types import FrameType
from typing import Any

import torch

from pipeline.batch import Batch
from pipeline.errors import InputError
from train.checkpoint import BEST, LAST, Checkpoint, load, load_network, refuse_other, save
from train.config import Config, choose_device
from train.log import Log, Meter, read_lines
from train.losses import Criterion, Losses
from train.networks import build_network
from train.optimizer import adamw, learning_rate
from train.pictures import draw_curves, grid, save_picture
from train.validation import Scores, Validator, describe, predict

# What a shell makes of Ctrl-C; and 0 for a cluster that takes its machine back: it got all that it asked for.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 0}


class Interrupted(Exception):  # noqa: N818 - the user's wish, not a fault of the program
    """The run was stopped from outside. It is kept; the message says how to continue it."""

    def __init__(self, message: str, by: int) -> None:
        super().__init__(message)
        self.exit_code = EXIT_CODES[signal.Signals(by)]


class Trainer:
    """One run: opened whole, or refused with an `InputError` before anything is written; then `fit`."""

    def __init__(
        self,
        config: Config,
        *,
        resume: bool = False,
        given: Collection[str] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        """`given` names the settings that may not be taken from the checkpoint; `say` prints a line for the user."""
        self.last, self.best = config.out / LAST, config.out / BEST
        if not resume and config.out.exists() and any(config.out.iterdir()):
            raise InputError(
                f"{config.out}: not empty; --resume continues the run in it, another --out starts a new one"
            )
        self.device = choose_device(config.device)
        checkpoint = load(self.last) if resume else None
        if checkpoint:
            config = config.resumed(checkpoint.state["settings"], given)
        self.config, self.say = config, say
        self.on_gpu = self.device.type == "cuda"
        self.loader = config.loader(self.device)
        if checkpoint:
            refuse_other(self.last, "the data set", checkpoint.state["manifest"], self.loader.manifest.sha256)
        if config.device == "auto":
            gpu = self.on_gpu and torch.cuda.get_device_name()
            say(f"training on the GPU: {gpu}" if gpu else "no GPU found: training on the CPU")
        self.total_steps = config.epochs * len(self.loader)
        torch.manual_seed(config.seed)  # for the first weights; nothing after them is drawn at random
        # channels_last: convolutions of many channels are faster so, on both devices.
        self.network = build_network(config.model, config.depth)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.criterion = Criterion(config.loss, config.mask_weight, config.depth_weight).to(self.device)
        self.optimizer = adamw(self.network, config.lr, config.weight_decay)
        self.meter = Meter(self.device)
        self.step, self.sets_seen = 0, 0
        self.scores: Scores | None = None
        self.best_iou = -1.0
        if checkpoint:
            self._restore(checkpoint)
        self.validator = Validator(self.loader, say)
        config.out.mkdir(parents=True, exist_ok=True)
        self.log = Log(config.out, self.step)

    def fit(self, show: Callable[[str], None]) -> None:
        """Train up to the last epoch; `show` is called after each step with what to show of it.

        Raises `Interrupted` after Ctrl-C and SIGTERM, `InputError` where the loss is no longer a number.
        """
        status = ""
        with Interruption() as interruption:
            while self.loader.epoch < self.config.epochs:
                epoch = self.loader.epoch + 1
                self.network.train()
                self.meter.restart()
                for batch, wait_sec in timed(self.loader):
                    losses = self._step(batch)
                    self.meter.add(losses, len(batch.bg), wait_sec)
                    more = self.loader.epoch < epoch  # the epoch's last batch has its own checkpoint, in _end_epoch
                    stop = more and interruption.by
                    keep = more and bool(stop or self.step % self.config.checkpoint_every == 0)
                    if keep or self.step % self.config.log_every == 0:
                        status = self._read_meter(epoch)
                    if keep:
                        self._save(LAST)
                        self.meter.restart()  # what writing took is no part of the sets a second
                    if stop:
                        raise Interrupted(self._how_to_continue(), stop)
                    show(status)
                if epoch == 1 and self.loader.residency:
                    self.say(f"{self.loader.residency}: later epochs gather them")
                self._end_epoch(epoch)
                if interruption.by and epoch < self.config.epochs:
                    raise Interrupted(self._how_to_continue(), interruption.by)

    def _step(self, batch: Batch) -> Losses:
        """One step of the optimiser. Nothing in it waits for the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        with torch.autocast("cuda", torch.bfloat16, enabled=self.on_gpu):
            prediction = self.network(batch.bg, batch.fg_bg)
        losses: Losses = self.criterion(prediction, batch.mask, batch.depth)
        losses.total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.sets_seen += len(batch.bg)
        return losses

    def _end_epoch(self, epoch: int) -> None:
        """Log, validate, draw, keep. All of it waits for the device."""
        if self.meter.sets:
            self._read_meter(epoch)
        examples = self.validator.examples
        picture = grid(examples, predict(self.network, examples.bg, examples.fg_bg))
        save_picture(picture, self.config.out / "pictures" / f"epoch_{epoch:04}.png")
        self.log.picture("predictions", self.step, picture)
        self.scores = self.validator.scores(self.network, self.criterion)
        if self.scores:
            self.log.write("val", self.step, epoch, self.scores)
            self.say(f"epoch {epoch}/{self.config.epochs}: {describe(self.scores)}; {self._baseline(self.scores)}")
        if self.loader.quarantined:
            self.say(f"sets left out as damaged: {len(self.loader.quarantined)}, such as {self.loader.quarantined[0]}")
        draw_curves(read_lines(self.log.path), self.config.out / "curves.png")
        if self.scores and self.scores["mask_iou"] > self.best_iou:
            self.best_iou = self.scores["mask_iou"]
            self._save(BEST)
        self._save(LAST)  # after the other: a run killed between the two does this epoch's end again

    def _read_meter(self, epoch: int) -> str:
        """Log the means since the last time; what the terminal shows of them. Waits for the device."""
        values = self.meter.read()
        self.meter.restart()
        if not math.isfinite(values["loss"]):
            kept = f"{self.last} is from before" if self.last.exists() else "there is no checkpoint yet"
            raise InputError(f"the loss is {values['loss']} at step {self.step}; {kept}; try a smaller --lr")
        counts = {"sets_seen": self.sets_seen, "sets_damaged": len(self.loader.quarantined)}
        self.log.write("train", self.step, epoch, {**values, "lr": self._rate(), **counts})
        losses = [f"{name} {values[f'{name}_loss']:.3f}" for name in ("mask", "depth") if f"{name}_loss" in values]
        return f"{' '.join(losses)} {values['sets_per_sec']:,.0f} sets/s stall {values['stall_share']:.0%}"

    def _rate(self) -> float:
        return learning_rate(self.step, self.total_steps, self.config.lr, self.config.warmup)

    def _save(self, name: str) -> None:
        state: dict[str, Any] = {
            "settings": self.config.settings(),
            "manifest": self.loader.manifest.sha256,
            "loader": self.loader.state_dict(),
            "step": self.step,
            "sets_seen": self.sets_seen,
            "best_iou": self.best_iou,
            "scores": self.scores,
        }
        save(self.config.out / name, Checkpoint(self.network.state_dict(), self.optimizer.state_dict(), state))

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        load_network(self.network, checkpoint.network, self.last)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.loader.load_state_dict(state["loader"])
        self.step, self.sets_seen, self.best_iou = state["step"], state["sets_seen"], state["best_iou"]
        self.scores = state["scores"]

    def _baseline(self, scores: Scores) -> str:
        return f"baseline |fg_bg - bg| > {self.validator.threshold}: mask IoU {scores['baseline_iou']:.3f}"

    def _how_to_continue(self) -> str:
        out, shards = shlex.quote(str(self.config.out)), shlex.quote(str(self.config.shards))
        return (
            f"stopped after step {self.step:,} of {self.total_steps:,}; "
            f"continue with: fgbg-train --shards {shards} --out {out} --resume"
        )

    def summary(self) -> list[str]:
        """Where the run stands and where its results are, a few lines."""
        out = self.config.out
        lines = [f"trained {self.loader.epoch} epochs, {self.step:,} steps, {self.sets_seen:,} sets"]
        if self.scores:
            sets, scores = self.scores["sets"], describe(self.scores)
            lines.append(f"validation, {sets} sets, backgrounds and foregrounds unseen: {scores}")
            lines.append(f"  {self._baseline(self.scores)}")
        lines.append(f"pictures: {out / 'pictures'}, curves: {out / 'curves.png'}, numbers: {self.log.path}")
        best = f" (best mask IoU, {self.best_iou:.3f}: {self.best})" if self.best.exists() else ""
        return [*lines, f"checkpoint: {self.last}{best}"]


def timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch, with the seconds that it was waited for; none without sets (all of them may have been damaged)."""
    source = iter(batches)
    while True:
        asked_sec = time.perf_counter()
        batch = next(source, None)
        wait_sec = time.perf_counter() - asked_sec
        if batch is None:
            return
        if len(batch.bg):
            yield batch, wait_sec


class Interruption:
    """Within it, the first Ctrl-C (or SIGTERM) is a request, read between two steps; the second stops at once."""

    def __init__(self) -> None:
        self.by: int | None = None
        """The signal that asked for it."""
        self._former = dict[int, Any]()

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # signals reach no other thread
            self._former = {number: signal.signal(number, self._request) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.by = number
        signal.signal(number, self._former[number])
