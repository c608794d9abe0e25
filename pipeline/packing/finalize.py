"""Assemble: finished shards -> a shard directory: index, list of problems, preview and, last of all, the manifest."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Problem
from pipeline.format.images import Picture
from pipeline.format.manifest import BACKGROUNDS, Background, Manifest, ShardInfo, save_index, stored_members
from pipeline.format.sample import UNKNOWN
from pipeline.format.tar import Shard, TarWriter, load_shard
from pipeline.packing.preview import write_preview
from pipeline.resume import atomic_file


class Bank(NamedTuple):
    """backgrounds.tar, written."""

    backgrounds: list[Background]
    sha256: str
    sizes: NDArray[np.int64]  # [backgrounds, 2]: height, width


def write_bank(shards: Path, pictures: Iterable[tuple[int, Picture]]) -> Bank:
    """Write backgrounds.tar from (background id, picture), in this order."""
    backgrounds, sizes = [], []
    with TarWriter(shards / BACKGROUNDS, index=False) as writer:
        for bg, picture in pictures:
            member = writer.add(f"bg_{bg:03}", [(f"bg.{picture.extension}", picture.content)])[0]
            backgrounds.append(Background(bg, member.offset, member.size, member.crc32))
            sizes.append(picture.size)
    return Bank(backgrounds, writer.sha256, np.array(sizes).reshape(-1, 2))


class Tally(NamedTuple):
    """What the finished shards add up to, but for their rows, which stay in the notes."""

    infos: list[ShardInfo]
    sizes: list[NDArray[np.int64]]
    left_out: Counter[str]
    problems: list[Problem]

    @property
    def sets(self) -> int:
        """Sets in all shards."""
        return sum(info.sets for info in self.infos)


def note_path(notes: Path, shard: int) -> Path:
    """Where the note on shard number `shard` is kept (see `files.continued`)."""
    return notes / f"sets-{shard:06}.npz"


def shard_path(shards: Path, shard: int) -> Path:
    """The tar of shard number `shard`."""
    return shards / f"sets-{shard:06}.tar"


def done_shards(shards: Path, notes: Path, count: int) -> dict[int, int]:
    """Which of the shards 0 .. count - 1 are finished, and how many sets each has dealt with."""
    found = ((number, load_shard(note_path(notes, number), shards)) for number in range(count))
    return {number: shard.info.sets + shard.left_out.total() for number, shard in found if shard}


def finished_shards(shards: Path, notes: Path, count: int) -> Iterator[Shard]:
    """The shards 0 .. count - 1, one at a time: index rows are never all in memory."""
    for number in range(count):
        shard = load_shard(note_path(notes, number), shards)
        assert shard, "a note vanished while we worked"
        yield shard


def tally(shards: Path, notes: Path, count: int) -> Tally:
    """Add up the shards 0 .. count - 1, all of which are finished."""
    total = Tally([], [], Counter(), [])
    for shard in finished_shards(shards, notes, count):
        total.left_out.update(shard.left_out)
        total.problems.extend(shard.problems)
        if shard.info.sets:
            total.infos.append(shard.info)
            total.sizes.append(shard.sizes)
    return total


def assemble(
    shards: Path, notes: Path, count: int, total: Tally, bank: Bank, depth: tuple[str, str], codec: str = "jpeg"
) -> Manifest:
    """Write what belongs to the shards 0 .. count - 1; `depth` is (encoding, near end) of the manifest.

    The manifest comes last: without it a directory is no data set.
    """
    foregrounds = set[int]()

    def rows() -> Iterator[NDArray[np.void]]:
        with_sets = (shard for shard in finished_shards(shards, notes, count) if shard.info.sets)
        for place, shard in enumerate(with_sets):
            shard.rows["shard"] = place
            foregrounds.update(np.unique(shard.rows["fg"]).tolist())
            yield shard.rows

    index_sha256 = save_index(shards, total.sets, rows())
    manifest = Manifest(
        sets=total.sets,
        foregrounds=len(foregrounds - {UNKNOWN}),
        depth_encoding=depth[0],
        depth_near=depth[1],
        sizes=_size_ranges(stored_members(codec, depth[0]), bank.sizes, total.sizes),
        shards=total.infos,
        backgrounds=bank.backgrounds,
        backgrounds_sha256=bank.sha256,
        index_sha256=index_sha256,
        codec=codec,
    )
    write_problems(shards / "problems.csv", total.problems)
    write_preview(shards, manifest)
    manifest.save(shards)
    return manifest


def _size_ranges(
    members: Sequence[str], backgrounds: NDArray[np.int64], sets: list[NDArray[np.int64]]
) -> dict[str, dict[str, list[int]]]:
    smallest = np.min([sizes[0] for sizes in sets], axis=0).tolist()
    largest = np.max([sizes[1] for sizes in sets], axis=0).tolist()
    ranges = {name: {"min": low, "max": high} for name, low, high in zip(members, smallest, largest, strict=True)}
    return ranges | {"bg": {"min": backgrounds.min(axis=0).tolist(), "max": backgrounds.max(axis=0).tolist()}}


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write problems.csv: every file or set that was left out, and why."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Problem._fields)
    table.writerows(sorted(problems))
    with atomic_file(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))


def read_problems(path: Path) -> list[Problem]:
    """The rows of problems.csv; none if it is not there, or is none of ours."""
    try:
        with path.open(newline="", errors="surrogateescape") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error):
        return []
    return [Problem(*row) for row in rows if len(row) == len(header)] if tuple(header) == Problem._fields else []
