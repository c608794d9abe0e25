"""Repair: rebuild the index, the .idx files and the manifest of a shard directory from its tars.

Of undamaged tars that gives the same bytes again. A shard with damaged sets is written anew without these, by name; the
damaged tar stays beside it, as sets-000002.tar.damaged. A repair that is stopped is continued by the same call.
"""

import hashlib
import json
import re
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pipeline.errors import InputError, Problem
from pipeline.files import ReadFile, open_file, read_file
from pipeline.format.depth import HOLES_KEY, NEAR, NO_DEPTH, STORED, WITH_HOLES
from pipeline.format.index_rows import row_type
from pipeline.format.manifest import (
    BACKGROUNDS,
    MANIFEST,
    TAR_NAME,
    Background,
    Manifest,
    ShardInfo,
    load_index,
    read_manifest,
)
from pipeline.format.planes import PLANES
from pipeline.format.sample import PARTS, UNKNOWN, set_key
from pipeline.format.tar import Shard, TarWriter, load_shard
from pipeline.packing.finalize import BackgroundsTar, finalize, read_problems
from pipeline.packing.target import Target
from pipeline.regular_files import open_regular
from pipeline.resume import COMPLETE, UNFINISHED, atomic_file, require_finished, resumable, unfinished_run
from pipeline.storage import Folder
from pipeline.verify.damage import idx_damage, rows_of_backgrounds, rows_of_shards
from pipeline.verify.scan import WIDE, Entry, Rows, Scan, StoredPart, background_id, stored_background, stored_parts
from pipeline.workers import Workers

COMMAND = "fgbg-check --repair-index"
DAMAGED_SUFFIX = ".damaged"  # appended to the name of a tar that was written anew
KIND = "damaged"  # of problems


class Checksums(NamedTuple):
    """What the old manifest and the old index know of a tar."""

    sha256: str  # of all of it; empty if that is not known
    rows: Rows  # of its entries, of which keys and CRCs are used; empty if they are not known


NO_CHECKSUMS = Checksums("", np.array([], WIDE))


class RepairedTar(NamedTuple):
    """A tar without damage, and what was left out of it."""

    scan: Scan | None  # None: nothing was left, there is no tar
    problems: list[Problem]
    verified: bool  # False: there may be damage that no checksum told, in a picture that decodes or in a json


class RepairReport(NamedTuple):
    """What a repair did."""

    manifest: Manifest
    damaged: list[Problem]  # what was left out of the tars, and is listed in problems.csv
    unverified: int  # shards of this run that may hold damage which no checksum told
    seconds: float


class RepairJob(NamedTuple):
    """A tar whose rows and .idx are to be rebuilt from its contents; it is sent to a worker."""

    path: Path
    record: Path
    backup: Path  # where its tar is put if it is damaged
    parts: tuple[StoredPart, ...]
    checksums: Checksums
    backgrounds: frozenset[int] | None  # that sets may be on; None: it is backgrounds.tar itself


