"""Check: is every byte of a shard directory as it was packed, and does all of it belong together?

Each tar is read once, from its beginning to its end, in worker processes (`scan`), and compared with what the index,
its .idx, the manifest and, if asked for, the stock reader of `webdataset` say of it. Each difference is one line, which
names the file and the set.
"""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engines import LOCAL, require_engine, workers_of
from pipeline.errors import InputError
from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST, Manifest, ShardInfo, load_index
from pipeline.parts import Part
from pipeline.resume import is_elsewhere
from pipeline.storage import Location, open_location, storage_of
from pipeline.verify.damage import idx_damage, rows_of_backgrounds, rows_of_shards, stock_reader_damage, tar_damage
from pipeline.verify.scan import Rows, Scan, StoredPart, stored_background, stored_parts
from pipeline.words import plural


@dataclass(frozen=True)
class CheckOptions:
    """How to check. Raises `InputError` for a value out of range."""

    decode: bool = False
    """Whether every picture is decoded; else its header is read."""
    stock_reader: bool = False
    """Whether the stock `webdataset` reader is asked for every set as well."""
    workers: int | None = None
    """Processes; None: one a core, of the cluster's with an engine that is one. What is found is the same."""
    engine: str = LOCAL
    """Where they are: one of `engines.ENGINES`."""

    def __post_init__(self) -> None:
        require_engine(self.engine)
        if self.workers is not None and self.workers < 1:
            raise InputError(f"{self.workers} workers: there must be 1 or more")


class CheckReport(NamedTuple):
    """What a check found."""

    manifest: Manifest
    shards: int  # that were read, and the sets in them
    sets: int
    damage: list[str]  # one line each, the file first
    bytes: int  # of the tars that were read
    seconds: float


class CheckJob(NamedTuple):
    """A shard to check; it is sent to a worker."""

    path: Location
    info: ShardInfo
    rows: Rows | None  # of the index; None if the index cannot be used
    parts: tuple[StoredPart, ...]
    options: CheckOptions


class CheckedTar(NamedTuple):
    """The result for one tar."""

    damage: list[str]
    sets: int  # by the manifest
    bytes: int
    sizes: NDArray[np.int64] | None  # [2, parts, 2]: smallest and largest (height, width); None if sets are damaged


def check(
    shards: Location,
    options: CheckOptions,
    sets_checked: Callable[[int, int], None] | None = None,
    part: Part | None = None,
) -> CheckReport:
    """Compare everything in the shard directory `shards`; `sets_checked` is told (more, of all).

    Of several parts, each reads the shards of its own, and the first what lies beside them. Raises `InputError` if
    there is no manifest that can be read, or the directory is unfinished.
    """
    start = time.monotonic()
    manifest = Manifest.load(shards)
    beside, numbers = not part or part.number == 0, (part or Part(0, 1)).numbers(len(manifest.shards))
    damage = list(_manifest_damage(shards, manifest)) if beside else []
    own_sets = sum(manifest.shards[number].sets for number in numbers)
    with workers_of(options.engine, options.workers) as workers:
        index = None
        try:
            index = load_index(shards, manifest).view(np.ndarray)
            damage += _index_damage(manifest, index) if beside else []
        except InputError as error:
            damage.append(str(error))
        backgrounds = _check_backgrounds(shards, manifest, options) if beside else CheckedTar([], 0, 0, None)
        damage += backgrounds.damage
        sizes, total = list[NDArray[np.int64] | None](), backgrounds.bytes
        for checked in workers.map(check_shard, _jobs(shards, manifest, numbers, index, options)):
            damage += checked.damage
            sizes.append(checked.sizes)
            total += checked.bytes
            if sets_checked:
                sets_checked(checked.sets, own_sets)
    damage += _size_damage(manifest, backgrounds.sizes, sizes, whole=not part)
    return CheckReport(manifest, len(numbers), own_sets, damage, total, time.monotonic() - start)


def _manifest_damage(shards: Location, manifest: Manifest) -> Iterator[str]:
    """Damage of the manifest itself, and shard files that it does not name."""
    if hashlib.sha256(manifest.to_json().encode()).hexdigest() != manifest.sha256:
        yield f"{MANIFEST}: it is not as it was written (other blanks, order or spelling)"
    if (counted := sum(info.sets for info in manifest.shards)) != manifest.sets:
        yield f"{MANIFEST}: it has {plural(manifest.sets, 'set')}, and {counted:,} in its shards"
    if not isinstance(shards, Path):  # what only reads lists nothing: a web server may not be able to
        return
    known = {info.name for info in manifest.shards}
    for path in sorted((*shards.glob("sets-*.tar"), *shards.glob("sets-*.idx"))):
        if path.with_suffix(".tar").name not in known:
            yield f"{path.name}: it belongs to no shard of the manifest"


