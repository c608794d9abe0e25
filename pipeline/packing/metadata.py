"""Metadata: what is known of sets beside their pictures, from the CSV files at a source's root, by the sets' keys.

fgbg-compose writes labels.csv (where the foreground is), fgbg-depth writes depth.csv (the scale of each depth map). A
table has a column `key`. It stays in its file: of each line only its key and its place are in memory. What labels.csv
and sources.csv (which file each picture came from) say goes into tables beside the shards, too.
"""

import csv
import hashlib
import io
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.files import ReadFile, map_file
from pipeline.packing.tables import decode_text
from pipeline.resume import atomic_file
from pipeline.storage import Location, storage_of
from pipeline.words import csv_text, from_csv_text

LABELS, ORIGINS = "labels.csv", "sources.csv"
ORIGIN_COLUMNS = ["part", "id", "file"]
MAX_TABLE_BYTES = 1 << 30
HEADER_BYTES = 1 << 16
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
        self._text = content if isinstance(content, bytes) else _map_table(content)
        self.sha256 = hashlib.sha256(self._text).hexdigest()
        ends = np.flatnonzero(np.frombuffer(self._text, np.uint8) == ord("\n")) + 1
        self._bounds = np.unique([0, *ends, len(self._text)])  # of lines; the last may lack its end
        self.columns = self._line(0) if len(self._bounds) > 1 else []
        keys = list[bytes]()
        if set(needed) <= set(self.columns):
            column = self.columns.index("key")
            keys = [self._text[start:end].split(b",")[column] for start, end in pairwise(self._bounds[1:].tolist())]
        self._keys = np.array(keys, np.bytes_)
        self._order = np.argsort(self._keys, kind="stable")

    def _line(self, number: int) -> list[str]:
        start, end = self._bounds[number : number + 2].tolist()
        try:
            return next(csv.reader([self._text[start:end].decode(errors="surrogateescape")]), [])
        except csv.Error as error:
            raise InputError(f"line {number + 1} of a table of sets is none ({error}): repair it") from None

    def find(self, keys: list[str]) -> list[Metadata]:
        """The metadata of each set; empty for one that is not in the table."""
        return [self._parse(line) if line else {} for line in self.lines(keys)]

    def lines(self, keys: list[str]) -> list[dict[str, str]]:
        """The line of each set, by column; empty for one that is not in the table."""
        if not len(self._keys):
            return [{} for _ in keys]
        wanted = np.array([key.encode() for key in keys])
        places = np.searchsorted(self._keys, wanted, sorter=self._order)
        rows = self._order[np.minimum(places, len(self._keys) - 1)]
        return [
            dict(zip(self.columns, self._line(row + 1), strict=False)) if found else {}
            for row, found in zip(rows.tolist(), (self._keys[rows] == wanted).tolist(), strict=True)
        ]


def _map_table(path: Path) -> bytes | mmap.mmap:
    _require_size(path, ReadFile(path).size)
    return map_file(path)


def _read_table(file: Location) -> bytes:
    storage = storage_of(file.parent)
    _require_size(file, storage.stat(file.name).size)
    return storage.read_all(file.name)


def _require_size(file: Location, size: int) -> None:
    if size > MAX_TABLE_BYTES:
        raise InputError(
            f"{file} has {size:,} bytes, more than {MAX_TABLE_BYTES:,}: it is no table of sets, take it away"
        )


TABLES: dict[str, tuple[Callable[[dict[str, str]], Metadata], tuple[str, ...]]] = {
    LABELS: (_parse_labels, ("key",)),
    "depth.csv": (_parse_scale, ("key", "far", "near")),
}


class MetadataTables:
    """All metadata tables that lie at the roots of the sources."""

    def __init__(self, *files: tuple[str, Path | bytes]) -> None:
        """`files`: the name of each table, and where it is or, in an archive, what it holds."""
        self._tables, self._labels, self._origins = list[MetadataTable](), list[MetadataTable](), list[bytes]()
        for name, content in files:
            if name == ORIGINS:
                self._origins.append(content if isinstance(content, bytes) else bytes(_map_table(content)))
                continue
            self._tables.append(MetadataTable(content, *TABLES[name]))
            if name == LABELS:
                self._labels.append(self._tables[-1])

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

    def save(self, folder: Path, keys: Iterable[list[str]]) -> None:
        """Write labels.csv, with the line of each set of `keys`, and sources.csv, where the sources have them."""
        if any("key" in table.columns for table in self._labels):
            columns = list(dict.fromkeys(column for table in self._labels for column in table.columns))
            blocks = (zip(*(table.lines(some) for table in self._labels), strict=True) for some in keys)
            lines = ({name: text for line in found for name, text in line.items()} for some in blocks for found in some)
            rows = ([line.get(name, "") for name in columns] for line in lines if line)
            if first := next(rows, None):
                _write_table(folder / LABELS, columns, chain([first], rows))
        if origins := [table for table in self._origins if _header(table) == ORIGIN_COLUMNS]:
            _join_tables(origins, folder / ORIGINS)


def join_table_files(files: Sequence[Location], path: Path) -> None:
    """Write the lines of tables beside shards as one, each once, with the columns of all.

    Raises `InputError` for what is no such table.
    """
    _join_tables([_read_table(file) for file in files], path)


def _join_tables(tables: Sequence[bytes], path: Path) -> None:
    columns = list(dict.fromkeys(column for table in tables for column in _header(table)))

    def rows() -> Iterator[tuple[str, ...]]:
        for table in tables:
            lines = _rows(table)
            header = next(lines, [])
            for line in lines:
                cells = dict(zip(header, line, strict=False))
                yield tuple(cells.get(name, "") for name in columns)

    try:
        _write_table(path, columns, dict.fromkeys(rows()))
    except csv.Error as error:
        raise InputError(f"one of several {path.name} is no table ({error}): take it away") from None


def _rows(table: bytes) -> Iterator[list[str]]:
    return (row for row in csv.reader(io.StringIO(decode_text(table), newline="")) if row)


def _header(table: bytes) -> list[str]:
    return next(_rows(table[:HEADER_BYTES]), [])


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file that is safe to open: in printable letters, without formulas."""
    with atomic_file(path) as file:
        for row in chain([columns], rows):
            line = io.StringIO()
            csv.writer(line, lineterminator="\n").writerow([csv_text(from_csv_text(cell)) for cell in row])
            file.write(line.getvalue().encode())
