"""What is to be done with a run's folder: start, go on, or nothing, since the run in it is complete."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.errors import InputError
from pipeline.locks import locked
from train.checkpoint import LAST, ResumePoint, has_checkpoint, load_last
from train.config import Config
from train.event_file import PATTERN
from train.logging import METRICS, TENSORBOARD

CURVES, PICTURES = "curves.png", "pictures"
NEW_LAST = f"new-{LAST}"
BEFORE_A_CHECKPOINT = {METRICS, TENSORBOARD, CURVES, PICTURES, NEW_LAST}
"""All that a run has in its folder before the first checkpoint; METRICS comes first."""

Resume = bool | Literal["auto"]
"""Whether a run goes on: it has to, must not, or does if there is something to go on from."""


class Beginning(NamedTuple):
    """How a command begins on a run's folder."""

    found: ResumePoint | None
    """What to go on from; None: at the start."""
    told: str
    """One line for the user, or empty."""
    complete: bool
    """Whether the run was complete before."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder of a run if need be, and be the one process that works in it; removed again if it stays empty.

    Raises `InputError` while another process does, and where it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a new or an empty folder")
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            yield
    finally:
        if not existed:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def begin(config: Config, resume: Resume) -> Beginning:
    """Look at the folder of the run that `config` describes, which is `held`.

    Without `resume`, the run that is complete in it has to have the same settings: else they are named. What is left of
    a run that was stopped before its first checkpoint is removed. Raises `InputError` where there is nothing to go on
    from, or something that must not be written to.
    """
    out = Path(config.out)
    names = {entry.name for entry in out.iterdir() if not entry.name.startswith(".")}
    started = METRICS in names and names <= BEFORE_A_CHECKPOINT
    if has_checkpoint(out) or (resume is True and not started):
        found = load_last(out)
        complete = is_complete(config.resumed(found.checkpoint.state["settings"], given=()), found.checkpoint.state)
        if not resume and not complete:
            raise InputError(f"{out}: not empty; --resume continues the run in it, another --out starts a new one")
        if not resume:
            config.require_same(found.checkpoint.state["settings"])
        return Beginning(found, found.fallback, complete)
    if names and not started:
        raise InputError(f"{out}: not empty (it holds {min(names)}), and no run: another --out starts a new one")
    if not started:
        return Beginning(None, "", False)
    _remove_start(out)
    return Beginning(None, f"{out}: its run was stopped before the first checkpoint, and starts again", False)


def is_complete(config: Config, state: dict[str, Any]) -> bool:
    """Whether a checkpoint with this `state` is the end of a run with the settings of `config`."""
    if config.epochs:
        return int(state["loader"].get("epoch", 0)) >= config.epochs
    if config.sets:
        return bool(state["sets_seen"] >= config.sets)
    return bool(state.get("elapsed_sec", 0.0) / 60 >= (config.minutes or 0))


def _remove_start(out: Path) -> None:
    """Remove what a new start would not write over; METRICS stays: by it the folder is known to be a run's."""
    for path in (out / CURVES, out / NEW_LAST, *(out / TENSORBOARD).glob(PATTERN)):
        path.unlink(missing_ok=True)
