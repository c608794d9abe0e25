"""Join: the files of sources -> complete sets, by the ids in their names; whatever fits no set is a named problem.

400,000 sets are 1.2 million files, so nothing here is a Python object a file: the join is a sort of integer columns.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, Problem
from pipeline.format.images import BadImage
from pipeline.format.sample import PARTS, set_key
from pipeline.packing.archives import MemberPlace
from pipeline.packing.csv_layout import CsvLayout
from pipeline.packing.discovery import Candidates, candidates_by_name, recognise_layout
from pipeline.packing.folders import describe_refused
from pipeline.packing.known_layouts import known_layouts
from pipeline.packing.layouts import Layout
from pipeline.packing.listing import Listing
from pipeline.packing.metadata import ORIGINS, TABLES
from pipeline.packing.sources import FOLDER, FileReader, open_sources
from pipeline.storage import Location, Url
from pipeline.words import plural

REFUSED, UNREAD = "refused", "unread"
CAUSES = ("contradiction", "incomplete", "duplicate", UNREAD, REFUSED, "unknown")  # of problems, the likeliest first


class SetFiles(NamedTuple):
    """One complete set: its ids and its parts (fg_bg, mask and, if asked for, depth)."""

    key: str
    bg: int
    fg: int
    """`sample.UNKNOWN` where it is not known."""
    number: int
    paths: tuple[str, ...]
    """The names of the files, below the source, or with its label where there are several."""
    places: tuple[MemberPlace | int, ...]
    """What `sources.FileReader.read` needs beside these."""


class ChosenLayout(NamedTuple):
    """The layout that the sets are in."""

    name: str
    why: str
    """What speaks for it, in a phrase."""
    roots: tuple[str, ...]
    """Of each source, the folder that it begins at."""


@dataclass
class Sets:
    """The complete sets of sources, sorted by (bg, fg, number)."""

    ids: NDArray[np.int32]
    """[sets, 3]: bg, fg, number."""
    backgrounds: dict[int, str]
    """id -> path of every background, used or not."""
    problems: list[Problem]
    """Every file of a set that is left out, and every file of no set."""
    left_out: Counter[str]
    """How many sets are left out, by kind."""
    layout: ChosenLayout
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

    def background_place(self, bg: int) -> MemberPlace | int:
        """The place of a background's file, which goes with its path."""
        return self.listing.locate(self._background_rows[bg])[1]

    def metadata_places(self) -> list[tuple[str, Path | bytes]]:
        """The tables for `metadata.MetadataTables`, by name: their paths, or what files of archives hold.

        They are looked for at the top of a source, where fgbg-depth writes, and then where the sets begin. Raises
        `InputError` for one in an archive that cannot be read.
        """
        places, reader = list[tuple[str, Path | bytes]](), FileReader(self.listing.sources)
        for number, (source, root) in enumerate(zip(self.listing.sources, self.layout.roots, strict=True)):
            for folder, name in product(dict.fromkeys(("", root)), (*TABLES, ORIGINS)):
                row = self.listing.row_of(number, folder + name)
                if row is None:
                    continue
                if isinstance(source.path, Path) and source.kind == FOLDER:
                    places.append((name, source.path / folder / name))
                    continue
                try:
                    places.append((name, reader.read(*self.listing.locate(row))))
                except BadImage as error:
                    raise InputError(f"{self.listing.name(row)}: {error}: repair it, or take it away") from None
        return places

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
        affected = self.ids[:, 0] == bg
        for position in np.flatnonzero(affected):
            self.problems += [Problem(path, kind, f"background {bg}: {why}") for path in self[position].paths]
        self.left_out[kind] += int(affected.sum())
        self.ids, self._rows = self.ids[~affected], self._rows[~affected]


def describe_cause(problems: Sequence[Problem], left_out: Counter[str], listing: Listing) -> tuple[str, str]:
    """Why there are no sets: the first problem of the kind that most are left out for, "" if there is none.

    And what else is to be told, "" or beginning with "; ": files in a format that is not read, and what was refused.
    """
    order = [*(kind for kind, _ in left_out.most_common()), *CAUSES]
    rank = {kind: place for place, kind in reversed(list(enumerate(order)))}
    first = min(problems, default=None, key=lambda problem: rank.get(problem.kind, 0))
    unread = [problem for problem in problems if problem.kind == UNREAD and problem is not first]
    told = [f"{len(unread):,} files, as {unread[0].path}: {unread[0].why}"] if unread else []
    told += filter(None, [describe_refused(listing.refused)])
    cause = f"{first.path}: {first.why}" if first and first.kind != REFUSED else ""
    return cause, "".join(f"; {phrase}" for phrase in told)


