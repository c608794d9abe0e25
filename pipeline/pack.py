"""Packing: a folder of image sets -> a shard directory (format version 1).

Shards are independent jobs, so any number of worker processes writes the same bytes. Every picture is decoded once on
the way; what is bad is left out by name. The manifest is written last: without it a directory is not a data set.
"""

import csv
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.depth import ENCODINGS, NEAR, depth_table, recognise_encoding
from pipeline.errors import InputError
from pipeline.files import atomic_file, filled_folder
from pipeline.images import VERIFY, BadImage, check_image, decode_gray, decode_rgb
from pipeline.index import BACKGROUNDS, Background, Manifest, ShardInfo, load_index, row_type, save_index
from pipeline.layouts import PARTS, SEED_DEPTH_RUN, set_key
from pipeline.order import Permutation
from pipeline.preview import contact_sheet
from pipeline.sets import Problem, SetFiles, Sets, find_sets
from pipeline.shards import ShardWriter
from pipeline.store import Store
from pipeline.workers import map_in_order

DEPTH_SAMPLE, PREVIEW_ROWS = 16, 8


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
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
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
    sets = find_sets(source, SEED_DEPTH_RUN, progress.files_found)
    with filled_folder(shards):
        bank = _write_backgrounds(source, shards, sets)
        _require(len(sets), source, sets)
        encoding = options.depth_encoding
        if encoding == "auto":
            encoding = recognise_encoding(_sample_depth(source, sets))
        progress.sets_found(len(sets))
        done: list[_Shard] = []
        jobs = _jobs(source, shards, sets, options)
        with closing(map_in_order(_write_shard, jobs, options.workers)) as results:
            for result in results:
                progress.sets_packed(len(result.rows) + result.left_out.total())
                sets.problems += result.problems
                sets.left_out += result.left_out
                if len(result.rows):
                    result.rows["shard"] = len(done)
                    done.append(result)
        _require(len(done), source, sets)
        rows = np.concatenate([result.rows for result in done])
        manifest = Manifest(
            sets=len(rows),
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
        _write_preview(shards, manifest)
        manifest.save(shards)
    return Summary(manifest, sets.left_out, len(sets.problems), time.monotonic() - start)


def _require(count: int, source: Path, sets: Sets) -> None:
    if not count:
        example = min(sets.problems)
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in (+sets.left_out).items()) or "no overlay at all"
        raise InputError(f"no usable set in {source}: {kinds}; the first problem is {example.path}: {example.why}")


class _Picture(NamedTuple):
    extension: str
    content: bytes
    size: tuple[int, int]  # height, width


class _Bank(NamedTuple):
    backgrounds: list[Background]
    sha256: str
    sizes: NDArray[np.int64]  # [backgrounds, 2]: height, width


def _write_backgrounds(source: Path, shards: Path, sets: Sets) -> _Bank:
    """Write backgrounds.tar; a background that is no picture is dropped from `sets`, with every set on it."""
    backgrounds, sizes = [], []
    with ShardWriter(shards / BACKGROUNDS, index=False) as writer:
        for bg, path in list(sets.backgrounds.items()):
            try:
                picture = _read_picture(str(source), path)
            except BadImage as error:
                sets.drop_background(bg, "undecodable", str(error))
                continue
            member = writer.add(f"bg_{bg:03}", [(f"bg.{picture.extension}", picture.content)])[0]
            backgrounds.append(Background(bg, member.offset, member.size, member.crc32))
            sizes.append(picture.size)
    return _Bank(backgrounds, writer.sha256, np.array(sizes).reshape(-1, 2))


def _read_picture(source: str, path: str, verify: str = "decode") -> _Picture:
    """Read and check a picture; raise `BadImage` if that fails."""
    try:
        with open(f"{source}/{path}", "rb", buffering=0) as file:  # noqa: PTH123 - four times as fast as Path.read_bytes
            content = file.read()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error
    extension, height, width = check_image(content, verify)
    return _Picture(extension, content, (height, width))


