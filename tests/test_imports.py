"""Imports run one way: benchmarks -> tools -> train -> pipeline."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "train": {"train", "pipeline"},
    "tools": {"tools", "train", "pipeline"},
    "benchmarks": {"benchmarks", "tools", "train", "pipeline"},
}


def imported_packages(source: str) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: import from the defining module by its full name"
            packages.add((node.module or "").split(".")[0])
    return packages


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 1
    for file in files:
        ours = imported_packages(file.read_text()) & (set(MAY_IMPORT) | {"tests"})
        assert ours <= MAY_IMPORT[package], f"{file.relative_to(ROOT)} imports {ours - MAY_IMPORT[package]}"


def test_the_walk_sees_every_form_of_import() -> None:
    source = "import train.loop as t\ndef f():\n    from tools.cli import Command\n"
    assert imported_packages(source) == {"train", "tools"}


def test_no_variable_hides_a_package() -> None:
    for file in sorted([*ROOT.glob("[pt]*/*.py"), *ROOT.glob("benchmarks/*/*.py")]):
        for node in ast.walk(ast.parse(file.read_text())):
            name = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
            name = node.arg if isinstance(node, ast.arg) else name
            assert name not in MAY_IMPORT, f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} hides {name}"
