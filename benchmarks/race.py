"""The race: loaders prove that they give the same pictures, then take turns under the clock; tables and a chart."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# isort: off
import pipeline.plotting  # noqa: F401 - before matplotlib

# isort: on
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.harness import Verified, Worker
from benchmarks.peers import LOADERS, missing_peer
from pipeline.format.manifest import Manifest, load_index
from pipeline.format.sample import PARTS
from pipeline.resume import atomic_file
from tools.bench_loader import (
    OURS_PLANES,
    OURS_RESIDENT,
    Column,
    Comparison,
    LoadOptions,
    Rows,
    loader_row,
    loaders_report,
    print_loaders,
    time_in_turn,
)
from tools.cli import echo, progress_bar
from tools.measure import Pass, describe_machine, machine

INDEX_BYTES = 16  # two int64 a set cross to the device: the row, and the place of the background
COLOURS = {"warm": "#c2573a", "cold": "#3a76c2"}
PEER_COLOURS = {"warm": "#e3b8aa", "cold": "#b0c6e3"}
LINEAR_UP_TO = 20
"""Between larger rates and smaller ones than so many times these, the shorter bars could not be told apart."""
WIDTH_IN, ROW_IN, FRAME_IN, DPI = 9.0, 0.42, 1.5, 150


def missing_peers() -> dict[str, str]:
    """The loaders that cannot be measured here: what they lack, with the remedy."""
    return {name: reason for name in LOADERS if (reason := missing_peer(name))}


def race(comparison: Comparison, chart: Path | None) -> dict[str, Any]:
    """Compare every loader with the reference, then time them in turn; print tables, draw the chart, return the report.

    Each has a process of its own, which stands still while another is timed.
    """
    with ExitStack() as stack:
        pictures, folders = stack.enter_context(comparison.folders())
        bar = stack.enter_context(progress_bar("measuring", len(folders) + comparison.turns))
        workers = {
            name: stack.enter_context(Worker(name, LOADERS[name], folder, pictures, comparison.options))
            for name, folder in folders.items()
        }
        verified = dict[str, Verified]()
        for name, worker in workers.items():
            verified[name] = worker.verify()
            bar.update(1)
        sets, loaders = next(iter(verified.values())).sets, {}
        for cache in comparison.caches:
            passes = time_in_turn(comparison, cache, workers, sets, lambda: bar.update(1))
            loaders[cache] = {name: _row(comparison, passes, name, folders[name], verified[name]) for name in passes}
    print_loaders(comparison, loaders, DETAILS)
    echo("Mpixel/s: pixels decoded, as they are stored; peak MiB: with children, libraries once a process")
    echo("off: levels of 255 from Pillow's gray decode and antialiased resize, mean / 99.9 % / largest")
    if chart:
        options = comparison.options
        title = f"fgbg-bench: {options.size} x {options.size}, batch {options.batch_size}, {options.workers} threads"
        draw_chart(loaders, title, describe_machine(machine()), chart)
        echo(f"chart: {chart}")
    return loaders_report(comparison, loaders, sets)


def _device_kib(row: Mapping[str, Any]) -> str:
    crossing = row["device_bytes_a_set"]
    return "-" if crossing is None else f"{crossing / 1024:.1f}"


DETAILS: tuple[Column, ...] = (
    ("to device", _device_kib),
    ("off", lambda row: " / ".join(f"{level:.2f}" for level in row["difference"].values())),
)


def _row(
    comparison: Comparison, passes: Mapping[str, list[Pass]], name: str, folder: Path, verified: Verified
) -> dict[str, Any]:
    """What is reported of a loader, by its passes and by what it was found to give."""
    row, pixels = loader_row(comparison, passes, name), decoded_pixels(name, verified, comparison.options.size)
    return {
        **row,
        "megapixels_per_sec": pixels and row["sets_per_sec"]["median"] * pixels / 1e6,
        "device_bytes_a_set": device_bytes(name, folder, verified, comparison.options),
        "difference": verified.difference._asdict(),
    }


def decoded_pixels(name: str, verified: Verified, size: int) -> float | None:
    """Pixels, as stored, that a loader decodes a set in the long run; None for one that decodes nothing any more.

    The backgrounds count for the one loader that decodes them with every set; the others do so once.
    """
    if name == OURS_RESIDENT:
        return None
    if name == OURS_PLANES:
        return float(len(PARTS) * size**2)
    return verified.other_pixels + (verified.background_pixels if name == "seed" else 0)


def device_bytes(name: str, folder: Path, verified: Verified, options: LoadOptions) -> float | None:
    """Bytes a set that cross from the host to the GPU, at least; None on the CPU.

    Of what is decoded there, the encoded pictures are counted. Where nvJPEG does the Huffman decoding on the host, it
    copies coefficients instead, which are more.
    """
    if options.device != "gpu":
        return None
    indices = float(INDEX_BYTES if name.startswith("ours") else 0)
    if name == OURS_RESIDENT:
        return indices
    if name == OURS_PLANES:
        return indices + len(PARTS) * options.size**2
    if name in ("ours", "dali-reader"):
        return indices + float(load_index(folder, Manifest.load(folder))["size"].sum(axis=1).mean())
    return verified.delivered_bytes  # decoded on the host


def draw_chart(loaders: Mapping[str, Rows], title: str, subtitle: str, path: Path) -> None:
    """Draw a bar for each loader into a PNG: sets a second, medians with whiskers at the quartiles.

    `loaders` are the rows of each state of the page cache.
    """
    names = dict.fromkeys(name for rows in loaders.values() for name in rows)
    bars = [(name, cache, rows[name]) for name in names for cache, rows in loaders.items() if name in rows]
    figure = Figure(figsize=(WIDTH_IN, FRAME_IN + ROW_IN * len(bars)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    highest = max(row["sets_per_sec"]["q3"] for _, _, row in bars)
    lowest = min(row["sets_per_sec"]["q1"] for _, _, row in bars)
    logarithmic = highest > LINEAR_UP_TO * lowest
    for place, (name, cache, row) in enumerate(bars):
        rate = row["sets_per_sec"]
        whiskers = [[rate["median"] - rate["q1"]], [rate["q3"] - rate["median"]]]
        colour = (COLOURS if name.startswith("ours") else PEER_COLOURS)[cache]
        axes.barh(place, rate["median"], xerr=whiskers, color=colour, capsize=3, height=0.7)
        label = f"   {rate['median']:,.0f}   {row['ratio']['median']:.2f} x {row['ratio_to']}"
        axes.text(rate["q3"], place, label, va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [name if len(loaders) == 1 else f"{name}, {cache}" for name, cache, _ in bars])
    axes.invert_yaxis()  # the first on top
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(lowest / 2, highest * (highest / lowest) ** 0.4)
    else:
        axes.set_xlim(0, 1.4 * highest)
    axes.set_xlabel(f"sets/s{' (logarithmic)' if logarithmic else ''}: median, quartiles")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(subtitle, fontsize=8, color="#555555", loc="left")
    figure.suptitle(title, fontsize=12, ha="left", x=0.01)
    FigureCanvasAgg(figure)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
