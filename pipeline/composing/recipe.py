"""Recipe: which image sets there are to compose, as pure arithmetic of their numbers."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.sample import set_key
from pipeline.words import plural


class Ingredients(NamedTuple):
    """What a set is made of: ids, and which of its pair's placements. A mirrored set has a twin that is not."""

    bg: int
    fg: int
    placement: int
    mirrored: bool


@dataclass(frozen=True)
class Recipe:
    """Every foreground on every background, a number of times, each plain and mirrored: or an even sample of that.

    A set's number is ((bg * foregrounds + fg) * placements + placement) * 2 + mirrored; without mirroring the last
    factor is missing. Raises `InputError` if there are fewer sets than asked for.
    """

    backgrounds: int
    foregrounds: int
    placements: int
    mirror: bool
    sets: int
    """How many of the `total` sets are made."""

    def __post_init__(self) -> None:
        if self.sets > self.total:
            counts = {"background": self.backgrounds, "foreground": self.foregrounds, "placement": self.placements}
            parts = " x ".join(plural(count, what) for what, count in counts.items())
            twins = " x 2 (mirrored)" if self.mirror else ""
            raise InputError(f"{plural(self.sets, 'set')}: {parts}{twins} make only {self.total:,}: raise --placements")

    @property
    def variants(self) -> int:
        """Sets of each pair of background and foreground."""
        return self.placements * (2 if self.mirror else 1)

    @property
    def total(self) -> int:
        """Sets that could be made."""
        return self.backgrounds * self.foregrounds * self.variants

    @property
    def key_length(self) -> int:
        """Length of the longest key, bytes."""
        return len(set_key(self.foregrounds - 1, self.backgrounds - 1, self.total - 1))

    def ingredients(self, number: int) -> Ingredients:
        """What set `number` is made of."""
        pair, variant = divmod(number, self.variants)
        bg, fg = divmod(pair, self.foregrounds)
        placement, mirrored = divmod(variant, 2) if self.mirror else (variant, 0)
        return Ingredients(bg, fg, placement, bool(mirrored))

    def numbers(self) -> NDArray[np.int64]:
        """The numbers of the sets to make, ascending, int64 [sets]."""
        turns = np.arange(self.sets)
        return turns if self.sets == self.total else np.sort(self.number_at(turns))

    def number_at(self, turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the sets in an order whose every beginning is an even sample, int64 [N].

        Backgrounds take turns, and so do foregrounds: any beginning holds each as often as any other, give or take one,
        and every pair once before any pair twice.
        """
        b, f = self.backgrounds, self.foregrounds
        slot, pair = np.divmod(turns, b * f)
        # After lcm(b, f) turns the same pairs would come again, so one side then steps aside.
        bg, fg = pair % b, (pair + pair // math.lcm(b, f)) % f
        variant = slot
        if self.mirror:  # alternately plain and mirrored, for each background
            variant = slot // 2 * 2 + (slot + pair // b) % 2
        numbers: NDArray[np.int64] = (bg * f + fg) * self.variants + variant
        return numbers
