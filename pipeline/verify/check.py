"""Check: is every byte of a shard directory as it was packed, and does all of it belong together?

Each tar is read once, from its beginning to its end, in worker processes (`scan`), and compared with what the index,
its .idx, the manifest and, if asked for, the stock reader of `webdataset` say of it. Each difference is one line, which
names the file and the set.
"""

import hashlib
import json
import shutil
import tarfile
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.engines import LOCAL, require_engine, workers_of
from pipeline.errors import InputError
from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST, Manifest, ShardInfo, load_index
from pipeline.format.sample import PARTS, UNKNOWN
from pipeline.format.tar import BLOCK
from pipeline.parts import Part
from pipeline.resume import is_elsewhere
from pipeline.storage import Location, open_location, storage_of
from pipeline.verify.scan import WIDE, Rows, Scan, StoredPart, stored_background, stored_parts
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


def rows_of_shards(index: Rows, count: int) -> list[Rows]:
    """The rows of each of `count` shards, which follow each other, shard after shard (`load_index` has compared that).

    They are parts of `index`: where that is mapped, none of it is in memory.
    """
    bounds = np.searchsorted(index["shard"], range(count + 1)).tolist()
    return [index[first:end] for first, end in pairwise(bounds)]


def rows_of_backgrounds(manifest: Manifest) -> Rows:
    """The backgrounds of a manifest as if they were sets of one part."""
    none = [(0, 0, 0)] * (len(PARTS) - 1)
    places = [(one.offset, one.size, one.crc32) for one in manifest.backgrounds]
    rows = [
        (f"bg_{one.id:03}", 0, 0, 0, *zip(place, *none, strict=True))
        for one, place in zip(manifest.backgrounds, places, strict=True)
    ]
    return np.array(rows, WIDE)


def in_tar_order(rows: Rows) -> Rows:
    """Rows of one tar, in the order in which their sets lie in it."""
    return rows[np.argsort(rows["offset"][:, 0], kind="stable")]


def tar_damage(scan: Scan, info: ShardInfo, rows: Rows | None, parts: Sequence[str]) -> list[str]:
    """What is wrong with a tar.

    `info` is what the manifest has of it, `rows` are its rows of the index (None: the index cannot be used), `parts`
    the names of the members that have a place in them.
    """
    if rows is None:
        damage = [str(fault) for fault in scan.faults]
        if len(scan.entries) != info.sets and not damage:
            damage.append(f"it holds {plural(len(scan.entries), 'set')}, {info.sets:,} by the manifest")
    else:
        damage = _against_rows(scan, in_tar_order(rows).astype(WIDE), parts)
    if not damage and scan.total_bytes != info.bytes:
        damage.append(f"it has {scan.total_bytes:,} bytes, {info.bytes:,} by the manifest")
    if not damage and scan.sha256 != info.sha256:
        damage.append("its sha256 is not the manifest's, though no header and no CRC differs: a json, or another tar")
    return damage


def _against_rows(scan: Scan, indexed: Rows, parts: Sequence[str]) -> list[str]:
    """Faults of the tar, sets that it lacks, sets that have no row, and rows that say something else."""
    scanned = scan.rows(WIDE)
    if len(scanned) == len(indexed):
        scanned["shard"] = indexed["shard"]
        if not scan.faults and scanned.tobytes() == indexed.tobytes():
            return []
    rows = {row["key"].decode(): row for row in indexed}
    sets = {row["key"].decode(): row for row in scanned}
    if rows and not rows.keys() & {*sets, *(fault.key for fault in scan.faults)}:
        return [f"it holds none of its {plural(len(rows), 'set')}: it is another tar, or all of it is damaged"]
    damage = _named_faults(scan, rows, len(parts))
    faulty = {line.partition(":")[0] for line in damage}
    for key, row in rows.items():
        if key in sets:
            damage += [f"{key}: {why}" for why in _differences(row, sets[key], parts)]
        elif key not in faulty:
            damage.append(f"{key}: it is in the index, and not in the tar")
    damage += [f"{key}: it is in the tar, and has no row in the index" for key in sets if key not in rows]
    if len(sets) < len(scanned):
        damage.append(f"{len(scanned) - len(sets)} of its sets are in it twice")
    return damage