def repair(
    shards: Path,
    depth_encoding: str | None = None,
    depth_near: str | None = None,
    *,
    workers: int = 1,
    tars_read: Callable[[int, int], None] | None = None,
) -> RepairReport:
    """Rebuild index.npy, the .idx files and manifest.json of `shards`; `tars_read` is told (more, of all).

    How depth without holes is encoded the tars do not tell: it is taken from the old manifest, as far as it can be
    read, where it is not given. Checksums of the old manifest and index, where these are whole, tell damage that still
    decodes. Raises `InputError` if there is nothing to repair, a tar is missing that nothing can replace, or the
    encoding is not known.
    """
    start = time.monotonic()
    arguments = {"command": COMMAND, "depth": [depth_encoding, depth_near]}
    if (begun := unfinished_run(shards)) and begun["command"] != COMMAND:
        require_finished(shards)  # a run of another command must be finished by that command
    if not any(shards.glob("sets-*.tar")) and not (shards / UNFINISHED).exists():
        raise InputError(f"there are no sets-*.tar in {shards}: nothing can be rebuilt; copy them, or pack again")
    with resumable(shards, arguments, fresh=False) as records, Workers(workers) as pool:
        names = _names(shards, records / ".names.json")  # hidden: it is no progress record
        old = _OldManifest(shards)
        codec, parts = _stored(shards, records, names)
        has_holes = _has_holes(shards, records, names)
        depth = _depth(old.text, codec, parts, (depth_encoding, depth_near), has_holes)
        backgrounds, damaged = _repair_backgrounds(shards, records, codec, old.checksums.get(BACKGROUNDS, NO_CHECKSUMS))
        target = Target(shards, records)
        done = target.done(len(names))
        unverified = 0
        jobs = _jobs(target, names, stored_parts(codec, parts), backgrounds, old, done)
        for verified in pool.map(run_job, jobs):
            unverified += not verified
            if tars_read:
                tars_read(1, len(names) - len(done))
        _unify_keys(target, len(names), old.key_length, len(stored_parts(codec, parts)))
        total = target.tally(len(names))
        if not total.sets:
            raise InputError(f"no set in {shards} is whole: copy its tars again, or pack again")
        damaged += total.problems
        damaged += [
            Problem(name, KIND, "it is in the manifest, and missing")
            for name in sorted({*old.checksums} - {BACKGROUNDS, *names})
        ]
        for idx in shards.glob("sets-*.idx"):
            if not idx.with_suffix(".tar").exists():
                idx.unlink()
        total.problems[:] = {*damaged, *read_problems(shards / "problems.csv")}
        manifest = finalize(target, len(names), total, backgrounds, depth, codec, **old.optional)
        for path in records.glob("*.tar"):
            path.replace(shards / f"{path.name}{DAMAGED_SUFFIX}")
        if damaged:
            (shards / COMPLETE).unlink(missing_ok=True)  # what was packed is no longer there in full
    return RepairReport(manifest, damaged, unverified, time.monotonic() - start)


def _names(shards: Path, record: Path) -> list[str]:
    """The tars of sets that were there when the repair began: their positions number the records."""
    if not record.exists():
        with atomic_file(record) as file:
            file.write(json.dumps(sorted(path.name for path in shards.glob("sets-*.tar"))).encode())
    try:
        names = msgspec.json.decode(read_file(record, open_regular), type=list[str])
    except ValueError as error:
        raise InputError(f"{record} is damaged ({error}): remove {record.parent}, then repair again") from None
    if wrong := next((name for name in names if not re.search(TAR_NAME, name)), None):
        raise InputError(f"no shard can be called {wrong!r}: rename it, as sets-000001.tar, or take it away")
    return names


def _jobs(
    target: Target,
    names: list[str],
    parts: tuple[StoredPart, ...],
    backgrounds: BackgroundsTar,
    old: "_OldManifest",
    done: Container[int],
) -> Iterator[RepairJob]:
    ids = frozenset(background.id for background in backgrounds.backgrounds)
    for number, name in enumerate(names):
        if number not in done:
            checksums = old.checksums.get(name, NO_CHECKSUMS)
            path, backup = target.folder / name, target.records / name
            yield RepairJob(path, target.place(number).record, backup, parts, checksums, ids)


class _OldManifest:
    """What can still be read of the old manifest and index."""

    def __init__(self, shards: Path) -> None:
        self.text = ""
        with suppress(OSError, InputError):
            self.text = read_manifest(Folder(shards)).decode(errors="replace")
        self.checksums = dict[str, Checksums]()  # of each tar
        self.optional = dict[str, Any]()  # fields that came after version 1
        self.key_length = 0
        try:
            manifest = Manifest.load(shards)
        except InputError:
            return
        self.optional = manifest.optional
        none = NO_CHECKSUMS.rows
        self.checksums = {info.name: Checksums(info.sha256, none) for info in manifest.shards}
        self.checksums[BACKGROUNDS] = Checksums(manifest.backgrounds_sha256, rows_of_backgrounds(manifest))
        with suppress(InputError):
            index = load_index(shards, manifest).view(np.ndarray)
            self.key_length = index.dtype["key"].itemsize
            for info, rows in zip(manifest.shards, rows_of_shards(index, len(manifest.shards)), strict=True):
                self.checksums[info.name] = Checksums(info.sha256, rows)


def _stored(shards: Path, records: Path, names: list[str]) -> tuple[str, tuple[str, ...]]:
    """Codec and parts of the sets, as most of the first tar with sets has them."""
    paths = [folder / name for name in names for folder in (shards, records) if (folder / name).exists()]
    for path in paths:
        lines = Scan(path, (), "header").index.decode().splitlines()[1:]
        [(extensions, _)] = Counter(tuple(line.split(" ")[::4]) for line in lines).most_common(1) or [((), 0)]
        names_found = tuple(extension.partition(".")[0] for extension in extensions[:-1])
        if names_found == (PLANES,):
            # Three planes and two never are the same number of bytes, whatever their size.
            return PLANES, PARTS if Scan(path, stored_parts(PLANES, PARTS), "header").entries else PARTS[:-1]
        if names_found in (PARTS, PARTS[:-1]):
            return "jpeg", names_found
    raise InputError(f"no set in {shards} is whole: copy its tars again, or pack again")


