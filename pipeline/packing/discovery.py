"""Discovery: which of the known layouts some files are in, and which file may be which part of which set.

Both are told from the files' names alone. `join` makes sets of the candidates.
"""

import random
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, Problem
from pipeline.format.images import is_converted, unread_format
from pipeline.format.sample import PARTS, UNKNOWN
from pipeline.packing.folders import describe_files, is_readme, is_text
from pipeline.packing.layouts import IDS, Layout
from pipeline.packing.listing import Listing

SAMPLE = 1000  # files of each source that are looked at
STRAY = 0.01  # of the files in the best layout: below this share those in another are strays, not a second candidate
DEFAULT_NUMBER = 0  # of a set whose layout tells none
UNREAD = "its format is not read: convert to PNG, or depth to .npy"


class LayoutFit(NamedTuple):
    """How well the files that were looked at fit a layout."""

    layout: Layout
    roots: tuple[str, ...]
    """Of each source, the folder within it that the templates begin at: "" or ending in "/"."""
    files: Counter[str]
    """By part, those that fit; "": files of the layout that are not packed."""
    looked_at: int
    example: str
    """The path of an overlay that fits, "" if none does."""
    beside: tuple[str, ...] = ()
    """Other folders, beside the roots, that hold sets of this layout, too."""

    @property
    def size(self) -> int:
        """How many files of sets fit; backgrounds do not tell, they are named alike in all layouts."""
        return sum(self.files[part] for part in PARTS)

    def describe(self) -> str:
        """One phrase: which layout, and why."""
        counts = ", ".join(f"{self.files[part]:,} {part}" for part in (*PARTS, "bg") if self.files[part])
        fits = f"{self.files.total():,} of {self.looked_at:,} files looked at fit it: {counts}"
        return f"{self.layout.name} ({fits}; such as {self.example})"


def recognise_layout(listing: Listing, layouts: Sequence[Layout]) -> LayoutFit:
    """Find the one layout that the files are in; raise `InputError` if it is none of `layouts`, or not clear which."""
    for count in (SAMPLE, len(listing)):
        samples = [_sample(listing, number, count) for number in range(len(listing.sources))]
        roots = [_roots(paths, layouts) for paths in samples]
        all_fits = [_fit(layout, samples, roots) for layout in layouts]
        # Backgrounds alone are enough where no layout is to be told from another.
        fits = [fit for fit in all_fits if fit.size or (len(layouts) == 1 and fit.files["bg"])]
        if fits or len(listing) <= SAMPLE:
            break
    if not fits:
        _refuse(listing, layouts, samples, roots)
    best, *others = sorted(fits, key=lambda fit: -fit.size)
    if rivals := [other for other in others if other.size > STRAY * best.size]:
        listed = "; ".join(fit.describe() for fit in (best, *rivals))
        raise InputError(f"the files fit {1 + len(rivals)} layouts: {listed}: choose one with --layout NAME")
    if best.beside:
        listed = ", ".join((*filter(None, best.roots), *best.beside))
        raise InputError(f"several folders hold image sets: {listed}: pack one of them, or give each as a SOURCE")
    return best


def _refuse(listing: Listing, layouts: Sequence[Layout], samples: list[list[str]], roots: list[list[str]]) -> NoReturn:
    """Raise `InputError` for files that are in none of some layouts, with all that is known of why."""
    where = ", ".join(str(source.path) for source in listing.sources)
    expected = " or ".join(f"{_overlay_template(layout)}.jpg ({layout.name})" for layout in layouts[:2])
    empty = "the folder is empty" if listing.sources[0].kind == "folder" else "it is empty"
    why = describe_files((path for paths in samples for path in paths), listing.refused, empty)
    if len(listing):
        none = "its one file is no" if len(listing) == 1 else f"none of its {len(listing):,} files is an"
        why = f"{none} overlay, mask or depth map ({why})"
    for layout in layouts:
        for paths, below in zip(samples, roots, strict=True):
            unread = [
                path
                for path in paths
                if any(path.startswith(root) and layout.fits_but_for_format(path[len(root) :]) for root in below)
            ]
            if unread:
                reason = unread_format(unread[0]) or UNREAD
                raise InputError(f"no image sets in {where}: {why}; {unread[0]}: {reason}")
    raise InputError(
        f"no image sets in {where}: {why}; expected files such as {expected}; "
        "other names can be told by --overlay, --mask and --depth"
    )


