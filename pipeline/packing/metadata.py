"""Tables: what is known of sets beside their pictures, from the CSV files at a source's root, by the sets' keys.

fgbg-compose writes labels.csv (where the foreground is), fgbg-depth writes depth.csv (the scale of each depth map). A
table has a column `key`. It stays in its file: of each line only its key and its place are in memory.
"""

import csv
import hashlib
import mmap
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

Note = dict[str, object]


def _number(text: str) -> object:
    if text.removeprefix("-").isdecimal():
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _labels(line: dict[str, str]) -> Note:
    return {name: _number(text) for name, text in line.items() if name not in ("key", "bg", "fg", "id")}


def _scale(line: dict[str, str]) -> Note:
    return {"depth_range": [_number(line["far"]), _number(line["near"])]}


def _mapped(path: Path) -> bytes | mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""


class Table:
    """One CSV file."""

    def __init__(
        self, content: Path | bytes, note: Callable[[dict[str, str]], Note], needed: Iterable[str] = ("key",)
    ) -> None:
        """`content` or its file; `note` makes of a line what the set's json shall say.

        A file without the `needed` columns counts as empty.
        """
        self._note = note
        self._text: bytes | mmap.mmap = content if isinstance(content, bytes) else _mapped(content)
        self.sha256 = hashlib.sha256(self._text).hexdigest()
        ends = np.flatnonzero(np.frombuffer(self._text, np.uint8) == ord("\n")) + 1
        self._bounds = np.unique([0, *ends, len(self._text)])  # of lines; the last may lack its end
        self._columns = self._line(0) if len(self._bounds) > 1 else []
        keys = list[bytes]()
        if set(needed) <= set(self._columns):
            column = self._columns.index("key")
            keys = [self._text[a:b].split(b",")[column] for a, b in pairwise(self._bounds[1:].tolist())]
        self._keys = np.array(keys, np.bytes_)
        self._order = np.argsort(self._keys, kind="stable")

    def _line(self, number: int) -> list[str]:
        start, end = self._bounds[number : number + 2].tolist()
        return next(csv.reader([self._text[start:end].decode(errors="surrogateescape")]), [])

    def find(self, keys: list[str]) -> list[Note]:
        """What the table says of each set; nothing of one that is not in it."""
        if not len(self._keys):
            return [{} for _ in keys]
        wanted = np.array([key.encode() for key in keys])
        places = np.searchsorted(self._keys, wanted, sorter=self._order)
        rows = self._order[np.minimum(places, len(self._keys) - 1)]
        return [
            self._note(dict(zip(self._columns, self._line(row + 1), strict=False))) if found else {}
            for row, found in zip(rows.tolist(), (self._keys[rows] == wanted).tolist(), strict=True)
        ]


TABLES: dict[str, tuple[Callable[[dict[str, str]], Note], tuple[str, ...]]] = {
    "labels.csv": (_labels, ("key",)),
    "depth.csv": (_scale, ("key", "far", "near")),
}


class Tables:
    """The tables of sources that are there."""

    def __init__(self, *places: Path | tuple[str, bytes]) -> None:
        """Of folders, and of other sources as (name, content) of a table."""
        self._tables = list[Table]()
        for place in places:
            for name, (note, needed) in TABLES.items():
                if isinstance(place, Path) and (place / name).is_file():
                    self._tables.append(Table(place / name, note, needed))
                elif isinstance(place, tuple) and place[0] == name:
                    self._tables.append(Table(place[1], note, needed))

    def find(self, keys: list[str]) -> list[Note]:
        """What they say of each set, together."""
        notes: list[Note] = [{} for _ in keys]
        for table in self._tables:
            for note, more in zip(notes, table.find(keys), strict=True):
                note.update(more)
        return notes

    def fingerprint(self) -> list[str]:
        """A hash of each."""
        return [table.sha256 for table in self._tables]
