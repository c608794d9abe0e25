"""CSV layouts: a CSV file that names the files of each set, for data sets whose file names tell nothing.

A row is a set, a column a part: `overlay`, `mask`, `depth` and `background`, or as in published data sets `ImageName`,
`MaskName`, `Depthname` and `BGImageName`. Further columns may name the archive that each lies in (`BaseImageFName` for
overlay and mask, `DepthImageFName`, `BGImageFName`), and give `bg`, `fg` and `id` as numbers. Without these backgrounds
are numbered in the order of their names, foregrounds are unknown, and a set's number is its row's, from 1.
"""

import contextlib
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import InputError, Problem
from pipeline.format.images import BadImage
from pipeline.format.sample import UNKNOWN
from pipeline.packing.discovery import Candidates
from pipeline.packing.file_finder import FileFinder, clean_path
from pipeline.packing.folders import is_readme
from pipeline.packing.layouts import DEFAULT_IGNORED, LARGEST
from pipeline.packing.listing import Listing
from pipeline.packing.sources import FileReader
from pipeline.packing.tables import decode_text, read_table, read_text_file

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
ENDINGS = (".csv", ".tsv")
MOST_BELOW = 8  # tables in folders below a source that are looked at
SAMPLE = 1000  # rows of a table from which it is learnt where its files lay
SHOWN = 60  # characters in a message


