"""Contact sheets: pictures of the data that a person can check at a glance."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.format.depth import depth_table
from pipeline.format.images import BadImage, decode_gray, decode_rgb
from pipeline.format.manifest import Manifest, load_index
from pipeline.format.planes import PLANES, decode_set, decompress_frames
from pipeline.loading.shard_reader import Store
from pipeline.resume import atomic_file

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


def _planes(store: Store, row: int, bg: memoryview) -> list[NDArray[np.uint8]]:
    """The background and the parts of a set that is stored as planes."""
    size = store.manifest.plane_size
    [background] = decompress_frames([bg], size * size)
    square = background.reshape(size, size)
    return [square, *decode_set(store.read(row)[0].data, square, len(store.parts))]


def write_preview(shards: Path, manifest: Manifest) -> None:
    """Write preview.jpg: the first sets as they lie in the shards, read back through the index; depth as nearness."""
    store = Store(shards, manifest, load_index(shards, manifest))
    titles = ["bg", "fg_bg", "mask"]
    if "depth" in store.parts:
        titles.append("depth (near = bright)")
        table = depth_table(manifest.depth_encoding, manifest.depth_near)
    rows = []
    for row in range(min(PREVIEW_ROWS, manifest.sets)):
        bg = store.read_background(int(store.index["bg"][row]))
        if manifest.codec == PLANES:
            rows.append((store.key(row), _planes(store, row, bg.data)))
            continue
        fg_bg, mask, *depth = (bytes(part) for part in store.read(row))
        try:
            pictures = [decode_rgb(bytes(bg)), decode_rgb(fg_bg), decode_rgb(mask)]
            pictures += [table[decode_gray(picture)] for picture in depth]
        except BadImage:  # packed with only its header verified
            continue
        rows.append((store.key(row), pictures))
    store.close()
    with atomic_file(shards / "preview.jpg") as file:
        contact_sheet(titles, rows).save(file, "JPEG", quality=90)
