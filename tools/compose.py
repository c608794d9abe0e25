"""fgbg-compose: make image sets."""

import time
from pathlib import Path

import click

from pipeline.compose import NEAR_M, Recipe, default_variety, write_sets
from pipeline.workers import available_cores
from tools.cli import Command, progress_bar

HELP = f"""Make image sets under OUT, a new or an empty folder.

\b
bg/bg_BBB.jpg                                        street BBB, colour
fg/fg_FFF.png                                        car FFF, RGBA with straight alpha
fg_bg/bg_BBB/fg_FFF_bg_BBB_NNNNNN.jpg                set NNNNNN: the car on the street, colour
fg_bg/bg_BBB/fg_FFF_bg_BBB_NNNNNN_disp.jpeg          its depth, gray: 255 * {NEAR_M:g} m / depth, near bright, sky 0
fg_bg_mask/bg_BBB/fg_FFF_bg_BBB_mask_NNNNNN.jpg      its mask, gray: the car's alpha

All pictures of sets and streets are 224 x 224 pixels. The same options give the same bytes with any --workers.
"""


@click.command(cls=Command, help=HELP)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--synthetic", is_flag=True, help="Render streets and draw cars; needs no input.")
@click.option("--sets", type=click.IntRange(min=1), default=2000, show_default=True, help="Image sets to make.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, other pictures.")
@click.option("--streets", type=click.IntRange(min=1), help="Different streets.  [default: 2 sqrt(SETS), 10 to 1000]")
@click.option("--cars", type=click.IntRange(min=1), help="Different cars.  [default: 2 sqrt(SETS), 10 to 1000]")
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=90,
    show_default=True,
    help="JPEG quality. 90 keeps mask and depth within about a level; 75 rings visibly at the car's edge.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one a core]")
def main(
    out: Path,
    synthetic: bool,
    sets: int,
    seed: int,
    streets: int | None,
    cars: int | None,
    quality: int,
    workers: int | None,
) -> None:
    """Fill a `Recipe` from the flags, write it, say what was written."""
    if not synthetic:
        raise click.UsageError("only synthetic sets can be made so far (photographs come later): add --synthetic")
    variety = default_variety(sets)
    recipe = Recipe(sets, seed, streets or variety, cars or variety, quality)
    start_sec = time.perf_counter()
    with progress_bar("compose", sets) as bar:
        written_bytes = write_sets(out, recipe, workers or available_cores(), bar.update)
    sets_per_sec = sets / (time.perf_counter() - start_sec)
    click.echo(
        f"{out}: {sets} sets of {recipe.streets} streets and {recipe.cars} cars, "
        f"{written_bytes / 1e6:.1f} MB, {sets_per_sec:.0f} sets/s"
    )
