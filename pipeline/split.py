"""Split: train, val and test by background id and foreground id, so that nothing evaluated was ever trained on.

An id's group depends on the id alone: it never changes as a data set grows, and every version of it keeps the same
pictures held out. A set is in a split when *both* its ids are; sets of mixed groups are in none of the three. Where the
foreground is not known its background decides alone: the same foregrounds may then be in all three.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.parts import UNKNOWN

SPLITS = ("train", "val", "test")
TEST_SHARE, VAL_SHARE = 0.1, 0.1
# Chosen once so that ids 0..9 and 0..99 fall exactly 8:1:1, and every other count nearly so. Changing one would leak.
BACKGROUND_SALT, FOREGROUND_SALT = "background 5420", "foreground 57535"


def group(salt: str, number: int) -> str:
    """The split that a background or foreground id belongs to."""
    digest = hashlib.sha256(f"{salt} {number}".encode()).digest()
    share = int.from_bytes(digest[:8], "little") / 2**64
    return "test" if share < TEST_SHARE else "val" if share < TEST_SHARE + VAL_SHARE else "train"


def split_rows(backgrounds: NDArray[np.int32], foregrounds: NDArray[np.int32], split: str) -> NDArray[np.int64]:
    """Rows [N] of the index (whose columns these are, [sets]) that belong to a split: "train", "val", "test" or "all".

    A foreground that is `parts.UNKNOWN` keeps a set out of none. Raises `InputError` for another name.
    """
    if split == "all":
        return np.arange(len(backgrounds))
    if split not in SPLITS:
        raise InputError(f"no split called {split!r}: expected one of {', '.join(SPLITS)} or all")
    fits_foreground = (foregrounds == UNKNOWN) | _members(foregrounds, FOREGROUND_SALT, split)
    return np.flatnonzero(_members(backgrounds, BACKGROUND_SALT, split) & fits_foreground)


def _members(ids: NDArray[np.int32], salt: str, split: str) -> NDArray[np.bool_]:
    unique, inverse = np.unique(ids, return_inverse=True)
    return np.array([group(salt, int(number)) == split for number in unique])[inverse]
