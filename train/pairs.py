"""Pairs: which background goes with which overlay, of pictures that nobody has packed."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.packing.layouts import PICTURE, Template
from pipeline.packing.sources import walk_files

LISTED = 5  # names in a message
KINDS = "expected a picture, a folder of pictures (JPEG or PNG), or a template as streets/bg_{bg}.jpg"


class Pair(NamedTuple):
    """A background and an overlay on it."""

    name: str
    """The overlay's path below its folder, without extension."""
    background: Path
    overlay: Path


@dataclass(frozen=True)
class Pictures:
    """What a person gave: a picture, a folder of them, or a folder with a template below it."""

    given: Path
    folder: Path
    template: Template | None
    paths: tuple[str, ...]
    """Of the pictures, below the folder; sorted, at least one."""

    @property
    def single(self) -> bool:
        """Whether it is one picture, by its name."""
        return self.template is None and self.given != self.folder


def find_pictures(given: Path) -> Pictures:
    """Look for pictures; raises `InputError` where there are none, and for a wrong template."""
    if given.is_dir():
        return _found(given, given, None, lambda path: bool(re.fullmatch(f".+(?i:{PICTURE})", path)))
    if given.is_file():
        return Pictures(given, given.parent, None, (given.name,))
    braces = [place for place, part in enumerate(given.parts) if "{" in part or "}" in part]
    if not braces:
        raise InputError(f"{given}: no such file or folder: {KINDS}")
    folder, template = Path(*given.parts[: braces[0]]), Template.parse("/".join(given.parts[braces[0] :]))
    if not folder.is_dir():
        raise InputError(f"{given}: no such folder: {folder}: {KINDS}")
    return _found(given, folder, template, lambda path: _numbers(template, path) is not None)


def _found(given: Path, folder: Path, template: Template | None, fits: Callable[[str], bool]) -> Pictures:
    paths = tuple(sorted(filter(fits, walk_files(folder))))
    if not paths:
        raise InputError(f"{given}: no pictures there: {KINDS}")
    return Pictures(given, folder, template, paths)


def _numbers(template: Template, path: str) -> dict[str, int] | None:
    """The fields in a path; None where it does not fit, or a field that stands twice contradicts itself."""
    if (match := re.fullmatch(template.pattern, path)) is None:
        return None
    found = list(zip(template.fields, map(int, match.groups()), strict=True))
    numbers = dict(found)
    return numbers if all(numbers[name] == number for name, number in found) else None


def find_pairs(background: Path, overlay: Path) -> list[Pair]:
    """Join backgrounds and overlays; pairs by name, at least one.

    Each is a picture, a folder, or a folder with a template below it (`layouts.Template`). One background goes with all
    overlays. Folders are joined by the paths of their files, whatever the extensions; templates by the numbers in the
    background's fields. Backgrounds without an overlay are passed over. Raises `InputError` where one is missing, wrong
    or empty, an overlay has no background, or two files claim one place.
    """
    backgrounds, overlays = find_pictures(background), find_pictures(overlay)
    named = _unique(overlays, ((_stem(path), path) for path in overlays.paths))
    if backgrounds.single:
        return [Pair(str(name), background, overlays.folder / path) for name, path in sorted(named.items())]
    key = _joined_by(backgrounds, overlays)
    places = _unique(backgrounds, ((key(backgrounds, path), path) for path in backgrounds.paths))
    if alone := [path for path in overlays.paths if key(overlays, path) not in places]:
        names = ", ".join(alone[:LISTED]) + (", ..." if len(alone) > LISTED else "")
        raise InputError(
            f"{len(alone):,} of {len(overlays.paths):,} overlays in {overlays.folder} have no background in "
            f"{background}: {names}: name them alike, give templates with a common field, or take these away"
        )
    return [
        Pair(name, backgrounds.folder / places[key(overlays, path)], overlays.folder / path)
        for name, path in sorted(named.items())
    ]


def _joined_by(backgrounds: Pictures, overlays: Pictures) -> Callable[[Pictures, str], str]:
    """What makes of a path the key that pairs have in common."""
    if overlays.single:
        raise InputError(f"{overlays.given} is one overlay, but {backgrounds.given} are many: give its background")
    if (backgrounds.template is None) != (overlays.template is None):
        raise InputError(f"{backgrounds.given} and {overlays.given}: give both as templates, or both as folders")
    fields = dict.fromkeys(backgrounds.template.fields if backgrounds.template else ())
    common = set(overlays.template.fields if overlays.template else ())
    if missing := [name for name in fields if name not in common]:
        raise InputError(
            f"{overlays.given}: no field {{{missing[0]}}}, by which the background is found: {backgrounds.given} has it"
        )

    def key(pictures: Pictures, path: str) -> str:
        numbers = _numbers(pictures.template, path) if pictures.template else None
        return _stem(path) if numbers is None else " ".join(str(numbers[name]) for name in fields)

    return key


def _unique(pictures: Pictures, keyed: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Paths by key; raises `InputError` where two have the same."""
    paths = dict[str, str]()
    for key, path in keyed:
        if key in paths:
            raise InputError(
                f"{pictures.folder}: {paths[key]} and {path} claim one place: keep one, or give a template that tells "
                "them apart"
            )
        paths[key] = path
    return paths


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))
