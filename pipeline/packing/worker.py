"""Worker: what one process does of a packing: the sets of one shard, read, checked and written."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import InputError, Problem
from pipeline.format.planes import PLANES
from pipeline.format.sample import PARTS
from pipeline.format.tar import ShardWriter
from pipeline.packing.depth_files import DepthFiles
from pipeline.packing.join import SetFiles
from pipeline.packing.metadata import Metadata
from pipeline.packing.read_ahead import reading_ahead
from pipeline.packing.set_reader import SetReader, SetRules
from pipeline.packing.sources import FileSource
from pipeline.packing.target import ShardPlace

if TYPE_CHECKING:
    from pipeline.packing.encode_planes import PlanesJob


class ShardJob(NamedTuple):
    """The sets of one shard, as paths and places, and how they are to be written; it is sent to a worker."""

    sources: tuple[FileSource, ...]
    place: ShardPlace
    key_length: int
    verify: str
    sets: list[SetFiles]
    metadata: list[Metadata]  # of each set
    depth: DepthFiles | None
    rules: SetRules
    strict: bool
    planes: "PlanesJob | None"  # how to encode the sets as planes; None: pictures are stored as they came


class WorkTime(NamedTuple):
    """Time that workers took in all, and to check and convert pictures; seconds."""

    worker_sec: float
    decode_sec: float

    def plus(self, other: "WorkTime") -> "WorkTime":
        """The sum of two."""
        return WorkTime(self.worker_sec + other.worker_sec, self.decode_sec + other.decode_sec)


def require_clean(problems: Sequence[Problem]) -> None:
    """Raise `InputError` for the first of some problems, if there is any."""
    if problems:
        first = min(problems)
        count = f"{len(problems):,} problems, the first: " if len(problems) > 1 else ""
        remedy = "repair it, or pack without --strict, which leaves out what is bad"
        raise InputError(f"{count}{first.path}: {first.why} ({first.kind}); {remedy}")


def _other_files(files: SetFiles, problems: list[Problem]) -> list[Problem]:
    """The files of a set that is left out for `problems` of others of its files."""
    why = f"set {files.key} is left out for {problems[0].path}"
    bad = {problem.path for problem in problems}
    return [Problem(path, "incomplete", why) for path in files.paths if path not in bad]


def write_shard(job: ShardJob) -> tuple[int, WorkTime]:
    """Write one shard and its progress record; sets with a bad picture are left out.

    Returns how many sets were dealt with, and the time they took. Raises `InputError` for the first problem if the job
    is strict.
    """
    start, left_out, problems = time.perf_counter(), Counter[str](), list[Problem]()
    wanted = (file for files in job.sets for file in zip(files.paths, files.places, strict=True))
    with (
        reading_ahead(job.sources, wanted) as file_reader,
        ShardWriter(job.place.path, job.key_length, (PLANES,) if job.planes else PARTS) as writer,
    ):
        pictures_reader = SetReader(file_reader, job.verify, job.depth, job.rules)
        reader = job.planes.reader(pictures_reader) if job.planes else pictures_reader
        for files, metadata, read in zip(job.sets, job.metadata, reader.read_all(job.sets), strict=True):
            if job.strict:
                require_clean(read.problems or read.remarks)
            if read.problems:
                problems += read.problems + _other_files(files, read.problems)
                left_out[read.problems[0].kind] += 1
            else:
                problems += read.remarks
                writer.add((files.bg, files.fg, files.number), read.pictures, {**metadata, **read.metadata})
    job.place.save(writer.shard(left_out, problems))
    return len(job.sets), WorkTime(time.perf_counter() - start, reader.decode_sec)
