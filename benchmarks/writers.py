"""What writes sets: fgbg-pack beside `webdataset.ShardWriter`, fgbg-compose beside the original's way of doing it."""

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from pipeline.composing.photos import find_pictures, read_background
from pipeline.composing.recipe import Recipe
from pipeline.format.images import encode_gray, encode_rgb
from pipeline.format.manifest import Manifest
from pipeline.format.sample import PARTS
from pipeline.packing.join import Sets, find_sets
from pipeline.packing.known_layouts import known_layout
from pipeline.words import plural
from tools.cli import echo, progress_bar
from tools.measure import Pass, in_turn, peak_mib, print_rates, summarize, used

SIZE_PX, QUALITY, SCALE = 224, 90, (0.15, 0.35)  # what fgbg-compose does unless told otherwise


def bench_packing(source: Path, rounds: int, workers: int) -> dict[str, Any]:
    """Time fgbg-pack, with both ways of verifying, and `webdataset.ShardWriter` in turn on the same files."""

    def with_pack(verify: str, folder: Path) -> int:
        # The command, start-up and all: its workers would import this program, were they started from here.
        command = [sys.executable, "-m", "tools.pack", str(source), "--shards", str(folder), "--verify", verify]
        subprocess.run([*command, "--workers", str(workers)], check=True, stdout=subprocess.DEVNULL)
        return Manifest.load(folder).sets

    def with_shard_writer(folder: Path) -> int:
        sets = find_sets(source, known_layout())
        pack_with_shard_writer(source, folder, sets)
        return len(sets)

    def with_tar(folder: Path) -> int:
        subprocess.run(["tar", "cf", str(folder / "all.tar"), "-C", str(source), "."], check=True)
        return sets

    sets = len(find_sets(source, known_layout()))  # a wrong source ends here, in one line
    writers: dict[str, Callable[[Path], int]] = {
        "ours (verify header)": functools.partial(with_pack, "header"),
        "ours (verify decode)": functools.partial(with_pack, "decode"),
        "webdataset.ShardWriter": with_shard_writer,
        "tar cf": with_tar,
    }
    echo(f"packing {source}, {rounds} rounds each in turn, {workers} workers for ours, page cache warm")
    rows = _compared(writers, "webdataset.ShardWriter", rounds, warm_up=1)  # by which files come into the page cache
    print_rates(rows)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import tools.pack"], check=True)
    startup_sec = time.perf_counter() - start
    share = startup_sec * rows["ours (verify header)"]["sets_per_sec"]["median"] / sets
    echo(
        f"ours is a command whose start is timed with it, ShardWriter is called: {startup_sec:.1f} s, {share:.0%} of "
        f"ours (verify header) on {plural(sets, 'set')}; the more sets, the less it counts"
    )
    return {"rounds": rounds, "workers": workers, "sets": sets, "startup_sec": startup_sec, "packing": rows}


