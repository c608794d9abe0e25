"""CSV layouts: a CSV file that names the files of each set, for data sets whose file names tell nothing.

A row is a set, a column a part: `overlay`, `mask`, `depth` and `background`, or as in published data sets `ImageName`,
`MaskName`, `Depthname` and `BGImageName`. Further columns may name the archive that each lies in (`BaseImageFName` for
overlay and mask, `DepthImageFName`, `BGImageFName`), and give `bg`, `fg` and `id` as numbers. Without these backgrounds
are numbered in the order of their names, foregrounds are unknown, and a set's number is its row's, from 1.
"""

import contextlib
import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, Problem
from pipeline.files import read_file
from pipeline.format.images import BadImage
from pipeline.format.sample import UNKNOWN
from pipeline.packing.discovery import Candidates
from pipeline.packing.folders import is_readme
from pipeline.packing.layouts import DEFAULT_IGNORED, LARGEST
from pipeline.packing.listing import Listing
from pipeline.packing.sources import FileReader

COLUMNS = {
    "fg_bg": ("overlay", "fg_bg", "imagename"),
    "mask": ("mask", "maskname"),
    "depth": ("depth", "depthname"),
    "bg": ("background", "bgimagename"),
}
ARCHIVE_COLUMNS = {
    "fg_bg": "baseimagefname",
    "mask": "baseimagefname",
    "depth": "depthimagefname",
    "bg": "bgimagefname",
}


@dataclass(frozen=True)
class CsvLayout:
    """A CSV file that names the parts of each set."""

    name: str
    content: bytes

    @classmethod
    def load(cls, path: Path) -> "CsvLayout":
        """Read a file; raise `InputError` if it lacks the columns."""
        layout = cls(path.name, read_file(path))
        if not layout.columns:
            expected = ", ".join(f"{' or '.join(names)}" for names in COLUMNS.values())
            raise InputError(f"{path} names no sets: it needs a column each of {expected}")
        return layout

    @classmethod
    def find_in(cls, listing: Listing) -> "CsvLayout | None":
        """The CSV layout at the root of a source, if there is one; raise `InputError` if there are several."""
        reader, layouts = FileReader(listing.sources), list[CsvLayout]()
        for row in listing.root_files(".csv"):
            with contextlib.suppress(BadImage, InputError):  # what cannot be read as a CSV is no list of sets
                candidate = cls(listing.name(row), reader.read(*listing.locate(row)))
                if candidate.columns:
                    layouts.append(candidate)
        if len(layouts) > 1:
            names = ", ".join(layout.name for layout in layouts)
            raise InputError(f"{len(layouts)} files list sets: {names}: choose one with --layout FILE.csv")
        return layouts[0] if layouts else None

    @property
    def columns(self) -> dict[str, int]:
        """Column of each part, its archive ("mask@") and the numbers, by name; empty if this is no list of sets."""
        header = [name.strip().lower() for name in next(self._lines(), [])]
        place = {name: number for number, name in reversed(list(enumerate(header)))}
        columns = {part: place[name] for part, names in COLUMNS.items() for name in names if name in place}
        if not {"fg_bg", "mask", "bg"} <= columns.keys():
            return {}
        columns |= {f"{part}@": place[name] for part, name in ARCHIVE_COLUMNS.items() if name in place}
        used = set(columns.values())
        return columns | {
            f"#{name}": place[name] for name in ("bg", "fg", "id") if place.get(name) not in {None, *used}
        }

    def _lines(self) -> Iterator[list[str]]:
        text = io.TextIOWrapper(io.BytesIO(self.content), "utf-8-sig", "surrogateescape", newline="")
        try:
            yield from csv.reader(text)
        except csv.Error as error:
            raise InputError(f"{self.name} is no CSV ({error}): repair it, or take it out of the source") from error

    def candidates(self, listing: Listing, parts: tuple[str, ...], problems: list[Problem]) -> Candidates:
        """The files that are there, as the table names them; what is named and missing, or not named, is a problem."""
        columns, files = self.columns, _Files(listing)
        if "depth" in parts and "depth" not in columns:
            raise InputError(f"{self.name} has no column of depth maps: pack without: --no-depth")
        lines = list(self._lines())[1:]
        width = max(columns.values()) + 1
        backgrounds = _numbered((_cell(line, columns, "bg@"), _cell(line, columns, "bg")) for line in lines)
        table, seen, overlays = list[tuple[int, int, int, int, int]](), set[int](), dict[int, int]()
        for number, line in enumerate(lines, 1):
            where = f"row {number} of {self.name}"
            if len(line) < width:
                if line:
                    problems.append(Problem(self.name, "contradiction", f"{where} has {len(line)} of {width} columns"))
                continue
            try:
                bg = _number(line, columns, "#bg", backgrounds[_cell(line, columns, "bg@"), _cell(line, columns, "bg")])
                fg, set_number = _number(line, columns, "#fg", UNKNOWN), _number(line, columns, "#id", number)
            except ValueError as error:
                problems.append(Problem(self.name, "contradiction", f"{where}: {error}"))
                continue
            for code, part in enumerate(("bg", *parts)):
                path = _cell(line, columns, part)
                row, why = files.find(path, _cell(line, columns, f"{part}@"))
                if row is None:
                    problems.append(
                        Problem(path or self.name, "incomplete", f"{where} names it as its {part}, but {why}")
                    )
                    continue
                if part == "fg_bg":  # the same picture in two rows is one set, claimed twice
                    set_number = overlays.setdefault(row, set_number)
                if part != "bg" or row not in seen:
                    table.append((row, code, bg, fg, set_number))
                seen.add(row)
        for row in range(len(listing)):
            if row not in seen and not _is_beside(listing.path(row)):
                problems.append(Problem(listing.name(row), "unknown", f"{self.name} does not name it"))
        numbers = np.array(table, np.int64).reshape(-1, 5)
        codes, ids = numbers[:, 1].astype(np.int8), numbers[:, 2:].astype(np.int32)
        return Candidates(numbers[:, 0].astype(np.int32), codes, np.zeros_like(codes), ids)


