"""Contact sheets: pictures of the data that a person can check at a glance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

TILE, GAP, TITLE = 160, 4, 16  # pixels


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
