"""Split: train, val and test by background id and foreground id, so that nothing evaluated was ever trained on.

An id's group depends on the id alone: it never changes as a data set grows, and every version of it keeps the same
pictures held out. A set is in a split when *both* its ids are; sets of mixed groups are in none of the three. Where the
foreground is not known its background decides alone: the same foregrounds may then be in all three.

For evaluation there are two more kinds. "val-cells" and "test-cells" hold every set whose ids are each of train or of
that split: seen and new backgrounds with seen and new foregrounds. "peer-train", "peer-val" and "peer-test" part the
sets at random, by a hash of the key: the same backgrounds and foregrounds are in all three, which LEAKS. They are there
to be compared with published numbers only.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.manifest import BLOCK, INDEX, shards_between
from pipeline.format.sample import UNKNOWN
from pipeline.loading.sampler import WindowSlice

SPLITS = ("train", "val", "test")
CELL_SPLITS = {"val-cells": ("train", "val"), "test-cells": ("train", "test")}
PEER_SPLITS = {f"peer-{split}": split for split in SPLITS}
PEER_SALT = "peer"
TEST_SHARE, VAL_SHARE = 0.1, 0.1
# Chosen once so that ids 0..9 and 0..99 fall exactly 8:1:1, and every other count nearly so. Changing one would leak.
BACKGROUND_SALT, FOREGROUND_SALT = "background 5420", "foreground 57535"
TABLE_IDS, NOT_YET = 1 << 20, 2  # ids below the first are looked up, in a table of 0 (no), 1 (yes) and this


_Windows = dict[int, tuple[NDArray[np.int64], NDArray[np.unsignedinteger]]]  # (shards, rows)


@lru_cache(1 << 16)
def group(salt: str, name: int | str) -> str:
    """The split that a background or foreground id, or a key, belongs to."""
    digest = hashlib.sha256(f"{salt} {name}".encode()).digest()
    share = int.from_bytes(digest[:8], "little") / 2**64
    return "test" if share < TEST_SHARE else "val" if share < TEST_SHARE + VAL_SHARE else "train"


class Split:
    """The rows of the index that a split holds, found shard by shard.

    None of them is kept but those of the windows of the last two batches, and those of PEER_SPLITS.
    """

    def __init__(
        self, index: NDArray[np.void], shard_sets: Sequence[int], split: str, picked: NDArray[np.int64] | None = None
    ) -> None:
        """Count the sets of a split, or of "all", in one pass over the index, [sets] with fields bg and fg.

        Those of PEER_SPLITS need the field key too. `shard_sets` are the manifest's counts: rows of one shard follow
        each other, shard after shard (`load_index` has compared them). With `picked`, rows of the split, ascending, it
        holds these alone. Raises `InputError` for another name.
        """
        self._picked = picked
        self._peer = PEER_SPLITS.get(split)
        self._belong = Membership("all" if self._peer else split)
        self._keys = index["key"] if self._peer else None
        self._bg, self._fg = np.asarray(index["bg"]), np.asarray(index["fg"])
        self._bounds = np.cumsum([0, *shard_sets])
        self.sizes = np.zeros(len(shard_sets), np.int64)
        """Sets of the split in each shard, int64 [shards]."""
        if self._peer and picked is None:
            self._picked = self.all_rows()  # keys are slow to hash: once is enough
        for first in range(0, len(index), BLOCK):
            shards = shards_between(self._bounds, first, first + BLOCK)
            rows = self._held(first, first + BLOCK)
            self.sizes[shards] += np.diff(np.searchsorted(rows, self._bounds[shards.start : shards.stop + 1]))
        self.count = int(self.sizes.sum())
        """Sets in the split."""
        # Of the batch before and of the last one, by the identity of the array of shards.
        self._earlier, self._latest = _Windows(), _Windows()

    def all_rows(self) -> NDArray[np.int64]:
        """Rows of the index of all its sets, ascending, int64 [count]."""
        blocks = range(0, int(self._bounds[-1]), BLOCK)
        return np.concatenate([np.empty(0, np.int64), *(self._held(first, first + BLOCK) for first in blocks)])

    def rows(self, slices: Iterable[WindowSlice]) -> NDArray[np.int64]:
        """Rows of the index, int64 [N], of a batch that a `Sampler` of these `sizes` has laid down.

        Raises `InputError` if the index was written over since it was mapped.
        """
        windows, found = _Windows(), []
        for shards, positions in slices:
            if (name := id(shards)) not in windows:
                known = self._latest.get(name) or self._earlier.get(name)
                windows[name] = known or (shards, self._window(shards))
            found.append(windows[name][1][positions])
        self._earlier, self._latest = self._latest, windows
        return np.concatenate(found, dtype=np.int64) if found else np.empty(0, np.int64)

    def _window(self, shards: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """The split's rows of some shards, [N], in as few bytes as hold them."""
        rows = np.empty(self.sizes[shards].sum(), np.min_scalar_type(self._bounds[-1]))
        filled = 0
        for held in self._blocks(shards):
            if (filled := filled + len(held)) > len(rows):
                break
            rows[filled - len(held) : filled] = held
        if filled != len(rows):
            raise InputError(f"{INDEX} was changed while it was in use: see what fgbg-check says, and start again")
        return rows

    def _blocks(self, shards: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """The split's rows of some shards, some at a time; shards that follow each other are one run of rows."""
        for run in np.split(shards, np.flatnonzero(np.diff(shards) > 1) + 1):
            end = int(self._bounds[run[-1] + 1])
            for first in range(int(self._bounds[run[0]]), end, BLOCK):
                yield self._held(first, min(first + BLOCK, end))

    def _held(self, first: int, last: int) -> NDArray[np.int64]:
        """The split's rows among [first, last) of the index."""
        if self._picked is not None:
            return self._picked[slice(*np.searchsorted(self._picked, [first, last]))]
        if self._keys is not None:
            drawn = [group(PEER_SALT, key.decode()) == self._peer for key in self._keys[first:last].tolist()]
            return first + np.flatnonzero(drawn)
        return first + np.flatnonzero(self._belong(self._bg[first:last], self._fg[first:last]))


class Membership:
    """Whether sets belong to a split."""

    def __init__(self, split: str) -> None:
        if split not in (*SPLITS, *CELL_SPLITS, "all"):
            raise InputError(f"no split called {split!r}: expected one of {', '.join(SPLITS)} or all")
        self._all = split == "all"
        groups = CELL_SPLITS.get(split, (split,))
        self._backgrounds, self._foregrounds = _Ids(BACKGROUND_SALT, groups), _Ids(FOREGROUND_SALT, groups)

    def __call__(self, backgrounds: NDArray[np.int32], foregrounds: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether sets with these ids, [N], belong to the split: bool [N]."""
        if self._all:
            return np.ones(len(backgrounds), np.bool_)
        fits_foreground: NDArray[np.bool_] = (foregrounds == UNKNOWN) | self._foregrounds(foregrounds)
        return fits_foreground & self._backgrounds(backgrounds)


class _Ids:
    """Which background ids, or foreground ids, are of some groups. Small ones are hashed once, and then looked up."""

    def __init__(self, salt: str, groups: tuple[str, ...]) -> None:
        self._salt, self._groups = salt, groups
        self._table = np.full(TABLE_IDS - UNKNOWN, NOT_YET, np.uint8)  # whether ids UNKNOWN .. TABLE_IDS - 1 are

    def __call__(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether these ids, [N], are of the groups: bool [N]."""
        if ids.min(initial=0) < UNKNOWN or ids.max(initial=0) >= TABLE_IDS:
            distinct, inverse = np.unique(ids, return_inverse=True)
            return self._hash(distinct)[inverse]
        places = ids - UNKNOWN
        fits = self._table[places]
        if (new := fits == NOT_YET).any():
            distinct = np.unique(ids[new])
            self._table[distinct - UNKNOWN] = self._hash(distinct)
            fits = self._table[places]
        return fits.view(np.bool_)

    def _hash(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        return np.array([group(self._salt, number) in self._groups for number in ids.tolist()], np.bool_)
