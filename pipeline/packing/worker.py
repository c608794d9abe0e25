"""A worker's part of a packing: the sets of one shard, read, checked and written."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import InputError, Problem
from pipeline.format.planes import PLANES
from pipeline.format.sample import PARTS
from pipeline.format.tar import ShardWriter
from pipeline.packing.depth_files import DepthFiles
from pipeline.packing.join import SetFiles
from pipeline.packing.metadata import Note
from pipeline.packing.set_reader import SetReader
from pipeline.packing.sources import Reader, Source

if TYPE_CHECKING:
    from pipeline.packing.encode_planes import PlanesJob


class ShardJob(NamedTuple):
    """The sets of one shard; they go to a worker as paths and places."""

    sources: tuple[Source, ...]
    path: Path
    note: Path
    key_length: int
    verify: str
    sets: list[SetFiles]
    notes: list[Note]  # what is known of each
    depth: DepthFiles | None
    strict: bool
    planes: "PlanesJob | None"  # if they are to be stored as such


class Clock(NamedTuple):
    """What workers took in all, and to check and convert pictures; seconds."""

    worker_sec: float
    decode_sec: float

    def plus(self, other: "Clock") -> "Clock":
        """Both together."""
        return Clock(self.worker_sec + other.worker_sec, self.decode_sec + other.decode_sec)


def require_clean(problems: Sequence[Problem]) -> None:
    """Raise `InputError` for the first of some problems, if there is any."""
    if problems:
        first = min(problems)
        count = f"{len(problems):,} problems, the first: " if len(problems) > 1 else ""
        remedy = "mend it, or pack without --strict, which leaves out what is bad"
        raise InputError(f"{count}{first.path}: {first.why} ({first.kind}); {remedy}")


def _named_with(files: SetFiles, bad: list[Problem]) -> list[Problem]:
    """The other files of a set that is left out for some of its files."""
    why = f"set {files.key} is left out for {bad[0].path}"
    return [Problem(path, "incomplete", why) for path in files.paths if path not in {problem.path for problem in bad}]


def write_shard(job: ShardJob) -> tuple[int, Clock]:
    """Write one shard and its note; sets with a bad picture are left out. Returns how many sets were dealt with.

    Raises `InputError` for the first problem if the job is strict.
    """
    start, left_out, problems = time.perf_counter(), Counter[str](), list[Problem]()
    pictures_reader = SetReader(Reader(job.sources), job.verify, job.depth)
    reader = job.planes.reader(pictures_reader) if job.planes else pictures_reader
    with ShardWriter(job.path, job.key_length, (PLANES,) if job.planes else PARTS) as writer:
        for files, known, read in zip(job.sets, job.notes, reader.read_all(job.sets), strict=True):
            pictures, depth_note, bad, findings = read
            if job.strict:
                require_clean(bad or findings)
            if bad:
                problems += bad + _named_with(files, bad)
                left_out[bad[0].kind] += 1
            else:
                problems += findings
                writer.add((files.bg, files.fg, files.number), pictures, {**known, **depth_note})
    writer.shard(left_out, problems).save(job.note)
    return len(job.sets), Clock(time.perf_counter() - start, reader.decode_sec)
