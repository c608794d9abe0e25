"""Parts of a run: its jobs dealt out to processes, on any machines, that share nothing but the place they write to.

Part I of N does the jobs I, I + N, I + 2 N and so on, by their numbers. The first part that begins keeps the arguments
of the run and N in that place; the others must have the same. A part is done when its jobs have their progress records.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.locks import STALE_SEC, AtWork, held, locked
from pipeline.resume import (
    ARGUMENTS,
    COMPLETE,
    PARTS,
    UNFINISHED,
    Arguments,
    keep_arguments,
    remove_results,
    require_incomplete,
    require_unfinished_with,
    require_unused,
    unfinished_run,
)

LOCKS = ".part-"
"""Beginning of a folder in that of the progress records, in which the process of a part has its lock."""
MADE = ".made"
"""File beside it, where the parts have made the folder of the run."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Part `number` of `of` parts, from 0 on. Raises `InputError` if there is no such part."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise InputError(f"part {self}: expected I/N with I from 0 to N - 1, as 0/8")

    @classmethod
    def parse(cls, text: str) -> "Part":
        """A part as users give it: I/N."""
        if not (found := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)):
            raise InputError(f"part {text}: expected I/N with I from 0 to N - 1, as 0/8")
        return cls(int(found[1]), int(found[2]))

    def numbers(self, count: int) -> range:
        """Which of the jobs 0 .. count - 1 are its own."""
        return range(self.number, count, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


class PartDone(NamedTuple):
    """What one part of a run has done."""

    part: Part
    jobs: int
    """Its own."""
    earlier: int
    """Those of them that were done already."""
    all_jobs: int
    """Of all parts."""


def require_parts(place: object, done: Container[int], count: int, of: int, jobs: str = "shards") -> None:
    """Raise `InputError` unless all `jobs` 0 .. count - 1 of a run in `of` parts are done; it names the parts."""
    if missing := [job for job in range(count) if job not in done]:
        lacking = sorted({job % of for job in missing})
        which = f"part{'s'[: len(lacking) - 1]} {_ranges(lacking)}"
        raise InputError(
            f"{place}: {len(missing):,} of {count:,} {jobs} are missing, of {which} (I of --part I/{of}): "
            "wait for them, or give them again, then --finish"
        )


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as Slurm takes them for --array: "0,3-5"."""
    text, first = "", 0
    for place, number in enumerate(numbers):
        if place + 1 == len(numbers) or numbers[place + 1] != number + 1:
            text += f",{numbers[first]}" + (f"-{number}" if place > first else "")
            first = place + 1
    return text[1:]


def with_parts(
    place: object, arguments: Mapping[str, object], begun: Arguments | None, *, complete: bool
) -> dict[str, object]:
    """The arguments by which `--finish` goes on with the parts that were begun in a place with `begun`.

    Those of a place that is `complete` are as they are given. Raises `InputError` if there are no parts.
    """
    parts = (begun or {}).get(PARTS)
    if isinstance(parts, int) and parts > 0:
        return {**arguments, PARTS: parts}
    if complete:
        return dict(arguments)
    raise InputError(f"{place} holds no parts to finish: write them first, with --part 0/N to N-1/N and these flags")


def parts_to_finish(arguments: Mapping[str, object]) -> int:
    """In how many parts a run with some arguments, see `with_parts`, was written; 0 if it is none of parts."""
    parts = arguments.get(PARTS, 0)
    assert isinstance(parts, int)
    return parts


@contextmanager
def resumable_part(
    folder: Path,
    arguments: Mapping[str, object],
    part: Part,
    result: Callable[[], str],
    newest_ns: int = 0,
) -> Iterator[Path]:
    """Do one part of a long run in `folder`, beside other parts; see `resume.resumable` for a run that has no parts.

    Yields the hidden folder for the progress records of all parts, which stay. Raises what `resumable` does, where the
    folder holds anything else than other parts of the same run, and `InputError` while the same part is at work. The
    lock that it may have left on a machine that was lost is waited for, see `locked`.
    """
    own = folder / UNFINISHED / f"{LOCKS}{part.number:06}"
    wanted = json.loads(json.dumps({**arguments, PARTS: part.of}))

    def require_ours() -> Arguments | None:
        if begun := unfinished_run(folder):
            require_unfinished_with(folder, begun, wanted, folder)
        return begun

    require_incomplete(folder, wanted, result, newest_ns)
    require_ours()
    with suppress(FileNotFoundError), locked(own, patience_sec=STALE_SEC, say=log.warning):
        pass  # waited for here, while others may have the folder
    with ExitStack() as working:
        with held(folder, patience_sec=STALE_SEC, also_here=True, say=log.warning) as is_new:
            if not require_ours():
                require_incomplete(folder, wanted, result, newest_ns)  # it was finished meanwhile
                require_unused(folder)
                own.parent.mkdir(exist_ok=True)
                if is_new:
                    (own.parent / MADE).touch()
                (folder / COMPLETE).unlink(missing_ok=True)  # of results that were removed
                keep_arguments(own.parent / ARGUMENTS, wanted)
            own.mkdir(exist_ok=True)
            working.enter_context(locked(own))
        try:
            yield folder / UNFINISHED
        except BaseException as error:
            working.close()
            _leave(folder, error)
            raise


def _leave(folder: Path, error: BaseException) -> None:
    """After an error: if no part has done anything, and none is at work, let the folder be as before."""
    records, is_made = folder / UNFINISHED, False
    with suppress(AtWork, FileNotFoundError), held(folder):  # another one begins, or has finished
        if any(not entry.name.startswith(".") and entry.name != ARGUMENTS for entry in records.iterdir()):
            error.add_note(f"what is done is kept in {folder}: the same command continues it")
            return
        require_idle(records)
        is_made = (records / MADE).exists()
        shutil.rmtree(records)
        remove_results(folder, existed=not is_made)
    if is_made:
        with suppress(OSError):  # another part begins there
            folder.rmdir()


def require_idle(records: Path) -> None:
    """Raise `InputError` while a part is at work."""
    for folder in sorted(records.glob(f"{LOCKS}*")):
        with locked(folder):
            pass
