"""Sources: the folders, zips and tars that files are taken from, read in place, here or behind URLs.

A compressed tar cannot be read in any but its own order, so it is read through twice: once for its names, and once to
lie unpacked, as one plain tar, hidden beside the shards until these are finished.
"""

import os
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from pipeline.errors import InputError
from pipeline.files import ReadFile, read_file
from pipeline.format.images import BadImage, unreadable_as_bad_image
from pipeline.packing.archives import (
    ArchiveMember,
    MemberPlace,
    open_decompressed,
    read_member,
    starts_compressed,
    tar_members,
    zip_members,
)
from pipeline.packing.objects import Archive, ReadObject, object_at, open_archive, open_stream
from pipeline.resume import atomic_file
from pipeline.storage import Location, Storage, Url, storage_of

MAX_FILE_BYTES = 1 << 30  # of a picture or a table: more is a sparse file, or none
FOLDER, PREFIX, ZIP, TAR, COMPRESSED_TAR = "folder", "prefix", "zip", "tar", "compressed tar"


@dataclass(frozen=True)
class FileSource:
    """A folder or an archive of files."""

    path: Location
    kind: str
    """One of FOLDER, PREFIX, ZIP, TAR and COMPRESSED_TAR."""
    label: str = ""
    """Stands before the paths of its files where there are several sources, else ""."""
    size: int = 0
    """Bytes of an archive."""
    time_ns: int = 0
    """When an archive was last changed; 0 behind a URL."""
    etag: str = ""
    """Of an archive behind a URL: another one when it was replaced."""
    follow_links: bool = False
    """Whether links in a folder are followed out of it."""
    output: Location | None = None
    """A folder that is being written, and so not read, wherever it lies in a folder."""

    def stamp(self) -> list[object]:
        """What changes when the source does; for folders and zips, the stamps of their files tell of changes."""
        return [self.kind, self.label, *((self.size, self.etag or self.time_ns) if "tar" in self.kind else ())]

    def require_same(self, etag: str) -> None:
        """Raise `InputError` if an archive behind a URL has another etag now."""
        if etag != self.etag:
            raise InputError(f"{self.path} was replaced while it was read: give the same command again")


def open_sources(
    paths: Sequence[Location], *, follow_links: bool = False, output: Location | None = None
) -> tuple[FileSource, ...]:
    """Open what a user gave; raise `InputError` for what is no source, and for one that is given twice.

    `follow_links` and `output` as for `folders.folder_files`.
    """
    if not paths:
        raise InputError("no source: give a folder, a .zip or a .tar of image sets")
    if twice := [path for path, count in Counter(map(_full, paths)).items() if count > 1]:
        raise InputError(f"{twice[0]} is given twice: give each source once")
    labels = _labels(paths) if len(paths) > 1 else [""]
    return tuple(_open_source(path, label, follow_links, output) for path, label in zip(paths, labels, strict=True))


def _full(path: Location) -> Location:
    return path.resolve() if isinstance(path, Path) else path


def _labels(paths: Sequence[Location]) -> list[str]:
    """The shortest end of each path that tells it from the others."""
    full = [path.resolve().parts if isinstance(path, Path) else path.text.split("/") for path in paths]
    for length in range(1, max(map(len, full)) + 1):
        labels = ["/".join(parts[-length:]) for parts in full]
        if len(set(labels)) == len(labels):
            break
    return [f"{label}/" for label in labels]


def _open_source(path: Location, label: str, follow_links: bool, output: Location | None) -> FileSource:
    if isinstance(path, Url):
        return _open_remote(path, label, output)
    if path.is_dir():
        return FileSource(path, FOLDER, label, follow_links=follow_links, output=output)
    if not path.exists():
        raise InputError(
            f"no such folder: {path}: give the folder that holds bg/, fg_bg/ and fg_bg_mask/, or an archive"
        )
    if not path.is_file():  # opening a pipe would wait for ever
        raise InputError(f"{path} is a pipe or a device: save it as a file")
    file = ReadFile(path)
    about, start = os.fstat(file.descriptor), file.read(6, 0)
    return FileSource(path, _kind(path, str(path), start), label, about.st_size, about.st_mtime_ns)


