"""fgbg-depth: depth maps by a monocular depth network."""

import functools
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from pipeline.depth_estimation.actors import estimate_on_actors
from pipeline.depth_estimation.folder import add_depth
from pipeline.depth_estimation.model import NEAR, DepthModel, DepthModelSettings
from pipeline.depth_estimation.run import EstimateOptions, EstimateReport
from pipeline.depth_estimation.shards import EstimateShards, estimate_shards, finish_with_depth, rewrite_with_depth
from pipeline.engines import LOCAL, RAY
from pipeline.errors import InputError
from pipeline.format.manifest import MANIFEST
from pipeline.parts import Part
from pipeline.ray_workers import RayActors
from pipeline.storage import Location
from pipeline.words import plural
from pipeline.workers import Progress
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

DEFAULTS = EstimateOptions()


@click.command(cls=Command)
@click.argument("source", type=LocationType())
@click.option("--model", type=LocalPathType(), required=True, metavar="FILE.onnx",
              help="The network: float32 [N, 3, H, W] (RGB) in, float [N, H, W] or [N, 1, H, W] out.")  # fmt: skip
@click.option("--shards", type=LocationType(),
              help="Where a shard directory is rewritten to: a new or an empty folder, or a URL.")  # fmt: skip
@click.option("--size", type=click.IntRange(1), nargs=2, metavar="HEIGHT WIDTH",
              help="Of the network's input, pixels.  [default: as the file has it]")  # fmt: skip
@click.option("--mean", type=float, nargs=3, metavar="R G B",
              help="Subtracted from pixels in 0..1.  [default: 0 0 0]")  # fmt: skip
@click.option(
    "--std", type=float, nargs=3, metavar="R G B", help="What the difference is divided by.  [default: 1 1 1]"
)
@click.option("--near", type=click.Choice(NEAR),
              help="Which outputs are near: high ones (disparity) or low ones (depth).  [default: high]")  # fmt: skip
@click.option("--range", "range_", type=float, nargs=2, metavar="LOW HIGH",
              help="Outputs that become the ends of the gray scale; what lies beyond saturates.")  # fmt: skip
@click.option("--per-image-range", is_flag=True,
              help="Each picture's extremes become the ends of the gray scale.  [default]")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), default=DEFAULTS.quality, show_default=True,
              help="Of the JPEG files.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True,
              help="Pictures that the network takes at a time.")  # fmt: skip
@click.option(
    "--skip-bad",
    is_flag=True,
    help="Pass over an overlay that does not decode; its set gets no depth, and no place in --shards.",
)
@click.option("--follow-links", is_flag=True,
              help="Read what links in a folder lead to, and write depth maps there.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace depth maps of another making in the folder SOURCE.")
@part_options
@click.option("--workers", type=click.IntRange(1), show_default="one a core",
              help="Threads that decode and encode, with --engine ray processes that have the network; the bytes "
                   "written do not depend on it.")  # fmt: skip
@engine_option
@click.option("--accelerator", metavar="TYPE",
              help="With --engine ray: the one kind of GPU to work on, as Ray calls it (H100, say).")  # fmt: skip
