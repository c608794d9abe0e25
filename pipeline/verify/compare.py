"""Compare: one scanned tar with what the index, its .idx, the manifest and a stock reader say of it.

What differs is one line each, the set's key first.
"""

import json
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.format.manifest import Manifest, ShardInfo, row_type
from pipeline.format.sample import PARTS
from pipeline.format.tar import BLOCK
from pipeline.verify.scan import Scan

Rows = NDArray[np.void]
WIDE = row_type(100)  # no name in a tar is longer


def rows_of_shards(index: Rows, count: int) -> list[Rows]:
    """The rows of each of `count` shards."""
    order = np.argsort(index["shard"], kind="stable")
    bounds = np.searchsorted(index["shard"][order], range(count + 1)).tolist()
    return [index[order[first:end]] for first, end in pairwise(bounds)]


def rows_of_bank(manifest: Manifest) -> Rows:
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
            damage.append(f"it holds {len(scan.entries):,} sets, {info.sets:,} by the manifest")
    else:
        damage = _against_rows(scan, in_tar_order(rows).astype(WIDE), parts)
    if not damage and scan.total_bytes != info.bytes:
        damage.append(f"it has {scan.total_bytes:,} bytes, {info.bytes:,} by the manifest")
    if not damage and scan.sha256 != info.sha256:
        damage.append("its sha256 is not the manifest's, though no header and no CRC differs: a json, or another tar")
    return damage


def _against_rows(scan: Scan, wanted: Rows, parts: Sequence[str]) -> list[str]:
    """Faults of the tar, sets that it lacks, sets that have no row, and rows that say something else."""
    found = scan.rows(WIDE)
    if len(found) == len(wanted):
        found["shard"] = wanted["shard"]
        if not scan.faults and found.tobytes() == wanted.tobytes():
            return []
    rows = {row["key"].decode(): row for row in wanted}
    sets = {row["key"].decode(): row for row in found}
    if rows and not rows.keys() & {*sets, *(fault.key for fault in scan.faults)}:
        return [f"it holds none of its {len(rows):,} sets: it is another tar, or all of it is damaged"]
    damage = _named_faults(scan, rows, len(parts))
    faulty = {line.partition(":")[0] for line in damage}
    for key, row in rows.items():
        if key in sets:
            damage += [f"{key}: {why}" for why in _differences(row, sets[key], parts)]
        elif key not in faulty:
            damage.append(f"{key}: it is in the index, and not in the tar")
    damage += [f"{key}: it is in the tar, and has no row in the index" for key in sets if key not in rows]
    if len(sets) < len(found):
        damage.append(f"{len(found) - len(sets)} of its sets are in it twice")
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
        if fault.key or key not in named:  # else the set is said to lack the member
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


def idx_damage(path: Path, expected: bytes) -> str:
    """What is wrong with a .idx; empty if nothing is."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    wanted = expected.split(b"\n")
    if lines == wanted:
        return ""
    number = next((n for n, pair in enumerate(zip(lines, wanted, strict=False)) if pair[0] != pair[1]), len(wanted))
    return f"it is not that of its tar, from line {number + 1} on"


def stock_reader_damage(path: Path, rows: Rows, parts: Sequence[str]) -> Iterator[str]:
    """Read a shard through `webdataset.WebDataset`, and tell where what it sees is not what the index has."""
    import webdataset  # brings torch, which nothing else here needs

    wanted, seen = in_tar_order(rows), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the closing of files to the collector
        try:
            for sample in webdataset.WebDataset([str(path)], shardshuffle=False):
                if seen == len(wanted) or sample["__key__"].encode() != wanted["key"][seen]:
                    yield f"{sample['__key__']}: webdataset sees it where the index has another set, or none"
                    return
                if why := _sample_damage(sample, wanted[seen], parts):
                    yield f"{sample['__key__']}: webdataset sees {why}"
                seen += 1
        except (tarfile.TarError, ValueError, OSError, EOFError) as error:
            yield f"webdataset cannot read it, after {seen:,} sets: {error}"
            return
    if seen < len(wanted):
        yield f"webdataset sees {seen:,} sets in it, the index {len(wanted):,}"


def _sample_damage(sample: dict[str, Any], row: np.void, parts: Sequence[str]) -> str:
    members = {name.partition(".")[0]: content for name, content in sample.items() if not name.startswith("__")}
    if sorted(members) != sorted((*parts, "json")):
        return f"the members {', '.join(members)}"
    for column, part in enumerate(parts):
        if (len(members[part]), zlib.crc32(members[part])) != (row["size"][column], row["crc32"][column]):
            return f"another {part}"
    note = json.loads(members["json"])
    fg = -1 if note["fg"] is None else note["fg"]
    return "" if (note["bg"], fg) == (row["bg"], row["fg"]) else "another json"
