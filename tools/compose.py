"""fgbg-compose: make image sets."""

import functools
import math
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from pipeline.composing.compose import SETS_PER_JOB, ComposeSummary, Progress, compose
from pipeline.composing.composer import ComposeOptions
from pipeline.composing.photos import Photographs, find_pictures, hash_pictures
from pipeline.composing.stage import Source
from pipeline.composing.synthetic.source import NEAR_M, Synthetic
from pipeline.errors import InputError
from pipeline.parts import Part
from pipeline.storage import Location
from pipeline.words import plural
from tools.cli import (
    Command,
    LocalPathType,
    LocationType,
    advance,
    describe_part,
    echo,
    engine_option,
    part_options,
    progress_bar,
    require_one_way,
)

PHOTOS = (
    "backgrounds",
    "foregrounds",
    "size",
    "scale",
    "min_visible",
    "background_depth",
    "foreground_level",
    "follow_links",
)
SYNTHETIC = ("streets", "cars")
SYNTHETIC_SETS = 2000

HELP = f"""Make image sets: foregrounds laid over backgrounds, with their masks.

Backgrounds and foregrounds are photographs (--backgrounds, --foregrounds) or rendered (--synthetic, with exact depth).
Every foreground is laid over every background, --placements times, each time plain and mirrored; --sets stops early
with an even sample. The same options give the same bytes with any --workers; a stopped run goes on when it is called
again.

OUT, a new or an empty folder, gets loose files for fgbg-depth and fgbg-pack:

\b
bg/bg_BBB.jpg                                        background BBB, colour
fg/fg_FFF.png                                        foreground FFF, RGBA with straight alpha
fg_bg/bg_BBB/fg_FFF_bg_BBB_NNNNNN.jpg                set NNNNNN: the foreground on the background, colour
fg_bg/bg_BBB/fg_FFF_bg_BBB_NNNNNN_disp.jpeg          its depth, gray, near bright
fg_bg_mask/bg_BBB/fg_FFF_bg_BBB_mask_NNNNNN.jpg      its mask, gray: the foreground's alpha
labels.csv                                           key,bg,fg,x,y,width,height,mirrored,visible of each set
sources.csv                                          the file that each background and foreground came from

--shards DIR writes the same sets as shards instead, with no loose files in between.

Many machines can share the work: each gives the same command with --part I/N, with another I, and in the end one
gives it with --finish.

Synthetic depth is 255 * {NEAR_M:g} m / depth, sky 0.
"""


@click.command(cls=Command, help=HELP)
@click.argument("out", type=LocalPathType(), required=False)
@click.option("--shards", type=LocationType(), help="Write shards into this folder, or URL of object storage.")
@click.option("--sets-per-shard", type=click.IntRange(min=1), default=1000, show_default=True,
              help="Image sets in each tar.")  # fmt: skip
@click.option("--backgrounds", type=LocalPathType(),
              help="Folder of backgrounds: pictures of any size and format, cropped around their middle.")  # fmt: skip
@click.option("--foregrounds", type=LocalPathType(),
              help="Folder of foregrounds: pictures with alpha, trimmed to their content.")  # fmt: skip
@click.option("--synthetic", is_flag=True, help="Render streets, draw cars and others; needs no input.")
@click.option("--sets", type=click.IntRange(min=1),
              help=f"Image sets to make.  [default: all; with --synthetic {SYNTHETIC_SETS}]")  # fmt: skip
@click.option("--placements", type=click.IntRange(min=1),
              help="Places of each foreground on each background.  [default: 20, or what SETS needs]")  # fmt: skip
@click.option("--mirror/--no-mirror", default=True, show_default=True,
              help="Make each placement a second time with the foreground mirrored.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, other sets.")
@click.option("--size", type=click.IntRange(min=16), default=224, show_default=True,
              help="Photographs: height and width of the sets, pixels.")  # fmt: skip
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), nargs=2, default=(0.15, 0.35), show_default=True,
              help="Photographs: smallest and largest height of a foreground; 1 is the background's.")  # fmt: skip
@click.option("--min-visible", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
              help="Photographs: share of a foreground that has to be inside the frame.")  # fmt: skip
@click.option("--background-depth", type=LocalPathType(),
              help="Photographs: folder of the backgrounds' depth, gray, near bright, called like them.")  # fmt: skip
@click.option("--foreground-level", type=click.IntRange(0, 255),
              help="Photographs: gray value of a foreground's depth.  [default: the ground's at its foot]")  # fmt: skip
@click.option("--streets", type=click.IntRange(min=1), help="Synthetic: streets.  [default: 2 sqrt(SETS), 10 to 1000]")
@click.option("--cars", type=click.IntRange(min=1), help="Synthetic: foregrounds.  [default: 2 sqrt(SETS), 10 to 1000]")
@click.option("--shadow", is_flag=True, help="Foregrounds cast a soft contact shadow, which is no part of the mask.")
@click.option("--hard", is_flag=True,
              help="Overlays differ from their backgrounds in exposure, noise and a shift of up to 3 pixels, so that "
              "|fg_bg - bg| does not give the mask away; --quality is 30 unless given.")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True,
              help="JPEG quality of colour pictures; masks and depth have 90 at least.")  # fmt: skip
@click.option("--follow-links", is_flag=True,
              help="Photographs: read what links in a folder lead to outside of it, and folders.")  # fmt: skip
