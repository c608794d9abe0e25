"""Packing: a folder of image sets -> a shard directory (format version 1).

Shards are independent jobs, so any number of worker processes writes the same bytes. Every picture is decoded once on
the way; what is bad is left out by name. The manifest is written last: without it a directory is not a data set.
"""

import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.assemble import Tally, assemble, done_shards, note_path, shard_path, tally, write_bank
from pipeline.depth import ENCODINGS, NEAR, NO_DEPTH, recognise_encoding
from pipeline.errors import InputError
from pipeline.files import continued, require_finished
from pipeline.images import VERIFY, BadImage, Picture, decode_rgb, read_picture
from pipeline.index import Manifest
from pipeline.layouts import PARTS, SEED_DEPTH_RUN, set_key
from pipeline.order import Permutation
from pipeline.sets import Problem, SetFiles, Sets, find_sets
from pipeline.shards import ShardWriter
from pipeline.tables import Note, Tables
from pipeline.workers import Workers, available_cores

DEPTH_SAMPLE = 16


@dataclass(frozen=True)
class PackOptions:
    """How to pack. Raises `InputError` for a value out of range."""

    seed: int = 0
    """Of the shuffle that makes any one shard a fair sample of the whole."""
    sets_per_shard: int = 1000
    """Sets in each tar but the last."""
    depth: bool = True
    """Whether the sets have depth; without, depth maps that are there are not packed."""
    depth_encoding: str = "auto"
    """"auto" looks at a sample; else one of `depth.ENCODINGS`."""
    depth_near: str = "bright"
    """The near end of the depth pictures' scalar: "bright" or "dark"."""
    verify: str = "decode"
    """How each picture is checked: "decode" or "header" (see `images.check_image`)."""
    workers: int = field(default_factory=available_cores)
    """Processes; the bytes written do not depend on it."""

    def __post_init__(self) -> None:
        if self.sets_per_shard < 1 or self.workers < 1:
            raise InputError(f"{self.sets_per_shard} sets a shard, {self.workers} workers: both must be 1 or more")
        if self.verify not in VERIFY:
            raise InputError(f"verify {self.verify!r}: expected one of {', '.join(VERIFY)}")
        if self.depth_encoding not in ("auto", *ENCODINGS) or self.depth_near not in NEAR:
            raise InputError(f"depth {self.depth_encoding}, near {self.depth_near}: expected {ENCODINGS} and {NEAR}")


class Progress(NamedTuple):
    """Whom a packing tells how far it is."""

    files_found: Callable[[int], None] = lambda total: None
    sets_found: Callable[[int], None] = lambda total: None
    sets_packed: Callable[[int], None] = lambda more: None


class Summary(NamedTuple):
    """What a packing did; `left_out` counts sets by kind, `problems` the rows of problems.csv."""

    manifest: Manifest
    left_out: Counter[str]
    problems: int
    seconds: float


