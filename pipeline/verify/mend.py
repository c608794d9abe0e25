"""Mend: one tar without what is damaged in it. The damaged tar is put aside first, and never lost."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import Problem
from pipeline.format.tar import TarWriter
from pipeline.resume import atomic_file
from pipeline.verify.compare import WIDE, Rows, idx_damage
from pipeline.verify.scan import Entry, Scan
from pipeline.verify.stored import StoredPart

KIND = "damaged"  # of problems


class Checksums(NamedTuple):
    """What is known of a tar from elsewhere."""

    sha256: str  # of all of it; empty if that is not known
    rows: Rows  # of its entries, of which keys and CRCs are used; empty if they are not known


NOTHING_KNOWN = Checksums("", np.array([], WIDE))


class Mended(NamedTuple):
    """A tar in which all is well, and what was left out of it."""

    scan: Scan | None  # None: nothing was left, there is no tar
    problems: list[Problem]
    verified: bool  # False: there may be damage that no checksum told, in a picture that decodes or in a json


def mend(
    path: Path,
    aside: Path,
    parts: Sequence[StoredPart],
    known: Checksums,
    refuse: Callable[[Entry], str],
    *,
    sets: bool = True,
) -> Mended:
    """Read the tar at `path`, and write it anew if sets in it are damaged or `refuse` says why one cannot stay.

    It is moved to `aside` before that, from where another call takes it up. Without `sets` the entries are backgrounds:
    they have no json, and the tar no .idx. Raises `OSError` if the tar cannot be read.
    """
    scan = Scan(aside if aside.exists() else path, parts, "decode", notes=sets)
    as_packed = scan.sha256 == known.sha256
    left_out = _damaged(scan, known.rows[:0] if as_packed else known.rows, parts)
    left_out |= {entry.key: why for entry in scan.entries if entry.key not in left_out and (why := refuse(entry))}
    problems = [Problem(f"{path.name}/{key}" if key else path.name, KIND, why) for key, why in sorted(left_out.items())]
    verified = as_packed or (len(known.rows) > 0 and len(problems) > 0)
    if problems or scan.faults:
        entries = [entry for entry in scan.entries if entry.key not in left_out]
        if not aside.exists():
            path.replace(aside)
        if not entries:
            path.with_suffix(".idx").unlink(missing_ok=True)
            return Mended(None, problems, verified)
        _copy(aside, path, entries, index=sets)
        scan = Scan(path, parts, "header", notes=sets)
    elif sets and idx_damage(path.with_suffix(".idx"), scan.index):
        with atomic_file(path.with_suffix(".idx")) as file:
            file.write(scan.index)
    return Mended(scan, problems, verified)


def _damaged(scan: Scan, rows: Rows, parts: Sequence[StoredPart]) -> dict[str, str]:
    """Why entries cannot stay, by their keys; what is wrong with the tar itself has none."""
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
    with source.open("rb") as file, TarWriter(target, index=index) as writer:
        for entry in entries:
            contents = [(name, os.pread(file.fileno(), size, offset)) for name, offset, size in entry.members]
            writer.add(entry.key, contents)
