"""The file that TensorBoard reads: one record an event, each on its way to the disk when the call returns.

PyTorch's SummaryWriter writes from a thread of its own, where a full disk ends in a traceback.
"""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils import tensorboard

from pipeline.files import written_file

summary: Any = tensorboard.summary
PATTERN = "events.out.tfevents.*"


class EventFile:
    """An open event file of a run."""

    def __init__(self, file: IO[bytes], first_step: int | None) -> None:
        """Write into `file`. What earlier files of the folder have from `first_step` on is to be forgotten."""
        self._file, self._records = file, RecordWriter(file)
        self._write(Event(file_version="brain.Event:2"))
        if first_step is not None:
            self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, name: str, value: float, step: int) -> None:
        """A number of a step."""
        self._write(Event(step=step, summary=summary.scalar(name, value)))

    def picture(self, name: str, step: int, picture: Image.Image) -> None:
        """A picture of a step."""
        self._write(Event(step=step, summary=summary.image(name, np.asarray(picture), dataformats="HWC")))

    def hyperparameters(self, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """A row of the table of hyperparameters: settings that are numbers or text, and what came of them."""
        for found in summary.hparams(dict(settings), dict(scores)):
            self._write(Event(summary=found))
        for name, value in scores.items():
            self.scalar(name, value, 0)

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()


@contextmanager
def event_file(folder: Path, first_step: int | None) -> Iterator[EventFile]:
    """A new event file in `folder`, under a name that TensorBoard finds; its `OSError`s name it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{PATTERN[:-1]}{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
    with written_file(folder / name) as file:
        yield EventFile(file, first_step)
