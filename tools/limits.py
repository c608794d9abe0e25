"""What no option of any command may be, whatever it means: checked where all of them are read."""

import math
import os
from collections.abc import Iterator
from typing import Any

import click

from pipeline.limits import MOST_BATCH, MOST_COUNT, MOST_EDGE, MOST_PREFETCH, MOST_SEED, MOST_WORKERS

LARGEST = {
    "seed": MOST_SEED,
    "workers": MOST_WORKERS,
    "prefetch": MOST_PREFETCH,
    "batch_size": MOST_BATCH,
    "size": MOST_EDGE,
    "rounds": 10_000,
    "order_rows": 10**9,
    "placements": 10**6,
    "streets": 10**5,
    "cars": 10**5,
}
"""The largest value of whole numbers, by the option's name; of others it is MOST_COUNT."""
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, of any file system; of a path in any call


def require_usable(ctx: click.Context) -> None:
    """Raise `click.BadParameter` for a number that is none or overflows, and for a path that is too long."""
    for option in ctx.command.params:
        for value in _values(ctx.params.get(option.name or "")):
            if problem := _problem(option, value):
                raise click.BadParameter(problem, ctx, option)


def _values(given: Any) -> Iterator[Any]:
    if isinstance(given, tuple):
        yield from given
    elif given is not None:
        yield given


def _problem(option: click.Parameter, value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no number: give one that is finite"
    if isinstance(value, int) and abs(value) > (most := LARGEST.get(option.name or "", MOST_COUNT)):
        return f"{str(value)[:40]} is too large: expected at most {most:,}"
    if isinstance(value, str | os.PathLike) and isinstance(option.type, click.Path):
        return _problem_of_path(os.fsencode(value))
    return ""


def _problem_of_path(path: bytes) -> str:
    if len(path) > LONGEST_PATH or max(map(len, path.split(b"/"))) > LONGEST_NAME:
        return f"the name of {len(path):,} bytes is too long: give a shorter path"
    return ""
