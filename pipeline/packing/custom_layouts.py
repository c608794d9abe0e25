"""Stated layouts: a layout of one's own, by templates or as a TOML file.

overlay = "pictures/{bg}/{id}.jpg"       # paths below the source; {name} is a number, * anything but a slash
mask = "masks/{bg}/{id}.png"
depth = ["depth/{bg}/{id}.npy", "depth/{bg}/{id}.png"]      # the first that is there; leave out what there is not
background = "streets/{bg}.jpg"          # unless given: bg/*{bg}
ignore = ["thumbnails/*"]                # files that belong to it but are not packed

[fields]                                 # what names do not tell but numbers in them imply
bg = "ceil(n / per_background)"

[constants]
per_background = 4000
"""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.packing.csv_layout import SetList
from pipeline.packing.formulas import Formula
from pipeline.packing.known_layouts import BACKGROUND, NOT_PACKED, Counts, scheme, schemes
from pipeline.packing.layouts import Layout, Template

PART_OF = {"overlay": "fg_bg", "mask": "mask", "depth": "depth", "background": "bg"}
KEYS = ("name", *PART_OF, "ignore", "fields", "constants")


def stated_layout(
    name: str, templates: Mapping[str, str], fields: Mapping[str, str], counts: Counts | None
) -> Layout | SetList | list[Layout] | None:
    """The layout, or the candidates, that a user states, as `find_sets` takes them.

    `name`: "auto", a scheme, or a .toml or .csv file. `templates` are by `PART_OF`, `fields` formulas; they add to the
    layout of that name, or replace parts of it. Raises `InputError` for what is wrong with them.
    """
    if name == "auto":
        if templates or fields:
            return _layout({**templates, "fields": dict(fields)}, "stated")
        return schemes(counts) if counts else None
    if name.endswith(".csv"):
        if templates or fields or counts:
            raise InputError(f"{name} lists the files of each set: it goes with no template, formula or counts")
        return SetList.load(Path(name))
    layout = load_layout(Path(name)) if name.endswith(".toml") else scheme(name, counts)
    parts = {PART_OF[key]: Template.parse(text) for key, text in templates.items()}
    computed = {field: Formula(text) for field, text in fields.items()}
    return replace(layout, parts={**layout.parts, **parts}, computed={**layout.computed, **computed})


def load_layout(path: Path) -> Layout:
    """The layout of a file; raise `InputError` if it cannot be read, or says what is not understood."""
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML ({error})") from error
    if unknown := sorted(set(content) - set(KEYS)):
        raise InputError(f"{path} has {', '.join(unknown)}: expected {', '.join(KEYS)}")
    try:
        return _layout(content, path.stem)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _layout(content: Mapping[str, Any], name: str) -> Layout:
    constants, fields = (_table(content, key, kind) for key, kind in (("constants", int), ("fields", str)))
    parts: dict[str, Template | tuple[Template, ...]] = {"bg": BACKGROUND}
    for key, part in PART_OF.items():
        if key in content:
            templates = tuple(map(Template.parse, _texts(content, key)))
            parts[part] = templates[0] if len(templates) == 1 else templates
    ignored = map(Template.parse, _texts(content, "ignore") if "ignore" in content else [])
    computed = {field: Formula(text, constants) for field, text in fields.items()}
    return Layout(str(content.get("name", name)), parts, (*NOT_PACKED, *ignored), computed)


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
