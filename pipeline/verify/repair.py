"""Repair: rebuild what belongs to the tars of a shard directory, the index, the .idx files and the manifest, from them.

Of undamaged tars that gives the same bytes again. A shard with damaged sets is written anew without these, by name; the
damaged tar stays beside it, as sets-000002.tar.damaged. A repair that is stopped is continued by the same call.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import InputError, Problem
from pipeline.format.depth import ENCODINGS, NEAR, NO_DEPTH
from pipeline.format.manifest import BACKGROUNDS, MANIFEST, Background, Manifest, ShardInfo, load_index, row_type
from pipeline.format.planes import PLANES
from pipeline.format.sample import PARTS, UNKNOWN, set_key
from pipeline.format.tar import Shard, load_shard
from pipeline.packing.finalize import Bank, assemble, done_shards, finished_shards, note_path, read_problems, tally
from pipeline.resume import ARGUMENTS, UNFINISHED, atomic_file, continued, require_finished
from pipeline.verify.compare import WIDE, rows_of_bank, rows_of_shards
from pipeline.verify.mend import KIND, NOTHING_KNOWN, Checksums, Mended, mend
from pipeline.verify.scan import Entry, Scan
from pipeline.verify.stored import StoredPart, stored_background, stored_parts
from pipeline.workers import Workers

COMMAND = "fgbg-check --repair-index"
ASIDE = ".damaged"  # appended to the name of a tar that was written anew


class Report(NamedTuple):
    """What a repair did."""

    manifest: Manifest
    damaged: list[Problem]  # what was left out of the tars, and is listed in problems.csv
    unverified: int  # shards of this run that may hold damage which no checksum told
    seconds: float


class TarJob(NamedTuple):
    """A tar whose rows and .idx are to be made from what is in it; it goes to a worker."""

    path: Path
    note: Path
    aside: Path  # where its tar is put if it is damaged
    parts: tuple[StoredPart, ...]
    known: Checksums
    backgrounds: frozenset[int] | None  # that sets may be on; None: it is backgrounds.tar itself


def repair(
    shards: Path,
    depth_encoding: str | None = None,
    depth_near: str | None = None,
    *,
    workers: int = 1,
    tars_read: Callable[[int, int], None] | None = None,
) -> Report:
    """Rebuild index.npy, the .idx files and manifest.json of `shards`; `tars_read` is told (more, of all).

    How depth is encoded the tars do not tell: it is taken from the old manifest, as far as it can be read, where it is
    not given. Checksums of the old manifest and index, where these are whole, tell damage that still decodes. Raises
    `InputError` if there is nothing to repair, a tar is missing that nothing can replace, or the encoding is not known.
    """
    start = time.monotonic()
    arguments = {"command": COMMAND, "depth": [depth_encoding, depth_near]}
    with suppress(OSError):
        if json.loads((shards / UNFINISHED / ARGUMENTS).read_text())["command"] != COMMAND:
            require_finished(shards)  # what another command has begun, that one shall end
    if not any(shards.glob("sets-*.tar")) and not (shards / UNFINISHED).exists():
        raise InputError(f"there are no sets-*.tar in {shards}: nothing can be rebuilt; copy them, or pack again")
    with continued(shards, arguments, fresh=False) as notes, Workers(workers) as pool:
        names = _names(shards, notes / ".names.json")  # hidden: it is no piece that is done
        old = _Old(shards)
        codec, parts = _stored(shards, notes, names)
        depth = _depth(old.text, codec, parts, (depth_encoding, depth_near))
        bank, damaged = _mend_bank(shards, notes, codec, old.known.get(BACKGROUNDS, NOTHING_KNOWN))
        done = done_shards(shards, notes, len(names))
        unverified = 0
        for verified in pool.map(mend_tar, _jobs(shards, notes, names, stored_parts(codec, parts), bank, old, done)):
            unverified += not verified
            if tars_read:
                tars_read(1, len(names) - len(done))
        _settle_rows(shards, notes, len(names), old.key_length)
        total = tally(shards, notes, len(names))
        if not total.sets:
            raise InputError(f"no set in {shards} is whole: copy its tars again, or pack again")
        damaged += total.problems
        damaged += [
            Problem(name, KIND, "it is in the manifest, and missing")
            for name in sorted({*old.known} - {BACKGROUNDS, *names})
        ]
        for idx in shards.glob("sets-*.idx"):
            if not idx.with_suffix(".tar").exists():
                idx.unlink()
        total.problems[:] = {*damaged, *read_problems(shards / "problems.csv")}
        manifest = assemble(shards, notes, len(names), total, bank, depth, codec)
        for path in notes.glob("*.tar"):
            path.replace(shards / f"{path.name}{ASIDE}")
    return Report(manifest, damaged, unverified, time.monotonic() - start)


def _names(shards: Path, note: Path) -> list[str]:
    """The tars of sets that were there when the repair began: their positions number the notes."""
    if not note.exists():
        with atomic_file(note) as file:
            file.write(json.dumps(sorted(path.name for path in shards.glob("sets-*.tar"))).encode())
    names: list[str] = json.loads(note.read_bytes())
    return names


def _jobs(
    shards: Path,
    notes: Path,
    names: list[str],
    parts: tuple[StoredPart, ...],
    bank: Bank,
    old: "_Old",
    done: Container[int],
) -> Iterator[TarJob]:
    backgrounds = frozenset(background.id for background in bank.backgrounds)
    for number, name in enumerate(names):
        if number not in done:
            known = old.known.get(name, NOTHING_KNOWN)
            yield TarJob(shards / name, note_path(notes, number), notes / name, parts, known, backgrounds)


class _Old:
    """What the old manifest and index still tell."""

    def __init__(self, shards: Path) -> None:
        path = shards / MANIFEST
        self.text = path.read_bytes().decode(errors="replace") if path.exists() else ""
        self.known = dict[str, Checksums]()  # of each tar
        self.key_length = 0
        try:
            manifest = Manifest.load(shards)
        except InputError:
            return
        none = NOTHING_KNOWN.rows
        self.known = {info.name: Checksums(info.sha256, none) for info in manifest.shards}
        self.known[BACKGROUNDS] = Checksums(manifest.backgrounds_sha256, rows_of_bank(manifest))
        with suppress(InputError):
            index = load_index(shards, manifest).view(np.ndarray)
            self.key_length = index.dtype["key"].itemsize
            for info, rows in zip(manifest.shards, rows_of_shards(index, len(manifest.shards)), strict=True):
                self.known[info.name] = Checksums(info.sha256, rows)


def _stored(shards: Path, notes: Path, names: list[str]) -> tuple[str, tuple[str, ...]]:
    """Codec and parts of the sets, as most of the first tar with sets has them."""
    paths = [folder / name for name in names for folder in (shards, notes) if (folder / name).exists()]
    for path in paths:
        lines = Scan(path, (), "header").index.decode().splitlines()[1:]
        [(extensions, _)] = Counter(tuple(line.split(" ")[::4]) for line in lines).most_common(1) or [((), 0)]
        found = tuple(extension.partition(".")[0] for extension in extensions[:-1])
        if found == (PLANES,):
            # Three planes and two never are the same number of bytes, whatever their size.
            return PLANES, PARTS if Scan(path, stored_parts(PLANES, PARTS), "header").entries else PARTS[:-1]
        if found in (PARTS, PARTS[:-1]):
            return "jpeg", found
    raise InputError(f"no set in {shards} is whole: copy its tars again, or pack again")


def _depth(text: str, codec: str, parts: tuple[str, ...], given: Sequence[str | None]) -> tuple[str, str]:
    """Encoding and near end of depth: as `given`, else as the old manifest's `text` has them, damaged as it may be."""
    stated = [re.search(rf'"depth_{name}": "(\w+)"', text) for name in ("encoding", "near")]
    encoding, near = (flag or (found and found[1]) for flag, found in zip(given, stated, strict=True))
    if codec == PLANES:
        encoding, near = "gray", "bright"
    if "depth" not in parts:
        return NO_DEPTH, near if near in NEAR else NEAR[0]
    if encoding not in ENCODINGS or near not in NEAR:
        raise InputError(
            f"{MANIFEST} no longer tells how depth is encoded, and the tars do not: state it, --depth-encoding "
            f"({', '.join(ENCODINGS)}) and --depth-near ({', '.join(NEAR)})"
        )
    return encoding, near