def _named_faults(scan: Scan, rows: dict[str, np.void], parts: int) -> list[str]:
    """The faults of a tar; that of a header named after the set whose member ought to be there."""
    owner = dict[int, str]()
    for key, row in rows.items():
        offsets = row["offset"][:parts].tolist()
        end = offsets[-1] + int(row["size"][parts - 1])
        owner |= dict.fromkeys([*(offset - BLOCK for offset in offsets), end + -end % BLOCK], key)
    named = {fault.key for fault in scan.faults}
    lines = []
    for fault in scan.faults:
        key = fault.key or owner.get(fault.offset, "")
        if fault.key or not key or key not in named:  # else the set is said to lack the member
            lines.append(f"{key}: {fault.what}" if key else fault.what)
            named.add(key)
    return lines


def _differences(row: np.void, found: np.void, parts: Sequence[str]) -> Iterator[str]:
    """How a row of the index differs from the set that was found."""
    for column, part in enumerate(parts):
        there, here = ([int(one[name][column]) for name in ("offset", "size", "crc32")] for one in (row, found))
        if there[:2] != here[:2]:
            yield f"{part} is at {here[0]:,} and has {here[1]:,} bytes; the index has {there[0]:,} and {there[1]:,}"
        elif there[2] != here[2]:
            yield f"{part} is damaged (CRC differs)"
    for name in ("bg", "fg"):
        if row[name] != found[name]:
            yield f"its json has {name} {found[name]}, the index {row[name]}"
    for name in ("offset", "size", "crc32"):
        if row[name][len(parts) :].any():
            yield f"the index has {name} {row[name].tolist()} for {len(parts)} parts"


def idx_damage(path: Location, expected: bytes) -> str:
    """What is wrong with a .idx; empty if nothing is."""
    try:
        lines = bytes(storage_of(path.parent).read(path.name, 0, len(expected) + 1)).split(b"\n")
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    expected_lines = expected.split(b"\n")
    if lines == expected_lines:
        return ""
    number = next(
        (n for n, pair in enumerate(zip(lines, expected_lines, strict=False)) if pair[0] != pair[1]),
        len(expected_lines),
    )
    return f"it is not that of its tar, from line {number + 1} on"


def stock_reader_damage(path: Path, rows: Rows, parts: Sequence[str]) -> Iterator[str]:
    """Read a shard through `webdataset.WebDataset`, and tell where what it sees is not what the index has."""
    import webdataset  # brings torch, which nothing else here needs

    expected, count = in_tar_order(rows), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the closing of files to the collector
        try:
            for sample in webdataset.WebDataset([str(path)], shardshuffle=False):
                if count == len(expected) or sample["__key__"].encode() != expected["key"][count]:
                    yield f"{sample['__key__']}: webdataset sees it where the index has another set, or none"
                    return
                if why := _sample_damage(sample, expected[count], parts):
                    yield f"{sample['__key__']}: webdataset sees {why}"
                count += 1
        except (tarfile.TarError, ValueError, OSError, EOFError) as error:
            yield f"webdataset cannot read it, after {plural(count, 'set')}: {error}"
            return
    if count < len(expected):
        yield f"webdataset sees {plural(count, 'set')} in it, the index {len(expected):,}"


def _sample_damage(sample: dict[str, Any], row: np.void, parts: Sequence[str]) -> str:
    members = {name.partition(".")[0]: content for name, content in sample.items() if not name.startswith("__")}
    if sorted(members) != sorted((*parts, "json")):
        return f"the members {', '.join(members)}"
    for column, part in enumerate(parts):
        if (len(members[part]), zlib.crc32(members[part])) != (row["size"][column], row["crc32"][column]):
            return f"another {part}"
    metadata = json.loads(members["json"])
    fg = UNKNOWN if metadata["fg"] is None else metadata["fg"]
    return "" if (metadata["bg"], fg) == (row["bg"], row["fg"]) else "another json"
