"""Contact sheets: pictures of the data that a person can check at a glance."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.depth import depth_table
from pipeline.files import atomic_file
from pipeline.images import BadImage, decode_gray, decode_rgb
from pipeline.index import Manifest, load_index
from pipeline.store import Store

TILE, GAP, TITLE = 160, 4, 16  # pixels
PREVIEW_ROWS = 8


def contact_sheet(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]]) -> Image.Image:
    """Lay out rows of (label, pictures), uint8 [H, W] or [H, W, 3] of any size, under column titles."""
    width = GAP + len(titles) * (TILE + GAP)
    sheet = Image.new("RGB", (width, TITLE + len(rows) * (TILE + TITLE + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (TILE + GAP), 2), title, fill="black")
    for number, (label, pictures) in enumerate(rows):
        top = TITLE + number * (TILE + TITLE + GAP)
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(picture).convert("RGB").resize((TILE, TILE), Image.Resampling.BILINEAR)
            sheet.paste(tile, (GAP + column * (TILE + GAP), top))
        draw.text((GAP, top + TILE + 1), label, fill="gray")
    return sheet


def write_preview(shards: Path, manifest: Manifest) -> None:
    """Write preview.jpg: the first sets as they lie in the shards, read back through the index; depth as nearness."""
    index = load_index(shards, manifest)
    store, table = Store(shards, manifest, index), depth_table(manifest.depth_encoding, manifest.depth_near)
    rows = []
    for row in range(min(PREVIEW_ROWS, manifest.sets)):
        bg = bytes(store.read_background(int(index["bg"][row])))
        fg_bg, mask, depth = (bytes(part) for part in store.read(row))
        try:
            pictures = [decode_rgb(bg), decode_rgb(fg_bg), decode_rgb(mask), table[decode_gray(depth)]]
        except BadImage:  # packed with only its header verified
            continue
        rows.append((store.key(row), pictures))
    store.close()
    with atomic_file(shards / "preview.jpg") as file:
        contact_sheet(("bg", "fg_bg", "mask", "depth (near = bright)"), rows).save(file, "JPEG", quality=90)
