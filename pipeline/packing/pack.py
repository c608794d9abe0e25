"""Packing: image sets -> a shard directory (format version 1).

Shards are independent jobs, so any number of worker processes writes the same bytes. Every picture is decoded once on
the way; what is bad is left out by name. The manifest is written last: without it a directory is not a data set.
"""

import time
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.engines import LOCAL, workers_of
from pipeline.errors import InputError
from pipeline.format.depth import NO_DEPTH
from pipeline.format.manifest import BACKGROUNDS, Manifest
from pipeline.format.planes import PLANES
from pipeline.format.sample import PARTS, set_key
from pipeline.loading.sampler import Permutation
from pipeline.packing.csv_layout import CsvLayout
from pipeline.packing.depth_files import DepthFiles, OtherEncoding
from pipeline.packing.finalize import BackgroundsTar, finalize, write_backgrounds
from pipeline.packing.folders import describe_refused
from pipeline.packing.inputs import readable_backgrounds, recognised_depth, sample_hash
from pipeline.packing.join import Sets, describe_cause, find_sets
from pipeline.packing.layouts import Layout
from pipeline.packing.metadata import MetadataTables
from pipeline.packing.options import PackOptions
from pipeline.packing.sample import Inspection, inspect_sample, read_sample
from pipeline.packing.set_reader import MASK_REMARKS, REPAIRED, SetRules
from pipeline.packing.shapes import FITTED, Size
from pipeline.packing.sources import COMPRESSED_TAR, FileReader, FileSource, require_unreplaced, unpack_compressed
from pipeline.packing.target import Tally, Target
from pipeline.packing.worker import ShardJob, WorkTime, require_clean, write_shard
from pipeline.packing.writing import writing
from pipeline.parts import Part, PartDone
from pipeline.resume import UNFINISHED, require_finished
from pipeline.storage import Location, Storage, Url
from pipeline.workers import Progress

if TYPE_CHECKING:
    from pipeline.packing.encode_planes import PlanesJob

MOST_OTHERS = 0.05  # of the depth maps: so many may be of another encoding, which leaves their sets out
LISTING = ".sources.npz"  # hidden: it is no progress record


class PackSummary(NamedTuple):
    """What a packing did; `left_out` counts sets by kind, `problems` the rows of problems.csv."""

    manifest: Manifest
    left_out: Counter[str]
    problems: int
    seconds: float
    layout: str
    """Which it is, and why."""
    depth: str
    """How its files are read, and why; empty without depth."""
    masks: str
    """How mask files are converted, and why; empty where they are stored as they came."""
    remarks: Counter[str]
    """Kept sets whose masks look wrong, by kind; they are rows of problems.csv, too."""
    decode_share: float
    """Share of the workers' time that was spent on decoding; 0 if they decoded nothing."""
    refused: str = ""
    """How many files were not read, such as links, and why, in a phrase; they are rows of problems.csv, too."""
    repaired: int = 0
    """Pictures that are stored without a fault which their files had; they are rows of problems.csv, too."""


class PackedPart(NamedTuple):
    """What the packing of one part has done; `sets` are in its shards, `left_out` counts others by kind."""

    done: PartDone
    sets: int
    left_out: Counter[str]
    seconds: float


class _Packing(NamedTuple):
    """A packing whose shards are written, those of its part at least, and what it takes to finish it."""

    target: Target
    all_shards: int
    earlier: dict[int, int]
    """See `Target.done`."""
    sets: Sets
    tables: MetadataTables
    backgrounds: BackgroundsTar
    depth: DepthFiles | None
    stored: tuple[str, str]
    """Depth encoding and near end, for the manifest."""
    why_depth: str
    inspection: Inspection
    work_time: WorkTime


