"""Sets: join the files of sources by their parsed ids; whatever fits no set is a named problem.

400,000 sets are 1.2 million files, so nothing here is a Python object a file: the join is a sort of integer columns.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, Problem
from pipeline.format.sample import PARTS, set_key
from pipeline.packing.archives import Place
from pipeline.packing.candidates import Claims, claim_by_names
from pipeline.packing.csv_layout import SetList
from pipeline.packing.known_layouts import schemes
from pipeline.packing.layouts import Layout
from pipeline.packing.listing import Listing
from pipeline.packing.metadata import TABLES
from pipeline.packing.recognise import recognise
from pipeline.packing.sources import FOLDER, Reader, open_sources


class SetFiles(NamedTuple):
    """One complete set: its ids and its parts (fg_bg, mask and, if asked for, depth).

    paths: their names, below the source, or with its label where there are several. places: what `sources.Reader.read`
    needs beside these. fg is `layouts.UNKNOWN` where it is not known.
    """

    key: str
    bg: int
    fg: int
    number: int
    paths: tuple[str, ...]
    places: tuple[Place | int, ...]


class Chosen(NamedTuple):
    """The layout that the sets are in: its name, what speaks for it, and of each source the folder it begins at."""

    layout: str
    why: str
    roots: tuple[str, ...]


@dataclass
class Sets:
    """The complete sets of sources, sorted by (bg, fg, number).

    ids: int32 [sets, 3] of bg, fg, number. backgrounds: id -> path of every background, used or not.
    left_out: how many sets were left out, by kind; problems names their files, and every file of no set.
    """

    ids: NDArray[np.int32]
    backgrounds: dict[int, str]
    problems: list[Problem]
    left_out: Counter[str]
    chosen: Chosen
    listing: Listing = field(repr=False)
    _rows: NDArray[np.int32] = field(repr=False)
    _background_rows: dict[int, int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int | np.int64) -> SetFiles:
        bg, fg, number = self.ids[position].tolist()
        rows = self._rows[position].tolist()
        names, places = zip(*map(self.listing.locate, rows), strict=True)
        return SetFiles(set_key(fg, bg, number), bg, fg, number, names, places)

    def ending(self, part: int, extension: str) -> NDArray[np.bool_]:
        """Of which sets the file of a part (its position in PARTS) has an extension; bool [sets]."""
        return self.listing.ending(self._rows[:, part], extension)

    def background_place(self, bg: int) -> Place | int:
        """The place of a background's file, which goes with its path."""
        return self.listing.locate(self._background_rows[bg])[1]

    def tables(self) -> list[Path | tuple[str, bytes]]:
        """Where `tables.Tables` is to look: folders, and what files of archives hold."""
        found, reader = list[Path | tuple[str, bytes]](), Reader(self.listing.sources)
        for number, (source, root) in enumerate(zip(self.listing.sources, self.chosen.roots, strict=True)):
            if source.kind == FOLDER:
                found.append(source.path / root)
                continue
            for name in TABLES:
                row = self.listing.row_of(number, root + name)
                if row is not None:
                    found.append((name, reader.read(*self.listing.locate(row))))
        return found

    def fingerprint(self) -> str:
        """A hash of which files there are, with sizes and times (CRCs in a zip), and of which sets they make."""
        digest = hashlib.sha256(repr(self.backgrounds).encode(errors="surrogateescape"))
        digest.update(self.listing.fingerprint().encode())
        digest.update(self.ids.tobytes())
        digest.update(self._rows.tobytes())
        return digest.hexdigest()

    def drop_background(self, bg: int, kind: str, why: str) -> None:
        """Leave out a background, and every set on it."""
        self.problems.append(Problem(self.backgrounds.pop(bg), kind, why))
        on_it = self.ids[:, 0] == bg
        for position in np.flatnonzero(on_it):
            self.problems += [Problem(path, kind, f"background {bg}: {why}") for path in self[position].paths]
        self.left_out[kind] += int(on_it.sum())
        self.ids, self._rows = self.ids[~on_it], self._rows[~on_it]


