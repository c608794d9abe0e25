"""A composing run: backgrounds and foregrounds -> image sets, as loose files or straight into shards.

Any number of workers makes the same bytes, and a run that was stopped goes on with the jobs that are missing.
"""

import csv
import functools
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.composing.composer import ComposeOptions, Composer, ImageSet
from pipeline.composing.photos import capped_foregrounds
from pipeline.composing.recipe import Recipe
from pipeline.composing.stage import Source, Stage, prepare
from pipeline.engines import LOCAL, workers_of
from pipeline.errors import InputError, Problem
from pipeline.files import read_file, write_file, written_file
from pipeline.format.depth import NO_DEPTH
from pipeline.format.images import Picture, encode_gray, encode_rgb
from pipeline.format.sample import set_key
from pipeline.format.tar import ShardWriter
from pipeline.loading.sampler import Permutation
from pipeline.packing.finalize import finalize, write_backgrounds, write_problems
from pipeline.packing.target import ShardPlace, Target, await_files
from pipeline.packing.writing import writing
from pipeline.parts import (
    Part,
    PartDone,
    parts_to_finish,
    require_idle,
    require_parts,
    resumable_part,
    with_parts,
)
from pipeline.resume import atomic_file, require_files, resumable, unfinished_run
from pipeline.staging import staging_folder
from pipeline.storage import Location, Storage, is_there
from pipeline.words import csv_text, plural
from pipeline.workers import Shared, Workers, available_cores

STAGE = ".stage"  # folder of the stage, beside the progress records; hidden: it is none of them
SETS_PER_JOB = 256  # loose files
OVERLAYS_AND_MASKS = ("fg_bg", "fg_bg_mask")
LABELS_FILE = "labels.csv"
LABELS = ("key", "bg", "fg", "x", "y", "width", "height", "mirrored", "visible")


class Output(NamedTuple):
    """How much was written."""

    sets: int
    bytes: int


class ComposeSummary(NamedTuple):
    """What a run did. `output` is what this call wrote: less than the recipe where it continued an earlier one."""

    recipe: Recipe
    output: Output
    problems: list[Problem]
    capped: int = 0
    """Foregrounds that do not fit at the largest height, and are drawn at less."""
    part: PartDone | None = None
    """What was done of its part, if this was one."""


class Progress(NamedTuple):
    """Callbacks that are told how far a run is."""

    pictures: Callable[[int, int], None] = lambda more, total: None
    """(pictures added to the stage, of all)."""
    sets: Callable[[int, int], None] = lambda more, total: None
    """(sets written, of all)."""


class ComposePlan(NamedTuple):
    """What all jobs of a run have in common."""

    stage: Path | Stage
    """Its folder, which is on the same machine, or all of it."""
    source: Source
    recipe: Recipe
    options: ComposeOptions


class ComposeJob(NamedTuple):
    """Sets for one worker to compose, by number, and where they and their progress record go."""

    shared: Shared[ComposePlan]
    place: ShardPlace  # of a shard; of loose files, their folder and the record of the job, written last
    numbers: NDArray[np.int64]


@functools.lru_cache(maxsize=1)
def _composer(plan: ComposePlan) -> Composer:
    stage = plan.stage if isinstance(plan.stage, Stage) else Stage(plan.stage, plan.source)
    return Composer(stage, plan.recipe, plan.options)


def _label_line(number: int, image_set: ImageSet) -> str:
    """A set's line of labels.csv."""
    bg, fg = image_set.bg, image_set.fg
    return f"{set_key(fg, bg, number)},{bg},{fg},{','.join(map(str, image_set.label.known().values()))}\n"


def write_shard(job: ComposeJob) -> Output:
    """Compose the sets of one shard."""
    plan = job.shared.value
    composer, quality, label_quality = _composer(plan), plan.options.quality, plan.options.label_quality
    lines, size_px = list[str](), plan.source.size
    with ShardWriter(job.place.path, plan.recipe.key_length) as writer:
        for number in job.numbers.tolist():
            image_set = composer.compose(number)
            contents = [encode_rgb(image_set.overlay, quality), encode_gray(image_set.mask, label_quality)]
            contents += [] if image_set.levels is None else [encode_gray(image_set.levels, label_quality)]
            pictures = [Picture("jpg", content, (size_px, size_px)) for content in contents]
            writer.add((image_set.bg, image_set.fg, number), pictures, image_set.label.known())
            lines.append(_label_line(number, image_set))
    shard = writer.shard(Counter(), [], "".join(lines))
    job.place.save(shard)
    return Output(len(lines), shard.info.bytes)


