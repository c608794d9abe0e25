"""fgbg-check: is every byte of a shard directory as it was packed?"""

import functools
import sys
from pathlib import Path

import click

from pipeline.engines import LOCAL
from pipeline.format.depth import NEAR, STORED
from pipeline.loading.caching.check import check_cache
from pipeline.loading.caching.folder import cache_directory
from pipeline.parts import Part
from pipeline.storage import Location
from pipeline.verify.check import CheckOptions, CheckReport, check
from pipeline.verify.repair import DAMAGED_SUFFIX, RepairReport, repair
from pipeline.words import plural
from pipeline.workers import available_cores
from tools.cli import (
    Command,
    LocationType,
    advance,
    echo,
    engine_option,
    parse_part,
    progress_bar,
    require_one_way,
)


@click.command(cls=Command)
@click.option("--shards", type=LocationType(), default=Path("shards"), show_default=True,
              help="The shard directory, or its URL.")  # fmt: skip
@click.option("--decode", is_flag=True, help="Decode every picture as well.")
@click.option(
    "--full", is_flag=True, help="--decode, and compare what the stock webdataset reader sees with the index."
)
@click.option("--repair-index", is_flag=True,
              help="Rebuild index, .idx and manifest from the tars; sets that are damaged are left out.")  # fmt: skip
@click.option("--depth-encoding", type=click.Choice(STORED),
              help="Of --repair-index: colours of the depth pictures.  [default: the manifest's]")  # fmt: skip
@click.option("--depth-near", type=click.Choice(NEAR),
              help="Of --repair-index: which end of the depth scale is near.  [default: the manifest's]")  # fmt: skip
@click.option("--part", callback=parse_part, metavar="I/N",
              help="Check one of N parts of the shards, I from 0 to N - 1; 0 also what is beside them.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), show_default="one a core",
              help="Processes; what is found does not depend on it.")  # fmt: skip
@engine_option
@click.option("--cache", is_flag=False, flag_value="", metavar="[DIR]",
              help="In place of shards: the cache folder, or DIR; damaged files are removed.")  # fmt: skip
def main(
    shards: Location,
    decode: bool,
    full: bool,
    repair_index: bool,
    depth_encoding: str | None,
    depth_near: str | None,
    part: Part | None,
    workers: int | None,
    engine: str,
    cache: str | None,
) -> None:
    """Check that every byte of a shard directory is as it was packed; name what is not, and exit with 1.

    Compared are the hashes of all shards, of the backgrounds and the index, the CRC of every picture, the rows of the
    index with the tars' headers and the sets' json, each .idx with its tar, and the manifest with all of it.

    --repair-index writes a tar with damaged sets anew without these, and keeps the old one as sets-NNNNNN.tar.damaged.
    """
    if part and (repair_index or cache is not None):
        raise click.UsageError("--part is for checking shards: leave out --repair-index and --cache")
    if engine != LOCAL and (repair_index or cache is not None):
        raise click.UsageError(f"--engine {engine} is for checking shards: leave out --repair-index and --cache")
    require_one_way(part, finish=False, engine=engine)
    if cache is not None:
        folder = cache_directory(cache)
        echo(f"{folder}: {check_cache(folder)}")
        return
    if repair_index and (decode or full):
        raise click.UsageError("--repair-index decodes every picture by itself: leave out --decode and --full")
    if not repair_index and (depth_encoding or depth_near):
        raise click.UsageError("--depth-encoding and --depth-near belong to --repair-index")
    if repair_index and not isinstance(shards, Path):
        raise click.UsageError("--repair-index writes beside the tars: copy the shards to a folder first")
    label = "repairing" if repair_index else "checking"
    with progress_bar(label, 1) as bar:
        done = functools.partial(advance, bar, label)
        if repair_index and isinstance(shards, Path):
            repaired = repair(shards, depth_encoding, depth_near, workers=workers or available_cores(), tars_read=done)
        else:
            report = check(shards, CheckOptions(decode or full, full, workers, engine), done, part)
    if repair_index:
        for problem in repaired.damaged:
            echo(f"left out: {problem.path}: {problem.why}")
        echo(describe_repair(repaired, shards))
        return
    for line in report.damage:
        echo(line)
    echo(describe(report, shards, part))
    if report.damage:
        click.get_current_context().exit(1)


def describe(report: CheckReport, shards: Location, part: Part | None = None) -> str:
    """One line: how much was read, how fast, and whether all is well."""
    manifest, megabytes = report.manifest, report.bytes / 1e6
    verdict = f"damage found: {len(report.damage):,}" if report.damage else "all is as it was packed"
    read = f"{plural(report.sets, 'set')} on {plural(len(manifest.backgrounds), 'background')}"
    read += f" in {plural(report.shards, 'shard')}"
    if part:
        verdict = f"part {part}: {verdict}"
        read = f"{plural(report.sets, 'set')} in {report.shards:,} of {plural(len(manifest.shards), 'shard')}"
    return f"{shards}: {verdict}; read {read}, {megabytes:,.1f} MB, {megabytes / report.seconds:,.0f} MB/s"


def describe_repair(report: RepairReport, shards: Location) -> str:
    """One line: what there is now, what was left out, and what could not be known."""
    manifest = report.manifest
    aside = f"; the damaged tars are kept as *.tar{DAMAGED_SUFFIX}" if report.damaged else ""
    unverified = plural(report.unverified, "shard")
    unsure = f"; not verified: {unverified}, for want of checksums that tell damage which decodes"
    sets = f"{plural(manifest.sets, 'set')} in {plural(len(manifest.shards), 'shard')}"
    return (
        f"{shards}: rebuilt index, .idx and manifest of {sets}; "
        f"left out: {len(report.damaged):,}{aside}{unsure if report.unverified else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
