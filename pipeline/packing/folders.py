"""Folders: which files below one may be somebody's data, by one rule for every command.

Passed over without a word: hidden files and folders, what systems leave behind, and what this project writes (shards,
runs, whatever is unfinished). Refused, and told with the reason: what is neither a file nor a folder, and links that
lead out of the folder or to another one, unless links are to be followed.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST
from pipeline.resume import UNFINISHED, require_finished

# What macOS, Windows, Synology and Python leave in folders and archives, beside what they hide by a dot.
_SYSTEM = (
    "__MACOSX", r"@eaDir", r"#recycle", r"#snapshot", r"\$RECYCLE\.BIN", "System Volume Information", r"lost\+found",
    "__pycache__", r"(?:eh)?thumbs\.db", r"desktop\.ini", "Icon\r",
)  # fmt: skip
_NO_DATA = re.compile(rf"(?:^|/)(?:\.(?!\.?(?:[/\\]|$))|(?:{'|'.join(_SYSTEM)})(?:/|$))", re.IGNORECASE)
_README = re.compile(
    r"(?:^|/)(?:readme|licen[cs]e|copying|citation|changelog|authors|notice)(?:\.[^/.]*)?$", re.IGNORECASE
)
_TEXT = re.compile(
    r"\.(?:md|rst|txt|pdf|html?|ya?ml|toml|ini|cfg|log|bib|cff|py|ipynb|sh|md5|sha\d+|json|jsonl|csv|tsv|xml)$",
    re.IGNORECASE,
)
LISTED = 3  # reasons in a message
NOT_FOLLOWED = "not followed without --follow-links"


def is_no_data(path: str) -> bool:
    """Whether a file or folder is none of the user's own: hidden, or some system's, or in a folder that is."""
    return _NO_DATA.search(path) is not None


def is_readme(path: str) -> bool:
    """Whether a file tells of the data beside it, as README and LICENSE do."""
    return _README.search(path) is not None


def is_text(path: str) -> bool:
    """Whether a file holds no picture by its name, but text: README, notes, tables, scripts."""
    return is_readme(path) or _TEXT.search(path) is not None


class FolderFiles(NamedTuple):
    """The files that lie directly in a folder of a source."""

    paths: list[str]
    """Below the source."""
    stamps: list[int]
    """A number for each file that changes with its size and its modification time."""
    refused: list[tuple[str, str]]
    """(path, why) of those that must not be read."""
    sizes: list[int]
    """Bytes of each file."""
    changed_ns: list[int]
    """When content or place of each file was changed last, in nanoseconds since the epoch."""


def folder_files(folder: str, *, follow_links: bool = False, output: Path | None = None) -> Iterator[FolderFiles]:
    """All files below a folder that may be data, in a fixed order.

    Links are followed within the folder, and with `follow_links` everywhere, but no link to a folder that holds it, nor
    a second one to the same folder. `output`: a folder that is being written, and not read. Raises `InputError` for
    image sets below it that a stopped command has left unfinished.
    """
    links = _Links(folder, follow_links)
    avoided = os.path.realpath(output) if output else ""
    pending = [""]
    while pending:
        parent = pending.pop()
        files, folders = FolderFiles([], [], [], [], []), list[str]()
        try:
            with os.scandir(f"{folder}/{parent}") as entries:
                entries_in_order = sorted(entries, key=attrgetter("name"))
        except PermissionError as error:
            if not parent:
                raise
            files.refused.append((parent, f"a folder that cannot be read ({error.strerror})"))
            yield files
            continue
        names = {entry.name for entry in entries_in_order}
        if parent and UNFINISHED in names and "fg_bg" in names:  # of fgbg-compose or fgbg-depth
            require_finished(Path(folder, parent).resolve())
        if parent and is_output(names):
            continue
        for entry in entries_in_order:
            if is_no_data(entry.name):
                continue
            path, about = parent + entry.name, entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(about.st_mode):
                if why := links.refusal(entry):
                    files.refused.append((path, why))
                    continue
                about = entry.stat()
            kind = stat.S_IFMT(about.st_mode)
            if kind == stat.S_IFDIR:
                if not avoided or os.path.realpath(entry.path) != avoided:
                    folders.append(f"{path}/")
            elif kind != stat.S_IFREG:  # reading a pipe would wait for ever
                files.refused.append((path, "neither a plain file nor a folder"))
            else:
                files.paths.append(path)
                files.stamps.append((about.st_mtime_ns * 1000003 + about.st_size) & 0x7FFFFFFFFFFFFFFF)
                files.sizes.append(about.st_size)
                files.changed_ns.append(max(about.st_mtime_ns, about.st_ctime_ns))
        pending += reversed(folders)
        yield files


class _Links:
    """Which links below a folder may be followed; it remembers the folders that they led to."""

    def __init__(self, folder: str, follow: bool) -> None:
        self._root, self._follow, self._folders = f"{os.path.realpath(folder)}{os.sep}", follow, set[str]()

    def refusal(self, entry: os.DirEntry[str]) -> str:
        """Why a link must not be followed, "" if it may be."""
        if not Path(entry.path).exists():
            return "a link to nothing"
        target = os.path.realpath(entry.path)
        if not entry.is_dir():
            inside = target.startswith(self._root)
            return "" if inside or self._follow else f"a link out of the source, {NOT_FOLLOWED}"
        if not self._follow:
            return f"a link to a folder, {NOT_FOLLOWED}"
        if f"{os.path.realpath(Path(entry.path).parent)}{os.sep}".startswith(f"{target}{os.sep}"):
            return "a link to a folder that it lies in"
        if target in self._folders:
            return "a second link to the same folder"
        self._folders.add(target)
        return ""


def is_output(names: set[str]) -> bool:
    """Whether a command of this project has filled a folder: with shards, with a run, or with something unfinished."""
    is_run = "metrics.jsonl" in names and any(name.endswith(".pt") for name in names)
    return UNFINISHED in names or (MANIFEST in names and bool({INDEX, BACKGROUNDS} & names)) or is_run


def describe_refused(refused: Iterable[tuple[str, str]]) -> str:
    """One phrase on files that were refused: how many, why, and one of each kind; "" for none."""
    examples = dict[str, str]()
    counts = Counter[str]()
    for path, why in refused:
        examples.setdefault(why, path)
        counts[why] += 1
    kinds = [f"{why} ({count:,}, as {examples[why]})" for why, count in counts.most_common(LISTED)]
    more = ["..."] if len(counts) > LISTED else []
    return f"{counts.total():,} not read: {'; '.join(kinds + more)}" if counts else ""


def no_one(line: str) -> None:
    """Tell a line to no one."""


def find_files(
    folder: Path,
    fits: Callable[[str], bool],
    expected: str,
    *,
    follow_links: bool = False,
    output: Path | None = None,
    tell: Callable[[str], None] = no_one,
) -> list[str]:
    """The paths below `folder`, sorted, of the pictures in it, which are the files that fit.

    `follow_links` and `output` as for `folder_files`; `tell` is told in a line what was refused. Raises `InputError`,
    with all that is known of why, if there is none.
    """
    paths, refused = list[str](), list[tuple[str, str]]()
    for files in folder_files(str(folder), follow_links=follow_links, output=output):
        paths += files.paths
        refused += files.refused
    found = sorted(filter(fits, paths))
    if not found:
        raise InputError(f"no picture in {folder}: {describe_files(paths, refused)}: {expected}")
    if refused:
        tell(f"{folder}: {describe_refused(refused)}")
    return found


def describe_files(paths: Iterable[str], refused: Iterable[tuple[str, str]], empty: str = "the folder is empty") -> str:
    """One phrase on files none of which is of use: how many of which extension, and what was refused."""
    endings = Counter(Path(path).suffix.lower() or "without extension" for path in paths)
    kinds = [f"{count:,} {ending}" for ending, count in endings.most_common(LISTED)]
    more = ["..."] if len(endings) > LISTED else []
    found = f"{endings.total():,} file{'s' * (endings.total() != 1)} ({', '.join(kinds + more)})" if endings else ""
    return "; ".join(filter(None, [found, describe_refused(refused)])) or empty