def write_files(job: ComposeJob) -> Output:
    """Compose some sets as loose files."""
    plan = job.shared.value
    composer, quality, label_quality = _composer(plan), plan.options.quality, plan.options.label_quality
    lines, written_bytes = list[str](), 0
    for number in job.numbers.tolist():
        overlay, mask, levels, _, bg, fg = image_set = composer.compose(number)
        stem = f"fg_{fg:03}_bg_{bg:03}"
        overlays, masks = (job.place.path / part / f"bg_{bg:03}" for part in OVERLAYS_AND_MASKS)
        written_bytes += _write_same(overlays / f"{stem}_{number:06}.jpg", encode_rgb(overlay, quality))
        written_bytes += _write_same(masks / f"{stem}_mask_{number:06}.jpg", encode_gray(mask, label_quality))
        if levels is not None:
            depth = overlays / f"{stem}_{number:06}_disp.jpeg"
            written_bytes += _write_same(depth, encode_gray(levels, label_quality))
        lines.append(_label_line(number, image_set))
    with atomic_file(job.place.record) as file:
        file.write("".join(lines).encode())
    return Output(len(lines), written_bytes)


def _write_same(path: Path, content: bytes) -> int:
    """Write a file that another process may write as well, or have written; it is never empty again."""
    there = path.exists() and path.stat().st_size == len(content)
    return write_file(path, content, 0 if there else None)


def compose(
    target: Location | Storage,
    source: Source,
    options: ComposeOptions,
    arguments: dict[str, object],
    *,
    sets_per_shard: int | None = None,
    workers: int | None = None,
    engine: str = LOCAL,
    skip_bad: bool = False,
    progress: Progress | None = None,
    part: Part | None = None,
    finish: bool = False,
) -> ComposeSummary:
    """Compose image sets into `target`, a folder that is new or empty but for hidden files.

    Loose files by default, shards if `sets_per_shard` is given, which may go to object storage, too (see
    `packing.writing`). `arguments` identify the source; the same call goes on with a run that was stopped. With `part`,
    only the sets of that part are written, and with `finish`, what lies beside those of all parts.

    Raises `InputError` for pictures that cannot be used (unless they are to be skipped), too few of them, a target in
    use, or one with an unfinished run of something else, and `AlreadyComplete` for the same call again.
    """
    progress = progress or Progress()
    identity = {"command": "fgbg-compose", **asdict(options), **arguments}
    identity |= {"sets_per_shard": sets_per_shard, "skip_bad": skip_bad}
    if sets_per_shard:
        where = writing(target, identity, part=part, finish=finish)
    else:
        where = _writing_files(target, identity, part, finish=finish, depth=source.has_depth)
    with where as output, workers_of(engine, workers) as pool:
        pictures = len(source.backgrounds) + len(source.foregrounds)
        # Here: rows of one file, written at once on two machines, can be lost on a network share.
        with nullcontext(pool) if engine == LOCAL else Workers(available_cores()) as here:
            problems = prepare(
                output.scratch / STAGE,
                source,
                options.quality,
                here,
                skip_bad=skip_bad,
                progress=lambda more: progress.pictures(more, pictures),
            )
        stage = Stage(output.scratch / STAGE, source)
        recipe = options.recipe(stage.backgrounds, stage.foregrounds)
        place = ShardPlace(output.folder, output.records)
        plan = ComposePlan(output.scratch / STAGE if engine == LOCAL else stage, source, recipe, options)
        template = ComposeJob(Shared(plan), place, recipe.numbers())
        if sets_per_shard:
            written, done = _into_shards(template, output, sets_per_shard, stage, problems, pool, progress)
        else:
            written, done = _into_files(template, output, stage, problems, pool, progress)
        capped = capped_foregrounds(stage)
    return ComposeSummary(recipe, written, problems, capped, done)


@contextmanager
def _writing_files(
    folder: Location | Storage, arguments: Mapping[str, object], part: Part | None, *, finish: bool, depth: bool
) -> Iterator[Target]:
    if not isinstance(folder, Path):
        raise InputError(f"{folder} is no folder, and loose files go to one: make shards, which go anywhere")
    complete = functools.partial(_describe_files, folder, depth=depth)
    if finish:
        arguments = with_parts(folder, arguments, unfinished_run(folder), complete=is_there(folder / LABELS_FILE))
    begin = resumable_part(folder, arguments, part, complete) if part else resumable(folder, arguments, result=complete)
    with begin as records, staging_folder() if part or finish else nullcontext() as private:
        if finish:
            require_idle(records)
        yield Target(folder, records, private=private, part=part, parts=parts_to_finish(arguments))


def _describe_files(folder: Path, *, depth: bool) -> str:
    """What complete loose files are, in a phrase; raise `InputError` if some are gone."""
    require_files(folder, (LABELS_FILE,))
    lines = read_file(folder / LABELS_FILE).decode().splitlines()[1:]
    for line in lines:
        key, bg, fg = line.split(",")[:3]
        overlay, number = f"fg_bg/bg_{int(bg):03}/{key}", key.rpartition("_")[2]
        mask = f"fg_bg_mask/bg_{int(bg):03}/fg_{int(fg):03}_bg_{int(bg):03}_mask_{number}.jpg"
        pictures = f"bg/bg_{int(bg):03}.jpg", f"fg/fg_{int(fg):03}.png", f"{overlay}.jpg", mask
        require_files(folder, (*pictures, f"{overlay}_disp.jpeg") if depth else pictures)
    return plural(len(lines), "set")


