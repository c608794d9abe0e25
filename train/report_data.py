"""The data of a run in its report: what was packed, and how many sets each cell of the split has."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.manifest import BLOCK, Manifest, load_index
from pipeline.format.sample import UNKNOWN
from pipeline.loading.split import BACKGROUND_SALT, FOREGROUND_SALT, SPLITS, group
from train.report_page import Html, paragraph, row, section, table

NOT_KNOWN = "not known"


def data(shards: Path) -> Html:
    """What the manifest says, and the sets of each split of backgrounds with each split of foregrounds."""
    try:
        manifest = Manifest.load(shards)
        index = load_index(shards, manifest)
    except InputError as error:
        return section("Data", paragraph(f"Nothing can be said of the data: {error}", class_="warning"))
    counts = split_cells(index)
    sizes = "; ".join(f"{part} {pixels(found)}" for part, found in sorted(manifest.sizes.items()))
    stored_bytes = sum(shard.bytes for shard in manifest.shards)
    bytes_a_set = stored_bytes // max(1, manifest.sets)
    facts = {
        "shards": str(shards),
        "sets": f"{manifest.sets:,}",
        "backgrounds": f"{len(manifest.backgrounds):,}",
        "foregrounds": f"{manifest.foregrounds:,}",
        "sizes, pixels": sizes,
        "codec": manifest.codec,
        "depth": f"{manifest.depth_encoding}, near is {manifest.depth_near}" if "depth" in manifest.parts else "none",
        "bytes": f"{stored_bytes:,} in {len(manifest.shards):,} shards, {bytes_a_set:,} a set",
        "manifest": manifest.sha256[:12],
    }
    columns = [*SPLITS, *([NOT_KNOWN] if any((bg, NOT_KNOWN) in counts for bg in SPLITS) else [])]
    rows = [row(bg, *(f"{counts.get((bg, fg), 0):,}" for fg in columns)) for bg in SPLITS]
    return section(
        "Data",
        table(
            "What was packed",
            ["", ""],
            (row(name, fact, numbers=False) for name, fact in facts.items()),
            numbers_from=9,
        ),
        table("Sets by the split of their background (rows) and foreground (columns)", ["", *columns], rows),
        paragraph("A set is in train, val or test when both its ids are.", class_="note"),
    )


def pixels(sizes: dict[str, list[int]]) -> str:
    """Smallest and largest [height, width]: 224 x 224, or 100 x 120 to 400 x 500."""
    low, high = (" x ".join(map(str, sizes[end])) for end in ("min", "max"))
    return low if low == high else f"{low} to {high}"


def split_cells(index: NDArray[np.void]) -> dict[tuple[str, str], int]:
    """How many rows of the index there are by the splits of background and foreground; none of an empty cell."""
    counts = dict[tuple[str, str], int]()
    for first in range(0, len(index), BLOCK):
        block = index[first : first + BLOCK]
        pairs, sets = np.unique(np.stack([block["bg"], block["fg"]], axis=1), axis=0, return_counts=True)
        for (bg, fg), number in zip(pairs.tolist(), sets.tolist(), strict=True):
            cell = group(BACKGROUND_SALT, bg), NOT_KNOWN if fg == UNKNOWN else group(FOREGROUND_SALT, fg)
            counts[cell] = counts.get(cell, 0) + number
    return counts