def _has_holes(shards: Path, records: Path, names: list[str]) -> bool:
    """Whether the json of the first set that has one says that its depth has holes (see `depth.HOLES_KEY`)."""
    for path in (folder / name for name in names for folder in (shards, records)):
        with (
            suppress(OSError, tarfile.TarError, ValueError, RecursionError, TypeError),
            open_file(path, open_regular) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member in tar:
                if member.name.endswith(".json") and (note := tar.extractfile(member)):
                    return HOLES_KEY in json.loads(note.read())
    return False


def _depth(
    text: str, codec: str, parts: tuple[str, ...], given: Sequence[str | None], has_holes: bool
) -> tuple[str, str]:
    """Encoding and near end of depth: as `given`, else as the old manifest's `text` has them, damaged as it may be.

    That it `has_holes` the tars tell, too.
    """
    stated = [re.search(rf'"depth_{name}": "([\w-]+)"', text) for name in ("encoding", "near")]
    encoding, near = (flag or (found and found[1]) for flag, found in zip(given, stated, strict=True))
    if encoding is None and has_holes:
        encoding, near = WITH_HOLES, "bright"
    if codec == PLANES:
        encoding, near = encoding if encoding == WITH_HOLES else "gray", "bright"
    if "depth" not in parts:
        return NO_DEPTH, near if near in NEAR else NEAR[0]
    if encoding not in STORED or near not in NEAR:
        raise InputError(
            f"{MANIFEST} no longer tells how depth is encoded, and the tars do not: state it, --depth-encoding "
            f"({', '.join(STORED)}) and --depth-near ({', '.join(NEAR)})"
        )
    return encoding, near


def _repair_backgrounds(
    shards: Path, records: Path, codec: str, checksums: Checksums
) -> tuple[BackgroundsTar, list[Problem]]:
    """Repair backgrounds.tar: what it holds now, and what was left out."""
    path, record = shards / BACKGROUNDS, records / "backgrounds.npz"
    if not load_shard(record, shards):
        try:
            run_job(RepairJob(path, record, records / BACKGROUNDS, (stored_background(codec),), checksums, None))
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}), and nothing replaces it: copy it again"
            ) from error
    shard = load_shard(record, shards)
    if not shard or not shard.info.sets:
        raise InputError(f"no background in {path} is whole, and nothing replaces them: copy it again")
    places = np.stack([shard.rows[name][:, 0] for name in ("offset", "size", "crc32")], axis=1).tolist()
    ids = [bg for key in shard.rows["key"].tolist() if (bg := background_id(key.decode())) is not None]
    if len(ids) < len(places):
        raise InputError(f"{records} holds no records of a repair: remove it, then repair again")
    if twice := [bg for bg, count in Counter(ids).items() if count > 1]:
        raise InputError(f"background {twice[0]} is in {path} twice, and nothing tells which is right: copy it again")
    backgrounds = [Background(bg, *place) for bg, place in zip(ids, places, strict=True)]
    return BackgroundsTar(backgrounds, shard.info.sha256, shard.sizes[:, 0]), shard.problems


def run_job(job: RepairJob) -> bool:
    """Repair a tar and write its .idx and its progress record; return whether it was verified (see `RepairedTar`)."""

    def refuse(entry: Entry) -> str:
        bg = entry.numbers[0]
        lacks = job.backgrounds is not None and bg not in job.backgrounds
        return f"its background {bg} is not in {BACKGROUNDS}" if lacks else ""

    sets = job.backgrounds is not None
    if sets and not job.path.exists() and not job.backup.exists():  # taken away since an earlier call began
        scan, problems, verified = RepairedTar(None, [], True)
    else:
        scan, problems, verified = repair_tar(job.path, job.backup, job.parts, job.checksums, refuse, sets=sets)
    if scan:
        info = ShardInfo(job.path.name, len(scan.entries), scan.total_bytes, scan.sha256)
        shard = Shard(info, scan.rows(WIDE), scan.size_ranges(), Counter(), problems)
    else:
        none = ShardInfo(job.path.name, 0, 0, hashlib.sha256().hexdigest())
        shard = Shard(none, np.array([], WIDE), np.array([]), Counter(), problems)
    shard.save(job.record)
    return verified


