"""Shards: the sets of one job, read, checked and written as one tar. Jobs know nothing of each other."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.images import BadImage, Picture, read_picture
from pipeline.index import ShardInfo, row_type
from pipeline.layouts import PARTS
from pipeline.sets import Problem, SetFiles
from pipeline.tar import Member, TarWriter


class ShardJob(NamedTuple):
    """The sets of one shard; they go to a worker as paths and come back as index rows."""

    source: str
    path: Path
    key_length: int
    verify: str
    sets: list[SetFiles]


class Shard(NamedTuple):
    """What became of a job; `rows` are those of index.npy, but for the shard's place in the manifest."""

    info: ShardInfo
    rows: NDArray[np.void]
    sizes: NDArray[np.int64]  # [2, parts, 2]: smallest and largest (height, width); empty without sets
    left_out: Counter[str]
    problems: list[Problem]


def write_shard(job: ShardJob) -> Shard:
    """Write one tar and its .idx. Sets with a bad picture are left out; if none is left, so is the shard."""
    written, places, sizes = list[SetFiles](), list[Member](), list[tuple[int, int]]()
    left_out, problems = Counter[str](), list[Problem]()
    with TarWriter(job.path) as writer:
        for files in job.sets:
            pictures, bad = read_set(job.source, files, job.verify)
            if bad:
                problems += bad
                left_out[bad[0].kind] += 1
                continue
            note = b'{"bg": %d, "fg": %d, "id": %d}' % (files.bg, files.fg, files.number)
            parts = [
                (f"{part}.{picture.extension}", picture.content) for part, picture in zip(PARTS, pictures, strict=True)
            ]
            places += writer.add(files.key, [*parts, ("json", note)])[: len(PARTS)]
            sizes += [picture.size for picture in pictures]
            written.append(files)
    if not written:
        job.path.unlink()
        job.path.with_suffix(".idx").unlink()
    info = ShardInfo(job.path.name, len(written), writer.bytes, writer.sha256)
    size_of = np.array(sizes).reshape(-1, len(PARTS), 2)
    ranges = np.stack([size_of.min(axis=0), size_of.max(axis=0)]) if written else size_of
    return Shard(info, index_rows(written, places, job.key_length), ranges, left_out, problems)


def index_rows(sets: list[SetFiles], places: list[Member], key_length: int) -> NDArray[np.void]:
    """The rows of index.npy for the sets of one shard; `places` has one entry a part."""
    rows = np.zeros(len(sets), row_type(key_length))
    rows["key"] = [files.key.encode() for files in sets]
    rows["bg"] = [files.bg for files in sets]
    rows["fg"] = [files.fg for files in sets]
    for name in ("offset", "size", "crc32"):
        rows[name] = np.array([getattr(place, name) for place in places]).reshape(-1, len(PARTS))
    return rows


def read_set(source: str, files: SetFiles, verify: str) -> tuple[list[Picture], list[Problem]]:
    """The pictures of a set, in the order of PARTS, and what is wrong with them."""
    pictures, problems = [], []
    for path in files.paths:
        try:
            pictures.append(read_picture(f"{source}/{path}", verify))
        except BadImage as error:
            problems.append(Problem(path, "undecodable", str(error)))
    if not problems and pictures[0].size != pictures[1].size:
        (overlay, mask) = (f"{width} x {height}" for height, width in (pictures[0].size, pictures[1].size))
        problems.append(Problem(files.paths[1], "mismatch", f"mask is {mask}, its overlay {overlay} pixels"))
    return pictures, problems
