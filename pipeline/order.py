"""Order: which sets come next, as pure arithmetic of (data, seed, epoch, position); no state, no I/O.

A Feistel network over the smallest power of two that holds the split, walked until it lands inside (cycle walking:
J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), permutes any number of sets exactly and gives
the set at any position without computing the others. Unlike `numpy.random`, it will not change under a user's feet.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6


class Permutation:
    """A pseudo-random bijection of 0 .. count - 1, told apart by `key` (any text)."""

    def __init__(self, count: int, key: str) -> None:
        self.count = count
        bits = max(2, (count - 1).bit_length())
        self._right_bits = np.uint64(bits // 2)
        self._masks = (np.uint64((1 << (bits - bits // 2)) - 1), np.uint64((1 << (bits // 2)) - 1))
        digest = hashlib.sha256(key.encode()).digest() + hashlib.sha256(key.encode() + b"+").digest()
        self._round_keys = np.frombuffer(digest, dtype="<u8")[:ROUNDS]

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map int64 [N] in 0 .. count - 1 to int64 [N] in the same range."""
        values = self._encrypt(positions.astype(np.uint64))
        while (outside := values >= self.count).any():
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._right_bits, values & self._masks[1]
        for number, round_key in enumerate(self._round_keys):
            # Odd rounds change the right half, even ones the left: halves of unequal width stay what they are.
            if number % 2:
                right = right ^ (_mix(left ^ round_key) & self._masks[1])
            else:
                left = left ^ (_mix(right ^ round_key) & self._masks[0])
        return (left << self._right_bits) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Order:
    """The order of `count` sets in global batches of `batch_size`; the last batch of an epoch may be smaller.

    Global batches are laid down before ranks: every rank takes its share of the same batch, so the number of ranks
    changes who loads a set and never when it is seen.
    """

    count: int
    batch_size: int
    key: str
    shuffle: bool = True

    @property
    def batches(self) -> int:
        """Global batches in an epoch."""
        return -(-self.count // self.batch_size)

    def batch(self, epoch: int, number: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """Positions in the split, int64 [about batch_size / world], of one rank's share of a global batch."""
        start = number * self.batch_size
        length = min(self.batch_size, self.count - start)
        first, last = start + length * rank // world, start + length * (rank + 1) // world
        positions = np.arange(first, last)
        return Permutation(self.count, f"{self.key}/{epoch}")(positions) if self.shuffle else positions
