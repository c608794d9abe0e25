"""Check: is every byte of a shard directory as it was packed, and does all of it belong together?

Each tar is read once, from its beginning to its end, in worker processes; what is wrong is told by name.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST, Manifest, ShardInfo, load_index
from pipeline.verify.compare import Rows, idx_damage, rows_of_bank, rows_of_shards, stock_reader_damage, tar_damage
from pipeline.verify.scan import Scan
from pipeline.verify.stored import StoredPart, stored_background, stored_parts
from pipeline.workers import Workers, available_cores


@dataclass(frozen=True)
class CheckOptions:
    """How to check. Raises `InputError` for a value out of range."""

    decode: bool = False
    """Whether every picture is decoded; else its header is read."""
    stock_reader: bool = False
    """Whether the stock `webdataset` reader is asked for every set as well."""
    workers: int = field(default_factory=available_cores)
    """Processes; what is found does not depend on it."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"{self.workers} workers: there must be 1 or more")


class Report(NamedTuple):
    """What a check found."""

    manifest: Manifest
    damage: list[str]  # one line each, the file first
    bytes: int  # of the tars that were read
    seconds: float


class TarJob(NamedTuple):
    """A shard to check; it goes to a worker."""

    path: Path
    info: ShardInfo
    rows: Rows | None  # of the index; None if the index cannot be used
    parts: tuple[StoredPart, ...]
    options: CheckOptions


class Checked(NamedTuple):
    """What came of a shard."""

    damage: list[str]
    sets: int  # by the manifest
    bytes: int
    sizes: NDArray[np.int64] | None  # [2, parts, 2]: smallest and largest (height, width); None if sets are damaged


def check(shards: Path, options: CheckOptions, sets_checked: Callable[[int, int], None] | None = None) -> Report:
    """Compare everything in the shard directory `shards`; `sets_checked` is told (more, of all).

    Raises `InputError` if there is no manifest that can be read, or the directory is unfinished.
    """
    start = time.monotonic()
    manifest = Manifest.load(shards)
    damage = list(_manifest_damage(shards, manifest))
    with Workers(options.workers) as workers:
        index = None
        try:
            index = load_index(shards, manifest).view(np.ndarray)
            damage += _index_damage(manifest, index)
        except InputError as error:
            damage.append(str(error))
        bank = _check_bank(shards, manifest, options)
        damage += bank.damage
        sizes, total = list[NDArray[np.int64] | None](), bank.bytes
        for checked in workers.map(check_shard, _jobs(shards, manifest, index, options)):
            damage += checked.damage
            sizes.append(checked.sizes)
            total += checked.bytes
            if sets_checked:
                sets_checked(checked.sets, manifest.sets)
    damage += _size_damage(manifest, bank.sizes, sizes)
    return Report(manifest, damage, total, time.monotonic() - start)


def _manifest_damage(shards: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the manifest by itself, and what lies beside it that it does not know."""
    text = (shards / MANIFEST).read_text()
    if json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n" != text:
        yield f"{MANIFEST}: it is not as it was written (other blanks, order or spelling)"
    if (counted := sum(info.sets for info in manifest.shards)) != manifest.sets:
        yield f"{MANIFEST}: it has {manifest.sets:,} sets, and {counted:,} in its shards"
    known = {info.name for info in manifest.shards}
    if len(known) < len(manifest.shards):
        yield f"{MANIFEST}: it names a shard twice"
    for path in sorted((*shards.glob("sets-*.tar"), *shards.glob("sets-*.idx"))):
        if path.with_suffix(".tar").name not in known:
            yield f"{path.name}: it belongs to no shard of the manifest"


def _index_damage(manifest: Manifest, index: Rows) -> Iterator[str]:
    """What `load_index` has not compared: whether a set is there twice, and how many foregrounds there are."""
    keys, counts = np.unique(index["key"], return_counts=True)
    for key, count in zip(keys[counts > 1], counts[counts > 1], strict=True):
        yield f"{INDEX}: {key.decode()} is in it {count} times"
    if (found := len(np.unique(index["fg"]))) != manifest.foregrounds:
        yield f"{INDEX}: it has {found:,} foregrounds, the manifest {manifest.foregrounds:,}"


def _jobs(shards: Path, manifest: Manifest, index: Rows | None, options: CheckOptions) -> Iterator[TarJob]:
    parts = stored_parts(manifest.codec, manifest.parts)
    rows = [None] * len(manifest.shards) if index is None else rows_of_shards(index, len(manifest.shards))
    for info, of_shard in zip(manifest.shards, rows, strict=True):
        yield TarJob(shards / info.name, info, of_shard, parts, options)


def check_shard(job: TarJob) -> Checked:
    """Read one shard and compare it with its rows of the index, its .idx and the manifest."""
    name, sets = job.info.name, job.info.sets
    try:
        scan = Scan(job.path, job.parts, "decode" if job.options.decode else "header")
    except OSError as error:
        return Checked([f"{name}: it cannot be read ({error.strerror}); it held {sets:,} sets"], sets, 0, None)
    parts = [part.name for part in job.parts]
    damage = tar_damage(scan, job.info, job.rows, parts)
    if not damage and job.options.stock_reader and job.rows is not None:
        damage = list(stock_reader_damage(job.path, job.rows, parts))
    sizes = None if damage or not scan.entries else scan.size_ranges()
    damage = [f"{name}: {line}" for line in damage]
    idx = job.path.with_suffix(".idx")
    if scan.whole and (why := idx_damage(idx, scan.index)):
        damage.append(f"{idx.name}: {why}")
    return Checked(damage, sets, scan.total_bytes, sizes)


def _check_bank(shards: Path, manifest: Manifest, options: CheckOptions) -> Checked:
    """Read backgrounds.tar and compare it with the manifest."""
    part = stored_background(manifest.codec)
    try:
        scan = Scan(shards / BACKGROUNDS, [part], "decode" if options.decode else "header", notes=False)
    except OSError as error:
        return Checked([f"{BACKGROUNDS}: it cannot be read ({error.strerror}); every set needs it"], 0, 0, None)
    info = ShardInfo(BACKGROUNDS, len(manifest.backgrounds), scan.total_bytes, manifest.backgrounds_sha256)
    damage = tar_damage(scan, info, rows_of_bank(manifest), [part.name])
    sizes = None if damage or not scan.entries else scan.size_ranges()
    return Checked([f"{BACKGROUNDS}: {line}" for line in damage], 0, scan.total_bytes, sizes)


def _size_damage(
    manifest: Manifest, bank: NDArray[np.int64] | None, shards: list[NDArray[np.int64] | None]
) -> Iterator[str]:
    """Whether the manifest has the sizes of the pictures; nothing is said where one of them is damaged."""
    if bank is None or not shards or any(sizes is None for sizes in shards):
        return
    ranges = np.array(shards)
    found = dict(
        zip(manifest.members, zip(ranges[:, 0].min(axis=0), ranges[:, 1].max(axis=0), strict=True), strict=True)
    )
    found["bg"] = (bank[0, 0], bank[1, 0])
    sizes = {part: {"min": low.tolist(), "max": high.tolist()} for part, (low, high) in found.items()}
    if sizes != manifest.sizes:
        yield f"{MANIFEST}: it has the sizes {manifest.sizes}, the pictures {sizes}"
