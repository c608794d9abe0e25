"""A training run: steps of the optimiser, and after each epoch validation, pictures and a checkpoint."""

import gc
import math
import shlex
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, suppress

import torch

from pipeline.devices import torch_device
from pipeline.errors import InputError
from pipeline.loading.batch import Batch
from pipeline.loading.memory import brief, ran_out
from pipeline.locks import STALE_SEC, held
from pipeline.storage import Url, location_of
from pipeline.words import plural
from pipeline.workers import timed
from train.checkpoint import (
    BEST,
    LAST,
    Checkpoint,
    ResumePoint,
    has_checkpoint,
    load,
    refuse_other,
    save,
    save_last,
)
from train.config import Config
from train.curves import draw_curves
from train.distributed import SINGLE, Distributed
from train.logging import CACHE, METRICS, Log, Meter, read_lines
from train.pace import FirstSteps, advice
from train.pictures import grid, save_picture
from train.remote_run import RemoteRun, local_folder
from train.run_folder import CURVES, PICTURES, Resume, begin, is_complete, share_done
from train.runtime import describe_device, deterministic, open_loader
from train.scoring import MeanScores, Validator, describe, predict
from train.signals import Interrupted, Interruption
from train.train_step import Learner, StepResult

LEAST_SCALE = 2.0**-10  # of the loss in fp16: gradients that overflow even so are not numbers
SHORT_SEC = 60.0  # of a run, of which no more is said than its bar shows
SYNCED_EPOCHS = 2  # epochs after which ranks exchange what they keep: a resumed run's first may have been half of one


