"""What goes wrong: bad input, which ends a command, and problems, which are listed and left out."""

from typing import NamedTuple


class InputError(Exception):
    """Bad input: data, a folder or a setting that cannot be used.

    The message is one line: what was found, what was expected, what to do. Commands print it and exit with 1.
    """


class Problem(NamedTuple):
    """A file or set that was left out of the data: a row of problems.csv."""

    path: str
    """Below the source."""
    kind: str
    """One word, such as "undecodable"."""
    why: str
    """One line."""
