"""Layouts: naming schemes, which tell of which set a file is which part: templates with named fields, and formulas.

In a template `{name}` is a run of digits, compared as a number (`7` is `007`); a field that stands twice must agree
with itself. `*` is any run of characters within one path component. The extension is free among picture formats.

The fields `bg`, `fg` and `id` name a set; others only serve to compute these by formulas, in schemes that number their
files. Where a scheme does not tell the foreground it is unknown, and sets without a number have number 0.

Layouts are written as TOML files: see `known_layouts`.
"""

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple
from unicodedata import normalize

from pipeline.errors import InputError
from pipeline.format.sample import PARTS
from pipeline.packing.folders import is_text
from pipeline.packing.templates import Template

IDS = ("bg", "fg", "id")
FUNCTIONS: dict[str, Callable[..., float]] = {"ceil": math.ceil, "floor": math.floor, "min": min, "max": max}
LARGEST = 10**9 - 1  # of a number in a file name, and so of a field
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.UAdd)  # no powers: they explode


class Formula:
    """Arithmetic on named fields, such as `ceil(n / 4000)`: + - * / // % and `FUNCTIONS`, nothing else."""

    def __init__(self, text: str, constants: Mapping[str, int] | None = None) -> None:
        """`constants` are names with a fixed value. Raises `InputError` for anything that is not such arithmetic."""
        self.text = text
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise InputError(
                f"formula {text!r} cannot be read: write arithmetic on fields, as ceil(n / 4000)"
            ) from error
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not _allowed(node):
                what = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
                functions = ", ".join(FUNCTIONS)
                raise InputError(f"formula {text!r}: {what} is not allowed; expected + - * / // % and {functions}")
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}
        self.fields = frozenset(names - set(constants or ()))
        """The names that a file name has to give."""
        self._constants = {**FUNCTIONS, **(constants or {}), "__builtins__": {}}
        self._code = compile(tree, "<formula>", "eval")  # safe to run: every node of it was allowed above

    def __call__(self, fields: Mapping[str, int]) -> int:
        """The value for some fields; raise `ValueError` unless it is a whole number from 0 to `LARGEST`."""
        try:
            value = eval(self._code, self._constants, fields)
        except (ArithmeticError, TypeError) as error:
            raise ValueError(f"{self.text} has no value ({error})") from error
        if value != value // 1 or not 0 <= value <= LARGEST:
            raise ValueError(f"{self.text} is {value}")
        return int(value)

    def __repr__(self) -> str:
        return f"Formula({self.text!r}, { ({name: v for name, v in self._constants.items() if isinstance(v, int)}) })"


def _allowed(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int | float) and abs(value) <= LARGEST
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            return name in FUNCTIONS
        case ast.BinOp() | ast.UnaryOp() | ast.Name() | ast.Expression() | ast.expr_context():
            return True
        case _:
            return isinstance(node, _OPERATORS)


DEFAULT_BACKGROUND = Template("bg/*{bg}")
DEFAULT_IGNORED = (
    Template("fg/*"),
    Template("*", extension=r"\.(?:csv|json)"),  # beside the sets: labels, sources, how depth was made
)


class _Groups(NamedTuple):
    """The groups of one template within the regular expression of all."""

    template: int  # its place in `Layout.templates`, or -1
    fields: dict[str, int]  # the group of each field
    repeats: list[tuple[str, int]]  # field and group where a field stands once more


class _TemplateMatch(NamedTuple):
    """What stands for `re.Match` where templates are not matched by one expression."""

    lastindex: int
    texts: tuple[str, ...]

    def groups(self) -> tuple[str, ...]:
        return self.texts


