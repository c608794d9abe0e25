"""Composing: backgrounds and foregrounds -> image sets, as loose files or straight into shards.

Any number of workers makes the same bytes, and a run that was stopped goes on with the pieces that are missing.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.composing.composer import Composed, ComposeOptions, Composer
from pipeline.composing.recipe import Recipe
from pipeline.composing.stage import Source, Stage, prepare
from pipeline.format.depth import NO_DEPTH
from pipeline.format.images import Picture, encode_gray, encode_rgb
from pipeline.format.sample import set_key
from pipeline.format.shards import ShardWriter
from pipeline.loading.sampler import Permutation
from pipeline.packing.finalize import (
    assemble,
    done_shards,
    finished_shards,
    note_path,
    shard_path,
    tally,
    write_bank,
    write_problems,
)
from pipeline.problems import Problem
from pipeline.resume import atomic_file, continued
from pipeline.workers import Workers, available_cores

STAGE = ".stage"  # hidden: it is no piece that is done
SETS_PER_PIECE = 256  # of loose files, that one worker makes at a time
LABELS = ("key", "bg", "fg", "x", "y", "width", "height", "mirrored", "visible")


class Made(NamedTuple):
    """What came of a piece of work."""

    sets: int
    bytes: int


class Summary(NamedTuple):
    """What a composing did. `made` is what this call made: less than the recipe where it continued one."""

    recipe: Recipe
    made: Made
    problems: list[Problem]


class Progress(NamedTuple):
    """Whom a composing tells how far it is."""

    pictures: Callable[[int, int], None] = lambda more, total: None
    """(more made ready, of all)."""
    sets: Callable[[int, int], None] = lambda more, total: None
    """(more made, of all)."""


class Piece(NamedTuple):
    """A piece of work for a worker: sets by number, and where they and the note on them go."""

    stage: Path
    source: Source
    recipe: Recipe
    options: ComposeOptions
    target: Path  # a shard's tar, or the folder of loose files
    note: Path
    numbers: NDArray[np.int64]


@functools.lru_cache(maxsize=1)
def _composer(stage: Path, source: Source, recipe: Recipe, options: ComposeOptions) -> Composer:
    return Composer(Stage(stage, source), recipe, options)


def _line(number: int, made: Composed) -> str:
    """A set's line of labels.csv."""
    return f"{set_key(made.fg, made.bg, number)},{made.bg},{made.fg},{','.join(map(str, made.label))}\n"


def write_shard(piece: Piece) -> Made:
    """Compose the sets of one shard."""
    composer = _composer(piece.stage, piece.source, piece.recipe, piece.options)
    quality, label_quality, lines = piece.options.quality, piece.options.label_quality, list[str]()
    with ShardWriter(piece.target, piece.recipe.key_length) as writer:
        for number in piece.numbers.tolist():
            made = composer.compose(number)
            contents = [encode_rgb(made.overlay, quality), encode_gray(made.mask, label_quality)]
            contents += [] if made.levels is None else [encode_gray(made.levels, label_quality)]
            pictures = [Picture("jpg", content, (len(made.mask), len(made.mask))) for content in contents]
            writer.add((made.bg, made.fg, number), pictures, made.label._asdict())
            lines.append(_line(number, made))
    shard = writer.shard(Counter(), [], "".join(lines))
    shard.save(piece.note)
    return Made(len(lines), shard.info.bytes)


def write_files(piece: Piece) -> Made:
    """Compose some sets as loose files."""
    composer = _composer(piece.stage, piece.source, piece.recipe, piece.options)
    quality, label_quality, lines, size = piece.options.quality, piece.options.label_quality, list[str](), 0
    for number in piece.numbers.tolist():
        made = composer.compose(number)
        stem = f"fg_{made.fg:03}_bg_{made.bg:03}"
        overlays, masks = (piece.target / part / f"bg_{made.bg:03}" for part in ("fg_bg", "fg_bg_mask"))
        size += (overlays / f"{stem}_{number:06}.jpg").write_bytes(encode_rgb(made.overlay, quality))
        size += (masks / f"{stem}_mask_{number:06}.jpg").write_bytes(encode_gray(made.mask, label_quality))
        if made.levels is not None:
            size += (overlays / f"{stem}_{number:06}_disp.jpeg").write_bytes(encode_gray(made.levels, label_quality))
        lines.append(_line(number, made))
    with atomic_file(piece.note) as file:
        file.write("".join(lines).encode())
    return Made(len(lines), size)


