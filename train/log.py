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

from pipeline.files import atomic_file
from train.losses import Losses

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
    """Means over the steps since it was last read. Losses are summed on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forget everything and start the clock."""
        self._names = list[str]()
        self._losses = torch.zeros(0, device=self._device)  # sums over sets, one for each name
        self.sets = 0
        self._wait_sec = 0.0
        self._started_sec = time.perf_counter()

    def add(self, losses: Losses, sets: int, wait_sec: float) -> None:
        """One step: its losses, the number of its sets, the seconds it waited for them. Waits for no device."""
        named = losses.named()
        of_step = torch.stack(list(named.values())).detach() * sets
        self._names, self._losses = list(named), self._losses + of_step if self.sets else of_step
        self.sets += sets
        self._wait_sec += wait_sec

    def read(self) -> dict[str, float]:
        """The means. Waits for the device: all steps so far are done when it returns."""
        means = (self._losses / max(1, self.sets)).tolist()
        elapsed_sec = time.perf_counter() - self._started_sec
        return {
            **dict(zip(self._names, means, strict=True)),
            "sets_per_sec": self.sets / elapsed_sec,
            "stall_share": self._wait_sec / elapsed_sec,
        }
