"""A setting of a run as a field of a dataclass: its help, its limits and choices, and its flag."""

import math
import operator
from collections.abc import Collection
from dataclasses import Field, field
from typing import Any, NamedTuple, get_args, get_origin

from pipeline.errors import InputError
from pipeline.words import printable

KINDS = {bool: "yes or no", int: "a whole number", float: "a number", str: "a text"}
SHOWN = 60  # characters of a value in a message


class Option(NamedTuple):
    """What the command line says of a setting and accepts for it: the entry "option" of its field's metadata."""

    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    expected: str = ""
    """What a message asks for where a value is outside of the limits; empty: `minimum` or more."""
    shown_default: str = ""
    """What the help shows for the default None."""

    def check(self, name: str, value: Any, kinds: Collection[type]) -> None:
        """Raise `InputError` unless `value` is of one of `kinds`, one of the choices, and finite within the limits."""
        if not _is_of(value, kinds):
            expected = next(KINDS[kind] for kind in kinds if kind in KINDS)
            raise InputError(f"{flag(name, value)}: expected {expected}")
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise InputError(f"{flag(name, value)}: expected one of {', '.join(self.choices)}")
        limits = (
            (self.minimum, operator.ge),
            (self.maximum, operator.le),
            (self.above, operator.gt),
            (self.below, operator.lt),
        )
        held = [compare(value, limit) for limit, compare in limits if limit is not None]
        if not all(held) or (isinstance(value, float) and not math.isfinite(value)):
            too_large = self.maximum is not None and value > self.maximum
            expected = f"at most {self.maximum:,}" if too_large else f"{self.minimum} or more"
            raise InputError(f"{flag(name, value)}: expected {self.expected or expected}")


def kinds_of(entry: "Field[Any]") -> tuple[type, ...]:
    """The types that a setting's values may have."""
    return tuple(get_origin(kind) or kind for kind in get_args(entry.type) or (entry.type,))


def _is_of(value: Any, kinds: Collection[type]) -> bool:
    """Whether a value is of one of these types; a whole number is a number, but neither yes nor no."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds)) or (isinstance(value, int) and float in kinds)


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field with a default and an `Option` of this help and these choices and limits."""
    return field(default=default, metadata={"option": Option(help, **limits)})


def flag(name: str, value: object) -> str:
    """The command-line option that sets a field to a value."""
    words = name.replace("_", "-")
    if value is None:
        return f"no --{words}"
    if isinstance(value, bool):
        return f"--{words}" if value else f"--no-{words}"
    return f"--{words} {shortened(value)}"


def shortened(value: object) -> str:
    """A value as a message shows it: its beginning, without control characters."""
    text = printable(str(value))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