def _into_shards(
    template: ComposeJob,
    target: Target,
    sets_per_shard: int,
    stage: Stage,
    problems: list[Problem],
    pool: Workers,
    progress: Progress,
) -> tuple[Output, PartDone | None]:
    sets = len(template.numbers)
    count = -(-sets // sets_per_shard)
    done = target.done(count)
    shuffle = Permutation(sets, f"pack/{template.shared.value.options.seed}")
    turns = {
        shard: range(shard * sets_per_shard, min((shard + 1) * sets_per_shard, sets)) for shard in target.numbers(count)
    }
    jobs = (
        template._replace(place=target.place(shard), numbers=template.numbers[shuffle(np.array(places))])
        for shard, places in turns.items()
        if shard not in done
    )
    output = _work(pool, write_shard, jobs, sum(done.values()), sum(map(len, turns.values())), progress)
    target.collect(count)
    if target.part:
        return output, target.part_done(count, len(done))
    pictures = (Picture("jpg", stage.encoded(bg), 2 * (stage.source.size,)) for bg in range(stage.backgrounds))
    backgrounds = write_backgrounds(target.folder, enumerate(pictures))
    _write_tables(target.folder, stage, (shard.text for shard in target.finished(count)))
    total = target.tally(count)
    total.problems.extend(problems)
    finalize(target, count, total, backgrounds, ("gray" if stage.source.has_depth else NO_DEPTH, "bright"))
    return output, None


def _into_files(
    template: ComposeJob, target: Target, stage: Stage, problems: list[Problem], pool: Workers, progress: Progress
) -> tuple[Output, PartDone | None]:
    folder, records, sets = target.folder, target.records, len(template.numbers)
    starts = range(0, sets, SETS_PER_JOB)
    files = [records / f"labels-{number:06}.csv" for number in range(len(starts))]
    done = {number for number in target.numbers(len(files)) if files[number].exists()}
    if target.parts:
        require_parts(folder, done, len(files), target.parts, f"blocks of {SETS_PER_JOB} sets")
    _make_folders(folder, stage)
    if not target.part:
        _write_pictures(folder, stage)
    numbers = {
        number: template.numbers[starts[number] : starts[number] + SETS_PER_JOB]
        for number in target.numbers(len(files))
    }
    jobs = (
        template._replace(place=ShardPlace(folder, files[number]), numbers=chosen)
        for number, chosen in numbers.items()
        if number not in done
    )
    before = sum(len(numbers[number]) for number in done)
    output = _work(pool, write_files, jobs, before, sum(map(len, numbers.values())), progress)
    await_files(files[number] for number in numbers)
    if target.part:
        return output, target.part_done(len(files), len(done))
    _write_tables(folder, stage, (file.read_text() for file in files))
    if problems:
        write_problems(folder / "problems.csv", problems)
    return output, None


def _make_folders(folder: Path, stage: Stage) -> None:
    by_background = (f"{part}/bg_{bg:03}" for bg in range(stage.backgrounds) for part in OVERLAYS_AND_MASKS)
    for name in ("bg", "fg", *by_background):
        (folder / name).mkdir(parents=True, exist_ok=True)


def _write_pictures(folder: Path, stage: Stage) -> None:
    """Write the backgrounds and foregrounds."""
    for bg in range(stage.backgrounds):
        write_file(folder / "bg" / f"bg_{bg:03}.jpg", stage.encoded(bg))
    for fg in range(stage.foregrounds):
        with written_file(folder / "fg" / f"fg_{fg:03}.png") as file:
            stage.cutout(fg).save(file, "PNG")


def _work(
    pool: Workers,
    function: Callable[[ComposeJob], Output],
    jobs: Iterator[ComposeJob],
    before: int,
    sets: int,
    progress: Progress,
) -> Output:
    """Do all jobs; others, with `before` of all `sets`, were done earlier."""
    total = Output(0, 0)
    progress.sets(before, sets)
    for output in pool.map(function, jobs):
        total = Output(total.sets + output.sets, total.bytes + output.bytes)
        progress.sets(output.sets, sets)
    return total


def _write_tables(folder: Path, stage: Stage, labels: Iterable[str]) -> None:
    """Write labels.csv from blocks of lines, and sources.csv if the pictures have names."""
    columns = (*LABELS, "capped") if capped_foregrounds(stage) else LABELS
    _write_table(folder / LABELS_FILE, ",".join(columns), labels)
    names = [(kind, number, csv_text(name)) for kind, number, name in stage.names() if name]
    if names:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(names)
        _write_table(folder / "sources.csv", "part,id,file", [text.getvalue()])


def _write_table(path: Path, header: str, blocks: Iterable[str]) -> None:
    with atomic_file(path) as file:
        file.write(f"{header}\n".encode())
        file.writelines(block.encode() for block in blocks)