@click.option("--skip-bad", is_flag=True, help="Leave out pictures that cannot be used, instead of stopping.")
@part_options
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one a core]")
@engine_option
@click.pass_context
def main(
    ctx: click.Context,
    /,
    out: Path | None,
    shards: Location | None,
    sets_per_shard: int,
    synthetic: bool,
    skip_bad: bool,
    workers: int | None,
    part: Part | None,
    finish: bool,
    engine: str,
    **flags: Any,
) -> None:
    """Fill the options from the flags, compose, say what was made."""
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT}
    require_one_way(part, finish=finish, engine=engine)
    target = shards or out
    if target is None or (out and shards):
        raise click.UsageError("give either OUT, for loose files, or --shards DIR")
    if wrong := sorted(given.intersection(PHOTOS if synthetic else SYNTHETIC)):
        kind = "--synthetic" if synthetic else "--backgrounds and --foregrounds"
        raise click.UsageError(f"--{wrong[0].replace('_', '-')} does not go with {kind}")
    if synthetic:
        flags["sets"] = flags["sets"] or SYNTHETIC_SETS
    else:
        flags["placements"] = flags["placements"] or 20
    if flags["hard"] and "quality" not in given:
        flags["quality"] = 30
    options = ComposeOptions(**{field.name: flags[field.name] for field in fields(ComposeOptions)})
    source, arguments = _synthetic(**flags) if synthetic else _photographs(target, **flags)
    start_sec = time.perf_counter()
    with progress_bar("preparing", 1) as bar:
        show = functools.partial(advance, bar)
        summary = compose(
            target,
            source,
            options,
            arguments,
            sets_per_shard=sets_per_shard if shards else None,
            workers=workers,
            engine=engine,
            skip_bad=skip_bad,
            part=part,
            finish=finish,
            progress=Progress(lambda *at: show("preparing", *at), lambda *at: show("composing", *at)),
        )
    if summary.part:
        if summary.output.sets:
            rate = summary.output.sets / (time.perf_counter() - start_sec)
            echo(f"composed {plural(summary.output.sets, 'set')}, {rate:,.0f} sets/s")
        jobs = ("shard", "") if shards else (f"block of {SETS_PER_JOB} sets", f"blocks of {SETS_PER_JOB} sets")
        echo(f"{target}: {describe_part(summary.part, *jobs)}")
        return
    echo(f"{target}: {describe(summary, source, time.perf_counter() - start_sec, finished=finish)}")
    if summary.capped:
        wide = plural(summary.capped, "foreground is", "foregrounds are")
        echo(f"{wide} too wide for the largest --scale: drawn no higher than fits (capped in labels.csv)")
    if summary.problems:
        echo(f"skipped {len(summary.problems)}, listed in {target / 'problems.csv'}")


def describe(summary: ComposeSummary, source: Source, seconds: float, *, finished: bool = False) -> str:
    """One line: what was made of what, and how fast, unless parts have made it."""
    recipe, output = summary.recipe, summary.output
    earlier = f" ({recipe.sets - output.sets:,} of them earlier)" if output.sets < recipe.sets else ""
    made_of = f"{plural(recipe.backgrounds, 'background')} and {plural(recipe.foregrounds, 'foreground')}"
    depth = f"{'with' if source.has_depth else 'without'} depth"
    if finished:
        return f"{plural(recipe.sets, 'set')} of {made_of}, {depth}, from all parts"
    return (
        f"{plural(recipe.sets, 'set')}{earlier} of {made_of}, "
        f"{depth}, {output.bytes / 1e6:,.1f} MB, {output.sets / seconds:,.0f} sets/s"
    )


def _synthetic(
    seed: int, sets: int, streets: int | None, cars: int | None, **_: object
) -> tuple[Source, dict[str, object]]:
    variety = min(sets, max(10, min(1000, round(2 * math.sqrt(sets)))))
    source = Synthetic(seed, streets or variety, cars or variety)
    return source, {"source": "synthetic", "streets": source.streets, "cars": source.objects}


def _photographs(
    target: Location,
    /,
    backgrounds: Path | None,
    foregrounds: Path | None,
    size: int,
    scale: tuple[float, float],
    min_visible: float,
    background_depth: Path | None,
    foreground_level: int | None,
    follow_links: bool,
    **_: object,
) -> tuple[Source, dict[str, object]]:
    if backgrounds is None or foregrounds is None:
        raise click.UsageError("give --backgrounds DIR and --foregrounds DIR, or --synthetic")
    if scale[0] > scale[1]:
        raise click.UsageError(f"--scale {scale[0]:g} {scale[1]:g}: expected the smaller first")
    if foreground_level is not None and background_depth is None:
        raise click.UsageError("--foreground-level needs --background-depth: without it there is no depth")
    output = target if isinstance(target, Path) else None
    find = functools.partial(
        find_pictures, follow_links=follow_links, output=output, tell=lambda line: echo(line, err=True)
    )
    names = find(backgrounds), find(foregrounds)
    source = Photographs(backgrounds, foregrounds, *names, size, scale, min_visible, background_depth, foreground_level)
    arguments: dict[str, object] = {
        "source": "photographs",
        "backgrounds": hash_pictures(backgrounds, names[0]),
        "foregrounds": hash_pictures(foregrounds, names[1]),
        "size": size,
        "scale": scale,
        "min_visible": min_visible,
        "foreground_level": foreground_level,
    }
    if background_depth is not None:
        if not background_depth.is_dir():
            raise InputError(f"no such folder: {background_depth}: give the one with the backgrounds' depth pictures")
        arguments["background_depth"] = hash_pictures(background_depth, find(background_depth))
    return source, arguments


if __name__ == "__main__":
    main()
