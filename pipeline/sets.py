"""Sets: find the files of a source, join them by their parsed ids; whatever fits no set is a named problem.

400,000 sets are 1.2 million files, so nothing here is a Python object a file: paths lie end to end in one buffer, and
the join is a sort of integer columns.
"""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import UNFINISHED
from pipeline.layouts import PARTS, Layout, set_key


class Problem(NamedTuple):
    """A file or set that was left out: path below the source, kind (one word), why (one line)."""

    path: str
    kind: str
    why: str


class SetFiles(NamedTuple):
    """One complete set: its ids and the paths of its parts (fg_bg, mask and, if asked for, depth) below the source."""

    key: str
    bg: int
    fg: int
    number: int
    paths: tuple[str, ...]


class _Files:
    """The files that fit the layout: their numbers in compact columns, their paths end to end in one buffer."""

    def __init__(self) -> None:
        self._numbers = array("i")
        self._paths, self._path_ends = bytearray(), array("q")

    def __len__(self) -> int:
        return len(self._path_ends)

    def add(self, part: int, fields: dict[str, int], path: str) -> None:
        self._numbers.extend((part, fields["bg"], fields.get("fg", -1), fields.get("id", -1)))
        self._paths += os.fsencode(path)
        self._path_ends.append(len(self._paths))

    def take_numbers(self) -> NDArray[np.int32]:
        """[files, 4]: part code, bg, fg, number. They are needed once, by the join, and given away."""
        numbers, self._numbers = self._numbers, array("i")
        return np.frombuffer(numbers, dtype=np.int32).reshape(-1, 4)

    def hash(self) -> str:
        """Of all paths."""
        return hashlib.sha256(self._paths).hexdigest()

    def path(self, row: int) -> str:
        start = self._path_ends[row - 1] if row else 0
        return os.fsdecode(bytes(self._paths[start : self._path_ends[row]]))


@dataclass
class Sets:
    """The complete sets of a source, sorted by (bg, fg, number).

    ids: int32 [sets, 3] of bg, fg, number. backgrounds: id -> path of every background, used or not.
    left_out: how many sets were left out, by kind; problems names their files, and every file of no set.
    """

    ids: NDArray[np.int32]
    backgrounds: dict[int, str]
    problems: list[Problem]
    left_out: Counter[str]
    _files: _Files = field(repr=False)
    _rows: NDArray[np.intp] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int | np.int64) -> SetFiles:
        bg, fg, number = (int(value) for value in self.ids[position])
        paths = tuple(self._files.path(int(row)) for row in self._rows[position])
        return SetFiles(set_key(fg, bg, number), bg, fg, number, paths)

    def fingerprint(self) -> str:
        """A hash of which files the sets and backgrounds are made of; not of what the files hold."""
        digest = hashlib.sha256(repr(self.backgrounds).encode(errors="surrogateescape"))
        digest.update(self.ids.tobytes())
        digest.update(self._files.hash().encode())
        return digest.hexdigest()

    def drop_background(self, bg: int, kind: str, why: str) -> None:
        """Leave out a background, and every set on it."""
        self.problems.append(Problem(self.backgrounds.pop(bg), kind, why))
        on_it = self.ids[:, 0] == bg
        for position in np.flatnonzero(on_it):
            self.problems.append(Problem(self[position].paths[0], kind, f"background {bg}: {why}"))
        self.left_out[kind] += int(on_it.sum())
        self.ids, self._rows = self.ids[~on_it], self._rows[~on_it]


def walk_files(source: Path) -> Iterator[str]:
    """Every file below `source`, as a sorted run of posix paths relative to it; links to folders are not entered."""
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if name != UNFINISHED)
        below = Path(folder).relative_to(source).as_posix()
        for name in sorted(names):
            yield name if below == "." else f"{below}/{name}"