def find_sets(
    source: Path | Sequence[Path],
    layout: Layout | SetList | Sequence[Layout] | None = None,
    tick: Callable[[int], None] = lambda files: None,
    parts: tuple[str, ...] = PARTS,
) -> Sets:
    """List the files of one or several sources and join them into sets.

    `layout`: several are candidates, None are all that are known. `tick` is told now and then how many files were seen.
    A set is complete with `parts`, which are PARTS or their beginning; files of other parts are passed over. Raises
    `InputError` for what is no source, if nothing fits the layout, and if it is not clear which layout it is.
    """
    listing = Listing(open_sources([source] if isinstance(source, Path) else source), tick)
    problems = [Problem(path, "refused", why) for path, why in listing.refused]
    if layout is None:
        layout = SetList.find_in(listing)
    if isinstance(layout, SetList):
        claims = layout.claim(listing, parts, problems)
        why = f"list of sets {layout.name} (its columns name the parts of {len(np.unique(claims.ids, axis=0)):,} sets)"
        return _join(claims, parts, Chosen(layout.name, why, ("",) * len(listing.sources)), listing, problems)
    found = recognise(listing, [layout] if isinstance(layout, Layout) else layout or schemes())
    if lacking := [part for part in parts if part not in found.layout.parts]:
        remedy = "pack without (--no-depth), or tell how its files are named (--depth TEMPLATE)"
        raise InputError(f"layout {found.layout.name} has no {lacking[0]}: {remedy}")
    chosen = Chosen(found.layout.name, found.describe(), found.roots)
    # The claims are in no variable here, so that the join can let them go.
    return _join(claim_by_names(listing, found, parts, problems), parts, chosen, listing, problems)


def _join(claims: Claims, parts: tuple[str, ...], chosen: Chosen, listing: Listing, problems: list[Problem]) -> Sets:
    background_rows = _join_backgrounds(claims.take(claims.parts == 0), listing, problems)
    claims = claims.take(claims.parts != 0)
    claims = claims.take(np.lexsort((claims.ranks, claims.parts, *claims.ids.T[::-1])))
    claims = claims.take(_preferred(claims))
    starts_set = _changes(claims.ids)
    group = np.cumsum(starts_set) - 1
    ids = claims.ids[starts_set]
    code = claims.parts.astype(np.intp) - 1
    count = np.bincount(group * len(parts) + code, minlength=len(ids) * len(parts)).reshape(-1, len(parts))
    complete = (count == 1).all(axis=1) & np.isin(ids[:, 0], list(background_rows))
    for place in np.flatnonzero(~complete[group]):
        set_ids, parts_found = ids[group[place]], dict(zip(parts, count[group[place]].tolist(), strict=True))
        path = listing.name(int(claims.rows[place]))
        problems.append(_explain(path, set_ids, parts_found, int(set_ids[0]) in background_rows))
    rows = claims.rows[complete[group]].reshape(-1, len(parts))
    claimed_twice = (count > 1).any(axis=1)
    left_out = Counter(duplicate=int(claimed_twice.sum()), incomplete=int((~complete & ~claimed_twice).sum()))
    backgrounds = {bg: listing.name(row) for bg, row in background_rows.items()}
    return Sets(ids[complete], backgrounds, problems, left_out, chosen, listing, rows, background_rows)


def _preferred(claims: Claims) -> NDArray[np.bool_]:
    """Which of the sorted claims are the first, in the order of preference, that there are to a part of a set."""
    starts = _changes(claims.ids) | _changes(claims.parts[:, None])
    best: NDArray[np.int8] = claims.ranks[starts][np.cumsum(starts) - 1]
    preferred: NDArray[np.bool_] = claims.ranks == best
    return preferred


def _changes(columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows of [N, columns] differ from the one before; the first does."""
    changes = np.ones(len(columns), dtype=bool)
    changes[1:] = (columns[1:] != columns[:-1]).any(axis=1)
    return changes


def _join_backgrounds(claims: Claims, listing: Listing, problems: list[Problem]) -> dict[int, int]:
    """Row of each background that one file claims."""
    rows: dict[int, list[int]] = {}
    for bg, row in zip(claims.ids[:, 0].tolist(), claims.rows.tolist(), strict=True):
        rows.setdefault(bg, []).append(row)
    for bg, twice in rows.items():
        if len(twice) > 1:
            why = f"{len(twice)} files claim background {bg}"
            problems += [Problem(listing.name(row), "duplicate", why) for row in twice]
    return {bg: one[0] for bg, one in sorted(rows.items()) if len(one) == 1}


def _explain(path: str, ids: NDArray[np.int32], count: dict[str, int], has_background: bool) -> Problem:
    bg, fg, number = ids.tolist()
    key = set_key(fg, bg, number)
    if twice := ", ".join(part for part, files in count.items() if files > 1):
        return Problem(path, "duplicate", f"more than one file claims {twice} of set {key}")
    missing = [part for part, files in count.items() if not files]
    if not has_background:
        missing.insert(0, f"background {bg}")
    return Problem(path, "incomplete", f"set {key} has no {', no '.join(missing)}")
