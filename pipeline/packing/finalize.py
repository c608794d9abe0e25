"""Finalize: finished shards -> a shard directory: index, list of problems, preview and, last of all, the manifest."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import Problem
from pipeline.format.depth import WITH_HOLES, colour_holes, depth_table
from pipeline.format.images import BadImage, Picture, decode_gray, decode_rgb
from pipeline.format.manifest import (
    BACKGROUNDS,
    Background,
    Manifest,
    load_index,
    save_index,
    stored_members,
)
from pipeline.format.planes import PLANES, decode_set, decompress_frames
from pipeline.format.sample import UNKNOWN
from pipeline.format.tar import TarWriter
from pipeline.loading.shard_reader import ShardReader
from pipeline.packing.target import Tally, Target
from pipeline.resume import atomic_file
from pipeline.storage import Location, storage_of
from pipeline.words import csv_text, from_csv_text, printable

MAX_PROBLEMS_BYTES = 1 << 30


class BackgroundsTar(NamedTuple):
    """What a finished backgrounds.tar holds."""

    backgrounds: list[Background]
    sha256: str
    sizes: NDArray[np.int64]  # [backgrounds, 2]: height, width


def write_backgrounds(shards: Path, pictures: Iterable[tuple[int, Picture]]) -> BackgroundsTar:
    """Write backgrounds.tar from (background id, picture), in this order."""
    backgrounds, sizes = [], []
    with TarWriter(shards / BACKGROUNDS, index=False) as writer:
        for bg, picture in pictures:
            member = writer.add(f"bg_{bg:03}", [(f"bg.{picture.extension}", picture.content)])[0]
            backgrounds.append(Background(bg, member.offset, member.size, member.crc32))
            sizes.append(picture.size)
    return BackgroundsTar(backgrounds, writer.sha256, np.array(sizes).reshape(-1, 2))


def finalize(
    target: Target,
    count: int,
    total: Tally,
    backgrounds: BackgroundsTar,
    depth: tuple[str, str],
    codec: str = "jpeg",
    **optional: Any,
) -> Manifest:
    """Write all that lies beside the shards 0 .. count - 1; `depth` is (encoding, near end) of the manifest.

    `optional` are further fields of it (see `Manifest.optional`). It comes last: without it a directory is no data set.
    """
    foregrounds = set[int]()

    def rows() -> Iterator[NDArray[np.void]]:
        with_sets = (shard for shard in target.finished(count) if shard.info.sets)
        for place, shard in enumerate(with_sets):
            shard.rows["shard"] = place
            foregrounds.update(np.unique(shard.rows["fg"]).tolist())
            yield shard.rows

    index_sha256 = save_index(target.folder, total.sets, rows())
    manifest = Manifest(
        sets=total.sets,
        foregrounds=len(foregrounds - {UNKNOWN}),
        depth_encoding=depth[0],
        depth_near=depth[1],
        sizes=_size_ranges(stored_members(codec, depth[0]), backgrounds.sizes, total.sizes),
        shards=total.infos,
        backgrounds=backgrounds.backgrounds,
        backgrounds_sha256=backgrounds.sha256,
        index_sha256=index_sha256,
        codec=codec,
        **optional,
    )
    write_problems(target.folder / "problems.csv", total.problems)
    write_preview(target, manifest)
    manifest.save(target.folder)
    return manifest


def _size_ranges(
    members: Sequence[str], backgrounds: NDArray[np.int64], sets: list[NDArray[np.int64]]
) -> dict[str, dict[str, list[int]]]:
    smallest = np.min([sizes[0] for sizes in sets], axis=0).tolist()
    largest = np.max([sizes[1] for sizes in sets], axis=0).tolist()
    ranges = {name: {"min": low, "max": high} for name, low, high in zip(members, smallest, largest, strict=True)}
    return ranges | {"bg": {"min": backgrounds.min(axis=0).tolist(), "max": backgrounds.max(axis=0).tolist()}}


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write problems.csv: every file or set that was left out, and why."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Problem._fields)
    table.writerows(map(csv_text, problem) for problem in sorted(tuple(map(printable, one)) for one in problems))
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def read_problems(path: Location) -> list[Problem]:
    """The rows of problems.csv; none if it is missing, or was not written by this project."""
    try:
        text = storage_of(path.parent).read_all(path.name, MAX_PROBLEMS_BYTES).decode(errors="surrogateescape")
        header, *rows = csv.reader(io.StringIO(text, newline=""))
    except (OSError, ValueError, csv.Error):
        return []
    if tuple(header) != Problem._fields:
        return []
    return [Problem(*map(from_csv_text, row)) for row in rows if len(row) == len(header)]


TILE, GAP, TITLE, FONT = 160, 4, 16, 12  # pixels
PREVIEW_ROWS = 8


def contact_sheet(
    titles: Sequence[str], rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], tile: int = TILE
) -> Image.Image:
    """Lay out rows of (label, pictures), uint8 [H, W] or [H, W, 3] of any size, under column titles.

    Every picture is scaled to `tile` x `tile` pixels.
    """
    step = tile + GAP
    sheet = Image.new("RGB", (GAP + len(titles) * step, TITLE + len(rows) * (step + TITLE)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for column, title in enumerate(titles):
        draw.text((GAP + column * step, 1), title, fill="black", font=font)
    for number, (label, pictures) in enumerate(rows):
        top = TITLE + number * (step + TITLE)
        for column, picture in enumerate(pictures):
            scaled = Image.fromarray(picture).convert("RGB").resize((tile, tile), Image.Resampling.BILINEAR)
            sheet.paste(scaled, (GAP + column * step, top))
        draw.text((GAP, top + tile + 1), label, fill="gray", font=font)
    return sheet


def _decode_planes(reader: ShardReader, row: int, bg: memoryview) -> list[NDArray[np.uint8]]:
    """The background and the parts of a set that is stored as planes, uint8 [size, size] each."""
    size = reader.manifest.plane_size
    [background] = decompress_frames([bg], size * size)
    square = background.reshape(size, size)
    return [square, *decode_set(reader.read(row)[0].data, square, len(reader.parts))]


def write_preview(target: Target, manifest: Manifest) -> None:
    """Write preview.jpg: the first sets as they lie in the shards, read back through the index; depth as nearness."""
    reader = ShardReader(target.reading(BACKGROUNDS), manifest, load_index(target.folder, manifest))
    titles = ["bg", "fg_bg", "mask"]
    if "depth" in reader.parts:
        titles.append("depth (near = bright)")
        table = depth_table(manifest.depth_encoding, manifest.depth_near)
    rows = []
    for row in range(min(PREVIEW_ROWS, manifest.sets)):
        bg = reader.read_background(int(reader.index["bg"][row]))
        if manifest.codec == PLANES:
            pictures = _decode_planes(reader, row, bg.data)
        else:
            fg_bg, mask, *depth = (bytes(part) for part in reader.read(row))
            try:
                pictures = [decode_rgb(bytes(bg)), decode_rgb(fg_bg), decode_rgb(mask)]
                pictures += [table[decode_gray(picture)] for picture in depth]
            except BadImage:  # packed with only its header verified
                continue
        if manifest.depth_encoding == WITH_HOLES:
            pictures[-1] = colour_holes(pictures[-1])
        rows.append((reader.key(row), pictures))
    reader.close()
    with atomic_file(target.folder / "preview.jpg") as file:
        contact_sheet(titles, rows).save(file, "JPEG", quality=90)