def _open_remote(url: Url, label: str, output: Location | None) -> FileSource:
    about = object_at(url)
    if not about:
        if url.text.startswith("http"):
            raise InputError(f"{url} is no file, and a web server lists none: give a .zip or a .tar that is there")
        return FileSource(url, PREFIX, label, output=output)
    with open_stream(url) as file:
        kind = _kind(file, str(url), file.read(6))
    return FileSource(url, kind, label, about.size, etag=about.etag)


def _kind(file: Path | IO[bytes], name: str, start: bytes) -> str:
    """Which kind of archive a file is, whose first bytes are `start`."""
    if start[:2] == b"PK" or zipfile.is_zipfile(file):
        return ZIP
    if not isinstance(file, Path):
        file.seek(0)
    if not tarfile.is_tarfile(file):
        raise InputError(f"{name} is neither a folder nor a zip or a tar: it starts with {start[:4]!r}")
    return COMPRESSED_TAR if starts_compressed(start) else TAR


def archive_members(source: FileSource) -> Iterator[ArchiveMember]:
    """The members of a source that is an archive."""
    return zip_members(source.path) if source.kind == ZIP else tar_members(source.path)


def unpack_compressed(sources: tuple[FileSource, ...], folder: Path) -> tuple[FileSource, ...]:
    """Unpack compressed tars as plain ones in `folder`, unless they are there; return the sources to read instead."""
    return tuple(_unpacked(source, folder / f".source-{number}.tar") for number, source in enumerate(sources))


def _unpacked(source: FileSource, copy: Path) -> FileSource:
    if source.kind != COMPRESSED_TAR:
        return source
    if not copy.exists():
        with open_decompressed(source.path) as content, atomic_file(copy) as plain:
            shutil.copyfileobj(content, plain, 1 << 20)
    return replace(source, path=copy, kind=TAR)


def require_unreplaced(sources: tuple[FileSource, ...]) -> None:
    """Raise `InputError` if an archive behind a URL was replaced since it was opened: its files may be mixed."""
    for source in sources:
        if isinstance(source.path, Url) and source.kind != PREFIX:
            source.require_same(ReadObject(storage_of(source.path.parent), source.path.name).etag)


class FileReader:
    """Reads files of sources, in any process: archives are opened when first needed, and stay open."""

    def __init__(self, sources: tuple[FileSource, ...]) -> None:
        self._sources = sources
        self._open = dict[int, Archive]()
        self._storages = dict[int, Storage]()

    def read(self, path: str, place: MemberPlace | int) -> bytes:
        """The bytes of a file, whose `path` begins with its source's label; `place` is as `Listing.locate` gives it.

        That is the number of its source, a folder, or its place in an archive. Raises `BadImage` if it cannot be read,
        or is not as its archive says.
        """
        number = place if isinstance(place, int) else place.source
        source = self._sources[number]
        # A storage that fails would fail for other files, too.
        with nullcontext() if isinstance(source.path, Url) else unreadable_as_bad_image():
            if isinstance(place, int):
                return self._read_whole(number, path[len(source.label) :])
            if source.kind == COMPRESSED_TAR:  # slow, so only what is needed before there is a plain copy
                with open_decompressed(source.path) as content:
                    content.seek(place.offset)
                    return content.read(place.size)
            if number not in self._open:
                archive = open_archive(source.path)
                if isinstance(archive, ReadObject):
                    source.require_same(archive.etag)
                self._open[number] = archive
            return read_member(self._open[number], place)

    def _read_whole(self, number: int, name: str) -> bytes:
        """A file of a folder, or an object of a prefix."""
        path = self._sources[number].path
        try:
            if isinstance(path, Path):
                return read_file(f"{path}/{name}", most_bytes=MAX_FILE_BYTES)
            if number not in self._storages:
                self._storages[number] = storage_of(path)
            return self._storages[number].read_all(name, MAX_FILE_BYTES)
        except ValueError as error:
            raise BadImage(f"{error}, at most {MAX_FILE_BYTES:,} expected") from None

    def __reduce__(self) -> tuple[type["FileReader"], tuple[tuple[FileSource, ...]]]:
        """A copy, or what is unpickled in another process, opens the archives anew."""
        return FileReader, (self._sources,)
