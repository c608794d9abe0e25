"""Metadata: what is known of sets beside their pictures, from the CSV files at a source's root, by the sets' keys.

fgbg-compose writes labels.csv (where the foreground is), fgbg-depth writes depth.csv (the scale of each depth map). A
table has a column `key`. It stays in its file: of each line only its key and its place are in memory.
"""

import csv
import hashlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.files import map_file

Metadata = dict[str, object]


def _number(text: str) -> object:
    if text.removeprefix("-").isdecimal():
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _parse_labels(line: dict[str, str]) -> Metadata:
    return {name: _number(text) for name, text in line.items() if name not in ("key", "bg", "fg", "id")}


def _parse_scale(line: dict[str, str]) -> Metadata:
    return {"depth_range": [_number(line["far"]), _number(line["near"])]}


class MetadataTable:
    """A CSV file with a line for each set, found by the set's key."""

    def __init__(
        self, content: Path | bytes, parse: Callable[[dict[str, str]], Metadata], needed: Iterable[str] = ("key",)
    ) -> None:
        """`content` of the file, or its path; `parse` makes of a line, by column, the metadata for the set's json.

        A file without the `needed` columns counts as empty.
        """
        self._parse = parse
        self._text = content if isinstance(content, bytes) else map_file(content)
        self.sha256 = hashlib.sha256(self._text).hexdigest()
        ends = np.flatnonzero(np.frombuffer(self._text, np.uint8) == ord("\n")) + 1
        self._bounds = np.unique([0, *ends, len(self._text)])  # of lines; the last may lack its end
        self._columns = self._line(0) if len(self._bounds) > 1 else []
        keys = list[bytes]()
        if set(needed) <= set(self._columns):
            column = self._columns.index("key")
            keys = [self._text[start:end].split(b",")[column] for start, end in pairwise(self._bounds[1:].tolist())]
        self._keys = np.array(keys, np.bytes_)
        self._order = np.argsort(self._keys, kind="stable")

    def _line(self, number: int) -> list[str]:
        start, end = self._bounds[number : number + 2].tolist()
        return next(csv.reader([self._text[start:end].decode(errors="surrogateescape")]), [])

    def find(self, keys: list[str]) -> list[Metadata]:
        """The metadata of each set; empty for one that is not in the table."""
        if not len(self._keys):
            return [{} for _ in keys]
        wanted = np.array([key.encode() for key in keys])
        places = np.searchsorted(self._keys, wanted, sorter=self._order)
        rows = self._order[np.minimum(places, len(self._keys) - 1)]
        return [
            self._parse(dict(zip(self._columns, self._line(row + 1), strict=False))) if found else {}
            for row, found in zip(rows.tolist(), (self._keys[rows] == wanted).tolist(), strict=True)
        ]


TABLES: dict[str, tuple[Callable[[dict[str, str]], Metadata], tuple[str, ...]]] = {
    "labels.csv": (_parse_labels, ("key",)),
    "depth.csv": (_parse_scale, ("key", "far", "near")),
}


class MetadataTables:
    """All metadata tables that lie at the roots of the sources."""

    def __init__(self, *places: Path | tuple[str, bytes]) -> None:
        """`places`: folders to look in, and tables from archives as (name, content)."""
        self._tables = list[MetadataTable]()
        for place in places:
            for name, (parse, needed) in TABLES.items():
                if isinstance(place, Path) and (place / name).is_file():
                    self._tables.append(MetadataTable(place / name, parse, needed))
                elif isinstance(place, tuple) and place[0] == name:
                    self._tables.append(MetadataTable(place[1], parse, needed))

    def find(self, keys: list[str]) -> list[Metadata]:
        """The metadata of each set from all tables together."""
        metadata: list[Metadata] = [{} for _ in keys]
        for table in self._tables:
            for known, more in zip(metadata, table.find(keys), strict=True):
                known.update(more)
        return metadata

    def fingerprint(self) -> list[str]:
        """The sha256 of each table."""
        return [table.sha256 for table in self._tables]
