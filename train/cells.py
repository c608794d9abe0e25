"""Cells: sets by whether the network could have seen their background and their foreground in training."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.format.sample import UNKNOWN
from pipeline.loading.split import BACKGROUND_SALT, FOREGROUND_SALT, group

CELLS = {  # the headline first
    "new_new": "new background, new foreground",
    "new_seen": "new background, seen foreground",
    "seen_new": "seen background, new foreground",
    "seen_seen": "seen background, seen foreground",
}
HEADLINE = "new_new"
LEAKING = "leaking"
LEAKING_TITLE = "LEAKING: random split by set"


class Protocol(NamedTuple):
    """Which sets are scored, and into which cells they go."""

    scored: str
    """The split that the loader yields."""
    training: str
    """The split that baselines may learn from."""
    cells: dict[str, str]
    """Titles of the cells, the headline first, by their names in JSON."""

    def cell_of(self, backgrounds: NDArray[np.int32], foregrounds: NDArray[np.int32]) -> NDArray[np.str_]:
        """The name of the cell that each set is in, by its ids [N]."""
        return np.full(len(backgrounds), LEAKING) if LEAKING in self.cells else cells_of(backgrounds, foregrounds)


def protocol(split: str, *, peer: bool) -> Protocol:
    """Which sets "train", "val", "test" or "all" means: with `peer`, those of a random split by set.

    val and test bring the training sets along, and those of which one id is of train, for the other three cells.
    """
    if peer:
        scored = split if split == "all" else f"peer-{split}"
        return Protocol(scored, "peer-train", {LEAKING: LEAKING_TITLE})
    return Protocol(f"{split}-cells" if split in ("val", "test") else split, "train", CELLS)


def cells_of(backgrounds: NDArray[np.int32], foregrounds: NDArray[np.int32]) -> NDArray[np.str_]:
    """The name in CELLS of each set, by its ids [N]: an id is seen if it is of the group train, and else new.

    A foreground that is not known counts as seen: it may be in training sets as well.
    """
    names: NDArray[np.str_] = np.array(["seen_seen", "seen_new", "new_seen", "new_new"])
    found: NDArray[np.str_] = names[2 * _new(backgrounds, BACKGROUND_SALT) + _new(foregrounds, FOREGROUND_SALT)]
    return found


def _new(ids: NDArray[np.int32], salt: str) -> NDArray[np.bool_]:
    distinct, inverse = np.unique(ids, return_inverse=True)
    new = [number != UNKNOWN and group(salt, number) != "train" for number in distinct.tolist()]
    return np.array(new, np.bool_)[inverse]
