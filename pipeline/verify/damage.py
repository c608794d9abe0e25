"""Damage: what is wrong with a tar, which was scanned, by the index, the manifest, its .idx and the stock reader."""

import json
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.format.manifest import Manifest, ShardInfo
from pipeline.format.sample import PARTS, UNKNOWN
from pipeline.format.tar import BLOCK
from pipeline.storage import Location, storage_of
from pipeline.verify.scan import WIDE, Rows, Scan
from pipeline.words import plural


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