def pack(source: Path, shards: Path, options: PackOptions, progress: Progress | None = None) -> Summary:
    """Write the sets below `source` as shards into `shards`, a folder that is new or empty but for hidden files.

    A packing that is stopped leaves its finished shards, from which the same call goes on to the same bytes. Raises
    `InputError` for a source without sets, a target in use, and a target with an unfinished packing of something else.
    """
    start, progress = time.monotonic(), progress or Progress()
    parts = PARTS if options.depth else PARTS[:-1]
    require_finished(source)
    with Workers(options.workers) as workers:
        sets = find_sets(source, SEED_DEPTH_RUN, progress.files_found, parts)
        _require(len(sets), source, sets)
        tables = Tables(source)
        with continued(shards, _arguments(options, sets, tables)) as notes:
            bank = write_bank(shards, _backgrounds(source, sets))
            _require(len(sets), source, sets)
            encoding = NO_DEPTH
            if options.depth:
                encoding = options.depth_encoding
                if encoding == "auto":
                    encoding = recognise_encoding(_sample_depth(source, sets))
            progress.sets_found(len(sets))
            count = -(-len(sets) // options.sets_per_shard)
            done = done_shards(shards, notes, count)
            progress.sets_packed(sum(done.values()))
            for packed in workers.map(write_shard, _jobs(source, shards, notes, sets, tables, options, done)):
                progress.sets_packed(packed)
            total = tally(shards, notes, count)
            total.left_out.update(sets.left_out)
            total.problems.extend(sets.problems)
            _require(total.sets, source, total)
            manifest = assemble(shards, notes, count, total, bank, (encoding, options.depth_near))
    return Summary(manifest, total.left_out, len(total.problems), time.monotonic() - start)


def _arguments(options: PackOptions, sets: Sets, tables: Tables) -> dict[str, object]:
    """What decides the bytes of a packing, for `files.continued`."""
    decisive = {name: value for name, value in asdict(options).items() if name != "workers"}
    return {"command": "fgbg-pack", **decisive, "source": sets.fingerprint(), "tables": tables.fingerprint()}


def _require(count: int, source: Path, found: Sets | Tally) -> None:
    if not count:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in (+found.left_out).items()) or "no overlay at all"
        first = min(found.problems, default=None)
        example = f"; the first problem is {first.path}: {first.why}" if first else ""
        if first and first.why.endswith("has no depth"):
            example += "; add it with fgbg-depth, or pack without: --no-depth"
        raise InputError(f"no usable set in {source}: {kinds}{example}")


def _backgrounds(source: Path, sets: Sets) -> Iterator[tuple[int, Picture]]:
    """The backgrounds by id; one that is no picture is dropped from `sets`, with every set on it."""
    for bg, path in list(sets.backgrounds.items()):
        try:
            yield bg, read_picture(f"{source}/{path}")
        except BadImage as error:
            sets.drop_background(bg, "undecodable", str(error))


def _sample_depth(source: Path, sets: Sets) -> list[tuple[str, NDArray[np.uint8]]]:
    pictures = []
    for position in np.unique(np.linspace(0, len(sets) - 1, DEPTH_SAMPLE).astype(np.int64)):
        path = sets[position].paths[PARTS.index("depth")]
        try:
            pictures.append((path, decode_rgb(read_picture(f"{source}/{path}").content)))
        except BadImage as error:
            unreadable = f"{path}: {error}"
    if not pictures:
        raise InputError(f"none of {DEPTH_SAMPLE} sampled depth maps can be used: {unreadable}")
    return pictures


class ShardJob(NamedTuple):
    """The sets of one shard; they go to a worker as paths."""

    source: str
    path: Path
    note: Path
    key_length: int
    verify: str
    sets: list[SetFiles]
    notes: list[Note]  # what is known of each


def _jobs(
    source: Path,
    shards: Path,
    notes: Path,
    sets: Sets,
    tables: Tables,
    options: PackOptions,
    done: Container[int],
) -> Iterator[ShardJob]:
    """Deal the sets out to shards in shuffled order."""
    bg, fg, number = (int(value) for value in sets.ids.max(axis=0))
    key_length = len(set_key(fg, bg, number))
    order = Permutation(len(sets), f"pack/{options.seed}")(np.arange(len(sets)))
    for shard, first in enumerate(range(0, len(order), options.sets_per_shard)):
        if shard not in done:
            chosen = [sets[position] for position in order[first : first + options.sets_per_shard]]
            note = note_path(notes, shard)
            known = tables.find([files.key for files in chosen])
            yield ShardJob(str(source), shard_path(shards, shard), note, key_length, options.verify, chosen, known)


def write_shard(job: ShardJob) -> int:
    """Write one shard and its note; sets with a bad picture are left out. Returns how many sets were dealt with."""
    left_out, problems = Counter[str](), list[Problem]()
    with ShardWriter(job.path, job.key_length) as writer:
        for files, known in zip(job.sets, job.notes, strict=True):
            pictures, bad = read_set(job.source, files, job.verify)
            if bad:
                problems += bad
                left_out[bad[0].kind] += 1
            else:
                writer.add((files.bg, files.fg, files.number), pictures, known)
    writer.shard(left_out, problems).save(job.note)
    return len(job.sets)


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
