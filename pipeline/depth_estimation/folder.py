"""Depth maps for a folder of image sets, beside the overlays.

A run that is killed leaves whole files, and a journal that tells which of them are its own: each batch is recorded in
it before its files get their names, and a later run counts a file as done if it is as it was recorded.
"""

import csv
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.depth_estimation.model import DepthModel
from pipeline.depth_estimation.run import DepthMap, EstimateOptions, EstimateReport, EstimateResult, estimate
from pipeline.errors import InputError, Problem
from pipeline.files import read_file, write_file, written_file
from pipeline.format.images import read_picture
from pipeline.packing.folders import describe_refused, no_one
from pipeline.packing.join import SetFiles, Sets, describe_cause, find_sets
from pipeline.packing.known_layouts import known_layout
from pipeline.resume import atomic_file, resumable
from pipeline.words import plural
from pipeline.workers import Progress

TABLE, SETTINGS, JOURNAL = "depth.csv", "depth.json", "journal.csv"
ENDINGS = ("_disp.jpeg", "_disp.jpg", "_disp.png", "_disp.npy")  # of depth maps; the first is ours
PARTIAL = "_disp.jpeg.partial"


class DepthScale(NamedTuple):
    """The outputs of the network at the far and the near end of a depth map, and the CRC of its file.

    The CRC is None once the whole run is finished, and all files are on disk.
    """

    far: float
    near: float
    crc32: int | None


def add_depth(
    source: Path,
    model: DepthModel,
    options: EstimateOptions,
    *,
    overwrite: bool = False,
    follow_links: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] = no_one,
) -> EstimateReport:
    """Write a depth map for each set below `source`, and depth.csv (key, far, near) and depth.json (how) at its root.

    `follow_links` as for `folders.folder_files`; `tell` is told in a line what was refused.
    Raises `InputError` if there are no sets, or depth maps of another making, unless told to `overwrite` them, and what
    `estimate` raises.
    """
    progress = progress or Progress()
    parts = ("fg_bg", "mask")
    sets = find_sets(source, known_layout(), progress.files_found, parts, follow_links=follow_links)
    if not len(sets):
        first, more = describe_cause(sets.problems, sets.left_out, sets.listing)
        why = first or "there are backgrounds only"
        raise InputError(f"no set in {source} has an overlay, a mask and a background: {why}{more}")
    if refused := describe_refused(sets.listing.refused):
        tell(f"{source}: {refused}")
    arguments = {"command": "fgbg-depth", **model.arguments(), "quality": options.quality}
    with resumable(source, arguments, fresh=False) as records:
        scales = _finished_scales(source, arguments, overwrite) | _read_journal(records / JOURNAL)
        done = _done(source, sets, scales, overwrite)
        batches = [slice(first, first + model.batch_size) for first in range(0, len(sets), model.batch_size)]
        # Whole batches, and always the same: the last bit of an output may depend on the pictures beside it.
        batches = [batch for batch in batches if not done[batch].all()]
        finished_sets = len(sets) - sum(len(done[batch]) for batch in batches)
        progress.sets_found(len(sets) - finished_sets)
        chosen = ([sets[place] for place in range(*batch.indices(len(sets)))] for batch in batches)
        report = estimate(model, _FolderTarget(source, scales, records / JOURNAL), chosen, options, progress.sets_done)
        os.sync()  # once: a sync of each of 400,000 files would take longer than the network
        with atomic_file(source / SETTINGS) as file:
            file.write(json.dumps(arguments, indent=1).encode() + b"\n")
        with atomic_file(source / TABLE) as table:
            table.writelines(_lines(sets, scales))
    return report._replace(sets_before=finished_sets)


def _finished_scales(source: Path, arguments: dict[str, Any], overwrite: bool) -> dict[str, DepthScale]:
    """The scales of a finished run; raise `InputError` if its arguments were others, unless told to `overwrite`."""
    if not (source / TABLE).exists():
        return {}
    try:
        made_with = dict(json.loads(read_file(source / SETTINGS)))
        with (source / TABLE).open(newline="") as table:
            scales = {key: DepthScale(float(far), float(near), None) for key, far, near in list(csv.reader(table))[1:]}
    except (FileNotFoundError, ValueError, TypeError) as error:
        why = f"{source / TABLE} and {SETTINGS} were not made by fgbg-depth, or are damaged ({error})"
        raise InputError(f"{why}: remove or rename them") from error
    changed = [name for name in arguments if made_with.get(name) != arguments[name]]
    if not changed:
        return scales
    if not overwrite:
        was, now = made_with.get(changed[0]), arguments[changed[0]]
        made = f"{source} has depth maps made with {changed[0]} {json.dumps(was)}, now it is {json.dumps(now)}"
        raise InputError(f"{made}: use the same, or give --overwrite to replace them")
    (source / TABLE).unlink()
    return {}


