"""fgbg-pack: image sets -> shards."""

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource

from pipeline.errors import InputError
from pipeline.format.depth import CONVERTED, ENCODINGS, NEAR
from pipeline.format.images import VERIFY
from pipeline.format.manifest import CODECS
from pipeline.format.planes import PLANES
from pipeline.packing.depth_holes import WORDS
from pipeline.packing.join import Sets
from pipeline.packing.known_layouts import SetCounts, choose_layout, layout_names
from pipeline.packing.mask_files import ENCODINGS as MASK_ENCODINGS
from pipeline.packing.mask_files import MAX_VALUE
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import PackedPart, PackSummary, pack, pack_part, sets_to_pack
from pipeline.packing.shapes import FITS
from pipeline.parts import Part
from pipeline.storage import Location
from pipeline.verify.merge import merge
from pipeline.words import plural
from pipeline.workers import Progress
from tools.cli import (
    Command,
    LocationType,
    advance,
    describe_part,
    echo,
    engine_option,
    part_options,
    progress_bar,
    require_one_way,
)

DEFAULTS = PackOptions()
EXAMPLES, PROBLEMS = 10, 20  # lines of a dry run


def _formulas(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    if wrong := next((text for text in texts if "=" not in text), None):
        raise click.BadParameter(f"{wrong!r} is not NAME=FORMULA")
    return {name.strip(): formula for name, _, formula in (text.partition("=") for text in texts)}


def _counts(_: click.Context, __: click.Parameter, text: str | None) -> SetCounts | None:
    try:
        return SetCounts.parse(text) if text else None
    except InputError as error:
        raise click.BadParameter(str(error)) from error


@click.command(cls=Command)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=LocationType())
@click.option("--shards", type=LocationType(), default=Path("shards"), show_default=True,
              help="Folder to fill, a new or an empty one, or a URL of object storage.")  # fmt: skip
@click.option("--seed", default=DEFAULTS.seed, show_default=True, help="Of the shuffle over all shards.")
@click.option("--sets-per-shard", type=click.IntRange(1), default=DEFAULTS.sets_per_shard, show_default=True,
              help="Image sets in each tar.")  # fmt: skip
@click.option("--layout", metavar="NAME|FILE", default="auto", show_default=True,
              help=f"How files are named: auto, {', '.join(layout_names())}, "
                   "a .toml file, or a .csv that lists sets.")  # fmt: skip
@click.option("--overlay", metavar="TEMPLATE", help="Paths of overlays, as fg_bg/{bg}/{fg}_{id}.jpg.")
@click.option("--mask", metavar="TEMPLATE", help="Paths of masks; {name} is a number, * anything within a name.")
@click.option("--depth", metavar="TEMPLATE", help="Paths of depth maps.")
@click.option("--background", metavar="TEMPLATE", help="Paths of backgrounds.  [default: bg/*{bg}.jpg]")
@click.option("--field", "fields", metavar="NAME=FORMULA", multiple=True, callback=_formulas,
              help="bg, fg or id where no name tells it, from numbers in it: bg=ceil(n/4000).")  # fmt: skip
@click.option("--counts", metavar="BxFxPxM", callback=_counts,
              help="Backgrounds, foregrounds, placements and mirrorings (2 or 1) of sets that are numbered through, "
                   "as 100x100x20x2.")  # fmt: skip
@click.option("--codec", type=click.Choice(CODECS), default=DEFAULTS.codec, show_default=True,
              help="Store pictures as they came, or as gray planes, which load without decoding.")  # fmt: skip
@click.option("--size", type=click.IntRange(1),
              help=f"Height and width of planes, pixels.  [default: {DEFAULTS.size}]")  # fmt: skip
@click.option("--no-depth", is_flag=True, help="Pack without depth maps, even if there are some.")
@click.option("--dry-run", is_flag=True, help="Say what would be packed, from the names alone, and write nothing.")
@click.option("--depth-encoding", type=click.Choice(["auto", *ENCODINGS, *CONVERTED]), default=DEFAULTS.depth_encoding,
              show_default=True, help="Colours of the depth pictures; auto looks at a sample.")  # fmt: skip
@click.option("--depth-near", type=click.Choice(NEAR), default=DEFAULTS.depth_near, show_default=True,
              help="Which end of the depth scale is near: large values or small ones.")  # fmt: skip
