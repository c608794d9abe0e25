"""Packing: a folder of image sets -> a shard directory (format version 1).

Shards are independent jobs, so any number of worker processes writes the same bytes. Every picture is decoded once on
the way; what is bad is left out by name. The manifest is written last: without it a directory is not a data set.
"""

import csv
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.depth import ENCODINGS, NEAR, recognise_encoding
from pipeline.errors import InputError
from pipeline.files import atomic_file, filled_folder
from pipeline.images import VERIFY, BadImage, decode_rgb, read_picture
from pipeline.index import BACKGROUNDS, Background, Manifest, row_type, save_index
from pipeline.layouts import PARTS, SEED_DEPTH_RUN, set_key
from pipeline.order import Permutation
from pipeline.preview import write_preview
from pipeline.sets import Problem, Sets, find_sets
from pipeline.shards import Shard, ShardJob, write_shard
from pipeline.tar import TarWriter
from pipeline.workers import Workers, available_cores

DEPTH_SAMPLE = 16


@dataclass(frozen=True)
class PackOptions:
    """How to pack. Raises `InputError` for a value out of range."""

    seed: int = 0
    """Of the shuffle that makes any one shard a fair sample of the whole."""
    sets_per_shard: int = 1000
    """Sets in each tar but the last."""
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
    """Write the sets below `source` as shards into `shards`, a folder that is empty or not there yet.

    Raises `InputError` for a source without sets and for a target in use; whatever stops it, it leaves nothing behind.
    """
    start, progress = time.monotonic(), progress or Progress()
    with filled_folder(shards), Workers(options.workers) as workers:
        sets = find_sets(source, SEED_DEPTH_RUN, progress.files_found)
        bank = _write_backgrounds(source, shards, sets)
        _require(len(sets), source, sets)
        encoding = options.depth_encoding
        if encoding == "auto":
            encoding = recognise_encoding(_sample_depth(source, sets))
        progress.sets_found(len(sets))
        key_length = _key_length(sets)
        rows, packed, done = np.zeros(len(sets), row_type(key_length)), 0, list[Shard]()
        for result in workers.map(write_shard, _jobs(source, shards, sets, key_length, options)):
            sets.problems += result.problems
            sets.left_out += result.left_out
            if count := result.info.sets:
                rows[packed : packed + count] = result.rows
                rows["shard"][packed : packed + count] = len(done)
                done.append(result._replace(rows=result.rows[:0]))
            packed += count
            progress.sets_packed(count + result.left_out.total())
        _require(packed, source, sets)
        rows = rows[:packed]
        manifest = Manifest(
            sets=packed,
            foregrounds=len(np.unique(rows["fg"])),
            depth_encoding=encoding,
            depth_near=options.depth_near,
            sizes=_size_ranges(bank.sizes, [result.sizes for result in done]),
            shards=[result.info for result in done],
            backgrounds=bank.backgrounds,
            backgrounds_sha256=bank.sha256,
            index_sha256=save_index(shards, rows),
        )
        _write_problems(shards / "problems.csv", sets.problems)
        write_preview(shards, manifest)
        manifest.save(shards)
    return Summary(manifest, sets.left_out, len(sets.problems), time.monotonic() - start)


def _require(count: int, source: Path, sets: Sets) -> None:
    if not count:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in (+sets.left_out).items()) or "no overlay at all"
        example = f"; the first problem is {min(sets.problems).path}: {min(sets.problems).why}" if sets.problems else ""
        raise InputError(f"no usable set in {source}: {kinds}{example}")


class _Bank(NamedTuple):
    backgrounds: list[Background]
    sha256: str
    sizes: NDArray[np.int64]  # [backgrounds, 2]: height, width


def _write_backgrounds(source: Path, shards: Path, sets: Sets) -> _Bank:
    """Write backgrounds.tar; a background that is no picture is dropped from `sets`, with every set on it."""
    backgrounds, sizes = [], []
    with TarWriter(shards / BACKGROUNDS, index=False) as writer:
        for bg, path in list(sets.backgrounds.items()):
            try:
                picture = read_picture(f"{source}/{path}")
            except BadImage as error:
                sets.drop_background(bg, "undecodable", str(error))
                continue
            member = writer.add(f"bg_{bg:03}", [(f"bg.{picture.extension}", picture.content)])[0]
            backgrounds.append(Background(bg, member.offset, member.size, member.crc32))
            sizes.append(picture.size)
    return _Bank(backgrounds, writer.sha256, np.array(sizes).reshape(-1, 2))


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


def _key_length(sets: Sets) -> int:
    bg, fg, number = (int(value) for value in sets.ids.max(axis=0))
    return len(set_key(fg, bg, number))


def _jobs(source: Path, shards: Path, sets: Sets, key_length: int, options: PackOptions) -> Iterator[ShardJob]:
    """Deal the sets out to shards in shuffled order."""
    order = Permutation(len(sets), f"pack/{options.seed}")(np.arange(len(sets)))
    for shard, first in enumerate(range(0, len(order), options.sets_per_shard)):
        chosen = [sets[position] for position in order[first : first + options.sets_per_shard]]
        yield ShardJob(str(source), shards / f"sets-{shard:06}.tar", key_length, options.verify, chosen)


def _size_ranges(backgrounds: NDArray[np.int64], sets: list[NDArray[np.int64]]) -> dict[str, dict[str, list[int]]]:
    smallest = np.min([sizes[0] for sizes in sets], axis=0).tolist()
    largest = np.max([sizes[1] for sizes in sets], axis=0).tolist()
    ranges = {part: {"min": smallest[code], "max": largest[code]} for code, part in enumerate(PARTS)}
    return ranges | {"bg": {"min": backgrounds.min(axis=0).tolist(), "max": backgrounds.max(axis=0).tolist()}}


def _write_problems(path: Path, problems: list[Problem]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Problem._fields)
    table.writerows(sorted(problems))
    with atomic_file(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))