def find_sets(
    source: Path,
    layout: Layout,
    tick: Callable[[int], None] = lambda files: None,
    parts: tuple[str, ...] = PARTS,
) -> Sets:
    """Scan a folder and join its files into sets; `tick` is told now and then how many files were seen.

    A set is complete with `parts`, which are PARTS or their beginning; files of other parts are passed over. Raises
    `InputError` if the folder is missing or nothing in it fits the layout.
    """
    if not source.is_dir():
        raise InputError(f"no such folder: {source}: give the folder that holds bg/, fg_bg/ and fg_bg_mask/")
    files, problems, seen = _Files(), list[Problem](), 0
    codes = {part: code for code, part in enumerate(("bg", *parts))}
    for seen, path in enumerate(walk_files(source), 1):
        try:
            match = layout.match(path)
        except ValueError as contradiction:
            problems.append(Problem(path, "contradiction", f"the name contradicts itself: {contradiction}"))
            continue
        if match is None:
            problems.append(Problem(path, "unknown", f"fits no part of the layout {layout.name}"))
        elif match[0] in codes:
            files.add(codes[match[0]], match[1], path)
        if seen % 5000 == 0:
            tick(seen)
    tick(seen)
    if not len(files):
        expected = ", ".join(f"{template.text}.jpg" for template in layout.parts.values())
        found = f"none of its {seen:,} files fits" if seen else "the folder is empty"
        raise InputError(f"no image sets in {source}: {found}; expected files such as {expected}")
    return _join(files, problems, parts)


def _join(files: _Files, problems: list[Problem], parts: tuple[str, ...]) -> Sets:
    numbers = files.take_numbers()
    is_background = numbers[:, 0] == 0
    backgrounds = _join_backgrounds(files, np.flatnonzero(is_background), numbers[:, 1], problems)

    rows = np.flatnonzero(~is_background)
    part, bg, fg, number = numbers[rows].T
    rows = rows[np.lexsort((part, number, fg, bg))]
    part, ids = numbers[rows, 0] - 1, numbers[rows, 1:]
    starts_set = np.ones(len(rows), dtype=bool)
    starts_set[1:] = (ids[1:] != ids[:-1]).any(axis=1)
    group = np.cumsum(starts_set) - 1
    ids = ids[starts_set]
    count = np.bincount(group * len(parts) + part, minlength=len(ids) * len(parts)).reshape(-1, len(parts))
    complete = (count == 1).all(axis=1) & np.isin(ids[:, 0], list(backgrounds))
    for row in np.flatnonzero(~complete[group]):
        set_ids, parts_found = ids[group[row]], count[group[row]]
        problems.append(
            _explain(
                files.path(int(rows[row])), set_ids, dict(zip(parts, parts_found.tolist(), strict=True)), backgrounds
            )
        )
    set_rows = rows[complete[group]].reshape(-1, len(parts))
    claimed_twice = (count > 1).any(axis=1)
    left_out = Counter(duplicate=int(claimed_twice.sum()), incomplete=int((~complete & ~claimed_twice).sum()))
    return Sets(ids[complete], backgrounds, problems, left_out, files, set_rows)


def _join_backgrounds(
    files: _Files, rows: NDArray[np.intp], ids: NDArray[np.int32], problems: list[Problem]
) -> dict[int, str]:
    claims: dict[int, list[str]] = {}
    for row in rows:
        claims.setdefault(int(ids[row]), []).append(files.path(int(row)))
    for bg, paths in claims.items():
        if len(paths) > 1:
            problems += [Problem(path, "duplicate", f"{len(paths)} files claim background {bg}") for path in paths]
    return {bg: paths[0] for bg, paths in sorted(claims.items()) if len(paths) == 1}


def _explain(path: str, ids: NDArray[np.int32], count: dict[str, int], backgrounds: dict[int, str]) -> Problem:
    bg, fg, number = (int(value) for value in ids)
    key = set_key(fg, bg, number)
    if twice := ", ".join(part for part, files in count.items() if files > 1):
        return Problem(path, "duplicate", f"more than one file claims {twice} of set {key}")
    missing = [part for part, files in count.items() if not files]
    if bg not in backgrounds:
        missing.insert(0, f"background {bg}")
    return Problem(path, "incomplete", f"set {key} has no {', no '.join(missing)}")