@click.option("--depth-range", type=float, nargs=2, metavar="LOW HIGH",
              help="One scale for all .npy and 16-bit depth maps, in their units.  [default: each .npy by its smallest "
                   "and largest value, 16 bits as they are]")  # fmt: skip
@click.option("--depth-per-image", is_flag=True, help="Scale 16-bit depth maps as .npy, too: each by itself.")
@click.option("--depth-percentiles", type=click.FloatRange(0, 100), nargs=2, metavar="LOW HIGH",
              help="Scale each .npy and 16-bit depth map between these percentiles of its values.")  # fmt: skip
@click.option("--depth-invalid", metavar="|".join((*WORDS, "VALUE")), default=DEFAULTS.depth_invalid,
              show_default=True, help="What of depth is no measurement, beside nan and infinity; auto looks at a "
                                      "sample, none takes all for measured.")  # fmt: skip
@click.option("--mask-encoding", type=click.Choice(["auto", *MASK_ENCODINGS]), default=DEFAULTS.mask_encoding,
              show_default=True, help="What of a mask is foreground; auto looks at a sample.")  # fmt: skip
@click.option("--mask-foreground", type=click.IntRange(0, MAX_VALUE), metavar="VALUE",
              help="The value that means foreground; 0 of inverted masks.  [default: 255, or all but 0]")  # fmt: skip
@click.option("--fit", type=click.Choice(FITS), default=DEFAULTS.fit, show_default=True,
              help="Backgrounds and depth of another shape than the overlay: leave such sets out, crop around the "
                   "middle, or stretch.")  # fmt: skip
@click.option("--accept-suspicious", is_flag=True,
              help="Go on where masks or backgrounds look wrong, and put a warning into the manifest.")  # fmt: skip
@click.option("--verify", type=click.Choice(VERIFY), default=DEFAULTS.verify, show_default=True,
              help="Decode every picture and look at every mask, or trust what follows a good header.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Let any problem at all end the packing, with nothing written.")
@click.option("--follow-links", is_flag=True, help="Read what links in a folder lead to outside of it, and folders.")
@click.option("--merge", "merging", is_flag=True,
              help="Join shard directories, which are the SOURCEs, as they are.")  # fmt: skip
@part_options
@click.option("--workers", type=click.IntRange(1), show_default="one a core",
              help="Processes; the bytes written do not depend on it.")  # fmt: skip
@engine_option
def main(
    sources: tuple[Location, ...],
    shards: Location,
    layout: str,
    fields: dict[str, str],
    counts: SetCounts | None,
    size: int | None,
    no_depth: bool,
    dry_run: bool,
    merging: bool,
    part: Part | None,
    finish: bool,
    overlay: str | None,
    mask: str | None,
    depth: str | None,
    background: str | None,
    **options: Any,
) -> None:
    """Pack the image sets of folders, zips and tars into WebDataset shards.

    Sources may lie in object storage (s3://, gs://, az://), zips and tars on a web server, too; all is read in place.

    The layout, which tells from a file's name of which set it is which part, is recognised; state it where it is not
    known. Parts are joined by the ids in their names, for instance fg_bg/bg_005/fg_004_bg_005_000001.jpg with
    ..._disp.jpeg beside it. What is incomplete or does not decode is left out and listed in problems.csv.

    Many machines can share the work: each gives the same command with --part I/N, with another I, and in the end one
    gives it with --finish.
    """
    if merging:
        echo(merge_shards(sources, shards))
        return
    if size and options["codec"] != PLANES:
        raise click.UsageError(f"--size is for --codec {PLANES}: pictures keep the size that they have")
    require_one_way(part, finish=finish, engine=options["engine"])
    if dry_run and (part or finish):
        raise click.UsageError("--dry-run writes nothing: leave out --part and --finish")
    how = PackOptions(depth=not no_depth, size=size or DEFAULTS.size, **options)
    templates = {"overlay": overlay, "mask": mask, "depth": depth, "background": background}
    chosen = choose_layout(layout, {name: text for name, text in templates.items() if text}, fields, counts)
    with progress_bar("scanning", 1) as bar:

        def files_found(total: int) -> None:
            bar.label = f"scanning: {plural(total, 'file')}"
            bar.render_progress()

        def sets_found(total: int) -> None:
            advance(bar, "packing", 0, total)

        progress = Progress(files_found, sets_found, bar.update)
        if dry_run:
            lines = list(describe_sets(sets_to_pack(sources, how, progress, chosen, shards)))
        elif part:
            lines = list(describe_packed_part(pack_part(sources, shards, how, part, progress, chosen), shards))
        else:
            summary = pack(sources, shards, how, progress, chosen, finish=finish)
            lines = list(describe(summary, shards, finished=finish))
    echo(*lines)


