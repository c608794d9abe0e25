"""What so many sets take: bytes, requests, money, machines and hours, by arithmetic from rates that were measured.

`python -m benchmarks.capacity` prints the table of docs/capacity.md; every rate is an option, for one's own.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import click

from pipeline.format.index_rows import row_type
from tools.cli import Command, echo

SETS = (400_000, 10_000_000, 100_000_000)
PART_BYTES = 8 << 20
KEY_BYTES = 24
"""Of "fg_00000_bg_00000_0000000"; names of 100 backgrounds have four fewer."""


class Rate(NamedTuple):
    """A number that all others follow from."""

    value: float
    help: str


RATES = {
    "set_bytes": Rate(20_000, "Bytes of a set in its shard (JPEG, 224 pixels; as planes of 128 pixels 5,700)."),
    "shard_sets": Rate(1000, "Sets a shard."),
    "index_bytes": Rate(row_type(KEY_BYTES).itemsize, "Bytes of a set in index.npy."),
    "manifest_bytes": Rate(158, "Bytes of a shard in manifest.json; a background has about 80 beside."),
    "packing_bytes": Rate(390, "Memory of a packing run for a set."),
    "train_share": Rate(
        0.64, "Share of the sets that the split train has: 0.8 of the backgrounds, of the foregrounds."
    ),
    "resident_bytes": Rate(3 * 128**2, "Bytes of a decoded set that stays in memory."),
    "compose_rate": Rate(3790, "Sets/s that a machine composes from photographs."),
    "synthetic_rate": Rate(1883, "Sets/s that a machine composes with --synthetic."),
    "pack_rate": Rate(4723, "Sets/s that a machine packs, every picture decoded."),
    "planes_rate": Rate(1120, "Sets/s that a machine packs with --codec planes."),
    "depth_rate": Rate(20.8, "Sets/s that a machine gives depth."),
    "depth_limit": Rate(258, "Sets/s of one fgbg-depth whose network takes no time: what a GPU cannot exceed."),
    "check_rate": Rate(254, "MB/s that a machine checks."),
    "train_rate": Rate(11_772, "Sets/s that a GPU trains, the sets in its memory."),
    "stream_rate": Rate(5714, "Sets/s that a GPU trains from JPEG."),
    "epochs": Rate(20, "Epochs of a training."),
    "hosts": Rate(8, "Hosts that train, of which each downloads its share of an epoch."),
    "link_rate": Rate(290, "MB/s that a process gets from storage, over its eight connections."),
    "open_us": Rate(0.1, "CPU us of a set at the start of every process: index hashed and compared, split counted."),
    "get_price": Rate(0.4, "Price of a million GETs."),
    "put_price": Rate(5.0, "Price of a million PUTs."),
    "month_price": Rate(0.023, "Price of a GB in storage for a month."),
    "deadline": Rate(24, "Hours in which a work shall be done: so many machines are named."),
}


class Row(NamedTuple):
    """A line of the table."""

    title: str
    cell: str


def rows(sets: int, rate: dict[str, float]) -> Iterator[Row]:
    """The cells of one column; `rate` has a value for each name in RATES."""
    stored, shards = sets * rate["set_bytes"], math.ceil(sets / rate["shard_sets"])
    parts = shards * math.ceil(stored / shards / PART_BYTES)
    trained = sets * rate["train_share"]
    yield Row("stored", size(stored))
    yield Row("shards", f"{shards:,}")
    yield Row("index.npy", size(sets * rate["index_bytes"]))
    yield Row("manifest.json", size(shards * rate["manifest_bytes"]))
    yield Row("storage, a month", money(stored / 1e9 * rate["month_price"]))
    yield Row("writing the shards, in parts of 8 MiB", requests(parts + 3 * shards, rate["put_price"]))
    yield Row("an epoch in parts of 8 MiB, through a cache", requests(parts, rate["get_price"]))
    yield Row("an epoch of all sets, a range each, without one", requests(sets, rate["get_price"]))
    room = min(1, 2 / rate["hosts"]) * stored
    yield Row(f"cache of each of {rate['hosts']:g} hosts: twice its share of an epoch", size(room))
    yield Row("all of it, downloaded by one process", duration(stored / 1e6 / rate["link_rate"]))
    yield Row("start: CPU time of each process", duration(sets * rate["open_us"] / 1e6))
    yield Row(
        "start: the index downloaded, once a host", duration(sets * rate["index_bytes"] / 1e6 / rate["link_rate"])
    )
    yield Row("memory of one packing run", size(61e6 + sets * rate["packing_bytes"]))
    yield Row("train decoded, in memory", size(trained * rate["resident_bytes"]))
    works = {
        "composing from photographs": sets / rate["compose_rate"],
        "composing synthetic sets": sets / rate["synthetic_rate"],
        "packing": sets / rate["pack_rate"],
        "packing as planes": sets / rate["planes_rate"],
        "depth, on CPUs": sets / rate["depth_rate"],
        "depth, at best on GPUs": sets / rate["depth_limit"],
        "checking": stored / 1e6 / rate["check_rate"],
        f"training, {rate['epochs']:g} epochs of train, from memory": trained * rate["epochs"] / rate["train_rate"],
        f"training, {rate['epochs']:g} epochs of train, from JPEG": trained * rate["epochs"] / rate["stream_rate"],
    }
    for title, work_sec in works.items():
        machines = math.ceil(work_sec / 3600 / rate["deadline"])
        yield Row(title, duration(work_sec) + (f" ({machines:,})" if machines > 1 else ""))


def size(count: float) -> str:
    """Bytes, in decimal units."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{_rounded(count)} {unit}"
    return f"{_rounded(count / 1000)} TB"


def money(price: float) -> str:
    """A price, in dollars."""
    return f"${price:,.0f}" if price >= 10 else f"${price:,.2f}" if price >= 0.1 else f"${price:.1g}"


def requests(count: int, million_price: float) -> str:
    """Requests and their price."""
    return f"{count:,}, {money(count / 1e6 * million_price)}"


def duration(sec: float) -> str:
    """Seconds, minutes or hours."""
    if sec < 90:
        return f"{_rounded(sec)} s"
    return f"{_rounded(sec / 60)} min" if sec < 5400 else f"{_rounded(sec / 3600)} h"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def table(sets: tuple[int, ...], rate: dict[str, float]) -> str:
    """All columns, as Markdown."""
    titles = [f"{count:,} sets" for count in sets]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (1 + len(sets)) + "|"]
    for found in zip(*(rows(count, rate) for count in sets), strict=True):
        lines.append(f"| {found[0].title} | " + " | ".join(row.cell for row in found) + " |")
    return "\n".join(lines)


@click.command(cls=Command)
@click.option("--sets", type=click.IntRange(1), multiple=True, default=SETS, show_default=True, help="A column each.")
def main(sets: tuple[int, ...], **rate: float) -> None:
    """Print what so many sets take, from rates given or those measured; dollars, decimal units.

    Behind the time that one machine, or GPU, takes stands in brackets how many are done with it by the deadline: by
    arithmetic, as if they did not hinder each other.
    """
    echo(*table(sets, rate).splitlines())


for _name, _rate in RATES.items():
    _option = f"--{_name.replace('_', '-')}"
    _kind = click.FloatRange(min=0, min_open=True)
    main.params.append(click.Option([_option], type=_kind, default=_rate.value, show_default=True, help=_rate.help))


if __name__ == "__main__":
    main()
