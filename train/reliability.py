"""How far a mean score can be trusted, by the number of backgrounds and foregrounds that its sets were made of.

Sets that share a background, or a foreground, resemble each other: what varies is that, and the fewer of both decide.
"""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.format.sample import UNKNOWN
from pipeline.words import plural

Z = 1.959964
"""The 97.5 % quantile of the normal distribution."""
LEAST = 6
"""Clusters of which the range covers a mean in at least 95 % of cases, see `coverage_of_range`."""
ENOUGH = 30
"""Clusters from which on an interval is narrow by less than 6 %, which is not told."""


def reliability(sets: int, backgrounds: int, foregrounds: int) -> str:
    """A line on scores of so many sets: what they stand on, and what is wrong with a 95 % interval over so few.

    `foregrounds` is 0 where they are not known.
    """
    counts = {"background": backgrounds, "foreground": foregrounds}
    known = {what: count for what, count in counts.items() if count}
    line = f"{plural(sets, 'set')} on {' and '.join(plural(count, what) for what, count in known.items())}"
    what = min(known, key=lambda name: known[name])
    clusters = known[what]
    if clusters == 1:
        return f"{line}: scores hold for this {what} alone"
    if clusters < LEAST:
        return f"{line}: over {clusters} {what}s a 95 % interval covers {coverage_of_range(clusters):.0f} % at most"
    if clusters < ENOUGH:
        return f"{line}: over {clusters} {what}s a 95 % interval is {narrowness(clusters):.0f} % too narrow"
    return line


def count_known(ids: NDArray[np.int32]) -> int:
    """How many different backgrounds or foregrounds are among the ids [N] of sets."""
    return len(np.unique(ids[ids != UNKNOWN]))


def coverage_of_range(clusters: int) -> float:
    """With how many percent of probability the range of so many independent values covers their mean, at most.

    It does not where all lie on one side of the mean: with probability p^k + (1-p)^k, p the share below it, which is
    least at p = 1/2. A percentile interval of a bootstrap over clusters is never wider than the range of their means.
    """
    return 100 * (1 - 2.0 ** (1 - clusters))


def narrowness(clusters: int) -> float:
    """By how many percent the percentile bootstrap over so many clusters is narrower than Student's t interval.

    z sqrt((k-1)/k) against t with k-1 degrees of freedom: Hesterberg, What Teachers Should Know About the Bootstrap,
    The American Statistician 69 (2015), section 3.
    """
    return 100 * (1 - Z * math.sqrt((clusters - 1) / clusters) / student_t(clusters - 1))


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, within 0.2 % from 5 degrees of freedom on.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z, v = Z, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
