"""Where a run's numbers go: `metrics.jsonl`, one JSON object a line, and TensorBoard beside it."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from pipeline.resume import atomic_file
from pipeline.words import printable
from train.distributed import Distributed
from train.train_step import StepResult

Line = dict[str, Any]


class Log:
    """Numbers and pictures of one run, by step. A resumed run forgets first what lies after its checkpoint."""

    def __init__(self, folder: Path, step: int) -> None:
        """Continue at `step` (0: a new run)."""
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_lines(self.path) if line["step"] <= step]
        with atomic_file(self.path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """One line, and one TensorBoard scalar a value; `kind` is train or val, `epoch` counts from 1."""
        line = {"kind": kind, "step": step, "epoch": epoch, **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{name}/{kind}", value, step)

    def picture(self, name: str, step: int, picture: Image.Image) -> None:
        """A picture for TensorBoard."""
        self._board.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def result(self, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """The run's settings and final scores, for TensorBoard's table of hyperparameters."""
        plain = {
            name: value if isinstance(value, int | float) else printable(str(value)) for name, value in settings.items()
        }
        self._board.add_hparams(plain, {f"final/{name}": value for name, value in scores.items()}, run_name=".")

    def close(self) -> None:
        """Write out what is still held back."""
        self._file.close()
        self._board.close()


def read_lines(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl, none where there is no file; a last line that was cut short is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


class Meter:
    """Means over the steps since it was last read, of all ranks. Losses are summed on the device."""

    def __init__(self, device: torch.device, ranks: Distributed) -> None:
        self._device, self._ranks = device, ranks
        self.reset()

    def reset(self) -> None:
        """Forget everything and start the clock."""
        self._names = list[str]()
        self._sums = torch.zeros(0, device=self._device)  # one for each name
        self.steps, self._sets = 0, 0
        self._wait_sec = 0.0
        self._started_sec = time.perf_counter()

    def add(self, step: StepResult, sets: int, wait_sec: float) -> None:
        """Add one step of this rank: its sets, and the seconds it waited for them. Does not wait for the device."""
        of_step = torch.stack([*step.losses.values(), step.grad_norm, step.skipped])
        self._names, self._sums = list(step.losses), self._sums + of_step if self.steps else of_step
        self.steps += 1
        self._sets += sets
        self._wait_sec += wait_sec

    def compute(self) -> dict[str, float]:
        """The means; and `skipped_steps` where there are any, of which no gradient counts.

        Waits for the device: all steps so far are done when it returns.
        """
        of_rank = [*self._sums.tolist(), self._sets, self._wait_sec]
        *losses, grad_norm, skipped, sets, wait_sec = self._ranks.sums(of_rank)
        skipped /= self._ranks.world  # by all ranks or by none
        elapsed_sec = time.perf_counter() - self._started_sec
        return {
            **{name: loss / max(1, sets) for name, loss in zip(self._names, losses, strict=True)},
            "grad_norm": grad_norm / max(1, self.steps - skipped) / self._ranks.world,
            "sets_per_sec": sets / elapsed_sec,
            "stall_share": wait_sec / self._ranks.world / elapsed_sec,
            **({"skipped_steps": skipped} if skipped else {}),
        }