def _mend_bank(shards: Path, notes: Path, codec: str, known: Checksums) -> tuple[Bank, list[Problem]]:
    """backgrounds.tar, without what is damaged in it."""
    path, note = shards / BACKGROUNDS, notes / "backgrounds.npz"
    if not load_shard(note, shards):
        try:
            mend_tar(TarJob(path, note, notes / BACKGROUNDS, (stored_background(codec),), known, None))
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}), and nothing replaces it: copy it again"
            ) from error
    bank = load_shard(note, shards)
    if not bank or not bank.info.sets:
        raise InputError(f"no background in {path} is whole, and nothing replaces them: copy it again")
    places = np.stack([bank.rows[name][:, 0] for name in ("offset", "size", "crc32")], axis=1).tolist()
    ids = [int(key.removeprefix(b"bg_")) for key in bank.rows["key"].tolist()]
    backgrounds = [Background(bg, *place) for bg, place in zip(ids, places, strict=True)]
    return Bank(backgrounds, bank.info.sha256, bank.sizes[:, 0]), bank.problems


def mend_tar(job: TarJob) -> bool:
    """Make a tar's .idx and the note on its rows, without what is damaged in it; tell whether it was verified."""

    def refuse(entry: Entry) -> str:
        bg = entry.numbers[0]
        lacks = job.backgrounds is not None and bg not in job.backgrounds
        return f"its background {bg} is not in {BACKGROUNDS}" if lacks else ""

    sets = job.backgrounds is not None
    if sets and not job.path.exists() and not job.aside.exists():  # taken away since an earlier call began
        scan, problems, verified = Mended(None, [], True)
    else:
        scan, problems, verified = mend(job.path, job.aside, job.parts, job.known, refuse, sets=sets)
    if scan:
        info = ShardInfo(job.path.name, len(scan.entries), scan.total_bytes, scan.sha256)
        shard = Shard(info, scan.rows(WIDE), scan.size_ranges(), Counter(), problems)
    else:
        shard = Shard(ShardInfo(job.path.name, 0, 0, ""), np.array([], WIDE), np.array([]), Counter(), problems)
    shard.save(job.note)
    return verified


def _settle_rows(shards: Path, notes: Path, count: int, key_length: int) -> None:
    """Give the rows of all notes the key length of the index; raise `InputError` if a set is in them twice."""
    seen, largest = dict[bytes, str](), np.full(3, UNKNOWN)
    for shard in finished_shards(shards, notes, count):
        for key in shard.rows["key"].tolist():
            if key in seen:
                raise InputError(f"{key.decode()} is in {seen[key]} and in {shard.info.name}: take one of them away")
            seen[key] = shard.info.name
        numbers = [int(key.rpartition(b"_")[2]) for key in shard.rows["key"].tolist()]
        for column, values in enumerate((shard.rows["bg"], shard.rows["fg"], np.array(numbers, np.int64))):
            largest[column] = max(largest[column], values.max(initial=UNKNOWN))
    bg, fg, number = largest.tolist()
    key_length = max(key_length or len(set_key(fg, bg, number)), max(map(len, seen), default=1))
    for place, shard in enumerate(finished_shards(shards, notes, count)):
        shard._replace(rows=shard.rows.astype(row_type(key_length))).save(note_path(notes, place))
