"""A composing run: backgrounds and foregrounds -> image sets, as loose files or straight into shards.

Any number of workers makes the same bytes, and a run that was stopped goes on with the jobs that are missing.
"""

import csv
import functools
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.composing.composer import ComposeOptions, Composer, ImageSet
from pipeline.composing.photos import capped_foregrounds
from pipeline.composing.recipe import Recipe
from pipeline.composing.stage import Source, Stage, prepare
from pipeline.errors import InputError, Problem
from pipeline.files import read_file, write_file, written_file
from pipeline.format.depth import NO_DEPTH
from pipeline.format.images import Picture, encode_gray, encode_rgb
from pipeline.format.sample import set_key
from pipeline.format.tar import ShardWriter
from pipeline.loading.sampler import Permutation
from pipeline.packing.finalize import finalize, write_backgrounds, write_problems
from pipeline.packing.target import ShardPlace, Target, writing
from pipeline.resume import atomic_file, require_files, resumable
from pipeline.storage import Location, Storage
from pipeline.words import csv_text, plural
from pipeline.workers import Workers, available_cores

STAGE = ".stage"  # folder of the stage, beside the progress records; hidden: it is none of them
SETS_PER_JOB = 256  # loose files
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


class Progress(NamedTuple):
    """Callbacks that are told how far a run is."""

    pictures: Callable[[int, int], None] = lambda more, total: None
    """(pictures added to the stage, of all)."""
    sets: Callable[[int, int], None] = lambda more, total: None
    """(sets written, of all)."""


class ComposeJob(NamedTuple):
    """Sets for one worker to compose, by number, and where they and their progress record go."""

    stage: Path
    source: Source
    recipe: Recipe
    options: ComposeOptions
    place: ShardPlace  # of a shard; of loose files, their folder and the record of the job, written last
    numbers: NDArray[np.int64]


@functools.lru_cache(maxsize=1)
def _composer(stage: Path, source: Source, recipe: Recipe, options: ComposeOptions) -> Composer:
    return Composer(Stage(stage, source), recipe, options)


def _label_line(number: int, image_set: ImageSet) -> str:
    """A set's line of labels.csv."""
    bg, fg = image_set.bg, image_set.fg
    return f"{set_key(fg, bg, number)},{bg},{fg},{','.join(map(str, image_set.label.known().values()))}\n"


def write_shard(job: ComposeJob) -> Output:
    """Compose the sets of one shard."""
    composer = _composer(job.stage, job.source, job.recipe, job.options)
    quality, label_quality = job.options.quality, job.options.label_quality
    lines, size_px = list[str](), job.source.size
    with ShardWriter(job.place.path, job.recipe.key_length) as writer:
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
    composer = _composer(job.stage, job.source, job.recipe, job.options)
    quality, label_quality = job.options.quality, job.options.label_quality
    lines, written_bytes = list[str](), 0
    for number in job.numbers.tolist():
        overlay, mask, levels, _, bg, fg = image_set = composer.compose(number)
        stem = f"fg_{fg:03}_bg_{bg:03}"
        overlays, masks = (job.place.path / part / f"bg_{bg:03}" for part in ("fg_bg", "fg_bg_mask"))
        written_bytes += write_file(overlays / f"{stem}_{number:06}.jpg", encode_rgb(overlay, quality))
        written_bytes += write_file(masks / f"{stem}_mask_{number:06}.jpg", encode_gray(mask, label_quality))
        if levels is not None:
            depth = overlays / f"{stem}_{number:06}_disp.jpeg"
            written_bytes += write_file(depth, encode_gray(levels, label_quality))
        lines.append(_label_line(number, image_set))
    with atomic_file(job.place.record) as file:
        file.write("".join(lines).encode())
    return Output(len(lines), written_bytes)


