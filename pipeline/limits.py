"""The largest values of settings that several commands have: far above any use, below what ends in an overflow."""

import re

from pipeline.errors import InputError
from pipeline.words import printable

MOST_SEED = 2**63 - 1
"""PyTorch's and NumPy's generators take as much."""
MOST_COUNT = 10**12
"""Of sets, steps and whatever else is counted."""
MOST_BATCH = 65_536
"""Sets a batch."""
MOST_EDGE = 4_096
"""Height and width of what is loaded, trained and made, pixels."""
MOST_WORKERS = 1_024
"""Threads or processes."""
MOST_PREFETCH = 1_024
"""Batches under way."""
URL_WINDOW = 64
"""Shards behind a URL that are read at a time, unless told otherwise: of eight hosts each downloads few others'."""


def byte_count(text: str) -> int:
    """Bytes as a user writes them: "100GB", "1.5 TiB", "0"; raise `InputError` for anything else."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?) ?(?:([kmgt])(i?))?b?", text.strip().lower())
    if found is None:
        raise InputError(f"size {printable(text[:40])!r}: expected bytes such as 100GB, 500MB, 1.5TB, or 0")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))