def find_sets(
    source: Location | Sequence[Location],
    layout: Layout | CsvLayout | Sequence[Layout] | None = None,
    tick: Callable[[int], None] = lambda files: None,
    parts: tuple[str, ...] = PARTS,
    *,
    follow_links: bool = False,
    output: Location | None = None,
) -> Sets:
    """List the files of one or several sources and join them into sets.

    `layout`: several are candidates, None are all that are known. `tick` is told now and then how many files were seen.
    A set is complete with `parts`, which are PARTS or their beginning; files of other parts are passed over.
    `follow_links` and `output` as for `folders.folder_files`. Raises
    `InputError` for what is no source, if nothing fits the layout, and if it is not clear which layout it is.
    """
    paths = [source] if isinstance(source, Path | Url) else source
    listing = Listing(open_sources(paths, follow_links=follow_links, output=output), tick)
    problems = [Problem(path, REFUSED, why) for path, why in listing.refused]
    if layout is None:
        layout = CsvLayout.find_in(listing)
    if isinstance(layout, CsvLayout):
        candidates = layout.candidates(listing, parts, problems)
        sets = len(np.unique(candidates.ids, axis=0))
        why = f"list of sets {layout.name} (its columns name the parts of {plural(sets, 'set')})"
        return _join(candidates, parts, ChosenLayout(layout.name, why, ("",) * len(listing.sources)), listing, problems)
    fit = recognise_layout(listing, [layout] if isinstance(layout, Layout) else layout or known_layouts())
    if missing := [part for part in parts if part not in fit.layout.parts]:
        remedy = "pack without (--no-depth), or tell how its files are named (--depth TEMPLATE)"
        raise InputError(f"layout {fit.layout.name} has no {missing[0]}: {remedy}")
    chosen = ChosenLayout(fit.layout.name, fit.describe(), fit.roots)
    # The candidates are in no variable here, so that the join can let them go.
    return _join(candidates_by_name(listing, fit, parts, problems), parts, chosen, listing, problems)


def _join(
    candidates: Candidates, parts: tuple[str, ...], layout: ChosenLayout, listing: Listing, problems: list[Problem]
) -> Sets:
    background_rows = _join_backgrounds(candidates.take(candidates.parts == 0), listing, problems)
    candidates = candidates.take(candidates.parts != 0)
    candidates = candidates.take(np.lexsort((candidates.ranks, candidates.parts, *candidates.ids.T[::-1])))
    candidates = candidates.take(_preferred(candidates))
    starts_set = _changes(candidates.ids)
    set_of = np.cumsum(starts_set) - 1
    ids = candidates.ids[starts_set]
    code = candidates.parts.astype(np.intp) - 1
    count = np.bincount(set_of * len(parts) + code, minlength=len(ids) * len(parts)).reshape(-1, len(parts))
    complete = (count == 1).all(axis=1) & np.isin(ids[:, 0], list(background_rows))
    for place in np.flatnonzero(~complete[set_of]):
        set_ids, parts_found = ids[set_of[place]], dict(zip(parts, count[set_of[place]].tolist(), strict=True))
        path = listing.name(int(candidates.rows[place]))
        problems.append(_explain(path, set_ids, parts_found, int(set_ids[0]) in background_rows))
    rows = candidates.rows[complete[set_of]].reshape(-1, len(parts))
    has_duplicate = (count > 1).any(axis=1)
    left_out = Counter(duplicate=int(has_duplicate.sum()), incomplete=int((~complete & ~has_duplicate).sum()))
    backgrounds = {bg: listing.name(row) for bg, row in background_rows.items()}
    return Sets(ids[complete], backgrounds, problems, left_out, layout, listing, rows, background_rows)


def _preferred(candidates: Candidates) -> NDArray[np.bool_]:
    """Which of the sorted candidates for a part of a set are those that the layout prefers, of all that there are."""
    starts = _changes(candidates.ids) | _changes(candidates.parts[:, None])
    best: NDArray[np.int8] = candidates.ranks[starts][np.cumsum(starts) - 1]
    preferred: NDArray[np.bool_] = candidates.ranks == best
    return preferred


def _changes(columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows of [N, columns] differ from the one before; the first does."""
    changes = np.ones(len(columns), dtype=bool)
    changes[1:] = (columns[1:] != columns[:-1]).any(axis=1)
    return changes


def _join_backgrounds(candidates: Candidates, listing: Listing, problems: list[Problem]) -> dict[int, int]:
    """The row of each background for which there is one candidate, of those that are preferred."""
    rows: dict[int, list[int]] = {}
    candidates = candidates.take(np.lexsort((candidates.rows, candidates.ranks, candidates.ids[:, 0])))
    candidates = candidates.take(_preferred(candidates._replace(ids=candidates.ids[:, :1])))
    for bg, row in zip(candidates.ids[:, 0].tolist(), candidates.rows.tolist(), strict=True):
        rows.setdefault(bg, []).append(row)
    for bg, files in rows.items():
        if len(files) > 1:
            why = f"{len(files)} files claim background {bg}"
            problems += [Problem(listing.name(row), "duplicate", why) for row in files]
    return {bg: files[0] for bg, files in sorted(rows.items()) if len(files) == 1}


def _explain(path: str, ids: NDArray[np.int32], count: dict[str, int], has_background: bool) -> Problem:
    bg, fg, number = ids.tolist()
    key = set_key(fg, bg, number)
    if duplicates := ", ".join(part for part, files in count.items() if files > 1):
        return Problem(path, "duplicate", f"more than one file claims {duplicates} of set {key}")
    missing = [part for part, files in count.items() if not files]
    if not has_background:
        missing.insert(0, f"background {bg}")
    return Problem(path, "incomplete", f"set {key} has no {', no '.join(missing)}")