def merge_shards(sources: tuple[Location, ...], shards: Location) -> str:
    """Join shard directories; return one line on what there is now. Flags that say how to pack are refused."""
    context = click.get_current_context()
    for name in context.params.keys() - {"sources", "shards", "merging"}:
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--merge joins shards as they are: leave out --{name.replace('_', '-')}")
    with progress_bar("merging", 1) as bar:
        manifest = merge(sources, shards, functools.partial(advance, bar, "merging"))
    sets = f"{plural(manifest.sets, 'set')} on {plural(len(manifest.backgrounds), 'background')}"
    merged = plural(len(sources), "shard directory", "shard directories")
    return f"merged {merged}: {sets} in {plural(len(manifest.shards), 'shard')}"


def describe_sets(sets: Sets) -> Iterator[str]:
    """What a dry run tells: the layout, how many sets join, examples of them, and the problems."""
    yield f"layout: {sets.layout.why}"
    found = f"{plural(len(sets), 'set joins', 'sets join')}, on {plural(len(sets.backgrounds), 'background')}"
    yield f"{found}; left out: {_counts_of(sets.left_out)}"
    for position in np.unique(np.linspace(0, len(sets) - 1, EXAMPLES).astype(int)):
        files = sets[position]
        yield f"  {files.key}: {', '.join((sets.backgrounds[files.bg], *files.paths))}"
    kinds = Counter(problem.kind for problem in sets.problems)
    yield f"problems: {_counts_of(kinds)}; no picture was opened, nothing was written"
    for path, kind, why in sorted(sets.problems)[:PROBLEMS]:
        yield f"  {path}: {kind}: {why}"
    if len(sets.problems) > PROBLEMS:
        yield f"  ... and {len(sets.problems) - PROBLEMS:,} more"


def _counts_of(kinds: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted((+kinds).items())) or "nothing"


def describe_packed_part(packed: PackedPart, shards: Location) -> Iterator[str]:
    """What a part tells: what is in its shards, and how to go on."""
    if packed.done.earlier < packed.done.jobs:
        rate = f"{packed.sets / packed.seconds:,.0f} sets/s; " if not packed.done.earlier else ""
        yield f"packed {plural(packed.sets, 'set')}, {rate}left out: {_counts_of(packed.left_out)}"
    yield f"{shards}: {describe_part(packed.done)}"


def describe(summary: PackSummary, shards: Location, *, finished: bool = False) -> Iterator[str]:
    """What a packing tells: layout and depth, and in one line what was packed, how fast, and what is wrong."""
    yield f"layout: {summary.layout}"
    if summary.depth:
        yield f"depth: {summary.depth}"
    if summary.refused:
        yield summary.refused
    if summary.masks:
        yield f"masks: {summary.masks}"
    for warning in summary.manifest.warnings:
        yield f"warning: {warning}"
    manifest = summary.manifest
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    how_fast = "from all parts" if finished else f"{manifest.sets / summary.seconds:,.0f} sets/s"
    depth = "without depth"
    if "depth" in manifest.parts:
        depth = f"depth {manifest.depth_encoding} near {manifest.depth_near}"
    if manifest.codec == PLANES:
        depth += f", planes of {manifest.plane_size} x {manifest.plane_size} pixels"
    decoding = f" ({summary.decode_share:.0%} of the workers' time is decoding)" if summary.decode_share else ""
    kept = f"; kept with masks that look wrong: {_counts_of(summary.remarks)}" if summary.remarks else ""
    kept += f"; repaired: {summary.repaired:,}" if summary.repaired else ""
    problems = f"; {plural(summary.problems, 'file')} listed in {shards / 'problems.csv'}" if summary.problems else ""
    sets = f"{plural(manifest.sets, 'set')} on {plural(len(manifest.backgrounds), 'background')}"
    yield (
        f"packed {sets} into {plural(len(manifest.shards), 'shard')}, {megabytes:,.1f} MB, "
        f"{how_fast}{decoding}, {depth}; left out: {_counts_of(summary.left_out)}{kept}{problems}"
    )


if __name__ == "__main__":
    sys.exit(main())
