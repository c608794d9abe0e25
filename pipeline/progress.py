"""Progress: whom a long work on a source tells how far it is."""

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """Three functions that are called now and then."""

    files_found: Callable[[int], None] = lambda total: None
    sets_found: Callable[[int], None] = lambda to_do: None
    sets_done: Callable[[int], None] = lambda more: None
