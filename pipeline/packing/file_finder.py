"""File finder: which file of a listing a table means by a path that may come from another machine or system."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from pipeline.packing.listing import Listing
from pipeline.storage import Location
from pipeline.words import from_csv_text


def clean_path(text: str) -> str:
    """A path of any system with slashes, without drive, quotes and what leads to the place that it is relative to."""
    path = from_csv_text(text.strip())
    if path[:1] in ("'", '"') and path[:1] == path[-1:]:
        path = path[1:-1].strip()
    if path.lower().startswith("file:"):
        path = unquote(path[5:])
    path = re.sub(r"^[A-Za-z]:(?=/)", "", path.replace("\\", "/"))
    names = [name for name in path.split("/") if name not in ("", ".")]
    while names and names[0] == "..":
        del names[0]
    return "/".join(names)


def composed(path: str) -> str:
    """A path in Unicode's composed form (NFC), which macOS does not write; bytes that are no UTF-8 as Latin-1."""
    if path.isascii():
        return path
    try:
        path.encode()
    except UnicodeEncodeError:
        path = os.fsencode(path).decode("latin-1")
    return unicodedata.normalize("NFC", path)


def folded(path: str) -> str:
    """A path as file systems compare it that do not tell letters by their case."""
    return composed(path).casefold()


class _Move(NamedTuple):
    """Where files lay and where they lie now: two beginnings of paths, "" or ending in "/"."""

    old: str
    new: str


def _move(path: str, files: Iterable[str]) -> _Move | None:
    """How a path became that of one of some files, if one alone has the longest end in common with it."""
    names, lengths = path.split("/"), dict[_Move, int]()
    for file in files:
        others, same = file.split("/"), 0
        while same < min(len(names), len(others)) and folded(names[-1 - same]) == folded(others[-1 - same]):
            same += 1
        old, new = ("".join(f"{name}/" for name in parts[: len(parts) - same]) for parts in (names, others))
        lengths[_Move(old, new)] = same
    longest = [move for move, same in lengths.items() if same == max(lengths.values())]
    return longest[0] if len(longest) == 1 else None


def _at(files: dict[int, str], path: str) -> int | None:
    """The row of the one of some files that is at a path."""
    found = [row for row, name in files.items() if folded(name) == folded(path)]
    return found[0] if len(found) == 1 else None


def _ways(path: Location) -> set[str]:
    """How a table may call a source."""
    return {str(path.absolute()), str(path.resolve())} if isinstance(path, Path) else {clean_path(path.text)}


class FileFinder:
    """Finds files by their path, by the end of a path where that is unique, and by where most files were moved."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        paths = listing.paths(range(len(listing)))
        hashes = np.fromiter((hash(folded(path.rpartition("/")[2])) for path in paths), np.int64, len(listing))
        self._order: NDArray[np.intp] = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._here = [
            (number, f"{path}/".lstrip("/"))
            for number, source in enumerate(listing.sources)
            for path in _ways(source.path)
        ]
        self._move: _Move | None = None

    def learn(self, paths: Iterable[str]) -> None:
        """Learn from all paths of a table, as `clean_path` gives them, where the files lay that it names."""
        votes = Counter[_Move]()
        for path in paths:
            if self.find(path, "")[0] is None and (move := _move(path, map(self._listing.path, self._called(path)))):
                votes[move] += 1
        ranked = sorted(votes.items(), key=lambda vote: (-vote[1], len(vote[0].old) + len(vote[0].new), vote[0]))
        self._move = ranked[0][0] if ranked else None

    def find(self, path: str, archive: str) -> tuple[int | None, str]:
        """The row of the file at a path, as `clean_path` gives it, or None and why there is none.

        `archive`: the name of the one that it lies in, "" if that is not known.
        """
        files = {row: self._listing.path(row) for row in self._called(path)}
        for number, here in self._here:
            if path.startswith(here):
                below = {row: name for row, name in files.items() if self._listing.source_of(row) == number}
                if (found := _at(below, path[len(here) :])) is not None:
                    return found, ""
        for form in (str, composed, folded):
            wanted, forms = form(path), {row: form(name) for row, name in files.items()}
            ends = [row for row, name in forms.items() if f"/{name}".endswith(f"/{wanted}")]
            if archive and len(ends) > 1:
                ends = [row for row in ends if self._is_of(row, archive)]
            exact = [row for row in ends if forms[row] == wanted]
            if len(exact) == 1 or len(ends) == 1:
                return (exact or ends)[0], ""
            if ends:
                return None, f"{len(ends)} files are called so"
        moved = self._find_moved(files, path)
        return moved, "" if moved is not None else "no source has it"

    def _called(self, path: str) -> list[int]:
        """The rows of the files that have the last name of a path."""
        if not path:
            return []
        name_hash = hash(folded(path.rpartition("/")[2]))
        first, last = (int(np.searchsorted(self._hashes, name_hash, side=side)) for side in ("left", "right"))
        return [int(row) for row in self._order[first:last]]

    def _find_moved(self, files: dict[int, str], path: str) -> int | None:
        """The one of some files that the path means if it was moved as most were.

        Or from elsewhere to the same place: then a folder, too, has to agree.
        """
        if not self._move:
            return None
        move = self._move if path.startswith(self._move.old) else _move(path, files.values())
        if not move or move.new != self._move.new:
            return None
        rest = path[len(move.old) :]
        return _at(files, move.new + rest) if move == self._move or "/" in rest else None

    def _is_of(self, row: int, archive: str) -> bool:
        """Whether a file is of that archive, or lies in a folder that was made of it."""
        source = self._listing.sources[self._listing.source_of(row)].path
        stem = archive.rpartition("/")[2].split(".")[0]
        folders = self._listing.path(row).split("/")[:-1]
        return stem in (source.name.split(".")[0], *folders)
