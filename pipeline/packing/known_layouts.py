"""Known layouts: the naming schemes that come with this package, and those that a user states; all are TOML files.

overlay = "pictures/{bg}/{id}.jpg"       # paths below the source; {name} is a number, * anything but a slash
mask = "masks/{bg}/{id}.png"
depth = ["depth/{bg}/{id}.npy", "depth/{bg}/{id}.png"]      # the first that is there; leave out what there is not
background = "streets/{bg}.jpg"          # unless given: bg/*{bg}
ignore = ["thumbnails/*"]                # files that belong to it but are not packed

[fields]                                 # what names do not tell but numbers in them imply
bg = "ceil(n / per_background)"

[constants]
per_background = 4000

Where sets are numbered through, `counts = "100x100x20x2"` says of how many backgrounds, foregrounds, placements and
mirrorings; formulas may use these four words. --counts replaces it, and without --counts the files must bear it out.
"""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import InputError
from pipeline.packing.csv_layout import CsvLayout
from pipeline.packing.layouts import DEFAULT_BACKGROUND, DEFAULT_IGNORED, Formula, Layout
from pipeline.packing.tables import read_text_file
from pipeline.packing.templates import Template

SCHEMES = resources.files("pipeline.packing") / "schemes"
OWN = "fg-bg-id"  # the layout that this project writes
FORMER_NAMES = {  # which --layout still takes
    "seed-depth-run": OWN,
    "seed-overlays": "numbered-bgfg",
    "modest": "bg-fg-id-flat",
    "uday96": "bg-fg-id",
    "akshat": "bg-folders",
    "rohitrnath": "bg-fg-folders",
    "deepjyoti": "numbered-image",
}
PART_OF = {"overlay": "fg_bg", "mask": "mask", "depth": "depth", "background": "bg"}
KEYS = ("name", *PART_OF, "ignore", "counts", "fields", "constants")


class SetCounts(NamedTuple):
    """How many of each went into sets that are numbered through from 1 in this order, the last fastest."""

    backgrounds: int
    foregrounds: int
    placements: int
    mirrored: int

    @property
    def sets(self) -> int:
        """All of them."""
        return self.backgrounds * self.foregrounds * self.placements * self.mirrored

    @classmethod
    def parse(cls, text: str) -> "SetCounts":
        """From `100x100x20x2`; raise `InputError` for anything else."""
        counts = [int(count) if count.isdecimal() else 0 for count in text.split("x")]
        if len(counts) != 4 or 0 in counts:
            raise InputError(
                f"counts {text!r}: expected BACKGROUNDSxFOREGROUNDSxPLACEMENTSxMIRRORED, for instance 100x100x20x2"
            )
        return cls(*counts)


@functools.cache
def layout_names() -> tuple[str, ...]:
    """The names of the layouts that come with this package, that of this project first."""
    names = {file.name.removesuffix(".toml") for file in SCHEMES.iterdir() if file.name.endswith(".toml")}
    return (OWN, *sorted(names - {OWN}))


def known_layouts(counts: SetCounts | None = None) -> list[Layout]:
    """All layouts that come with this package; `counts` say what went into those that only number their sets."""
    return [known_layout(name, counts) for name in layout_names()]


def known_layout(name: str = OWN, counts: SetCounts | None = None) -> Layout:
    """The layout of that name; raise `InputError` if there is none."""
    name = FORMER_NAMES.get(name, name)
    if name not in layout_names():
        raise InputError(
            f"no layout called {name!r}: expected one of {', '.join(layout_names())}, or a .toml or .csv file"
        )
    return _layout(tomllib.loads((SCHEMES / f"{name}.toml").read_text()), name, counts)


def load_layout(path: Path, counts: SetCounts | None = None) -> Layout:
    """The layout of a TOML file; raise `InputError` if it cannot be read, or says what is not understood."""
    try:
        content = tomllib.loads(read_text_file(path).decode())
    except (ValueError, RecursionError) as error:  # huge integers and deep nesting, too
        raise InputError(f"{path} is no TOML ({error})") from error
    if unknown := sorted(set(content) - set(KEYS)):
        raise InputError(f"{path} has {', '.join(unknown)}: expected {', '.join(KEYS)}")
    try:
        return _layout(content, path.stem, counts)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def choose_layout(
    name: str, templates: Mapping[str, str], formulas: Mapping[str, str], counts: SetCounts | None
) -> Layout | CsvLayout | list[Layout] | None:
    """The layout, or the candidates, that the flags of a command choose, as `find_sets` takes them.

    `name`: "auto", a known layout, or a .toml or .csv file. `templates` are by `PART_OF`, `formulas` by field; they add
    to the layout of that name, or replace parts of it. Raises `InputError` for what is wrong with them.
    """
    if name == "auto":
        if templates or formulas:
            return _layout({**templates, "fields": dict(formulas)}, "custom", None)
        return known_layouts(counts) if counts else None
    if name.lower().endswith((".csv", ".tsv")):
        if templates or formulas or counts:
            raise InputError(f"{name} lists the files of each set: it goes with no template, formula or counts")
        return CsvLayout.load(Path(name))
    layout = load_layout(Path(name), counts) if name.endswith(".toml") else known_layout(name, counts)
    parts = {PART_OF[key]: Template.parse(text) for key, text in templates.items()}
    more = {field: Formula(text) for field, text in formulas.items()}
    return replace(layout, parts={**layout.parts, **parts}, formulas={**layout.formulas, **more})


def _layout(content: Mapping[str, Any], name: str, counts: SetCounts | None) -> Layout:
    """The layout that a TOML file's `content` describes; `counts` replace its own."""
    constants, formulas = (_table(content, key, kind) for key, kind in (("constants", int), ("fields", str)))
    assumed_sets = 0
    if "counts" in content:
        its_counts = SetCounts.parse(str(content["counts"]))
        assumed_sets = 0 if counts else its_counts.sets
        constants = {**(counts or its_counts)._asdict(), **constants}
    parts: dict[str, Template | tuple[Template, ...]] = {"bg": DEFAULT_BACKGROUND}
    for key, part in PART_OF.items():
        if key in content:
            templates = tuple(map(Template.parse, _texts(content, key)))
            parts[part] = templates[0] if len(templates) == 1 else templates
    ignored = map(Template.parse, _texts(content, "ignore") if "ignore" in content else [])
    parsed = {field: Formula(text, constants) for field, text in formulas.items()}
    return Layout(str(content.get("name", name)), parts, (*DEFAULT_IGNORED, *ignored), parsed, assumed_sets)


def _texts(content: Mapping[str, Any], key: str) -> list[str]:
    value = content[key]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{key} is {value!r}: expected a template, or several in a list")
    return texts


def _table(content: Mapping[str, Any], key: str, kind: type) -> dict[str, Any]:
    table = content.get(key, {})
    if not isinstance(table, dict) or not all(type(value) is kind for value in table.values()):
        raise InputError(
            f"{key} is {table!r}: expected a table of {'numbers' if kind is int else 'formulas in quotes'}"
        )
    return table