def _overlay_template(layout: Layout) -> str:
    return next(template.text for part, _, template in layout.templates if part == "fg_bg")


def _sample(listing: Listing, source: int, count: int) -> list[str]:
    """Up to `count` paths of a source, in their order. At random: evenly spaced ones might all be of one part."""
    rows = listing.rows(source)
    if len(rows) > count:
        return [listing.path(row) for row in sorted(random.Random(0).sample(rows, count))]
    return list(listing.paths(rows))


def _fit(layout: Layout, samples: list[list[str]], roots: list[list[str]]) -> LayoutFit:
    best, beside = list[LayoutFit](), list[str]()
    for paths, folders in zip(samples, roots, strict=True):
        fits = [_fit_below(root, layout, paths) for root in folders]
        best.append(max(fits, key=_file_count))
        beside += [fit.roots[0] for fit in fits if fit.size > STRAY * best[-1].size and _apart(fit, best[-1])]
    files = sum((fit.files for fit in best), Counter[str]())
    example = next((fit.example for fit in best if fit.example), "")
    roots_found = tuple(fit.roots[0] for fit in best)
    return LayoutFit(layout, roots_found, files, sum(map(len, samples)), example, tuple(beside))


def _file_count(fit: LayoutFit) -> int:
    return fit.files.total()


def _apart(one: LayoutFit, other: LayoutFit) -> bool:
    """Whether neither root lies in the other."""
    return not one.roots[0].startswith(other.roots[0]) and not other.roots[0].startswith(one.roots[0])


def _roots(paths: list[str], layouts: Sequence[Layout]) -> list[str]:
    """The folders that sets may begin at: those that hold all files, or the highest that hold sets beside others."""
    folders = [path.split("/")[:-1] for path in paths if not is_text(path)]
    low, high = min(folders, default=[]), max(folders, default=[])
    shared = next(
        (place for place, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high))
    )
    holding_all = ["".join(f"{name}/" for name in low[:length]) for length in range(shared + 1)]
    if any(_fit_below(root, layout, paths).size for root in holding_all for layout in layouts):
        return holding_all
    for length in range(shared + 1, max(map(len, folders), default=0) + 1):
        below = dict[str, list[str]]()
        for names, path in zip(folders, (path for path in paths if not is_text(path)), strict=True):
            if len(names) >= length:
                below.setdefault("".join(f"{name}/" for name in names[:length]), []).append(path)
        if found := [root for root in below if any(_fit_below(root, layout, below[root]).size for layout in layouts)]:
            return found
    return holding_all


def _fit_below(root: str, layout: Layout, paths: list[str]) -> LayoutFit:
    files, example = Counter[str](), ""
    for path in paths:
        try:
            match = layout.match(path[len(root) :]) if path.startswith(root) else None
        except ValueError:  # of this layout, but for a contradiction in its name
            continue
        if match:
            files[match[0]] += 1
            if match[0] == "fg_bg":
                example = example or path
    return LayoutFit(layout, (root,), files, len(paths), example)


class Candidates(NamedTuple):
    """Files that may be parts of sets: columns of equal length, a row for each pair of a file and a set."""

    rows: NDArray[np.int32]
    """Of the listing: which file."""
    parts: NDArray[np.int8]
    """0 for a background, else 1 + place in the parts."""
    ranks: NDArray[np.int8]
    """Place in the layout's order of preference, and for each place JPEG and PNG before other formats."""
    ids: NDArray[np.int32]
    """[rows, 3]: bg, fg, number."""

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> "Candidates":
        """Some of them."""
        return Candidates(self.rows[chosen], self.parts[chosen], self.ranks[chosen], self.ids[chosen])


