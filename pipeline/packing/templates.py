"""Templates: paths with named fields, as `fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}`, matched in linear time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Optional
from unicodedata import normalize

from pipeline.errors import InputError
from pipeline.format.images import EXTENSIONS

PICTURE = rf"\.(?:{'|'.join(extension[1:] for extension in EXTENSIONS)})"
MOST_DIGITS = 9  # of a field
MOST_OPEN = 2  # pieces whose end is not clear, so many as a regular expression tries in all combinations


@dataclass(frozen=True)
class Template:
    """One part's path below the source, without its extension, e.g. `fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}`."""

    text: str
    extension: str = PICTURE

    @classmethod
    def parse(cls, text: str) -> "Template":
        """A template as people write it: with an extension or without; raise `InputError` for a wrong one.

        An extension of a picture stands for them all.
        """
        if not text or text.startswith("/") or re.search(r"[{}]", re.sub(r"\{[a-z]\w*\}", "", text)):
            raise InputError(
                f"template {text!r}: expected a path below the source with fields, as fg_bg/{{bg}}_{{id}}.jpg"
            )
        stem, dot, extension = text.rpartition(".")
        if not dot or not extension.isalnum():
            return cls(text)
        return cls(stem) if re.fullmatch(PICTURE, f".{extension}", re.IGNORECASE) else cls(stem, rf"\.{extension}")

    @property
    def fields(self) -> list[str]:
        """The names of the fields, in the order in which they stand."""
        return re.findall(r"\{(\w+)\}", self.text)

    @cached_property
    def pieces(self) -> list[str]:
        """What it is made of, in Unicode's composed form (NFC): fixed text, fields and `*`."""
        return [piece for piece in re.split(r"(\{\w+\}|\*)\**", normalize("NFC", self.text)) if piece]

    @property
    def pattern(self) -> str:
        """A regular expression with one group a field, for paths in NFC."""
        wild = {"*": r"[^/]*?"}
        groups = (
            rf"(\d{{1,{MOST_DIGITS}}})" if piece[0] == "{" else wild.get(piece, re.escape(piece))
            for piece in self.pieces
        )
        return f"{''.join(groups)}(?i:{self.extension})"

    @cached_property
    def is_simple(self) -> bool:
        """Whether the regular expression takes few steps for any name: `MOST_OPEN` pieces may end at several places."""
        after = [*self.pieces[1:], "."]
        unclear = [
            piece == "*" or (piece[0] == "{" and (following[0] in "*{" or following[0].isdecimal()))
            for piece, following in zip(self.pieces, after, strict=True)
        ]
        return sum(unclear) <= MOST_OPEN

    def match(self, path: str) -> tuple[str, ...] | None:
        """The text of each field in a path, None if it does not fit: what `pattern` finds, in linear time."""
        path = normalize("NFC", path)
        if self.is_simple:
            found = re.fullmatch(self.pattern, path)
            return found.groups() if found else None
        *_, last = search(self.pieces, self.extension, path)
        return last.taken() if last.piece > len(self.pieces) else None

    def matches(self, path: str) -> bool:
        """Whether a path fits."""
        return self.match(path) is not None


class State(NamedTuple):
    """A step of a search: the pieces before `piece` fit what is before `place`."""

    piece: int
    place: int
    before: Optional["State"] = None
    text: str = ""
    """Of the field before `piece`, if that is one."""

    def taken(self) -> tuple[str, ...]:
        """The text of each field so far."""
        texts, state = list[str](), self
        while state.before:
            texts += [state.text] if state.text else []
            state = state.before
        return tuple(reversed(texts))


def search(pieces: list[str], extension: str, path: str) -> Iterator[State]:
    """Try a path step by step in the order of a regular expression, but never twice the same rest from one place.

    So there are at most as many steps as pieces times places, and `MOST_DIGITS` for each field. The last step is
    beyond the pieces if the path fits.
    """
    tried, pending = set[tuple[int, int]](), [State(0, 0)]
    while pending:
        state = pending.pop()
        if state[:2] in tried:
            continue
        tried.add(state[:2])
        yield state
        piece, place, *_ = state
        if piece == len(pieces):
            if re.compile(f"(?i:{extension})").fullmatch(path, place):
                yield State(piece + 1, len(path), state)
                return
        elif pieces[piece] == "*":
            if place < len(path) and path[place] != "/":
                pending.append(state._replace(place=place + 1))
            pending.append(State(piece + 1, place, state))
        elif pieces[piece][0] == "{":
            end = place
            while end < min(len(path), place + MOST_DIGITS) and path[end].isdecimal():
                end += 1
                pending.append(State(piece + 1, end, state, path[place:end]))
        elif path.startswith(pieces[piece], place):
            pending.append(State(piece + 1, place + len(pieces[piece]), state))
