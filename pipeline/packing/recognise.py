"""Recognise: which of the known layouts some files are in, and below which folder, told from their names alone."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.format.sample import PARTS
from pipeline.packing.layouts import Layout
from pipeline.packing.listing import Listing

SAMPLE = 1000  # files of each source that are looked at
STRAY = 0.01  # of the files in the best layout: below this share those in another are strays, not a second candidate
JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # names that systems leave in folders and archives


def is_junk(path: str) -> bool:
    """Whether a file is none of the user's own, but some system's."""
    first, _, _ = path.partition("/")
    last = path.rpartition("/")[2]
    return first == JUNK[0] or last in JUNK or last.startswith("._")


class Found(NamedTuple):
    """How well the looked-at files fit a layout."""

    layout: Layout
    roots: tuple[str, ...]
    """Of each source, the folder within it that the templates begin at: "" or ending in "/"."""
    files: Counter[str]
    """By part, those that fit; "": files of the layout that are not packed."""
    looked_at: int
    example: str
    """The path of an overlay that fits, "" if none does."""

    @property
    def size(self) -> int:
        """How many files of sets fit; backgrounds do not tell, they are named alike in all layouts."""
        return sum(self.files[part] for part in PARTS)

    def describe(self) -> str:
        """One phrase: which layout, and why."""
        counts = ", ".join(f"{self.files[part]:,} {part}" for part in (*PARTS, "bg") if self.files[part])
        fits = f"{self.files.total():,} of {self.looked_at:,} files looked at fit it: {counts}"
        return f"{self.layout.name} ({fits}; such as {self.example})"


def recognise(listing: Listing, layouts: Sequence[Layout]) -> Found:
    """The one layout that the files are in; raise `InputError` if it is none of `layouts`, or not clear which."""
    for count in (SAMPLE, len(listing)):
        samples = [_sample(listing, number, count) for number in range(len(listing.sources))]
        fits = [_fit(layout, samples) for layout in layouts]
        # Backgrounds alone are enough where no layout is to be told from another.
        found = [fit for fit in fits if fit.size or (len(layouts) == 1 and fit.files["bg"])]
        if found or len(listing) <= SAMPLE:
            break
    if not found:
        where = ", ".join(str(source.path) for source in listing.sources)
        expected = " or ".join(f"{_overlay(layout)}.jpg ({layout.name})" for layout in layouts[:2])
        empty = "the folder is empty" if listing.sources[0].kind == "folder" else "it is empty"
        why = f"none of its {len(listing):,} files is an overlay, a mask or a depth map" if len(listing) else empty
        raise InputError(
            f"no image sets in {where}: {why}; expected files such as {expected}; "
            "other names can be told by --overlay, --mask and --depth"
        )
    best, *others = sorted(found, key=lambda fit: -fit.size)
    if rivals := [other for other in others if other.size > STRAY * best.size]:
        listed = "; ".join(fit.describe() for fit in (best, *rivals))
        raise InputError(f"the files fit {1 + len(rivals)} layouts: {listed}: choose one with --layout NAME")
    return best


def _overlay(layout: Layout) -> str:
    return next(template.text for part, _, template in layout.templates if part == "fg_bg")


def _sample(listing: Listing, source: int, count: int) -> list[str]:
    """Up to `count` paths of a source, in their order. At random: evenly spaced ones might all be of one part."""
    rows = listing.rows(source)
    if len(rows) > count:
        return [listing.path(row) for row in sorted(random.Random(0).sample(rows, count))]
    return list(listing.paths(rows))


def _fit(layout: Layout, samples: list[list[str]]) -> Found:
    best = [max((_fit_below(root, layout, paths) for root in _roots(paths)), key=_fits) for paths in samples]
    files = sum((fit.files for fit in best), Counter[str]())
    example = next((fit.example for fit in best if fit.example), "")
    return Found(layout, tuple(fit.roots[0] for fit in best), files, sum(map(len, samples)), example)


def _fits(fit: Found) -> int:
    return fit.files.total()


def _roots(paths: list[str]) -> list[str]:
    """The folders that hold all of the files, from the source itself downwards."""
    folders = [path.split("/")[:-1] for path in paths if not is_junk(path)]
    low, high = min(folders, default=[]), max(folders, default=[])
    shared = next(
        (place for place, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high))
    )
    return ["".join(f"{name}/" for name in low[:length]) for length in range(shared + 1)]


def _fit_below(root: str, layout: Layout, paths: list[str]) -> Found:
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
    return Found(layout, (root,), files, len(paths), example)