def compose(
    target: Location | Storage,
    source: Source,
    options: ComposeOptions,
    arguments: dict[str, object],
    *,
    sets_per_shard: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> ComposeSummary:
    """Compose image sets into `target`, a folder that is new or empty but for hidden files.

    Loose files by default, shards if `sets_per_shard` is given, which may go to object storage, too (see
    `target.writing`). `arguments` identify the source; the same call goes on with a run that was stopped. Raises
    `InputError` for pictures that cannot be used (unless they are to be skipped), too few of them, a target in use, or
    one with an unfinished run of something else, and `AlreadyComplete` for the same call again.
    """
    progress = progress or Progress()
    identity = {"command": "fgbg-compose", **asdict(options), **arguments}
    identity |= {"sets_per_shard": sets_per_shard, "skip_bad": skip_bad}
    where = writing(target, identity) if sets_per_shard else _writing_files(target, identity, depth=source.has_depth)
    with where as output, Workers(workers or available_cores()) as pool:
        pictures = len(source.backgrounds) + len(source.foregrounds)
        problems = prepare(
            output.records / STAGE,
            source,
            options.quality,
            pool,
            skip_bad=skip_bad,
            progress=lambda more: progress.pictures(more, pictures),
        )
        stage = Stage(output.records / STAGE, source)
        recipe = options.recipe(stage.backgrounds, stage.foregrounds)
        place = ShardPlace(output.folder, output.records)
        template = ComposeJob(output.records / STAGE, source, recipe, options, place, recipe.numbers())
        if sets_per_shard:
            written = _into_shards(template, output, sets_per_shard, stage, problems, pool, progress)
        else:
            written = _into_files(template, output, stage, problems, pool, progress)
        capped = capped_foregrounds(stage)
    return ComposeSummary(recipe, written, problems, capped)


@contextmanager
def _writing_files(folder: Location | Storage, arguments: Mapping[str, object], *, depth: bool) -> Iterator[Target]:
    if not isinstance(folder, Path):
        raise InputError(f"{folder} is no folder, and loose files go to one: make shards, which go anywhere")
    complete = functools.partial(_describe_files, folder, depth=depth)
    with resumable(folder, arguments, result=complete) as records:
        yield Target(folder, records)


def _describe_files(folder: Path, *, depth: bool) -> str:
    """What complete loose files are, in a phrase; raise `InputError` if some are gone."""
    require_files(folder, ("labels.csv",))
    lines = read_file(folder / "labels.csv").decode().splitlines()[1:]
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
) -> Output:
    sets = len(template.numbers)
    count = -(-sets // sets_per_shard)
    done = target.done(count)
    shuffle = Permutation(sets, f"pack/{template.options.seed}")

    def jobs() -> Iterator[ComposeJob]:
        for shard in range(count):
            if shard not in done:
                turns = np.arange(shard * sets_per_shard, min((shard + 1) * sets_per_shard, sets))
                numbers = template.numbers[shuffle(turns)]
                yield template._replace(place=target.place(shard), numbers=numbers)

    output = _work(pool, write_shard, jobs(), sum(done.values()), sets, progress)
    pictures = (Picture("jpg", stage.encoded(bg), 2 * (stage.source.size,)) for bg in range(stage.backgrounds))
    backgrounds = write_backgrounds(target.folder, enumerate(pictures))
    _write_tables(target.folder, stage, (shard.text for shard in target.finished(count)))
    total = target.tally(count)
    total.problems.extend(problems)
    finalize(target, count, total, backgrounds, ("gray" if stage.source.has_depth else NO_DEPTH, "bright"))
    return output


def _into_files(
    template: ComposeJob, target: Target, stage: Stage, problems: list[Problem], pool: Workers, progress: Progress
) -> Output:
    folder, records, sets = target.folder, target.records, len(template.numbers)
    for part in ("bg", "fg"):
        (folder / part).mkdir(exist_ok=True)
    for bg in range(stage.backgrounds):
        for part in ("fg_bg", "fg_bg_mask"):
            (folder / part / f"bg_{bg:03}").mkdir(parents=True, exist_ok=True)
        write_file(folder / "bg" / f"bg_{bg:03}.jpg", stage.encoded(bg))
    for fg in range(stage.foregrounds):
        with written_file(folder / "fg" / f"fg_{fg:03}.png") as file:
            stage.cutout(fg).save(file, "PNG")
    starts = range(0, sets, SETS_PER_JOB)
    files = [records / f"labels-{start // SETS_PER_JOB:06}.csv" for start in starts]
    done = [file.exists() for file in files]

    def jobs() -> Iterator[ComposeJob]:
        for start, file, exists in zip(starts, files, done, strict=True):
            if not exists:
                yield template._replace(
                    place=ShardPlace(folder, file), numbers=template.numbers[start : start + SETS_PER_JOB]
                )

    before = sum(min(SETS_PER_JOB, sets - start) for start, exists in zip(starts, done, strict=True) if exists)
    output = _work(pool, write_files, jobs(), before, sets, progress)
    _write_tables(folder, stage, (file.read_text() for file in files))
    if problems:
        write_problems(folder / "problems.csv", problems)
    return output


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
    _write_table(folder / "labels.csv", ",".join(columns), labels)
    names = [(kind, number, csv_text(name)) for kind, number, name in stage.names() if name]
    if names:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(names)
        _write_table(folder / "sources.csv", "part,id,file", [text.getvalue()])


def _write_table(path: Path, header: str, blocks: Iterable[str]) -> None:
    with atomic_file(path) as file:
        file.write(f"{header}\n".encode())
        file.writelines(block.encode() for block in blocks)