def _sample_depth(source: Path, sets: Sets) -> list[tuple[str, NDArray[np.uint8]]]:
    pictures = []
    for position in np.unique(np.linspace(0, len(sets) - 1, DEPTH_SAMPLE).astype(np.int64)):
        path = sets[position].paths[PARTS.index("depth")]
        try:
            pictures.append((path, decode_rgb(_read_picture(str(source), path).content)))
        except BadImage as error:
            unreadable = f"{path}: {error}"
    if not pictures:
        raise InputError(f"none of {DEPTH_SAMPLE} sampled depth maps can be used: {unreadable}")
    return pictures


class _Job(NamedTuple):
    """The sets of one shard; they go to a worker as paths and come back as index rows."""

    source: str
    path: Path
    key_length: int
    verify: str
    sets: list[SetFiles]


class _Shard(NamedTuple):
    info: ShardInfo
    rows: NDArray[np.void]
    sizes: NDArray[np.int64]  # [2, parts, 2]: smallest and largest (height, width)
    left_out: Counter[str]
    problems: list[Problem]


def _jobs(source: Path, shards: Path, sets: Sets, options: PackOptions) -> Iterator[_Job]:
    """Deal the sets out to shards in shuffled order."""
    order = Permutation(len(sets), f"pack/{options.seed}")(np.arange(len(sets)))
    bg, fg, number = (int(value) for value in sets.ids.max(axis=0))
    key_length = len(set_key(fg, bg, number))
    for shard, first in enumerate(range(0, len(order), options.sets_per_shard)):
        chosen = [sets[position] for position in order[first : first + options.sets_per_shard]]
        yield _Job(str(source), shards / f"sets-{shard:06}.tar", key_length, options.verify, chosen)


def _write_shard(job: _Job) -> _Shard:
    """Write one tar and its .idx. Sets with a bad picture are left out; if none is left, so is the shard."""
    rows = np.zeros(len(job.sets), row_type(job.key_length))
    sizes = np.zeros((len(job.sets), len(PARTS), 2), np.int64)
    left_out, problems, written = Counter[str](), list[Problem](), 0
    with ShardWriter(job.path) as writer:
        for files in job.sets:
            pictures, bad = _read_set(job.source, files, job.verify)
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
    return _Shard(info, rows[:written], ranges, left_out, problems)


def _read_set(source: str, files: SetFiles, verify: str) -> tuple[list[_Picture], list[Problem]]:
    """The pictures of a set, in the order of PARTS, and what is wrong with them."""
    pictures, problems = [], []
    for path in files.paths:
        try:
            pictures.append(_read_picture(source, path, verify))
        except BadImage as error:
            problems.append(Problem(path, "undecodable", str(error)))
    if not problems and pictures[0].size != pictures[1].size:
        (overlay, mask) = (f"{width} x {height}" for height, width in (pictures[0].size, pictures[1].size))
        problems.append(Problem(files.paths[1], "mismatch", f"mask is {mask}, its overlay {overlay} pixels"))
    return pictures, problems


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


def _write_preview(shards: Path, manifest: Manifest) -> None:
    """Draw the first sets as they lie in the shards, read back through the index; depth as nearness."""
    index = load_index(shards, manifest)
    store, table = Store(shards, manifest, index), depth_table(manifest.depth_encoding, manifest.depth_near)
    backgrounds = {background.id: background for background in manifest.backgrounds}
    rows = []
    for row in range(min(PREVIEW_ROWS, manifest.sets)):
        bg = store.read_background(backgrounds[int(index["bg"][row])])
        fg_bg, mask, depth = (bytes(part) for part in store.read(row))
        pictures = [decode_rgb(bytes(bg)), decode_rgb(fg_bg), decode_rgb(mask), table[decode_gray(depth)]]
        rows.append((store.key(row), pictures))
    store.close()
    with atomic_file(shards / "preview.jpg") as file:
        contact_sheet(("bg", "fg_bg", "mask", "depth (near = bright)"), rows).save(file, "JPEG", quality=90)