def pack(
    source: Location | Sequence[Location],
    shards: Location | Storage,
    options: PackOptions,
    progress: Progress | None = None,
    layout: Layout | CsvLayout | Sequence[Layout] | None = None,
    *,
    finish: bool = False,
) -> PackSummary:
    """Write the sets of one or several sources as shards into `shards`, which is new or empty but for hidden files.

    It is a folder, or a place in object storage, see `packing.writing`.
    `layout` as for `find_sets`. A packing that is stopped leaves its finished shards, from which the same call goes on
    to the same bytes. With `finish`, all shards have to be those of `pack_part`. Raises `InputError` for sources
    without sets, a target in use, and a target with an unfinished packing of something else, and `AlreadyComplete` for
    the same call again.
    """
    start = time.monotonic()
    with _packing(source, shards, options, progress or Progress(), layout, None, finish=finish) as packing:
        target, count, sets, depth = packing.target, packing.all_shards, packing.sets, packing.depth
        inspection, work_time = packing.inspection, packing.work_time
        total = target.tally(count)
        total.left_out.update(sets.left_out)
        total.problems.extend(sets.problems)
        _require_sets(total.sets, sets, total)
        if depth:
            _require_one_encoding(total, depth)
        conversions = [f"masks: {inspection.why_masks}"] if inspection.why_masks else []
        if depth and depth.holes.stored:
            conversions.append(f"depth: {depth.holes.why}")
        if options.fit != "refuse":
            conversions.append(f"fit: {FITTED[options.fit]}")
        optional = {"warnings": inspection.warnings, "conversions": conversions}
        keys = (shard.rows["key"].astype(str).tolist() for shard in target.finished(count))
        packing.tables.save(target.folder, keys)
        manifest = finalize(target, count, total, packing.backgrounds, packing.stored, options.codec, **optional)
    remarks = Counter(problem.kind for problem in total.problems if problem.kind in MASK_REMARKS)
    repaired = sum(problem.kind == REPAIRED for problem in total.problems)
    share = work_time.decode_sec / work_time.worker_sec if work_time.worker_sec and options.verify == "decode" else 0.0
    seconds, problems = time.monotonic() - start, len(total.problems)
    refused, whys = describe_refused(sets.listing.refused), (sets.layout.why, packing.why_depth, inspection.why_masks)
    return PackSummary(manifest, total.left_out, problems, seconds, *whys, remarks, share, refused, repaired)


def pack_part(
    source: Location | Sequence[Location],
    shards: Location | Storage,
    options: PackOptions,
    part: Part,
    progress: Progress | None = None,
    layout: Layout | CsvLayout | Sequence[Layout] | None = None,
) -> PackedPart:
    """Write the shards of one part of what `pack` would write with the same arguments, beside others that do so.

    They are no data set before `pack` finishes them. The same call writes what is missing of them. Raises `InputError`
    where the target holds anything else than other parts of the same packing.
    """
    start = time.monotonic()
    with _packing(source, shards, options, progress or Progress(), layout, part, finish=False) as packing:
        total = packing.target.tally(packing.all_shards)
        done = packing.target.part_done(packing.all_shards, len(packing.earlier))
    assert done, "it was asked for"
    return PackedPart(done, total.sets, total.left_out, time.monotonic() - start)


