from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.packing.finalize import GAP, TILE, TITLE, contact_sheet
from tests.samples import smooth_picture, without_depth


@pytest.mark.parametrize("tile", [32, 100])
def test_a_sheet_has_every_picture_where_its_row_and_column_meet(tile: int) -> None:
    pictures = [[smooth_picture(3 * row + column, 1, 32)[..., 0] for column in range(3)] for row in range(2)]
    sheet = np.asarray(contact_sheet("abc", [(f"row {number}", row) for number, row in enumerate(pictures)], tile))
    assert sheet.shape == (TITLE + 2 * (tile + GAP + TITLE), GAP + 3 * (tile + GAP), 3)
    for row in range(2):
        for column in range(3):
            top, left = TITLE + row * (tile + GAP + TITLE), GAP + column * (tile + GAP)
            scaled = Image.fromarray(pictures[row][column]).resize((tile, tile), Image.Resampling.BILINEAR)
            found = sheet[top : top + tile, left : left + tile]
            assert np.array_equal(found, np.repeat(np.asarray(scaled)[..., None], 3, axis=2))
            assert (found[0, 0] == pictures[row][column][0, 0]).all()


def test_without_depth_the_preview_is_the_same_but_for_that_column(source: Path, packed: Path, tmp_path: Path) -> None:
    bare = without_depth(source, tmp_path / "bare")
    with Image.open(bare / "preview.jpg") as found, Image.open(packed / "preview.jpg") as whole:
        assert found.size == (whole.width - TILE - GAP, whole.height)
        ours, theirs = (np.asarray(sheet, dtype=int)[:, : found.width - 20] for sheet in (found, whole))
    assert np.abs(ours - theirs).max() <= 8  # the JPEG blocks are the same but at the cut
