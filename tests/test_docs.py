"""What README.md and docs/ say of commands, files and messages is so."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from tests.commands import ROOT, command, console_scripts

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").glob("*.md")])
FLAG = r"--[a-z][a-z0-9-]*"
ERRORS = {"InputError", "MachineError", "UsageError", "BadParameter"}
WORDLESS = {  # messages without fixed text of their own: what they pass on has its line, or is another's
    "'%s: %s'",
    "'; '.join((f'loader {name}: {missing[name]}' for name in unable))",
    "f'{error} (flags, and {path})' if content else str(error)",
    "f'{damage}: {damage.remedy}'",
    "f'{found}: {found.remedy}'",
    "f'{path}: {error}'",
    "f'{storage / MANIFEST} {problem}: {REBUILD}'",
    "f'{count}{first.path}: {first.why} ({first.kind}); {remedy}'",
    "missing_peer(name) or f'{error}: {INSTALL}'",
    "self._too_large(before + 1, error)",
    "problem",
    "self.remote.named(str(error))",
    "str(error)",
}
CHECKED_BEFORE = {  # what no user meets, since `LoaderConfig` refuses it first
    "hw_decoder_load {self.hw_decoder_load}: expected 0 to 1, or None for the device's default",
    "{share} of the free memory cannot be taken: expected a share above 0, at most 1",
}
OF_OTHERS = {  # flags of ray, torchrun, docker, tensorboard, mypy, pip and sbatch
    "--standalone", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--rdzv-conf",
    "--no-python", "--max-restarts", "--signals-to-handle", "--shutdown-timeout", "--gpus", "--logdir", "--strict",
    "--index-url", "--signal", "--time", "--array", "--address", "--nodes", "--gpus-per-node", "--ntasks-per-node",
    "--head",
}  # fmt: skip


def messages() -> Iterator[tuple[str, str, list[str]]]:
    """Where each message is, its source, and the fixed pieces of its text."""
    for file in sorted(path for package in ("pipeline", "train", "tools") for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ERRORS or ast.unparse(node.func) == "log.warning":
                place = f"{file.relative_to(ROOT)}:{node.lineno}"
                yield place, ast.unparse(node.args[0]), fixed_pieces(node.args[0])


def fixed_pieces(message: ast.expr) -> list[str]:
    """The text of a message that is the same whatever fills its fields."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return [piece.strip(" :;,().") for text in texts for piece in text.split("%s")]


def test_every_error_message_has_its_line_in_troubleshooting() -> None:
    spans = re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "troubleshooting.md").read_text())
    found = list(messages())
    assert len(found) > 150
    for place, source, pieces in found:
        longest = max(pieces, key=len, default="")
        if any(text in source for text in CHECKED_BEFORE):
            continue
        known = source in WORDLESS if not longest else any(longest in span for span in spans)
        assert known, f"{place}: docs/troubleshooting.md has no line for {longest or source!r}"


def test_the_walk_sees_the_fixed_words_of_a_message() -> None:
    [statement] = ast.parse("raise InputError(f'{path} is {kind}: give ' f'a {{n}} folder')").body
    assert isinstance(statement, ast.Raise)
    assert isinstance(statement.exc, ast.Call)
    assert fixed_pieces(statement.exc.args[0]) == ["is", "give a {n} folder"]


def flags_of(source: click.Command) -> set[str]:
    return {flag for option in source.params for flag in (*option.opts, *option.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_flags_that_commands_have(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    known = {name: flags_of(command(name)) | OF_OTHERS for name in console_scripts()}
    modules = (
        "baselines",
        "capacity",
        "engines",
        "gpu",
        "opening",
        "remote",
        "simulate_order",
        "speedrun",
    )  # python -m; one is a package
    for name in (f"benchmarks.{module}" for module in modules):
        found = find_spec(name)
        is_package = found is not None and found.submodule_search_locations
        known[name] = flags_of(import_module(f"{name}.__main__" if is_package else name).main)
    mentioned = set(re.findall(rf"(?<![\w/`-]){FLAG}", text)) | set(re.findall(rf"`({FLAG})", text))
    wrong = mentioned.difference(*known.values())
    assert not wrong, f"{page.name} mentions {wrong}, which no command has"
    for name, arguments in re.findall(r"(fgbg-[a-z]+)([^`#|\n]*)", text):
        assert name in known, f"{page.name} mentions {name}"
        wrong = set(re.findall(rf"(?<!\S){FLAG}", arguments.partition(" fgbg-")[0])) - known[name]
        assert not wrong, f"{page.name}: {name} has no {wrong}"


def test_python_of_pages_imports_what_is_there() -> None:
    """Of the public names; what a page imports of others may not be installed."""
    texts = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)]
    imports = [node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if node.module and node.module.split(".")[0] == "pipeline"]
    assert ours
    for node in ours:
        for alias in node.names:
            assert hasattr(import_module(str(node.module)), alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_are_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in re.findall(r"`((?:pipeline|train|tools|benchmarks|tests|examples|docs|deploy)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_tree_of_the_architecture_names_files_that_are_there() -> None:
    [tree] = re.findall(r"```\n(pipeline/\n.*?)```", (ROOT / "docs" / "architecture.md").read_text(), flags=re.DOTALL)
    folders: list[tuple[int, str]] = []
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = [(depth, name) for depth, name in folders if depth < indent]
        first, *_ = line.split()
        if first.endswith("/"):
            folders.append((indent, first))
            assert (ROOT / "".join(name for _, name in folders)).is_dir(), line
        for file in re.findall(r"\b\w+\.py\b", line.partition(": ")[0]):
            folder = ROOT / "".join(name for _, name in folders)
            assert (folder / file).is_file(), f"{file} is not in {folder.relative_to(ROOT)}"