@dataclass(frozen=True)
class CsvLayout:
    """A CSV file that names the parts of each set."""

    name: str
    content: bytes

    @classmethod
    def load(cls, path: Path) -> "CsvLayout":
        """Read a file; raise `InputError` if it lacks the columns."""
        layout = cls(path.name, read_text_file(path))
        if not layout.columns:
            expected = ", ".join(f"{' or '.join(names)}" for names in COLUMNS.values())
            start = decode_text(layout.content[:400]).strip().partition("\n")[0][:SHOWN].strip()
            raise InputError(f"{path} names no sets: it needs a column each of {expected}; it begins with {start!r}")
        return layout

    @classmethod
    def find_in(cls, listing: Listing) -> "CsvLayout | None":
        """The CSV layout at the root of a source, if there is one; raise `InputError` if there are several."""
        reader, layouts = FileReader(listing.sources), list[CsvLayout]()
        for depth in (0, 1):  # beside the pictures, or in the one folder of an archive
            rows = [row for end in ENDINGS for row in listing.files_ending(end, depth)]
            for row in rows if depth == 0 or len(rows) <= MOST_BELOW else []:
                with contextlib.suppress(BadImage, InputError):  # what cannot be read as a CSV is no list of sets
                    candidate = cls(listing.name(row), reader.read(*listing.locate(row)))
                    if candidate.columns:
                        layouts.append(candidate)
            if layouts:
                break
        if len(layouts) > 1:
            names = ", ".join(layout.name for layout in layouts)
            raise InputError(f"{len(layouts)} files list sets: {names}: choose one with --layout FILE.csv")
        return layouts[0] if layouts else None

    @property
    def columns(self) -> dict[str, int]:
        """Column of each part, its archive ("mask@") and the numbers, by name; empty if this is no list of sets."""
        return _columns(next(self._lines(), []))

    def _lines(self) -> Iterator[list[str]]:
        try:
            yield from read_table(self.content, lambda header: bool(_columns(header)))
        except csv.Error as error:
            raise InputError(f"{self.name} is no CSV ({error}): repair it, or take it out of the source") from error

    def candidates(self, listing: Listing, parts: tuple[str, ...], problems: list[Problem]) -> Candidates:
        """The files that are there, as the table names them; what is named and missing, or not named, is a problem."""
        columns = self.columns
        if "depth" in parts and "depth" not in columns:
            raise InputError(f"{self.name} has no column of depth maps: pack without: --no-depth")
        lines = list(self._lines())[1:]
        finder, used = FileFinder(listing), ("bg", *parts)
        finder.learn(
            clean_path(_cell(line, columns, part)) for line in lines[:: max(1, len(lines) // SAMPLE)] for part in used
        )
        backgrounds = _number_backgrounds(lines, columns, finder)
        table, seen, overlays = list[tuple[int, int, int, int, int]](), set[int](), dict[int, int]()
        earlier = dict[tuple[int | None, ...], int]()
        for number, line in enumerate(lines, 1):
            where = f"row {number} of {self.name}"
            if not line:
                continue
            if len(line) <= max(columns.values()):
                problems.append(
                    Problem(
                        self.name, "contradiction", f"{where} has {len(line)} of {max(columns.values()) + 1} columns"
                    )
                )
                continue
            try:
                bg = _number(line, columns, "#bg", backgrounds[_file_cell(line, columns, "bg")])
                fg, set_number = _number(line, columns, "#fg", UNKNOWN), _number(line, columns, "#id", number)
            except ValueError as error:
                problems.append(Problem(self.name, "contradiction", f"{where}: {error}"))
                continue
            found = {part: finder.find(*_file_cell(line, columns, part)) for part in used}
            # The same pictures in two rows are one set; the same overlay with others is one that is claimed twice.
            rows = tuple(row for row, _ in found.values())
            if None not in rows and (first := earlier.setdefault((bg, fg, *rows), number)) != number:
                problems.append(Problem(self.name, "duplicate", f"{where} repeats row {first}, which is taken"))
                continue
            for code, (part, (row, why)) in enumerate(found.items()):
                if row is None:
                    path = _cell(line, columns, part) or self.name
                    problems.append(Problem(path, "incomplete", f"{where} names it as its {part}, but {why}"))
                    continue
                if part == "fg_bg":
                    set_number = overlays.setdefault(row, set_number)
                if part != "bg" or row not in seen:
                    table.append((row, code, bg, fg, set_number))
                seen.add(row)
        for row in range(len(listing)):
            if row not in seen and listing.name(row) != self.name and not _is_beside(listing.path(row)):
                problems.append(Problem(listing.name(row), "unknown", f"{self.name} does not name it"))
        numbers = np.array(table, np.int64).reshape(-1, 5)
        codes, ids = numbers[:, 1].astype(np.int8), numbers[:, 2:].astype(np.int32)
        return Candidates(numbers[:, 0].astype(np.int32), codes, np.zeros_like(codes), ids)


def _is_beside(path: str) -> bool:
    """Whether a file may lie beside the pictures without being named, such as the table itself."""
    return is_readme(path) or any(template.matches(path) for template in DEFAULT_IGNORED)


def _columns(header: list[str]) -> dict[str, int]:
    """Column of each part, its archive ("mask@") and the numbers, by name; empty if this begins no list of sets."""
    names = [re.sub(r"[\s_'\"-]", "", name).lower() for name in header]
    place = {name: number for number, name in reversed(list(enumerate(names)))}
    options = [(part, name.replace("_", "")) for part, names in COLUMNS.items() for name in names]
    columns = {part: place[name] for part, name in options if name in place}
    if not {"fg_bg", "mask", "bg"} <= columns.keys():
        return {}
    columns |= {f"{part}@": place[name] for part, name in ARCHIVE_COLUMNS.items() if name in place}
    used = set(columns.values())
    return columns | {f"#{name}": place[name] for name in ("bg", "fg", "id") if place.get(name) not in {None, *used}}


def _cell(line: list[str], columns: dict[str, int], name: str) -> str:
    place = columns.get(name, len(line))
    return line[place].strip() if place < len(line) else ""


def _file_cell(line: list[str], columns: dict[str, int], part: str) -> tuple[str, str]:
    """Path and archive of a part's file."""
    return clean_path(_cell(line, columns, part)), _cell(line, columns, f"{part}@")


def _number(line: list[str], columns: dict[str, int], name: str, default: int) -> int:
    text = _cell(line, columns, name)
    if not text:
        return default
    whole = text.removesuffix(".0")  # as spreadsheets write a column in which some cells are empty
    if not whole.isdecimal() or len(whole) > len(str(LARGEST)):
        raise ValueError(f"{name[1:]} is {text[:SHOWN]!r}, no number from 0 to {LARGEST:,}")
    return int(whole)


def _number_backgrounds(
    lines: list[list[str]], columns: dict[str, int], finder: FileFinder
) -> dict[tuple[str, str], int]:
    """A number from 0 for each background by path and archive, in natural order: digits are compared as numbers.

    Two spellings of one file's path have one number.
    """

    def natural(name: tuple[str, str]) -> list[tuple[int, int, str]]:
        pieces = re.split(r"(\d+)", "/".join(reversed(name)))  # digits by length, then as text: int() has a limit
        return [
            (len(piece.lstrip("0")), 1, piece.lstrip("0") + piece) if piece.isdecimal() else (-1, 0, piece)
            for piece in pieces
        ]

    names = sorted({_file_cell(line, columns, "bg") for line in lines}, key=natural)
    first_names = dict[int, tuple[str, str]]()
    spellings = {
        name: name if (row := finder.find(*name)[0]) is None else first_names.setdefault(row, name) for name in names
    }
    numbers = {name: number for number, name in enumerate(dict.fromkeys(spellings.values()))}
    return {name: numbers[spelling] for name, spelling in spellings.items()}