def _read_journal(path: Path) -> dict[str, DepthScale]:
    """The scales of an unfinished run; a line that a kill cut short is cut off."""
    if not path.exists():
        return {}
    text = read_file(path)
    whole = text[: text.rfind(b"\n") + 1]
    os.truncate(path, len(whole))
    table = csv.reader(whole.decode().splitlines())
    return {key: DepthScale(float(far), float(near), int(crc32)) for key, far, near, crc32 in table}


def _done(source: Path, sets: Sets, scales: dict[str, DepthScale], overwrite: bool) -> NDArray[np.bool_]:
    """Which sets have their depth map already, bool [sets]; raise `InputError` for depth maps of another making."""
    done, others = np.zeros(len(sets), bool), list[str]()
    for place in range(len(sets)):
        files = sets[place]
        if scale := scales.get(files.key):
            done[place] = _is_as_recorded(source / depth_path(files), scale)
        else:
            paths = [depth_path(files, ending) for ending in ENDINGS]
            others += [path for path in paths if (source / path).exists()]
    if others and not overwrite:
        count = plural(len(others), "depth map that was", "depth maps that were")
        found = f"{source} has {count} not made by this run (such as {others[0]})"
        raise InputError(f"{found}: remove them, or give --overwrite to replace them")
    return done


def _is_as_recorded(path: Path, scale: DepthScale) -> bool:
    if scale.crc32 is None:
        return path.exists()
    try:
        return zlib.crc32(read_file(path)) == scale.crc32
    except FileNotFoundError:
        return False


def depth_path(files: SetFiles, ending: str = ENDINGS[0]) -> str:
    """The path of a set's depth map below the source."""
    return files.paths[0].rpartition(".")[0] + ending


def _lines(sets: Sets, scales: dict[str, DepthScale]) -> Iterator[bytes]:
    yield b"key,far,near\n"
    for place in range(len(sets)):
        key = sets[place].key
        if scale := scales.get(key):
            yield f"{key},{scale.far!r},{scale.near!r}\n".encode()


class _FolderTarget:
    """A source as a job of `estimate`; `scales` grow with every batch that is saved."""

    def __init__(self, source: Path, scales: dict[str, DepthScale], journal: Path) -> None:
        self._source, self._scales, self._journal = source, scales, journal

    def name(self, item: SetFiles) -> str:
        return item.paths[0]

    def read(self, item: SetFiles) -> bytes:
        return read_picture(f"{self._source}/{item.paths[0]}", "header").content

    def save(self, batch: list[tuple[SetFiles, EstimateResult]]) -> None:
        made = [(files, depth) for files, depth in batch if isinstance(depth, DepthMap)]
        scales = {
            files.key: DepthScale(depth.far, depth.near, zlib.crc32(depth.picture.content)) for files, depth in made
        }
        partial = [self._source / depth_path(files, PARTIAL) for files, _ in made]
        try:
            for path, (_, depth) in zip(partial, made, strict=True):
                write_file(path, depth.picture.content)
            with written_file(self._journal, append=True, sync=True) as journal:
                journal.writelines(
                    f"{key},{scale.far!r},{scale.near!r},{scale.crc32}\n".encode() for key, scale in scales.items()
                )
            for files, result in batch:  # no depth map of another making may stay, least of all beside ours
                for ending in ENDINGS if isinstance(result, Problem) else ENDINGS[1:]:
                    (self._source / depth_path(files, ending)).unlink(missing_ok=True)
                self._scales.pop(files.key, None)
            for path, (files, _) in zip(partial, made, strict=True):
                path.replace(self._source / depth_path(files))
        except BaseException:
            for path in partial:
                path.unlink(missing_ok=True)
            raise
        self._scales.update(scales)
