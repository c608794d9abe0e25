"""fgbg-pack: image sets -> shards."""

import sys
from pathlib import Path

import click

from pipeline.depth import ENCODINGS, NEAR
from pipeline.images import VERIFY
from pipeline.pack import PackOptions, Progress, Summary, pack
from tools.cli import Command, progress_bar

DEFAULTS = PackOptions()


@click.command(cls=Command)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--shards", type=click.Path(path_type=Path), default=Path("shards"), show_default=True,
              help="Folder to fill: a new or an empty one.")  # fmt: skip
@click.option("--seed", default=DEFAULTS.seed, show_default=True, help="Of the shuffle over all shards.")
@click.option("--sets-per-shard", type=click.IntRange(1), default=DEFAULTS.sets_per_shard, show_default=True,
              help="Image sets in each tar.")  # fmt: skip
@click.option("--depth/--no-depth", default=DEFAULTS.depth, show_default=True,
              help="Whether the sets have depth maps; without, those that are there are not packed.")  # fmt: skip
@click.option("--depth-encoding", type=click.Choice(["auto", *ENCODINGS]), default=DEFAULTS.depth_encoding,
              show_default=True, help="Colours of the depth pictures; auto looks at a sample.")  # fmt: skip
@click.option("--depth-near", type=click.Choice(NEAR), default=DEFAULTS.depth_near, show_default=True,
              help="Which end of the depth scale is near.")  # fmt: skip
@click.option("--verify", type=click.Choice(VERIFY), default=DEFAULTS.verify, show_default=True,
              help="Decode every picture, or trust what follows a good header.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=DEFAULTS.workers, show_default="one a core",
              help="Processes; the bytes written do not depend on it.")  # fmt: skip
def main(
    source: Path,
    shards: Path,
    seed: int,
    sets_per_shard: int,
    depth: bool,
    depth_encoding: str,
    depth_near: str,
    verify: str,
    workers: int,
) -> None:
    """Pack the image sets of the folder SOURCE into WebDataset shards.

    SOURCE holds bg/, fg_bg/ and fg_bg_mask/ as the S15 depth run left them, for instance
    fg_bg/bg_005/fg_004_bg_005_000001.jpg with ..._disp.jpeg beside it. Parts are joined by the ids in their names.
    What is incomplete or does not decode is left out and listed in problems.csv.
    """
    options = PackOptions(seed, sets_per_shard, depth, depth_encoding, depth_near, verify, workers)
    with progress_bar("scanning", 1) as bar:

        def files_found(total: int) -> None:
            bar.label = f"scanning: {total:,} files"
            bar.render_progress()

        def sets_found(total: int) -> None:
            bar.label, bar.length = "packing", total

        summary = pack(source, shards, options, Progress(files_found, sets_found, bar.update))
    click.echo(describe(summary, shards))


def describe(summary: Summary, shards: Path) -> str:
    """One line: what was packed, how fast, what was left out."""
    manifest = summary.manifest
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    rate = manifest.sets / summary.seconds
    depth = "without depth"
    if "depth" in manifest.parts:
        depth = f"depth {manifest.depth_encoding} near {manifest.depth_near}"
    left_out = ", ".join(f"{count:,} {kind}" for kind, count in sorted((+summary.left_out).items()))
    problems = f"; {summary.problems:,} files listed in {shards / 'problems.csv'}" if summary.problems else ""
    return (
        f"packed {manifest.sets:,} sets on {len(manifest.backgrounds):,} backgrounds into {len(manifest.shards):,} "
        f"shards, {megabytes:,.1f} MB, {rate:,.0f} sets/s, {depth}; "
        f"left out: {left_out or 'nothing'}{problems}"
    )


if __name__ == "__main__":
    sys.exit(main())
