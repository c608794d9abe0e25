"""Depth maps for a folder of image sets, written beside the overlays.

A run that is killed leaves whole files, and a journal that tells which of them are its own: each batch is noted there
before its files get their names, and on return a file counts as done if it is as it was noted.
"""

import csv
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.depth_estimation.model import Teacher
from pipeline.depth_estimation.run import DepthMap, EstimateOptions, Report, Result, estimate
from pipeline.errors import InputError, Problem
from pipeline.format.images import read_picture
from pipeline.packing.join import SetFiles, Sets, find_sets
from pipeline.packing.known_layouts import SEED_DEPTH_RUN
from pipeline.resume import atomic_file, continued
from pipeline.workers import SourceProgress

TABLE, SETTINGS, JOURNAL = "depth.csv", "depth.json", "journal.csv"
ENDINGS = ("_disp.jpeg", "_disp.jpg", "_disp.png", "_disp.npy")  # of depth maps; the first is ours
PARTIAL = "_disp.jpeg.partial"


class Row(NamedTuple):
    """The scale of a depth map, and what its file must hash to; None once a whole run is finished and on disk."""

    far: float
    near: float
    crc32: int | None


def add_depth(
    source: Path,
    teacher: Teacher,
    options: EstimateOptions,
    *,
    overwrite: bool = False,
    progress: SourceProgress | None = None,
) -> Report:
    """Write a depth map for each set below `source`, and depth.csv (key, far, near) and depth.json (how) at its root.

    Raises `InputError` if there are no sets, or depth maps of another making, unless told to `overwrite` them, and what
    `estimate` raises.
    """
    progress = progress or SourceProgress()
    sets = find_sets(source, SEED_DEPTH_RUN, progress.files_found, ("fg_bg", "mask"))
    if not len(sets):
        first = min(sets.problems, default=None)
        why = f"{first.path}: {first.why}" if first else "there are backgrounds only"
        raise InputError(f"no set in {source} has an overlay, a mask and a background: {why}")
    arguments = {"command": "fgbg-depth", **teacher.arguments(), "quality": options.quality}
    with continued(source, arguments, fresh=False) as notes:
        rows = _finished_rows(source, arguments, overwrite) | _read_journal(notes / JOURNAL)
        done = _done(source, sets, rows, overwrite)
        batches = [slice(first, first + teacher.batch_size) for first in range(0, len(sets), teacher.batch_size)]
        # Whole batches, and always the same: the last bit of an output may depend on the pictures beside it.
        batches = [batch for batch in batches if not done[batch].all()]
        before = len(sets) - sum(len(done[batch]) for batch in batches)
        progress.sets_found(len(sets) - before)
        chosen = ([sets[place] for place in range(*batch.indices(len(sets)))] for batch in batches)
        report = estimate(teacher, _Folder(source, rows, notes / JOURNAL), chosen, options, progress.sets_done)
        os.sync()  # once: a sync of each of 400,000 files would take longer than the network
        with atomic_file(source / SETTINGS) as file:
            file.write(json.dumps(arguments, indent=1).encode() + b"\n")
        with atomic_file(source / TABLE) as table:
            table.writelines(_lines(sets, rows))
    return report._replace(sets_before=before)


def _finished_rows(source: Path, arguments: dict[str, Any], overwrite: bool) -> dict[str, Row]:
    """The rows of a finished run; raise `InputError` if its arguments were others, unless told to `overwrite`."""
    if not (source / TABLE).exists():
        return {}
    try:
        made_with = dict(json.loads((source / SETTINGS).read_bytes()))
        with (source / TABLE).open(newline="") as table:
            rows = {key: Row(float(far), float(near), None) for key, far, near in list(csv.reader(table))[1:]}
    except (FileNotFoundError, ValueError, TypeError) as error:
        why = f"{source / TABLE} and {SETTINGS} were not made by fgbg-depth, or are damaged ({error})"
        raise InputError(f"{why}: remove or rename them") from error
    changed = [name for name in arguments if made_with.get(name) != arguments[name]]
    if not changed:
        return rows
    if not overwrite:
        was, now = made_with.get(changed[0]), arguments[changed[0]]
        made = f"{source} has depth maps made with {changed[0]} {json.dumps(was)}, now it is {json.dumps(now)}"
        raise InputError(f"{made}: use the same, or give --overwrite to replace them")
    (source / TABLE).unlink()
    return {}


