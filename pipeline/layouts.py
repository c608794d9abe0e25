"""Layouts: which file is which part of which set, told by templates with named fields.

In a template `{name}` is a run of digits, compared as a number (`7` is `007`); a field that stands twice must agree
with itself. `*` is any run of characters within one path component. The extension is free among picture formats.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

PICTURE = r"\.(?:jpe?g|png)"
PARTS = ("fg_bg", "mask", "depth")  # what a shard stores for each set, in this order; `bg` is stored once


@dataclass(frozen=True)
class Template:
    """One part's path below the source, without its extension, e.g. `fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}`."""

    text: str
    extension: str = PICTURE

    @property
    def fields(self) -> list[str]:
        """The names of the fields, in the order in which they stand."""
        return re.findall(r"\{(\w+)\}", self.text)

    @property
    def pattern(self) -> str:
        """A regular expression with one group a field."""
        literal = re.split(r"(\{\w+\}|\*)", self.text)
        wild = {"*": r"[^/]*?"}
        pieces = (r"(\d{1,9})" if piece[:1] == "{" else wild.get(piece, re.escape(piece)) for piece in literal)
        return f"{''.join(pieces)}(?i:{self.extension})"


@dataclass(frozen=True)
class Layout:
    """A naming scheme: a template for each part, and files that belong to the scheme but are not packed."""

    name: str
    parts: dict[str, Template]
    not_packed: tuple[Template, ...] = ()

    @cached_property
    def _matcher(self) -> tuple[Callable[[str], re.Match[str] | None], dict[int | None, tuple[str, list[str], slice]]]:
        """One expression for all templates, and which of them it was by the number of its last group."""
        groups, templates = 0, dict[int | None, tuple[str, list[str], slice]]()
        for part, template in (*self.parts.items(), *(("", template) for template in self.not_packed)):
            first, groups = groups, groups + len(template.fields)
            templates[groups if template.fields else None] = part, template.fields, slice(first, groups)
        everything = (*self.parts.values(), *self.not_packed)
        return re.compile("|".join(template.pattern for template in everything)).fullmatch, templates

    def match(self, path: str) -> tuple[str, dict[str, int]] | None:
        """Return (part, fields) for a path below the source; the part is "" for a known file that is not packed.

        None: not in this layout. Raises ValueError if a field that stands twice contradicts itself.
        """
        fullmatch, templates = self._matcher
        found = fullmatch(path)
        if found is None:
            return None
        part, names, groups = templates[found.lastindex]
        numbers = list(map(int, found.groups()[groups]))
        fields = dict(zip(names, numbers, strict=True))
        if len(fields) < len(names):
            for name, number in zip(names, numbers, strict=True):
                if fields[name] != number:
                    raise ValueError(f"{name} is both {number} and {fields[name]}")
        return part, fields


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
        Template("*", extension=r"\.(?:csv|json)"),  # beside the sets: labels, sources, how depth was made
        Template("fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}_disp", extension=r"\.npy"),
    ),
)


def set_key(fg: int, bg: int, number: int) -> str:
    """The name of a set in shards and logs."""
    return f"fg_{fg:03}_bg_{bg:03}_{number:06}"
