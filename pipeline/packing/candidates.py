"""Claims: which files say by their names that they are which part of which set."""

from array import array
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, Problem
from pipeline.format.sample import UNKNOWN
from pipeline.packing.layouts import IDS, Layout
from pipeline.packing.listing import Listing
from pipeline.packing.recognise import Found, is_junk

NUMBER = 0  # of a set whose layout tells none


class Claims(NamedTuple):
    """Columns of equal length, a claim a row; a file may claim to be a part of several sets."""

    rows: NDArray[np.int32]
    """Of the listing."""
    parts: NDArray[np.int8]
    """0 for a background, else 1 + place in the parts."""
    ranks: NDArray[np.int8]
    """Place in the layout's order of preference."""
    ids: NDArray[np.int32]
    """[claims, 3]: bg, fg, number."""

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> "Claims":
        """Some of them."""
        return Claims(self.rows[chosen], self.parts[chosen], self.ranks[chosen], self.ids[chosen])


def claim_by_names(listing: Listing, found: Found, parts: tuple[str, ...], problems: list[Problem]) -> Claims:
    """What the names say in a layout; a name that says nothing, or contradicts itself, is added to `problems`.

    Raises `InputError` if the layout takes counts for granted that the files do not bear out.
    """
    layout, numbers = found.layout, array("i")  # of each file that fits: row, template, bg, fg, number
    find, extend = layout.find, numbers.extend
    for source, root in enumerate(found.roots):
        rows = listing.rows(source)
        for row, path in zip(rows, listing.paths(rows), strict=True):
            try:
                match = find(path) if not root else find(path[len(root) :]) if path.startswith(root) else None
            except ValueError as contradiction:
                why = f"the name contradicts itself: {contradiction}"
                problems.append(Problem(listing.name(row), "contradiction", why))
                continue
            if match is None:
                if not is_junk(path):
                    problems.append(Problem(listing.name(row), "unknown", f"fits no part of the layout {layout.name}"))
            elif match[0] >= 0:
                template, fields = match
                extend((row, template, fields.get("bg", UNKNOWN), fields.get("fg", UNKNOWN), fields.get("id", NUMBER)))
    table = np.frombuffer(numbers, np.int32).reshape(-1, 5)
    codes = {part: code for code, part in enumerate(("bg", *parts))}
    part_of = np.array([codes.get(part, -1) for part, _, _ in layout.templates], np.int8)[table[:, 1]]
    rank_of = np.array([rank for _, rank, _ in layout.templates], np.int8)[table[:, 1]]
    claims = Claims(table[:, 0], part_of, rank_of, table[:, 2:]).take(part_of >= 0)
    _require_assumed(layout, claims)
    for code, part in enumerate(parts[1:], 2):
        if layout.ids(part) != layout.ids("fg_bg"):
            claims = _told_by_overlays(claims, code, layout.ids(part), listing, problems)
    return claims


def _require_assumed(layout: Layout, claims: Claims) -> None:
    """Numbers alone tell no background: unless all are there, what they mean has to be stated."""
    numbers, backgrounds = claims.ids[claims.parts == 1, 2], claims.ids[claims.parts == 0, 0]
    if layout.assumed and (largest := int(numbers.max(initial=0))) != layout.assumed:
        raise InputError(
            f"layout {layout.name} only numbers its sets, originally from 1 to {layout.assumed:,}; here the largest "
            f"number is {largest:,}, with {len(set(backgrounds.tolist())):,} backgrounds: state what went into them "
            "with --counts BACKGROUNDSxFOREGROUNDSxPLACEMENTSxMIRRORED"
        )


def _told_by_overlays(
    claims: Claims, code: int, told: tuple[str, ...], listing: Listing, problems: list[Problem]
) -> Claims:
    """The claims, where those of one part, whose names tell fewer ids, are to every set that shares these."""
    columns = [IDS.index(name) for name in told]
    is_part, is_overlay = claims.parts == code, claims.parts == 1
    theirs = claims.take(is_part)
    sets = np.unique(claims.ids[is_overlay], axis=0)
    _, labels = np.unique(np.concatenate([sets[:, columns], theirs.ids[:, columns]]), axis=0, return_inverse=True)
    labels = labels.ravel()
    order = np.argsort(labels[: len(sets)], kind="stable")
    sets, labels, wanted = sets[order], labels[: len(sets)][order], labels[len(sets) :]
    first, last = (np.searchsorted(labels, wanted, side=side) for side in ("left", "right"))
    for row, ids in zip(theirs.rows[first == last], theirs.ids[first == last][:, columns].tolist(), strict=True):
        what = ", ".join(f"{name} {number}" for name, number in zip(told, ids, strict=True))
        problems.append(Problem(listing.name(int(row)), "incomplete", f"no overlay has {what}"))
    count = last - first
    repeated = theirs.take(np.repeat(np.arange(len(count)), count))
    places = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    expanded = repeated._replace(ids=sets[places])
    rest = claims.take(~is_part)
    return Claims(
        np.concatenate([rest.rows, expanded.rows]),
        np.concatenate([rest.parts, expanded.parts]),
        np.concatenate([rest.ranks, expanded.ranks]),
        np.concatenate([rest.ids, expanded.ids]),
    )