def _read_journal(path: Path) -> dict[str, Row]:
    """The rows of an unfinished run; a line that a kill cut short is cut off."""
    if not path.exists():
        return {}
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    os.truncate(path, len(whole))
    table = csv.reader(whole.decode().splitlines())
    return {key: Row(float(far), float(near), int(crc32)) for key, far, near, crc32 in table}


def _done(source: Path, sets: Sets, rows: dict[str, Row], overwrite: bool) -> NDArray[np.bool_]:
    """Which sets have their depth map already, bool [sets]; raise `InputError` if there are others."""
    done, others = np.zeros(len(sets), bool), list[str]()
    for place in range(len(sets)):
        files = sets[place]
        if row := rows.get(files.key):
            done[place] = _is_as_noted(source / depth_path(files), row)
        else:
            paths = [depth_path(files, ending) for ending in ENDINGS]
            others += [path for path in paths if (source / path).exists()]
    if others and not overwrite:
        found = f"{source} has {len(others):,} depth maps that were not made by this run (such as {others[0]})"
        raise InputError(f"{found}: remove them, or give --overwrite to replace them")
    return done


def _is_as_noted(path: Path, row: Row) -> bool:
    if row.crc32 is None:
        return path.exists()
    try:
        return zlib.crc32(path.read_bytes()) == row.crc32
    except FileNotFoundError:
        return False


def depth_path(files: SetFiles, ending: str = ENDINGS[0]) -> str:
    """The path of a set's depth map below the source."""
    return files.paths[0].rpartition(".")[0] + ending


def _lines(sets: Sets, rows: dict[str, Row]) -> Iterator[bytes]:
    yield b"key,far,near\n"
    for place in range(len(sets)):
        key = sets[place].key
        if row := rows.get(key):
            yield f"{key},{row.far!r},{row.near!r}\n".encode()


class _Folder:
    """A source as a job of `estimate`; `rows` grow with every batch that is saved."""

    def __init__(self, source: Path, rows: dict[str, Row], journal: Path) -> None:
        self._source, self._rows, self._journal = source, rows, journal

    def name(self, item: SetFiles) -> str:
        return item.paths[0]

    def read(self, item: SetFiles) -> bytes:
        return read_picture(f"{self._source}/{item.paths[0]}", "header").content

    def save(self, batch: list[tuple[SetFiles, Result]]) -> None:
        made = [(files, depth) for files, depth in batch if isinstance(depth, DepthMap)]
        rows = {files.key: Row(depth.far, depth.near, zlib.crc32(depth.picture.content)) for files, depth in made}
        partial = [self._source / depth_path(files, PARTIAL) for files, _ in made]
        try:
            for path, (_, depth) in zip(partial, made, strict=True):
                path.write_bytes(depth.picture.content)
            with self._journal.open("a") as journal:
                journal.writelines(f"{key},{row.far!r},{row.near!r},{row.crc32}\n" for key, row in rows.items())
                journal.flush()
                os.fsync(journal.fileno())
            for files, result in batch:  # no depth map of another making may stay, least of all beside ours
                for ending in ENDINGS if isinstance(result, Problem) else ENDINGS[1:]:
                    (self._source / depth_path(files, ending)).unlink(missing_ok=True)
                self._rows.pop(files.key, None)
            for path, (files, _) in zip(partial, made, strict=True):
                path.replace(self._source / depth_path(files))
        except BaseException:
            for path in partial:
                path.unlink(missing_ok=True)
            raise
        self._rows.update(rows)
