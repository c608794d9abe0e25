"""Sources: the folders, zips and tars that files are taken from, read in place.

A compressed tar cannot be read in any but its own order, so it is read through twice: once for its names, and once to
lie unpacked, as one plain tar, hidden beside the shards until these are finished.
"""

import os
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import ReadFile, read_file
from pipeline.format.images import BadImage, unreadable_as_bad_image
from pipeline.packing.archives import (
    ArchiveMember,
    MemberPlace,
    is_compressed,
    open_decompressed,
    read_member,
    tar_members,
    zip_members,
)
from pipeline.resume import atomic_file

MAX_FILE_BYTES = 1 << 30  # of a picture or a table: more is a sparse file, or none
FOLDER, ZIP, TAR, COMPRESSED_TAR = "folder", "zip", "tar", "compressed tar"


@dataclass(frozen=True)
class FileSource:
    """A folder or an archive of files."""

    path: Path
    kind: str
    """One of FOLDER, ZIP, TAR and COMPRESSED_TAR."""
    label: str = ""
    """Stands before the paths of its files where there are several sources, else ""."""
    size: int = 0
    """Bytes of an archive."""
    time_ns: int = 0
    """When an archive was last changed."""
    follow_links: bool = False
    """Whether links in a folder are followed out of it."""
    output: Path | None = None
    """A folder that is being written, and so not read, wherever it lies in a folder."""

    def stamp(self) -> list[object]:
        """What changes when the source does; for folders and zips, the stamps of their files tell of changes."""
        return [self.kind, self.label, *((self.size, self.time_ns) if "tar" in self.kind else ())]


def open_sources(
    paths: Sequence[Path], *, follow_links: bool = False, output: Path | None = None
) -> tuple[FileSource, ...]:
    """Open what a user gave; raise `InputError` for what is no source, and for one that is given twice.

    `follow_links` and `output` as for `folders.folder_files`.
    """
    if not paths:
        raise InputError("no source: give a folder, a .zip or a .tar of image sets")
    if twice := [path for path, count in Counter(path.resolve() for path in paths).items() if count > 1]:
        raise InputError(f"{twice[0]} is given twice: give each source once")
    labels = _labels(paths) if len(paths) > 1 else [""]
    return tuple(_open_source(path, label, follow_links, output) for path, label in zip(paths, labels, strict=True))


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest end of each path that tells it from the others."""
    full = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, full))):
        labels = ["/".join(parts[-length:]) for parts in full]
        if len(set(labels)) == len(labels):
            break
    return [f"{label}/" for label in labels]


def _open_source(path: Path, label: str, follow_links: bool, output: Path | None) -> FileSource:
    if path.is_dir():
        return FileSource(path, FOLDER, label, follow_links=follow_links, output=output)
    if not path.exists():
        raise InputError(
            f"no such folder: {path}: give the folder that holds bg/, fg_bg/ and fg_bg_mask/, or an archive"
        )
    if not path.is_file():  # opening a pipe would wait for ever
        raise InputError(f"{path} is a pipe or a device: save it as a file")
    file = ReadFile(path)
    about, start = os.fstat(file.descriptor), file.read(4, 0)
    if zipfile.is_zipfile(path) or start[:2] == b"PK":
        kind = ZIP
    elif tarfile.is_tarfile(path):
        kind = COMPRESSED_TAR if is_compressed(path) else TAR
    else:
        raise InputError(f"{path} is neither a folder nor a zip or a tar: it starts with {start!r}")
    return FileSource(path, kind, label, about.st_size, about.st_mtime_ns)


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


class FileReader:
    """Reads files of sources, in any process: archives are opened when first needed, and stay open."""

    def __init__(self, sources: tuple[FileSource, ...]) -> None:
        self._sources = sources
        self._open = dict[int, ReadFile]()

    def read(self, path: str, place: MemberPlace | int) -> bytes:
        """The bytes of a file, whose `path` begins with its source's label; `place` is as `Listing.locate` gives it.

        That is the number of its source, a folder, or its place in an archive. Raises `BadImage` if it cannot be read,
        or is not as its archive says.
        """
        with unreadable_as_bad_image():
            if isinstance(place, int):
                source = self._sources[place]
                try:
                    return read_file(f"{source.path}/{path[len(source.label) :]}", most_bytes=MAX_FILE_BYTES)
                except ValueError as error:
                    raise BadImage(f"{error}, at most {MAX_FILE_BYTES:,} expected") from None
            source = self._sources[place.source]
            if source.kind == COMPRESSED_TAR:  # slow, so only what is needed before there is a plain copy
                with open_decompressed(source.path) as content:
                    content.seek(place.offset)
                    return content.read(place.size)
            if place.source not in self._open:
                self._open[place.source] = ReadFile(source.path)
            return read_member(self._open[place.source], place)

    def __reduce__(self) -> tuple[type["FileReader"], tuple[tuple[FileSource, ...]]]:
        """A copy, or what is unpickled in another process, opens the archives anew."""
        return FileReader, (self._sources,)