class Trainer:
    """A training run. Opening it raises `InputError` for bad input before anything is written; `fit` trains.

    Trainer(Config(shards="shards", out="runs/first")).fit()
    """

    def __init__(
        self,
        config: Config,
        *,
        resume: Resume = False,
        given: Collection[str] = (),
        override: bool = False,
        ranks: Distributed = SINGLE,
        say: Callable[[str], None] = print,
    ) -> None:
        """`given` names the settings that may not be taken from the checkpoint, `override` lets them be others.

        `resume`: go on with the run in the folder (True), if there is one ("auto"), or not (False); one that is
        complete with the same settings is opened in any case, see `complete_before`. `say` prints a line for the user.
        Of several `ranks` the first alone says and writes anything; until `close`, no other process works in the
        folder.
        """
        self.ranks, self.say = ranks, say
        self.place = location_of(config.out)
        """Where the run is, a folder or a URL."""
        self.remote = RemoteRun(self.place, self._tell) if isinstance(self.place, Url) else None
        self.out = local_folder(self.place) if isinstance(self.place, Url) else self.place
        """The folder that the run is written to."""
        self.last, self.best = self.out / LAST, self.out / BEST
        self.log: Log | None = None
        try:
            with ExitStack() as opened:
                self._open(config, resume, given, override, opened)
                self._opened = opened.pop_all()
        except InputError as error:
            if self.remote:
                raise InputError(self.remote.named(str(error))) from error
            raise

    def _open(self, config: Config, resume: Resume, given: Collection[str], override: bool, opened: ExitStack) -> None:
        ranks = self.ranks
        self.device = torch_device(config.device)
        config = config.on_device(self.device.type)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # for what asks for the current device: DALI, formats, memory
        if ranks.first:
            patience_sec = STALE_SEC if resume == "auto" else 0.0  # a machine that was lost may have left its lock
            opened.enter_context(held(self.out, patience_sec=patience_sec, say=self._tell))
            if self.remote:
                opened.enter_context(self.remote)
        # The first decides for all, and only then may the folder fill.
        elsewhere = self.remote.names if self.remote else ()
        beginning = begin(config, self.out, resume, elsewhere) if ranks.first else None
        found, told = beginning.found if beginning else None, beginning.told if beginning else ""
        complete, path = ranks.broadcast((bool(beginning and beginning.complete), found.path if found else None))
        if self.remote:  # others may be on other machines
            found = ranks.broadcast(found)
        elif path and not found:
            found = ResumePoint(path, load(path), "")
        self.complete_before = complete
        """Whether the run was complete when it was opened."""
        if found:
            config = config.resumed(found.checkpoint.state["settings"], given, override=override)
        self.config = config
        self.loader = open_loader(config, self.device, ranks=ranks)
        if found:
            refuse_other(found.path, "the data set", found.checkpoint.state["manifest"], self.loader.manifest.sha256)
        self._tell(describe_device(config, self.device, ranks.world))
        self._tell(told)
        self._tell("; ".join(f"warning of the packing: {line}" for line in self.loader.manifest.warnings))
        self.learner = Learner(config, self.device, ranks)
        self.meter = Meter(self.device, ranks)
        self.kept = False
        """Whether a checkpoint was written since the run was opened, by the first rank."""
        self.sets_seen, self.best_iou = 0, -1.0
        self.scores: MeanScores | None = None
        self._fallbacks = list[str]()
        self._status = ""
        self.elapsed_sec, self._began_sec, self._epochs_here = 0.0, 0.0, 0
        if found:
            self._restore(found.checkpoint)
            self.learner.restore(found.checkpoint, found.path)
            if found.fallback:
                self._fallbacks.append(found.fallback.removeprefix(f"{self.out}/"))
            if ranks.first and not complete:
                self._require_best()
        self._last_is_good = not (found and found.fallback)
        self.validator = Validator(self.loader, config.training_split, config.validation_split, ranks, self._tell)
        if ranks.first and not self.over:
            self.log = opened.enter_context(closing(Log(self.out, self.step)))
            self._tell(self.log.damage)
        if self.remote and (self.log or self.remote.behind):
            self.remote.start(anew=not found)

    def fit(self, show: Callable[[str], None] = lambda status: None) -> None:
        """Train to the end, then `close`; `show` is called after each step with what to show of it.

        Raises `Interrupted` after one of the signals of `train.signals`, `InputError` where the loss is no longer a
        number, or where fp16 overflows however small the loss is scaled.
        """
        stopped = ""
        patient = self.ranks.world > 1
        try:
            with Interruption(patient=patient, quiet=not self.ranks.first) as interruption, closing(self):
                try:
                    self._fit(show, interruption)
                except (InputError, Interrupted) as error:
                    stopped = str(error)
                    raise
        except OSError as error:
            if stopped:  # and then this came
                error.add_note(stopped)
            self._note_what_is_kept(error)
            raise

    def _fit(self, show: Callable[[str], None], interruption: Interruption) -> None:
        self._say_what_fits()
        self._first_steps = FirstSteps(self.device)
        self._began_sec = time.perf_counter() - self.elapsed_sec
        with deterministic(self.config.deterministic):
            while not self.over:
                epoch = self.loader.epoch + 1
                self._train(epoch, interruption, show)
                self._end_epoch(epoch)
                stop, *_ = self._agree(interruption)
                if stop and not self.over:
                    raise self._interrupted(interruption)

    def _train(self, epoch: int, interruption: Interruption, show: Callable[[str], None]) -> None:
        """The steps of the rest of an epoch, or of the run."""
        self.learner.network.train()
        self.meter.reset()
        for batch, wait_sec in timed(self._batches(epoch, interruption)):
            stop, sets, failed = self._agree(interruption, len(batch.bg))
            if failed:
                self._keep(epoch)
                raise InputError(f"rank {self.ranks.rank}: another rank has failed; see its message")
            if not sets:  # all of them were damaged
                continue
            step = self._learn(batch, sets)
            self.meter.add(step, len(batch.bg), wait_sec)
            self.sets_seen += sets
            more = self.loader.epoch < epoch and not self.over  # or else `_end_epoch` has a checkpoint of its own
            keep = more and (stop or self.step % self.config.checkpoint_every == 0)
            if keep or self.step % self.config.log_every == 0:
                self._read_meter(epoch)
            if keep:
                self._save(LAST)
                self.meter.reset()  # what writing took is no part of the sets a second
            if stop and more:
                raise self._interrupted(interruption)
            with suppress(OSError):  # a terminal that has closed must not keep the checkpoint from being written
                show(self._status or self._pace(sets))
            if self.over:
                break

    def _batches(self, epoch: int, interruption: Interruption) -> Iterator[Batch]:
        """Those of the loader. Where it fails, on any rank, the run is kept up to the last step."""
        self._position = self.loader.state_dict()
        try:
            for batch in self.loader:
                yield batch
                self._position = self.loader.state_dict()
        except (OSError, InputError) as error:
            self._agree(interruption, failed=True)  # the others, with their next batch, do the same
            self._keep(epoch)
            if isinstance(error, InputError):
                self._note_what_is_kept(error)
            raise

    def _keep(self, epoch: int) -> None:
        """Save the run as after its last step; the loader may be a batch ahead. A collective."""
        if self.meter.steps:
            self._read_meter(epoch)
        if self.step:
            self._save(LAST, self._position)
        self.ranks.barrier()  # no rank ends, and has the others ended, before that is written

    def _say_what_fits(self) -> None:
        """On a CPU, what other networks would take, where this one takes long."""
        if self.device.type == "cpu" and self.ranks.world == 1 and not self.over:
            of_run = self.config.sets or (self.config.epochs or 0) * self.loader.sets
            self._tell(advice(self.config, self.learner.network, round((1 - self.progress) * of_run)))

    def _pace(self, sets: int) -> str:
        """Rate and time left, until the meter is first read; said in a line, too, where that takes a while."""
        told_before = self._first_steps.left_sec
        status = self._first_steps.describe(sets, self.progress)
        if not told_before and self._first_steps.left_sec > SHORT_SEC:
            self._tell(f"first steps: {status}")
        return status

    def _learn(self, batch: Batch, sets: int) -> StepResult:
        """One step. If it runs out of memory, the cache of decoded sets is released and the step repeated.

        Raises `InputError` where there are none, where weights have changed, and where other ranks wait in this step.
        """
        before = self.step
        while True:
            try:
                with self.ranks.collective():
                    return self.learner.train_step(batch, self.progress, sets)
            except Exception as error:
                if not ran_out(error):
                    raise
                again = self.ranks.world == 1 and self.learner.undo(before)
                told = (self.loader.release() or self.validator.release()) if again else None
                if told is None:
                    raise InputError(self._too_large(before + 1, error)) from error
                self._tell(f"step {before + 1:,}: {brief(error)}: {told}")
            gc.collect()  # only now that its traceback is gone: what the failed step had taken

    def _too_large(self, step: int, error: Exception) -> str:
        size, what = self.config.size, f"--model {self.config.model} --batch-size {self.config.batch_size}"
        remedy = "try a smaller --batch-size or --size, or --resident host or off"
        return f"no memory for step {step:,} with {what} --size {size} ({brief(error)}): {remedy}"

    def _end_epoch(self, epoch: int) -> None:
        """Log, validate, draw pictures and save checkpoints. Waits for the device."""
        if self.meter.steps:
            self._read_meter(epoch)
        self._epochs_here += 1
        # Muon multiplies matrices, which processors of other kinds, or with other threads, round otherwise.
        self.ranks.copy_from_first(self.learner.network.parameters())
        if self.loader.residency and self._epochs_here <= SYNCED_EPOCHS and not self.over:
            if self.ranks.world > 1:
                self.loader.sync_cache()
            if self._epochs_here == 1:
                self._tell(f"{self.loader.residency}: later epochs gather them")
        self.scores = self.validator.scores(self.learner.averaged, self.learner.criterion, self.config.precision)
        if self.log:
            self._write(epoch, self.log)
        if self.scores and self.scores["mask_iou"] > self.best_iou:
            self.best_iou = self.scores["mask_iou"]
            self._save(BEST)
        self._save(LAST)  # after the other: a run killed between the two does this epoch's end again

    def _write(self, epoch: int, log: Log) -> None:
        """Scores, pictures and curves of an epoch."""
        examples = self.validator.examples
        prediction = predict(self.learner.averaged, examples.bg, examples.fg_bg, self.config.precision)
        picture = grid(examples, prediction)
        save_picture(picture, self.out / PICTURES / f"epoch_{epoch:04}.png")
        log.picture("predictions", self.step, picture)
        if self.scores:
            log.write("val", self.step, epoch, self.scores)
            length = f"/{self.config.epochs}" if self.config.epochs else ""
            self._tell(f"epoch {epoch}{length}: {describe(self.scores)}; {self._baseline(self.scores)}")
        if damaged := self.loader.quarantined:
            self._tell(f"sets left out as damaged: {len(damaged)}, such as {damaged[0]}")
        if cached := self.loader.cache_statistics:
            log.write(CACHE, self.step, epoch, cached._asdict())
            self._tell(str(cached))
        draw_curves(read_lines(log.path), self.out / CURVES)
        if self.over:
            log.result(self.config.settings(), self.scores or {})

    def _read_meter(self, epoch: int) -> None:
        """Log the means since the last time, and show them. Waits for the device."""
        values = self.meter.compute()
        self.meter.reset()
        kept = f"{self.place / LAST} is from before" if self.last.exists() else "there is no checkpoint yet"
        for name, what in (("loss", "the loss"), ("grad_norm", "the gradient's norm")):
            if not math.isfinite(values[name]):
                raise InputError(f"{what} is {values[name]} at step {self.step}; {kept}; try a smaller --lr")
        if (scale := self.learner.loss_scale) < LEAST_SCALE:
            found = f"fp16 overflows in the gradient, though the loss is scaled by {scale:.1g}"
            raise InputError(f"{found}, at step {self.step}; {kept}; try --precision float32, or a smaller --lr")
        if self.log:
            rate = self.learner.rate(self.progress)
            counts = {"sets_seen": self.sets_seen, "sets_damaged": len(self.loader.quarantined)}
            self.log.write("train", self.step, epoch, {**values, "lr": rate, **counts})
        losses = [f"{name} {values[f'{name}_loss']:.3f}" for name in ("mask", "depth") if f"{name}_loss" in values]
        speed = f"{values['sets_per_sec']:,.0f} sets/s stall {values['stall_share']:.0%}"
        self._status = " ".join([*losses, speed])

    @property
    def step(self) -> int:
        """Steps of the optimiser so far."""
        return self.learner.step

    @property
    def progress(self) -> float:
        """How much of the run is done, from 0 to 1."""
        return share_done(self.config, self.step, len(self.loader), self.sets_seen, self.elapsed_sec)

    @property
    def over(self) -> bool:
        """Whether nothing is left to train."""
        return is_complete(self.config, self.loader.epoch, self.sets_seen, self.elapsed_sec)

    def _agree(self, interruption: Interruption, sets: int = 0, *, failed: bool = False) -> tuple[bool, int, bool]:
        """Whether any rank was asked to stop, the sum of `sets` over the ranks, and whether the loader of one `failed`.

        Averages the elapsed time, too.
        """
        own_sec = time.perf_counter() - self._began_sec
        stop, sets_of_all, seconds, failures = self.ranks.sums([bool(interruption.by), sets, own_sec, failed])
        self.elapsed_sec = seconds / self.ranks.world
        return bool(stop), int(sets_of_all), bool(failures)

    def _save(self, name: str, position: dict[str, int | str] | None = None) -> None:
        """Write a checkpoint; `position` is the loader's, if it is not where that is now."""
        self.kept = self.kept or name == LAST
        if not self.ranks.first:
            return
        state = {
            "settings": self.config.settings(),
            "manifest": self.loader.manifest.sha256,
            "loader": position or self.loader.state_dict(),
            "sets_seen": self.sets_seen,
            "elapsed_sec": self.elapsed_sec,
            "best_iou": self.best_iou,
            "scores": self.scores,
            "fallbacks": self._fallbacks,
        }
        checkpoint = self.learner.checkpoint(state)
        if name == LAST:
            save_last(self.out, checkpoint, keep_former=self._last_is_good)
            self._last_is_good = True
            if self.remote:
                self.remote.publish()
        else:
            save(self.out / name, checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.loader.load_state_dict(state["loader"])
        self.sets_seen, self.best_iou, self.scores = state["sets_seen"], state["best_iou"], state["scores"]
        self.elapsed_sec = state.get("elapsed_sec", 0.0)
        self._fallbacks = list(state.get("fallbacks", ()))

    def _require_best(self) -> None:
        """Let the next validation write BEST anew, however low its score, if it is damaged."""
        try:
            if self.best.exists():
                load(self.best)
        except InputError:
            self._tell(f"{self.best}: damaged; written anew after the next validation")
            self.best_iou = -1.0

    def _tell(self, line: str) -> None:
        if line and self.ranks.first:
            line = self.remote.named(line) if self.remote else line
            with suppress(OSError):  # a terminal that has closed
                self.say(line)

    def _baseline(self, scores: MeanScores) -> str:
        return f"baseline |fg_bg - bg| > {self.validator.threshold}: mask IoU {scores['baseline_iou']:.3f}"

    def _interrupted(self, interruption: Interruption) -> Interrupted:
        message = f"stopped after step {self.step:,}, {self.progress:.0%} of the run; {self._how_to_continue()}"
        return Interrupted(message, interruption.by or signal.SIGTERM)

    def _note_what_is_kept(self, error: Exception) -> None:
        kept = f"the run is kept up to its last checkpoint; {self._how_to_continue()}"
        lost = "there is no checkpoint yet: the same command starts the run again"
        error.add_note(kept if has_checkpoint(self.out) or self.has(LAST) else lost)

    def _how_to_continue(self) -> str:
        out, shards = shlex.quote(str(self.place)), shlex.quote(str(self.config.shards))
        return f"continue with: fgbg-train --shards {shards} --out {out} --resume"

    def has(self, name: str) -> bool:
        """Whether the run has a file of this name."""
        return self.remote.has(name) if self.remote else (self.out / name).exists()

    def close(self) -> None:
        """End the loaders' threads and write out what is still held back. May be called again.

        Raises `OSError` where that cannot be put at the run's URL.
        """
        self.loader.close()
        self.validator.close()
        self._opened.close()

    def summary(self) -> list[str]:
        """Where the run stands and where its results are, a few lines."""
        out = self.place
        epochs = round(self.sets_seen / self.loader.sets, 2)
        trained = "1 epoch" if epochs == 1 else f"{epochs:g} epochs"
        lines = [f"trained {trained}, {plural(self.step, 'step')}, {plural(self.sets_seen, 'set')}"]
        if self.scores:
            sets, scores = self.scores["sets"], describe(self.scores)
            unseen = "LEAKING: a random split" if self.config.peer_protocol else "backgrounds and foregrounds unseen"
            lines.append(f"validation, {plural(int(sets), 'set')}, {unseen}: {scores}")
            lines.append(f"  {self._baseline(self.scores)}")
        lines.append(f"pictures: {out / PICTURES}, curves: {out / CURVES}, numbers: {out / METRICS}")
        best = f" (best mask IoU, {self.best_iou:.3f}: {out / BEST})" if self.has(BEST) else ""
        return [*lines, f"checkpoint: {out / LAST}{best}"]
