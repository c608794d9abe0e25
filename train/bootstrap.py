"""Bootstrap: how far a mean over sets would move with other backgrounds.

Sets on one background resemble each other, so that backgrounds are drawn, not sets (the cluster bootstrap, Davison and
Hinkley 1997, section 3.8), with percentile intervals.
"""

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LOW, HIGH = 2.5, 97.5  # percent
AT_ONCE = 1 << 22  # counts in memory


def intervals(values: NDArray[np.float64], backgrounds: NDArray[np.int32], seed: int = 0) -> NDArray[np.float64]:
    """95 % intervals of the means of `values` [sets, scores], on the background ids [sets]: float64 [2, scores].

    NaN among the values is left out. NaN is returned where fewer than two backgrounds have a value.
    """
    distinct, inverse = np.unique(backgrounds, return_inverse=True)
    there = ~np.isnan(values)
    sums, counts = np.zeros((2, len(distinct), values.shape[1]))
    np.add.at(sums, inverse, np.where(there, values, 0))
    np.add.at(counts, inverse, there)
    rng = np.random.default_rng(seed)
    size = max(1, AT_ONCE // max(1, len(distinct)))
    means = list[NDArray[np.float64]]()
    for first in range(0, RESAMPLES, size):
        drawn = rng.multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), min(size, RESAMPLES - first))
        total, weight = drawn @ sums, drawn @ counts
        means.append(np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0))
    found = np.full((2, values.shape[1]), np.nan)
    enough = (counts > 0).sum(0) > 1
    if enough.any():
        found[:, enough] = np.nanpercentile(np.concatenate(means)[:, enough], [LOW, HIGH], axis=0)
    return found