def main(
    source: Location,
    model: Path,
    shards: Location | None,
    range_: tuple[float, float] | None,
    per_image_range: bool,
    quality: int,
    batch_size: int,
    skip_bad: bool,
    overwrite: bool,
    follow_links: bool,
    part: Part | None,
    finish: bool,
    workers: int | None,
    engine: str,
    accelerator: str | None,
    **flags: Any,
) -> None:
    """Add depth maps to the image sets of SOURCE with a depth network; near is bright.

    SOURCE is a folder of image sets, which gets a ..._disp.jpeg beside each overlay, a table of their scales
    (depth.csv) and what they were made with (depth.json); or a shard directory, which is rewritten to --shards.
    --size, --mean, --std, --near and --range may also stand in FILE.json beside FILE.onnx; flags win.
    The same command continues a run that was stopped, to the same bytes. It works on the GPU with onnxruntime-gpu.
    Many machines can share the work on shards: each gives the same command with --part I/N, with another I, and in the
    end one gives it with --finish.
    """
    if range_ and per_image_range:
        raise click.UsageError("--range and --per-image-range exclude each other: give one")
    require_one_way(part, finish=finish, engine=engine)
    if accelerator and engine != RAY:
        raise click.UsageError("--accelerator is for --engine ray")
    packed = not isinstance(source, Path) or (source / MANIFEST).is_file()
    if packed and not shards:
        raise InputError(f"{source} is a shard directory: say where to rewrite it to, --shards NEW")
    if shards and not packed:
        raise InputError(f"{source} is no shard directory ({MANIFEST} is missing): leave out --shards")
    if (part or finish or engine != LOCAL) and not packed:
        how = f"pack it first (--no-depth), then add depth from {MANIFEST.partition('.')[0]} to shards"
        raise InputError(f"{source} is no shard directory, whose files no two machines may write at once: {how}")
    if packed and overwrite:
        raise InputError("--overwrite is for folders: of a shard directory, nothing is overwritten")
    given = {name: value for name, value in flags.items() if value is not None}
    if range_ or per_image_range:
        given["range"] = range_
    settings = DepthModelSettings.load(model, given)
    if finish and shards:
        sets = finish_with_depth(source, shards, model, settings, quality)
        echo(f"{shards}: {plural(sets, 'set')} with depth by {model.name}, from all parts")
        return
    depth_model = DepthModel(model, settings, batch_size)
    options = EstimateOptions(quality, skip_bad, workers or DEFAULTS.workers)
    with ExitStack() as cluster, progress_bar("scanning", 1, lambda rate: rate) as bar:

        def files_found(total: int) -> None:
            bar.label = f"scanning: {plural(total, 'file')}"
            bar.render_progress()

        def sets_found(to_do: int) -> None:
            advance(bar, "depth", 0, to_do)

        def sets_done(more: int) -> None:
            bar.update(more, f"{(bar.pos + more) / (time.time() - bar.start):,.1f} sets/s")

        progress = Progress(files_found, sets_found, sets_done)
        if shards:
            way: EstimateShards = estimate_shards
            if engine == RAY:
                way = functools.partial(estimate_on_actors, cluster.enter_context(RayActors(workers, accelerator)))
            report = rewrite_with_depth(
                source,
                shards,
                depth_model,
                options,
                progress,
                part=part,
                way=way,
                accelerator=accelerator,
            )
        else:
            assert isinstance(source, Path), "a URL is one of shards"
            report = add_depth(
                source,
                depth_model,
                options,
                overwrite=overwrite,
                follow_links=follow_links,
                progress=progress,
                tell=lambda line: echo(line, err=True),
            )
    for problem in report.problems:
        echo(f"left out: {problem.path}: {problem.why}", err=True)
    if report.part and report.part.earlier == report.part.jobs:
        echo(f"{shards}: {describe_part(report.part)}")
        return
    if report.sets_before and not report.sets and not report.problems:
        echo(f"{source}: already complete: {plural(report.sets_before, 'depth map')} of {model.name}")
    else:
        echo(describe(report, depth_model))
    if report.part:
        echo(f"{shards}: {describe_part(report.part)}")


def describe(report: EstimateReport, depth_model: DepthModel) -> str:
    """One line: how many depth maps were made, how fast, and whether the network had to wait."""
    before = f" ({report.sets_before:,} were done before)" if report.sets_before else ""
    share = report.model_sec / report.seconds
    return (
        f"made {plural(report.sets, 'depth map')}{before} with {depth_model.path.name} on the {depth_model.device}, "
        f"{report.sets / report.seconds:,.1f} sets/s, {share:.0%} of the time inside the model; "
        f"left out: {len(report.problems):,}"
    )


if __name__ == "__main__":
    sys.exit(main())