def bench_composing(photos: Path, sets: int, rounds: int) -> dict[str, Any]:
    """Time fgbg-compose with one process, into shards and as loose files, beside the original's way of doing it.

    The last line encodes pictures of the same kind and does nothing else: what no composing with JPEG can go below.
    """
    names = {part: find_pictures(photos / part) for part in ("bg", "fg")}
    placements = -(-sets // (len(names["bg"]) * len(names["fg"]) * 2))
    recipe = Recipe(len(names["bg"]), len(names["fg"]), placements, True, sets)
    peaks_mib = dict[str, float]()

    def with_compose(name: str, target: list[str], folder: Path) -> int:
        folders = ["--backgrounds", str(photos / "bg"), "--foregrounds", str(photos / "fg")]
        command = [sys.executable, "-m", "tools.compose", *target, str(folder / "out"), *folders]
        counts = ["--sets", str(sets), "--placements", str(placements), "--workers", "1"]
        with subprocess.Popen([*command, *counts], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                peaks_mib[name] = max(peaks_mib.get(name, 0.0), peak_mib(process.pid))
                time.sleep(0.05)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return sets

    def one_by_one(folder: Path) -> int:
        for number in recipe.numbers().tolist():
            paste_one(photos, names, recipe, number, folder)
        return sets

    def encode_only(folder: Path) -> int:
        streets = [read_background(photos / "bg" / name, SIZE_PX) for name in names["bg"]]
        mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
        mask[70:130, 80:160] = 255
        for number in range(sets):
            encode_rgb(streets[number % len(streets)], QUALITY)
            encode_gray(mask, QUALITY)
        return sets

    original = "original: Pillow, files"
    writers: dict[str, Callable[[Path], int]] = {
        "ours, shards": functools.partial(with_compose, "ours, shards", ["--shards"]),
        "ours, loose files": functools.partial(with_compose, "ours, loose files", []),
        original: one_by_one,
        "two JPEGs, nothing else": encode_only,
    }
    echo(f"composing {plural(sets, 'set')} of {photos}, {rounds} rounds each in turn, one process")
    rows = _compared(writers, original, rounds)
    for name, mib in peaks_mib.items():
        rows[name]["peak_mib"] = mib
    print_rates(rows)
    return {"rounds": rounds, "sets": sets, "composing": rows}


def paste_one(photos: Path, names: dict[str, tuple[str, ...]], recipe: Recipe, number: int, folder: Path) -> None:
    """One set as the original made it: both pictures opened, resized and pasted, two files saved, all by Pillow."""
    bg, fg, placement, mirrored = recipe.ingredients(number)
    rng = np.random.default_rng((bg, fg, placement))
    with Image.open(photos / "bg" / names["bg"][bg]) as street, Image.open(photos / "fg" / names["fg"][fg]) as car:
        overlay = street.convert("RGB").resize((SIZE_PX, SIZE_PX))
        height = round(rng.uniform(*SCALE) * SIZE_PX)
        width = min(SIZE_PX, round(height * car.width / car.height))
        sprite = car.convert("RGBA").resize((width, height))
        if mirrored:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        at = int(rng.integers(SIZE_PX - width + 1)), int(rng.integers(SIZE_PX - height + 1))
        overlay.paste(sprite, at, sprite)
        mask = Image.new("L", overlay.size)
        mask.paste(sprite.getchannel("A"), at)
        overlay.save(folder / f"{number}.jpg", quality=QUALITY)
        mask.save(folder / f"{number}_mask.jpg", quality=QUALITY)


def pack_with_shard_writer(source: Path, target: Path, sets: Sets) -> None:
    """`webdataset.ShardWriter` on the same files, 1,000 sets a tar, nothing checked."""
    with webdataset.ShardWriter(str(target / "sets-%06d.tar"), maxcount=1000, verbose=0) as writer:
        for position in range(len(sets)):
            files = sets[position]
            parts = {f"{part}.jpg": (source / path).read_bytes() for part, path in zip(PARTS, files.paths, strict=True)}
            metadata = {"bg": files.bg, "fg": files.fg, "id": files.number}
            writer.write({"__key__": files.key, **parts, "json": metadata})


def _compared(
    writers: Mapping[str, Callable[[Path], int]], base: str, rounds: int, warm_up: int = 0
) -> dict[str, dict[str, Any]]:
    """Let the writers take turns; each writes into a new folder and returns how many sets. A row for each."""
    with progress_bar("measuring", len(writers) * (warm_up + rounds)) as bar:
        runs = {name: functools.partial(_timed, write) for name, write in writers.items()}
        in_turn(runs, warm_up, lambda: bar.update(1))
        passes = in_turn(runs, rounds, lambda: bar.update(1))
    return {name: summarize(passes, name, base) for name in writers}


def _timed(write: Callable[[Path], int]) -> Pass:
    with tempfile.TemporaryDirectory(prefix="fgbg-bench-") as name:
        before, start = used(), time.perf_counter()
        sets = write(Path(name))
        wall_sec = time.perf_counter() - start
        return Pass(sets, wall_sec, used().since(before))