def compose(
    target: Path,
    source: Source,
    options: ComposeOptions,
    arguments: dict[str, object],
    *,
    sets_per_shard: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Compose into `target`, a folder that is new or empty but for hidden files.

    Loose files by default, shards if `sets_per_shard` is given. `arguments` identify the source; the same call goes on
    with a composing that was stopped. Raises `InputError` for pictures that cannot be used (unless they are to be
    skipped), too few of them, a target in use, or one with an unfinished composing of something else.
    """
    progress = progress or Progress()
    decisive = {"command": "fgbg-compose", **arguments, **asdict(options)}
    decisive |= {"sets_per_shard": sets_per_shard, "skip_bad": skip_bad}
    with continued(target, decisive) as notes, Workers(workers or available_cores()) as pool:
        pictures = len(source.backgrounds) + len(source.foregrounds)
        problems = prepare(
            notes / STAGE,
            source,
            options.quality,
            pool,
            skip_bad=skip_bad,
            progress=lambda more: progress.pictures(more, pictures),
        )
        stage = Stage(notes / STAGE, source)
        recipe = options.recipe(stage.backgrounds, stage.foregrounds)
        whole = Piece(notes / STAGE, source, recipe, options, target, notes, recipe.numbers())
        if sets_per_shard:
            made = _into_shards(whole, sets_per_shard, stage, problems, pool, progress)
        else:
            made = _into_files(whole, stage, problems, pool, progress)
    return Summary(recipe, made, problems)


def _into_shards(
    whole: Piece, sets_per_shard: int, stage: Stage, problems: list[Problem], pool: Workers, progress: Progress
) -> Made:
    shards, notes, sets = whole.target, whole.note, len(whole.numbers)
    count = -(-sets // sets_per_shard)
    done = done_shards(shards, notes, count)
    shuffle = Permutation(sets, f"pack/{whole.options.seed}")

    def pieces() -> Iterator[Piece]:
        for shard in range(count):
            if shard not in done:
                turns = np.arange(shard * sets_per_shard, min((shard + 1) * sets_per_shard, sets))
                numbers = whole.numbers[shuffle(turns)]
                yield whole._replace(target=shard_path(shards, shard), note=note_path(notes, shard), numbers=numbers)

    made = _work(pool, write_shard, pieces(), sum(done.values()), sets, progress)
    pictures = (Picture("jpg", stage.encoded(bg), 2 * (stage.source.size,)) for bg in range(stage.backgrounds))
    bank = write_bank(shards, enumerate(pictures))
    _write_tables(shards, stage, (shard.text for shard in finished_shards(shards, notes, count)))
    total = tally(shards, notes, count)
    total.problems.extend(problems)
    assemble(shards, notes, count, total, bank, ("gray" if stage.source.has_depth else NO_DEPTH, "bright"))
    return made


def _into_files(whole: Piece, stage: Stage, problems: list[Problem], pool: Workers, progress: Progress) -> Made:
    folder, notes, sets = whole.target, whole.note, len(whole.numbers)
    for part in ("bg", "fg"):
        (folder / part).mkdir(exist_ok=True)
    for bg in range(stage.backgrounds):
        for part in ("fg_bg", "fg_bg_mask"):
            (folder / part / f"bg_{bg:03}").mkdir(parents=True, exist_ok=True)
        (folder / "bg" / f"bg_{bg:03}.jpg").write_bytes(stage.encoded(bg))
    for fg in range(stage.foregrounds):
        stage.cutout(fg).save(folder / "fg" / f"fg_{fg:03}.png")
    starts = range(0, sets, SETS_PER_PIECE)
    files = [notes / f"labels-{start // SETS_PER_PIECE:06}.csv" for start in starts]
    done = [file.exists() for file in files]

    def pieces() -> Iterator[Piece]:
        for start, file, exists in zip(starts, files, done, strict=True):
            if not exists:
                yield whole._replace(note=file, numbers=whole.numbers[start : start + SETS_PER_PIECE])

    before = sum(min(SETS_PER_PIECE, sets - start) for start, exists in zip(starts, done, strict=True) if exists)
    made = _work(pool, write_files, pieces(), before, sets, progress)
    _write_tables(folder, stage, (file.read_text() for file in files))
    if problems:
        write_problems(folder / "problems.csv", problems)
    return made


def _work(
    pool: Workers,
    function: Callable[[Piece], Made],
    pieces: Iterator[Piece],
    before: int,
    sets: int,
    progress: Progress,
) -> Made:
    """Have all pieces made, of which others with `before` of all `sets` were made earlier."""
    total = Made(0, 0)
    progress.sets(before, sets)
    for made in pool.map(function, pieces):
        total = Made(total.sets + made.sets, total.bytes + made.bytes)
        progress.sets(made.sets, sets)
    return total


def _write_tables(folder: Path, stage: Stage, labels: Iterable[str]) -> None:
    """Write labels.csv from blocks of lines, and sources.csv if the pictures have names."""
    _write_table(folder / "labels.csv", ",".join(LABELS), labels)
    names = [f"{kind},{number},{name}\n" for kind, number, name in stage.names() if name]
    if names:
        _write_table(folder / "sources.csv", "part,id,file", names)


def _write_table(path: Path, header: str, blocks: Iterable[str]) -> None:
    with atomic_file(path) as file:
        file.write(f"{header}\n".encode())
        file.writelines(block.encode(errors="surrogateescape") for block in blocks)