def _index_damage(manifest: Manifest, index: Rows) -> Iterator[str]:
    """Damage of the index that `load_index` does not see: a set that is in it twice, the number of foregrounds."""
    keys, counts = np.unique(index["key"], return_counts=True)
    for key, count in zip(keys[counts > 1], counts[counts > 1], strict=True):
        yield f"{INDEX}: {key.decode()} is in it {count} times"
    if (found := len(np.unique(index["fg"]))) != manifest.foregrounds:
        yield f"{INDEX}: it has {plural(found, 'foreground')}, the manifest {manifest.foregrounds:,}"


def _jobs(
    shards: Location, manifest: Manifest, numbers: Iterable[int], index: Rows | None, options: CheckOptions
) -> Iterator[CheckJob]:
    parts = stored_parts(manifest.codec, manifest.parts)
    rows = [None] * len(manifest.shards) if index is None else rows_of_shards(index, len(manifest.shards))
    for number in numbers:
        info = manifest.shards[number]
        yield CheckJob(shards / info.name, info, rows[number], parts, options)


def check_shard(job: CheckJob) -> CheckedTar:
    """Read one shard and compare it with its rows of the index, its .idx and the manifest."""
    name, sets = job.info.name, job.info.sets
    try:
        scan = Scan(job.path, job.parts, "decode" if job.options.decode else "header")
    except OSError as error:
        if is_elsewhere():
            storage_of(job.path.parent).stat(MANIFEST)  # a node that sees nothing of the folder has found no damage
        lost = f"{name}: it cannot be read ({error.strerror}); it held {plural(sets, 'set')}"
        return CheckedTar([lost], sets, 0, None)
    parts = [part.name for part in job.parts]
    damage = tar_damage(scan, job.info, job.rows, parts)
    if not damage and job.options.stock_reader and job.rows is not None:
        with _local_copy(job.path) as path:
            damage = list(stock_reader_damage(path, job.rows, parts))
    sizes = None if damage or not scan.entries else scan.size_ranges()
    damage = [f"{name}: {line}" for line in damage]
    idx = job.path.parent / f"{name.removesuffix('.tar')}.idx"
    if scan.whole and (why := idx_damage(idx, scan.index)):
        damage.append(f"{idx.name}: {why}")
    return CheckedTar(damage, sets, scan.total_bytes, sizes)


@contextmanager
def _local_copy(path: Location) -> Iterator[Path]:
    """A file of this machine: itself, or a copy for as long as it is needed."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="fgbg-check-") as folder, open_location(path) as stored:
        copy = Path(folder, path.name)
        with copy.open("wb") as file:
            shutil.copyfileobj(stored, file)
        yield copy


def _check_backgrounds(shards: Location, manifest: Manifest, options: CheckOptions) -> CheckedTar:
    """Read backgrounds.tar and compare it with the manifest."""
    part = stored_background(manifest.codec)
    try:
        scan = Scan(shards / BACKGROUNDS, [part], "decode" if options.decode else "header", has_json=False)
    except OSError as error:
        return CheckedTar([f"{BACKGROUNDS}: it cannot be read ({error.strerror}); every set needs it"], 0, 0, None)
    info = ShardInfo(BACKGROUNDS, len(manifest.backgrounds), scan.total_bytes, manifest.backgrounds_sha256)
    damage = tar_damage(scan, info, rows_of_backgrounds(manifest), [part.name])
    sizes = None if damage or not scan.entries else scan.size_ranges()
    return CheckedTar([f"{BACKGROUNDS}: {line}" for line in damage], 0, scan.total_bytes, sizes)


def _size_damage(
    manifest: Manifest,
    backgrounds: NDArray[np.int64] | None,
    shards: list[NDArray[np.int64] | None],
    *,
    whole: bool,
) -> Iterator[str]:
    """Whether the manifest has the sizes of the pictures; nothing is said where one of them is damaged.

    Those of a part, which is not `whole`, have to lie within it.
    """
    if (whole and backgrounds is None) or not shards or any(sizes is None for sizes in shards):
        return
    ranges = np.array(shards)
    ranges_found = dict(
        zip(manifest.members, zip(ranges[:, 0].min(axis=0), ranges[:, 1].max(axis=0), strict=True), strict=True)
    )
    if backgrounds is not None:
        ranges_found["bg"] = (backgrounds[0, 0], backgrounds[1, 0])
    sizes = {part: {"min": low.tolist(), "max": high.tolist()} for part, (low, high) in ranges_found.items()}
    limits = ((sizes[part], manifest.sizes[part]) for part in sizes)
    within = (np.all([np.less_equal(known["min"], found["min"]), np.less_equal(found["max"], known["max"])])
              for found, known in limits)  # fmt: skip
    if sizes != manifest.sizes if whole else not all(within):
        yield f"{MANIFEST}: it has the sizes {manifest.sizes}, the pictures {sizes}"
