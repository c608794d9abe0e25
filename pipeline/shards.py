"""Shards: the sets of one job, read, checked and written as one tar. Jobs know nothing of each other."""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.images import BadImage, Picture, read_picture
from pipeline.index import ShardInfo, row_type
from pipeline.layouts import PARTS
from pipeline.sets import Problem, SetFiles
from pipeline.tar import TarWriter


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
    sizes: NDArray[np.int64]  # [2, parts, 2]: smallest and largest (height, width)
    left_out: Counter[str]
    problems: list[Problem]


def write_shard(job: ShardJob) -> Shard:
    """Write one tar and its .idx. Sets with a bad picture are left out; if none is left, so is the shard."""
    rows = np.zeros(len(job.sets), row_type(job.key_length))
    sizes = np.zeros((len(job.sets), len(PARTS), 2), np.int64)
    left_out, problems, written = Counter[str](), list[Problem](), 0
    with TarWriter(job.path) as writer:
        for files in job.sets:
            pictures, bad = read_set(job.source, files, job.verify)
            if bad:
                problems += bad
                left_out[bad[0].kind] += 1
                continue
            note = json.dumps({"bg": files.bg, "fg": files.fg, "id": files.number}).encode()
            images = [
                (f"{part}.{picture.extension}", picture.content) for part, picture in zip(PARTS, pictures, strict=True)
            ]
            members = writer.add(files.key, [*images, ("json", note)])
            places = zip(*((member.offset, member.size, member.crc32) for member in members[: len(PARTS)]), strict=True)
            rows[written] = (files.key.encode(), files.bg, files.fg, 0, *places)
            sizes[written] = [picture.size for picture in pictures]
            written += 1
    if not written:
        job.path.unlink()
        job.path.with_suffix(".idx").unlink()
    info = ShardInfo(job.path.name, written, writer.bytes, writer.sha256)
    sizes = sizes[:written]
    ranges = np.stack([sizes.min(axis=0), sizes.max(axis=0)]) if written else sizes
    return Shard(info, rows[:written], ranges, left_out, problems)


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
