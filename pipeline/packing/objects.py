"""Sources behind URLs: archives that are read in place, and prefixes, whose objects are what a folder's files are."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import InputError
from pipeline.files import ReadFile, open_file
from pipeline.packing.folders import FolderFiles, is_no_data, is_output
from pipeline.storage import Location, Stat, Storage, Url, open_location, storage_of


class ReadObject:
    """An object of a storage, for reading at any place, by any number of threads, as `files.ReadFile` is."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        self.path = str(storage / name)
        self.size, self.etag = storage.stat(name)

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes, or those up to the object's end."""
        return bytes(self._storage.read(self._name, offset, size))


Archive = ReadFile | ReadObject


def open_archive(location: Location) -> Archive:
    """Open a file, or an object, for reading at any place."""
    if isinstance(location, Path):
        return ReadFile(location)
    return ReadObject(storage_of(location.parent), location.name)


def open_stream(location: Location) -> io.BufferedReader:
    """Open a file, or an object, for reading from its beginning; skipping less than a buffer asks for nothing."""
    return open_file(location) if isinstance(location, Path) else open_location(location)


def object_at(url: Url) -> Stat | None:
    """Size and etag of the object at a URL; None if there is none, or only the mark of a folder."""
    parts = urlsplit(url.text)
    if parts.path.count("/") < (2 if parts.scheme == "az" else 1):  # a bucket
        return None
    try:
        about = storage_of(url.parent).stat(url.name)
    except FileNotFoundError:
        return None
    return about if about.size else None


def prefix_files(storage: Storage, output: Location | None = None) -> Iterator[FolderFiles]:
    """The objects of a storage that may be data, in the order, and by the rule, of `folders.folder_files`.

    They are listed once; sizes and times are not told, for the stamps, of sizes and etags, tell of every change. Raises
    `InputError` if there are none at all, and `OSError` of a web server, which lists nothing.
    """
    found = {name: about for name, about in storage.stats().items() if name}
    if not found:
        raise InputError(f"there is nothing at {storage.location}: check the URL")
    children = defaultdict[str, set[str]](set)
    for name in found:
        while (parent := name.rpartition("/")[0]) and (child := name[len(parent) + 1 :]) not in children[parent]:
            children[parent].add(child)
            name = parent
    # Consoles mark folders by empty objects, which are told without the slash that their names end in.
    found = {name: about for name, about in found.items() if about.size or name not in children}
    passed_over = {folder for folder, names in children.items() if is_output(names)}
    if output and str(output).startswith(f"{storage.location}/"):
        passed_over.add(str(output)[len(str(storage.location)) + 1 :])
    names = (name for name in found if not is_no_data(name) and not _is_below(name, passed_over))
    in_order = sorted((name.split("/")[:-1], name) for name in names)
    for _, files in groupby(in_order, key=lambda pair: pair[0]):
        paths = [name for _, name in files]
        stamps = [_stamp(found[name]) for name in paths]
        yield FolderFiles(paths, stamps, [], [], [])


def _is_below(name: str, folders: set[str]) -> bool:
    return bool(folders) and any(name.startswith(f"{folder}/") for folder in folders)


def _stamp(about: Stat) -> int:
    """63 bits of an object's size and etag."""
    digest = hashlib.sha256(f"{about.size} {about.etag}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
