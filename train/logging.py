"""Where a run's numbers go: `metrics.jsonl`, one JSON object a line, and TensorBoard beside it."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from PIL import Image

from pipeline.errors import InputError
from pipeline.files import written_file
from pipeline.limits import MOST_COUNT
from pipeline.loading.caching.statistics import CacheStatistics
from pipeline.resume import atomic_file
from pipeline.storage import Location, is_there, storage_of
from pipeline.words import plural, printable
from train.distributed import Distributed
from train.event_file import event_file
from train.option import shortened
from train.train_step import StepResult

CACHE = "cache"
"""Lines with what came from the cache of shards behind a URL, and what from there: `CacheStatistics`."""
METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"  # in the folder of a run
Line = dict[str, Any]


class Log:
    """Numbers and pictures of one run, by step. A resumed run forgets first what lies after its checkpoint."""

    def __init__(self, folder: Path, step: int) -> None:
        """Continue at `step` (0: a new run). Raises `OSError`, which names the file, as all that follow."""
        self.path = folder / METRICS
        kept, self.damage = read_metrics(self.path, step)
        with atomic_file(self.path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        with ExitStack() as opened:
            self._file = opened.enter_context(written_file(self.path, append=True))
            self._board = opened.enter_context(event_file(folder / TENSORBOARD, step + 1 if step else None))
            self._opened = opened.pop_all()

    def write(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """One line, and one TensorBoard scalar a value; `kind` is train, val or cache, `epoch` counts from 1.

        A value that is no number is left out: JSON has none, and nothing could be made of it.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = {"kind": kind, "step": step, "epoch": epoch, **finite}
        self._file.write(f"{json.dumps(line)}\n".encode())
        self._file.flush()
        for name, value in finite.items():
            self._board.scalar(f"{name}/{kind}", value, step)

    def picture(self, name: str, step: int, picture: Image.Image) -> None:
        """A picture for TensorBoard."""
        self._board.picture(name, step, picture)

    def result(self, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """The run's settings and final scores, for TensorBoard's table of hyperparameters."""
        plain = {
            name: value if isinstance(value, int | float) else printable(str(value)) for name, value in settings.items()
        }
        self._board.hyperparameters(plain, {f"final/{name}": value for name, value in scores.items()})

    def close(self) -> None:
        """Close the files. May be called again."""
        self._opened.close()


def describe_cache(lines: Sequence[Line]) -> str:
    """What the cache did up to the last line that tells of it; empty where none does."""
    found = next((line for line in reversed(lines) if line["kind"] == CACHE), {})
    counted = {name: found[name] for name in CacheStatistics._fields if name in found}
    return str(CacheStatistics(**counted)) if len(counted) == len(CacheStatistics._fields) else ""


class Metrics(NamedTuple):
    """What a metrics.jsonl holds."""

    lines: list[Line]
    damage: str
    """What is wrong with it, one line for the user; empty if nothing is."""


def read_lines(path: Path) -> list[Line]:
    """The good lines of a metrics.jsonl, none where there is no file; a last line that was cut short is left out."""
    return read_metrics(path).lines


def read_metrics(path: Location, last_step: int | None = None) -> Metrics:
    """The lines of a metrics.jsonl, to `last_step`, and what is wrong with others, which are left out.

    A last line that was cut short, as when a run is killed, is no damage. Raises `InputError` for what is no file.
    """
    if not is_there(path):
        if isinstance(path, Path) and path.exists():
            raise InputError(f"{path} is no file: remove it")
        return Metrics([], "")
    lines, wrong, steps = list[Line](), list[str](), dict[str, int]()
    content = path.read_bytes() if isinstance(path, Path) else storage_of(path.parent).read_all(path.name)
    whole, _, _ = content.rpartition(b"\n")
    for number, text in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            line = _parsed(text)
        except (ValueError, RecursionError) as error:
            wrong.append(f"line {number}: {error}")
            continue
        kind, step = line["kind"], line["step"]
        if last_step is not None and step > last_step:
            continue
        if step <= steps.get(kind, -1):
            wrong.append(f"line {number}: step {step} after step {steps[kind]}")
            continue
        steps[kind] = step
        lines.append(line)
    count = f"{path}: left out {plural(len(wrong), 'damaged line')}, the first {wrong[0]}" if wrong else ""
    return Metrics(lines, count)


def _parsed(text: bytes) -> Line:
    """A line; raise ValueError, which says why, if no run has written it."""
    line: Line = msgspec.json.decode(text, type=dict[str, Any])
    if not isinstance(line.get("kind"), str):
        raise ValueError("no kind")
    for name, least in (("step", 0), ("epoch", 1)):
        value = line.get(name)
        if type(value) is not int or not least <= value <= MOST_COUNT:
            raise ValueError(f"no {name}")
    for name, value in line.items():
        if name == "kind":
            continue
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{shortened(name)} is no number")
    return line


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