def candidates_by_name(listing: Listing, fit: LayoutFit, parts: tuple[str, ...], problems: list[Problem]) -> Candidates:
    """Which file is a candidate for which part of which set, by the names of a layout.

    A name that fits nothing, or contradicts itself, is added to `problems`. Raises `InputError` if the layout assumes a
    number of sets that the files do not bear out.
    """
    layout, numbers = fit.layout, array("i")  # of each file that fits: row, template, is_converted, bg, fg, number
    find, extend = layout.find, numbers.extend
    for source, root in enumerate(fit.roots):
        rows = listing.rows(source)
        for row, path in zip(rows, listing.paths(rows), strict=True):
            try:
                match = find(path) if not root else find(path[len(root) :]) if path.startswith(root) else None
            except ValueError as contradiction:
                why = f"the name contradicts itself: {contradiction}"
                problems.append(Problem(listing.name(row), "contradiction", why))
                continue
            if match is None:
                if path.startswith(root) and layout.fits_but_for_format(path[len(root) :]):
                    problems.append(Problem(listing.name(row), "unread", unread_format(path) or UNREAD))
                elif not is_readme(path):
                    problems.append(Problem(listing.name(row), "unknown", f"fits no part of the layout {layout.name}"))
            elif match[0] >= 0:
                template, fields = match
                bg, fg = fields.get("bg", UNKNOWN), fields.get("fg", UNKNOWN)
                extend((row, template, is_converted(path), bg, fg, fields.get("id", DEFAULT_NUMBER)))
    table = np.frombuffer(numbers, np.int32).reshape(-1, 6)
    codes = {part: code for code, part in enumerate(("bg", *parts))}
    part_of = np.array([codes.get(part, -1) for part, _, _ in layout.templates], np.int8)[table[:, 1]]
    rank_of = 2 * np.array([rank for _, rank, _ in layout.templates], np.int8)[table[:, 1]] + table[:, 2].astype(
        np.int8
    )
    candidates = Candidates(table[:, 0], part_of, rank_of, table[:, 3:]).take(part_of >= 0)
    _require_assumed_sets(layout, candidates)
    for code, part in enumerate(parts[1:], 2):
        if layout.ids(part) != layout.ids("fg_bg"):
            candidates = _repeat_for_overlays(candidates, code, layout.ids(part), listing, problems)
    return candidates


def _require_assumed_sets(layout: Layout, candidates: Candidates) -> None:
    """Numbers alone tell no background: unless all sets are there, what the numbers mean has to be stated."""
    numbers, backgrounds = candidates.ids[candidates.parts == 1, 2], candidates.ids[candidates.parts == 0, 0]
    if layout.assumed_sets and (largest := int(numbers.max(initial=0))) != layout.assumed_sets:
        raise InputError(
            f"layout {layout.name} only numbers its sets, originally from 1 to {layout.assumed_sets:,}; here the "
            f"largest number is {largest:,}, with {len(set(backgrounds.tolist())):,} backgrounds: state what went into "
            "them with --counts BACKGROUNDSxFOREGROUNDSxPLACEMENTSxMIRRORED"
        )


def _repeat_for_overlays(
    candidates: Candidates, code: int, names: tuple[str, ...], listing: Listing, problems: list[Problem]
) -> Candidates:
    """The candidates, where those of the part `code`, which tell only the ids `names`, are repeated for every set.

    Every set, that is, of an overlay with the same values of these ids; where there is none, the file is a problem.
    """
    columns = [IDS.index(name) for name in names]
    is_part, is_overlay = candidates.parts == code, candidates.parts == 1
    shared = candidates.take(is_part)
    sets = np.unique(candidates.ids[is_overlay], axis=0)
    _, labels = np.unique(np.concatenate([sets[:, columns], shared.ids[:, columns]]), axis=0, return_inverse=True)
    labels = labels.ravel()
    order = np.argsort(labels[: len(sets)], kind="stable")
    sets, labels, shared_labels = sets[order], labels[: len(sets)][order], labels[len(sets) :]
    first, last = (np.searchsorted(labels, shared_labels, side=side) for side in ("left", "right"))
    for row, ids in zip(shared.rows[first == last], shared.ids[first == last][:, columns].tolist(), strict=True):
        what = ", ".join(f"{name} {number}" for name, number in zip(names, ids, strict=True))
        problems.append(Problem(listing.name(int(row)), "incomplete", f"no overlay has {what}"))
    count = last - first
    repeated = shared.take(np.repeat(np.arange(len(count)), count))
    places = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    repeated = repeated._replace(ids=sets[places])
    rest = candidates.take(~is_part)
    return Candidates(
        np.concatenate([rest.rows, repeated.rows]),
        np.concatenate([rest.parts, repeated.parts]),
        np.concatenate([rest.ranks, repeated.ranks]),
        np.concatenate([rest.ids, repeated.ids]),
    )
