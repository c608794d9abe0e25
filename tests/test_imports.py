"""Imports go down the floors of the house only, and in no circle."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("pipeline",),  # what all use: errors, devices, files that appear whole, workers
    ("pipeline.format",),
    ("pipeline.loading",),
    ("pipeline.packing",),
    ("pipeline.verify", "pipeline.composing", "pipeline.depth_estimation"),
    ("train",),
    ("tools",),
    ("benchmarks",),
)
"""From the ground up: each may import what is on a lower floor, and modules of its own room."""
PACKAGES = ("pipeline", "train", "tools", "benchmarks")
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PUBLIC_NAMES = ("pipeline", "train")
"""Packages that hand on public names from upper floors when these are first asked for."""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(source: str) -> set[str]:
    """Names of all modules that a source imports, anywhere in it; of `from a import b` both a and a.b."""
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: import from the defining module by its full name"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(module: str) -> str:
    """The room of a module: the longest of ROOMS that it is in."""
    return max((name for name in ROOMS if f"{module}.".startswith(f"{name}.")), key=len)


def imports() -> Iterator[tuple[str, str]]:
    """All pairs of modules of ours of which the first imports the second."""
    modules = {module_name(file): file for file in source_files()}
    for name, file in modules.items():
        if name not in PUBLIC_NAMES:
            yield from ((name, other) for other in imported(file.read_text()) & modules.keys() - {name})


def test_imports_go_down() -> None:
    pairs = list(imports())
    assert len(pairs) > 300
    for name, other in pairs:
        ours, theirs = room(name), room(other)
        assert ours == theirs or ROOMS[ours] > ROOMS[theirs], f"{name} imports {other}, which is no lower floor"


def test_imports_run_in_no_circle() -> None:
    graph = TopologicalSorter[str]()
    for name, other in imports():
        graph.add(name, other)
    assert len(list(graph.static_order())) > 100  # raises CycleError


def test_nothing_imports_the_tests() -> None:
    for file in source_files():
        assert not any(name.split(".")[0] == "tests" for name in imported(file.read_text())), file


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import train.trainer as t", {"train.trainer"}),
        ("def f():\n    from tools.cli import Command", {"tools.cli", "tools.cli.Command"}),
        ("from pipeline.loading import loader", {"pipeline.loading", "pipeline.loading.loader"}),
    ],
)
def test_the_walk_sees_every_form_of_import(source: str, expected: set[str]) -> None:
    assert imported(source) == expected


def test_rooms_are_told_by_their_longest_name() -> None:
    assert [room(name) for name in ("pipeline.errors", "pipeline.loading.loader", "train.config", "pipeline")] == [
        "pipeline", "pipeline.loading", "train", "pipeline",
    ]  # fmt: skip


def test_no_variable_hides_a_package() -> None:
    for file in source_files():
        for node in ast.walk(ast.parse(file.read_text())):
            name = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
            name = node.arg if isinstance(node, ast.arg) else name
            assert name not in PACKAGES, f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} hides {name}"