@contextmanager
def _packing(
    source: Location | Sequence[Location],
    shards: Location | Storage,
    options: PackOptions,
    progress: Progress,
    layout: Layout | CsvLayout | Sequence[Layout] | None,
    part: Part | None,
    *,
    finish: bool,
) -> Iterator[_Packing]:
    """Write the shards of a packing, or of one part of it; what is left to do is done in this context."""
    with workers_of(options.engine, options.workers) as workers:
        sets = sets_to_pack(source, options, progress, layout, shards)
        tables = MetadataTables(*sets.metadata_places())
        if isinstance(shards, Path):
            _require_unchanged(sets, shards)
        elif options.engine != LOCAL:
            _require_plain(sets.listing.sources)
        arguments, newest_ns = _arguments(options, sets, tables), sets.listing.newest_ns
        with writing(shards, arguments, newest_ns, part=part, finish=finish) as target:
            if not (target.records / LISTING).exists():
                sets.listing.save(target.records / LISTING)
            sources = unpack_compressed(sets.listing.sources, target.scratch)
            reader = FileReader(sources)
            encoder = None
            if options.codec == PLANES:  # imported only here: torch takes a second and memory in every worker
                from pipeline.packing.encode_planes import BackgroundEncoder, PlanesJob

                encoder = BackgroundEncoder(options.size)
            sizes = dict[int, Size]()
            pictures = readable_backgrounds(reader, sets, encoder, options.fit, sizes)
            backgrounds = write_backgrounds(target.folder, pictures)
            _require_sets(len(sets), sets, sets)
            if options.strict:
                require_clean(sets.problems)
            depth, why_depth = recognised_depth(reader, sets, options) if options.depth else (None, "")
            sample, stated = (
                read_sample(reader, sets, depth, options.fit),
                (options.mask_encoding, options.mask_foreground),
            )
            inspection = inspect_sample(sample, *stated, accept=options.accept_suspicious)
            rules = SetRules(inspection.masks, options.fit, sizes)
            count = -(-len(sets) // options.sets_per_shard)
            progress.sets_found(sum(_sets_in(shard, len(sets), options) for shard in target.numbers(count)))
            done = target.done(count)
            progress.sets_done(sum(done.values()))
            work_time = WorkTime(0.0, 0.0)
            stored, planes = depth.stored if depth else (NO_DEPTH, options.depth_near), None
            if encoder:
                places = {background.id: background for background in backgrounds.backgrounds}
                file = target.folder / BACKGROUNDS if options.engine == LOCAL else target.anywhere(BACKGROUNDS)
                planes = PlanesJob(options.size, stored, file, places)
                if depth:
                    stored = (stored[0] if depth.holes.stored else "gray", "bright")  # planes hold nearness
            jobs = _jobs(sources, target, count, sets, tables, options, done, depth, rules, planes)
            for dealt_with, time_taken in workers.map(write_shard, jobs):
                progress.sets_done(dealt_with)
                work_time = work_time.plus(time_taken)
            target.collect(count)
            require_unreplaced(sets.listing.sources)
            about = depth, stored, why_depth, inspection, work_time
            yield _Packing(target, count, done, sets, tables, backgrounds, *about)


def _sets_in(shard: int, sets: int, options: PackOptions) -> int:
    """How many of all sets go into a shard."""
    return min(options.sets_per_shard, sets - shard * options.sets_per_shard)


def sets_to_pack(
    source: Location | Sequence[Location],
    options: PackOptions,
    progress: Progress,
    layout: Layout | CsvLayout | Sequence[Layout] | None = None,
    shards: Location | Storage | None = None,
) -> Sets:
    """The sets that `pack` would pack into `shards`, of which no picture was opened yet.

    Raises `InputError` if there are none.
    """
    for folder in [source] if isinstance(source, Path | Url) else source:
        if isinstance(folder, Path):
            require_finished(folder)
    parts = PARTS if options.depth else PARTS[:-1]
    output = shards.location if isinstance(shards, Storage) else shards
    sets = find_sets(source, layout, progress.files_found, parts, follow_links=options.follow_links, output=output)
    _require_sets(len(sets), sets, sets)
    if options.strict:
        require_clean(sets.problems)
    return sets


def _require_unchanged(sets: Sets, shards: Path) -> None:
    """Raise `InputError` if `shards` holds an unfinished packing of files that are no longer as they were."""
    if changed := sets.listing.difference(shards / UNFINISHED / LISTING):
        raise InputError(
            f"{shards} holds an unfinished packing of other files: {changed} since: "
            f"bring it back as it was, or remove {shards}"
        )


def _require_plain(sources: Sequence[FileSource]) -> None:
    if compressed := next((source.path for source in sources if source.kind == COMPRESSED_TAR), None):
        raise InputError(
            f"{compressed} would be unpacked on one machine alone: unpack it yourself where all nodes see it, or pack "
            f"into a folder that all nodes see"
        )


def _arguments(options: PackOptions, sets: Sets, tables: MetadataTables) -> dict[str, object]:
    """What decides the bytes of a packing, for `resume.resumable`."""
    decisive = {
        name: value for name, value in asdict(options).items() if name not in ("workers", "engine", "follow_links")
    }
    return {
        "command": "fgbg-pack",
        **decisive,
        "layout": sets.layout.name,
        "source": sets.fingerprint(),
        "tables": tables.fingerprint(),
        "sample": sample_hash(sets),
    }


def _require_sets(count: int, sets: Sets, result: Sets | Tally) -> None:
    if not count:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in (+result.left_out).items()) or "no overlay at all"
        first, more = describe_cause(result.problems, result.left_out, sets.listing)
        more += f"; the first problem is {first}" if first else ""
        if first.endswith("has no depth"):
            more += "; add it with fgbg-depth, or pack without: --no-depth"
        where = ", ".join(str(source.path) for source in sets.listing.sources)
        raise InputError(f"no usable set in {where}: {kinds}{more}")


def _require_one_encoding(total: Tally, depth: DepthFiles) -> None:
    """Raise `InputError` if many depth pictures are of another encoding than the sampled ones."""
    others = [problem for problem in total.problems if problem.kind == OtherEncoding.kind]
    if len(others) > MOST_OTHERS * (total.sets + len(others)):
        first = min(others)
        raise InputError(
            f"{len(others):,} depth maps are not {depth.encoding}, as those sampled are (the first is {first.path}: "
            f"{first.why}): pack each kind by itself, in a folder of its own"
        )


def _jobs(
    sources: tuple[FileSource, ...],
    target: Target,
    count: int,
    sets: Sets,
    tables: MetadataTables,
    options: PackOptions,
    done: Container[int],
    depth: DepthFiles | None,
    rules: SetRules,
    planes: "PlanesJob | None",
) -> Iterator[ShardJob]:
    """Deal the sets out to shards in shuffled order, of which the target's own are to be written."""
    bg, fg, number = sets.ids.max(axis=0).tolist()
    key_length = max(len(set_key(one, bg, number)) for one in (fg, sets.ids[:, 1].min()))
    order = Permutation(len(sets), f"pack/{options.seed}")(np.arange(len(sets)))
    for shard in target.numbers(count):
        if shard not in done:
            first = shard * options.sets_per_shard
            chosen = [sets[position] for position in order[first : first + options.sets_per_shard]]
            metadata = tables.find([files.key for files in chosen])
            used = {files.bg for files in chosen}
            shard_planes = planes.limited_to(used) if planes else None
            how = depth, rules.limited_to(used), options.strict, shard_planes
            yield ShardJob(sources, target.place(shard), key_length, options.verify, chosen, metadata, *how)
