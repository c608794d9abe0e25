"""Problems: what is wrong with the data and was left out, by name."""

from typing import NamedTuple


class Problem(NamedTuple):
    """A file or set that was left out: path below the source, kind (one word), why (one line)."""

    path: str
    kind: str
    why: str
