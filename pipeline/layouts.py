"""Layouts: which file is which part of which set, told by templates with named fields.

In a template `{name}` is a run of digits, compared as a number (`7` is `007`); a field that stands twice must agree
with itself. `*` is any run of characters within one path component. The extension is free among picture formats.
"""

import re
from dataclasses import dataclass
from functools import cached_property

PICTURE = r"\.(?:jpe?g|png)"
PARTS = ("fg_bg", "mask", "depth")  # what a shard stores for each set, in this order; `bg` is stored once


@dataclass(frozen=True)
class Template:
    """One part's path below the source, without its extension, e.g. `fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}`."""

    text: str
    extension: str = PICTURE

    @cached_property
    def _pattern(self) -> tuple[re.Pattern[str], list[str]]:
        fields: list[str] = []
        pattern = ""
        for piece in re.split(r"(\{\w+\}|\*)", self.text):
            if piece == "*":
                pattern += r"[^/]*?"
            elif piece.startswith("{"):
                fields.append(piece[1:-1])
                pattern += r"(\d{1,9})"
            else:
                pattern += re.escape(piece)
        return re.compile(pattern + self.extension, re.IGNORECASE), fields

    def match(self, path: str) -> dict[str, int] | None:
        """The fields of a matching path, None for another path; raise ValueError if a field contradicts itself."""
        pattern, names = self._pattern
        found = pattern.fullmatch(path)
        if found is None:
            return None
        fields: dict[str, int] = {}
        for name, digits in zip(names, found.groups(), strict=True):
            if fields.setdefault(name, int(digits)) != int(digits):
                raise ValueError(f"{name} is both {fields[name]} and {int(digits)}")
        return fields


@dataclass(frozen=True)
class Layout:
    """A naming scheme: a template for each part, and files that belong to the scheme but are not packed."""

    name: str
    parts: dict[str, Template]
    not_packed: tuple[Template, ...] = ()

    def match(self, path: str) -> tuple[str, dict[str, int]] | None:
        """Return (part, fields) for a path below the source; the part is "" for a known file that is not packed.

        None: not in this layout. Raises ValueError if the path contradicts itself.
        """
        for part, template in self.parts.items():
            if (fields := template.match(path)) is not None:
                return part, fields
        if any(template.match(path) is not None for template in self.not_packed):
            return "", {}
        return None


# The original S15 work, as its depth run left it on disk. Longest names first: `fg_bg` would match `_disp` otherwise.
SEED_DEPTH_RUN = Layout(
    name="seed-depth-run",
    parts={
        "depth": Template("fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}_disp"),
        "fg_bg": Template("fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}"),
        "mask": Template("fg_bg_mask/bg_{bg}/fg_{fg}_bg_{bg}_mask_{id}"),
        "bg": Template("bg/*{bg}"),
    },
    not_packed=(
        Template("fg/*"),
        Template("fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}_disp", extension=r"\.npy"),
    ),
)


def set_key(fg: int, bg: int, number: int) -> str:
    """The name of a set in shards and logs."""
    return f"fg_{fg:03}_bg_{bg:03}_{number:06}"