@dataclass(frozen=True)
class Layout:
    """A naming scheme. Raises `InputError` unless overlays tell their background, and other parts their overlay."""

    name: str
    parts: Mapping[str, Template | tuple[Template, ...]]
    """Of each part its template, or several in order of preference: the first that a set has a file for is taken."""
    ignored: tuple[Template, ...] = ()
    """Files that belong to the scheme but are not packed."""
    formulas: Mapping[str, Formula] = field(default_factory=dict)
    """Of fields that are computed."""
    assumed_sets: int = 0
    """The number of sets that `formulas` take for granted, 0 for none (see `discovery.candidates_by_name`)."""

    def __post_init__(self) -> None:
        if missing := [part for part in ("bg", *PARTS[:2]) if part not in self.parts]:
            raise InputError(f"layout {self.name} has no template for {', '.join(missing)}")
        for name in self.formulas:
            if name not in IDS:
                raise InputError(f"layout {self.name} computes {name}: expected one of {', '.join(IDS)}")
        overlay = self.ids("fg_bg")
        if "bg" not in overlay:
            raise InputError(
                f"layout {self.name}: nothing in the overlay's name tells its background: add {{bg}}, or compute it"
            )
        for part in self.parts:
            known = self.ids(part)
            if part == "bg" and known != ("bg",):
                raise InputError(
                    f"layout {self.name}: the background's template has the ids {known}: expected {{bg}} alone"
                )
            if not known or not set(known) <= set(overlay):
                raise InputError(
                    f"layout {self.name}: the name of {part} tells {', '.join(known) or 'no id'}, the overlay's "
                    f"{', '.join(overlay)}: they are joined on what they share, so {part} may name nothing else"
                )

    @cached_property
    def templates(self) -> list[tuple[str, int, Template]]:
        """(part, place in its order of preference, template) of every template but those of `ignored`."""
        several = ((part, (one,) if isinstance(one, Template) else one) for part, one in self.parts.items())
        return [(part, rank, template) for part, options in several for rank, template in enumerate(options)]

    def ids(self, part: str) -> tuple[str, ...]:
        """Which of `IDS` the name of a part's file tells; raise `InputError` if its templates differ in that."""
        told = {self._ids(template) for name, _, template in self.templates if name == part}
        if len(told) != 1:
            raise InputError(f"layout {self.name}: the templates of {part} name different fields")
        return told.pop()

    def _ids(self, template: Template) -> tuple[str, ...]:
        computed = {name for name, formula in self.formulas.items() if formula.fields <= set(template.fields)}
        return tuple(name for name in IDS if name in computed or name in template.fields)

    @cached_property
    def _matcher(self) -> tuple[Callable[[str], "re.Match[str] | _TemplateMatch | None"], dict[int, _Groups]]:
        """One expression for all templates, and which of them it was by the number of its last group."""
        groups, templates, patterns = 0, dict[int, _Groups](), list[str]()
        packed = [template for _, _, template in self.templates]
        for number, template in enumerate((*packed, *self.ignored)):
            # An empty last group marks the template, since one without fields would have none to be known by.
            fields = [(name, place) for place, name in enumerate(template.fields, groups)]
            groups += len(fields) + 1
            first = dict(reversed(fields))
            repeats = [(name, place) for name, place in fields if first[name] != place]
            templates[groups] = _Groups(number if number < len(packed) else -1, first, repeats)
            patterns.append(f"{template.pattern}()")
        if all(template.is_simple for template in (*packed, *self.ignored)):
            return re.compile("|".join(patterns)).fullmatch, templates
        return self._match_each, templates

    def _match_each(self, path: str) -> "_TemplateMatch | None":
        """As one expression for all templates would match, but in linear time."""
        groups = 0
        for template in (*(template for _, _, template in self.templates), *self.ignored):
            found = template.match(path)
            if found is not None:
                return _TemplateMatch(groups + len(found) + 1, (*("",) * groups, *found, ""))
            groups += len(template.fields) + 1
        return None

    def find(self, path: str) -> tuple[int, dict[str, int]] | None:
        """Return (place in `templates`, fields) for a path below the source; -1: a known file that is not packed.

        None: not in this layout. Raises `ValueError` if a field contradicts itself, or a computed one has no value.
        """
        fullmatch, templates = self._matcher
        match = fullmatch(path if path.isascii() else normalize("NFC", path))
        if match is None:
            return None
        number, places, repeats = templates[match.lastindex or 0]
        groups = match.groups()
        fields = {name: int(groups[place]) for name, place in places.items()}
        for name, place in repeats:
            _require_equal(name, fields[name], int(groups[place]))
        for name, formula in self.formulas.items() if self.formulas else ():
            if formula.fields <= fields.keys():
                value = formula(fields)
                _require_equal(name, value, fields.setdefault(name, value))
        return number, fields

    def match(self, path: str) -> tuple[str, dict[str, int]] | None:
        """As `find`, with the part's name, which is "" for a known file that is not packed."""
        match = self.find(path)
        return match and (self.templates[match[0]][0] if match[0] >= 0 else "", match[1])

    def fits_but_for_format(self, path: str) -> bool:
        """Whether a file would be a part of a set if it were a JPEG: what it is, is not read."""
        if is_text(path):
            return False
        try:
            match = self.match(f"{path.rpartition('.')[0]}.jpg")
        except ValueError:
            return False
        return bool(match and match[0])


def _require_equal(name: str, one: int, other: int) -> None:
    if one != other:
        raise ValueError(f"{name} is both {one} and {other}")