def _unify_keys(target: Target, count: int, key_length: int, columns: int) -> None:
    """Give the rows of all records the key length of the index; raise `InputError` if a set is in them twice."""
    seen, largest = dict[bytes, str](), np.full(3, UNKNOWN)
    for shard in target.finished(count):
        for key in shard.rows["key"].tolist():
            if key in seen:
                raise InputError(f"{key.decode()} is in {seen[key]} and in {shard.info.name}: take one of them away")
            seen[key] = shard.info.name
        ends = [key.rpartition(b"_")[2] for key in shard.rows["key"].tolist()]
        if not all(end.removeprefix(b"-").isdigit() for end in ends) or (ends and shard.sizes.shape[1] != columns):
            raise InputError(f"{target.records} holds no records of a repair: remove it, then repair again")
        numbers = [int(end) for end in ends]
        for column, values in enumerate((shard.rows["bg"], shard.rows["fg"], np.array(numbers, np.int64))):
            largest[column] = max(largest[column], values.max(initial=UNKNOWN))
    bg, fg, number = largest.tolist()
    key_length = max(key_length or len(set_key(fg, bg, number)), max(map(len, seen), default=1))
    for place, shard in enumerate(target.finished(count)):
        shard._replace(rows=shard.rows.astype(row_type(key_length))).save(target.place(place).record)


def repair_tar(
    path: Path,
    backup: Path,
    parts: Sequence[StoredPart],
    checksums: Checksums,
    refuse: Callable[[Entry], str],
    *,
    sets: bool = True,
) -> RepairedTar:
    """Read the tar at `path`, and write it anew if sets in it are damaged or `refuse` says why one cannot stay.

    It is moved to `backup` before that, from where another call takes it up. Without `sets` the entries are
    backgrounds: they have no json, and the tar no .idx. Raises `OSError` if the tar cannot be read.
    """
    scan = Scan(backup if backup.exists() else path, parts, "decode", has_json=sets)
    as_packed = scan.sha256 == checksums.sha256
    left_out = _damaged(scan, checksums.rows[:0] if as_packed else checksums.rows, parts)
    left_out |= {entry.key: why for entry in scan.entries if entry.key not in left_out and (why := refuse(entry))}
    problems = [Problem(f"{path.name}/{key}" if key else path.name, KIND, why) for key, why in sorted(left_out.items())]
    verified = as_packed or (len(checksums.rows) > 0 and len(problems) > 0)
    if problems or scan.faults:
        entries = [entry for entry in scan.entries if entry.key not in left_out]
        if not backup.exists():
            path.replace(backup)
        if not entries:
            path.with_suffix(".idx").unlink(missing_ok=True)
            return RepairedTar(None, problems, verified)
        _copy(backup, path, entries, index=sets)
        scan = Scan(path, parts, "header", has_json=sets)
    elif sets and idx_damage(path.with_suffix(".idx"), scan.index):
        with atomic_file(path.with_suffix(".idx")) as file:
            file.write(scan.index)
    return RepairedTar(scan, problems, verified)


def _damaged(scan: Scan, rows: Rows, parts: Sequence[StoredPart]) -> dict[str, str]:
    """Why entries cannot stay, by their keys; the key "" stands for faults that belong to no entry."""
    whole = {entry.key: entry for entry in scan.entries}
    # A fault in one that is whole lies in what fills its last block, and goes away when it is written anew.
    why = {fault.key: fault.what for fault in scan.faults if fault.key not in whole}
    for name, wanted in zip(rows["key"].tolist(), rows["crc32"].tolist(), strict=True):
        key = name.decode()
        if key in whole:
            columns = zip(parts, whole[key].places, wanted, strict=False)
            if bad := [part.name for part, place, crc in columns if place.crc32 != crc]:
                why[key] = f"{', '.join(bad)} is damaged (CRC differs)"
        elif key not in why:
            why[key] = "it was packed, and is not in the tar"
    return why


def _copy(source: Path, target: Path, entries: Sequence[Entry], *, index: bool) -> None:
    file = ReadFile(source, open_regular)
    with TarWriter(target, index=index) as writer:
        for entry in entries:
            contents = [(name, file.read(size, offset)) for name, offset, size in entry.members]
            writer.add(entry.key, contents)
