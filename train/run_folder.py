"""What is to be done with a run's folder: start, go on, or nothing, since the run in it is complete."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.errors import InputError
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


def begin(config: Config, out: Path, resume: Resume, elsewhere: Collection[str] = ()) -> Beginning:
    """Look at the folder `out` of the run that `config` describes, which is `held`.

    `elsewhere` are names of what the run has beside that, if its place is a URL.

    Without `resume`, the run that is complete in it has to have the same settings: else they are named. What is left of
    a run that was stopped before its first checkpoint is removed. Raises `InputError` where there is nothing to go on
    from, or something that must not be written to.
    """
    every = [entry.name for entry in out.iterdir()] + [name.partition("/")[0] for name in elsewhere]
    names = {name for name in every if not name.startswith(".")}
    started = METRICS in names and names <= BEFORE_A_CHECKPOINT
    if has_checkpoint(out) or (resume is True and not started):
        found = load_last(out)
        state = found.checkpoint.state
        done = int(state["loader"].get("epoch", 0)), state["sets_seen"], state.get("elapsed_sec", 0.0)
        complete = is_complete(config.resumed(state["settings"], given=()), *done)
        if not resume and not complete:
            raise InputError(f"{out}: not empty; --resume continues the run in it, another --out starts a new one")
        if not resume:
            config.require_same(state["settings"])
        return Beginning(found, found.fallback, complete)
    if names and not started:
        raise InputError(f"{out}: not empty (it holds {min(names)}), and no run: another --out starts a new one")
    if not started:
        return Beginning(None, "", False)
    _remove_start(out)
    return Beginning(None, f"{out}: its run was stopped before the first checkpoint, and starts again", False)


def is_complete(config: Config, epoch: int, sets_seen: int, elapsed_sec: float) -> bool:
    """Whether a run with the settings of `config` is over after so many epochs, sets and seconds."""
    if config.epochs:
        return epoch >= config.epochs
    if config.sets:
        return sets_seen >= config.sets
    return elapsed_sec / 60 >= (config.minutes or 0)


def share_done(config: Config, steps: int, epoch_steps: int, sets_seen: int, elapsed_sec: float) -> float:
    """How much of a run is done, from 0 to 1, after so many steps, of which an epoch has `epoch_steps`."""
    if config.minutes:
        return min(1.0, elapsed_sec / 60 / config.minutes)
    if config.sets:
        return min(1.0, sets_seen / config.sets)
    return min(1.0, steps / ((config.epochs or 1) * epoch_steps))


def _remove_start(out: Path) -> None:
    """Remove what a new start would not write over; METRICS stays: by it the folder is known to be a run's."""
    for path in (out / CURVES, out / NEW_LAST, *(out / TENSORBOARD).glob(PATTERN)):
        path.unlink(missing_ok=True)