def _is_beside(path: str) -> bool:
    """Whether a file may lie beside the pictures without being named, such as the table itself."""
    return is_readme(path) or any(template.matches(path) for template in DEFAULT_IGNORED)


def _cell(line: list[str], columns: dict[str, int], name: str) -> str:
    place = columns.get(name, len(line))
    return line[place].strip().replace("\\", "/").removeprefix("./").lstrip("/") if place < len(line) else ""


def _number(line: list[str], columns: dict[str, int], name: str, default: int) -> int:
    text = _cell(line, columns, name)
    if not text:
        return default
    if not text.isdecimal() or int(text) > LARGEST:
        raise ValueError(f"{name[1:]} is {text!r}, no number from 0 to {LARGEST:,}")
    return int(text)


def _numbered(names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Number names from 0 in natural order: digits within them are compared as numbers."""

    def natural(name: tuple[str, str]) -> list[tuple[int, str]]:
        pieces = re.split(r"(\d+)", "/".join(name))
        return [(int(piece), piece) if piece.isdecimal() else (-1, piece) for piece in pieces]

    return {name: number for number, name in enumerate(sorted(set(names), key=natural))}


class _Files:
    """Finds files of a listing by their path, or by the end of a path where that is unique."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        paths = listing.paths(range(len(listing)))
        hashes = np.fromiter((hash(path.rpartition("/")[2]) for path in paths), np.int64, len(listing))
        self._order: NDArray[np.intp] = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def find(self, path: str, archive: str) -> tuple[int | None, str]:
        """The row of a file, or None and why there is none."""
        name_hash = hash(path.rpartition("/")[2])
        first, last = (int(np.searchsorted(self._hashes, name_hash, side=side)) for side in ("left", "right"))
        rows = [int(row) for row in self._order[first:last]]
        rows = [row for row in rows if f"/{self._listing.path(row)}".endswith(f"/{path}")] if path else []
        if archive and len(rows) > 1:
            rows = [row for row in rows if self._is_of(row, archive)]
        exact = [row for row in rows if self._listing.path(row) == path]
        if len(exact) == 1 or len(rows) == 1:
            return (exact or rows)[0], ""
        return None, f"{len(rows)} files are called so" if rows else "no source has it"

    def _is_of(self, row: int, archive: str) -> bool:
        """Whether a file is of that archive, or lies in a folder that was made of it."""
        source = self._listing.sources[self._listing.source_of(row)].path
        stem = archive.rpartition("/")[2].split(".")[0]
        folders = self._listing.path(row).split("/")[:-1]
        return stem in (source.name.split(".")[0], *folders)
