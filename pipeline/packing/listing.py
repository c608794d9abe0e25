"""Listing: all files of some sources, in columns, before it is known what they are.

400,000 sets are 1.2 million files, so a file is no Python object here: paths lie end to end in one buffer, and what
else is known of them in columns.
"""

import hashlib
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.files import written_file
from pipeline.packing.archives import MemberPlace
from pipeline.packing.folders import folder_files, is_no_data
from pipeline.packing.objects import prefix_files
from pipeline.packing.sources import FOLDER, PREFIX, ZIP, FileSource, archive_members
from pipeline.storage import storage_of

CHUNK = 4096
END = "\0"  # of a path in the buffer: no path can hold it


class Listing:
    """The files of sources, in a fixed order, those of each source together; a file is a row."""

    refused: list[tuple[str, str]]
    """(path with label, why) of those that must not be read."""

    def __init__(self, sources: tuple[FileSource, ...], tick: Callable[[int], None] = lambda files: None) -> None:
        """List the files of `sources`; `tick` is told now and then how many there are."""
        self.sources = sources
        self.refused = []
        # Paths, each with a zero after it, and where they end: an array, since an ndarray is slow to read one by one.
        self._text, self._ends, self._stamps = bytearray(), array("q"), array("q")
        self._first_rows = list[int]()
        self._content = hashlib.sha256()  # of sizes, or what else tells contents apart on any machine
        self.newest_ns = 0
        """When a file of a source was changed last; 0 where that is told by its CRC."""
        self._places = dict[int, NDArray[np.int64]]()  # of archives: [files, 4], offset, size, method, crc32
        for number, source in enumerate(sources):
            self._first_rows.append(len(self))
            if source.kind == PREFIX:
                for files in prefix_files(storage_of(source.path), source.output):
                    self._add(source, files.paths, files.stamps, files.refused, tick)
                    self._content.update(array("q", files.stamps))
            elif source.kind == FOLDER:
                local_output = source.output if isinstance(source.output, Path) else None
                for files in folder_files(str(source.path), follow_links=source.follow_links, output=local_output):
                    self._add(source, files.paths, files.stamps, files.refused, tick)
                    self._content.update(array("q", files.sizes))
                    self.newest_ns = max(self.newest_ns, *files.changed_ns, 0)
            else:
                self._add_archive(number, source, tick)
        tick(len(self) + len(self.refused))

    def __len__(self) -> int:
        return len(self._stamps)

    def _add_archive(self, number: int, source: FileSource, tick: Callable[[int], None]) -> None:
        places = array("q")
        members = (member for member in archive_members(source) if not is_no_data(member.path))
        while chunk := list(islice(members, CHUNK)):
            allowed = [member for member in chunk if not member.refused]
            for member in allowed:
                places.extend((member.offset, member.size, member.method, member.crc32))
            refused = [(member.path, member.refused) for member in chunk if member.refused]
            stamps = [member.stamp for member in allowed]
            self._add(source, [member.path for member in allowed], stamps, refused, tick)
            self._content.update(array("q", stamps))
        if source.kind != ZIP:
            self.newest_ns = max(self.newest_ns, source.time_ns)
        self._places[number] = np.frombuffer(places, np.int64).reshape(-1, 4)

    def _add(
        self,
        source: FileSource,
        paths: list[str],
        stamps: list[int],
        refused: list[tuple[str, str]],
        tick: Callable[[int], None],
    ) -> None:
        rows_before = len(self)
        text = "".join(f"{path}{END}" for path in paths).encode(errors="surrogateescape")
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 0) + len(self._text) + 1
        self._text += text
        self._ends.frombytes(ends.astype(np.int64).tobytes())
        self._stamps.extend(stamps)
        self.refused += [(source.label + path, why) for path, why in refused]
        if rows_before // CHUNK != len(self) // CHUNK:
            tick(len(self))

    def rows(self, source: int) -> range:
        """The rows of the files of a source."""
        return range(self._first_rows[source], [*self._first_rows, len(self)][source + 1])

    def source_of(self, row: int) -> int:
        """Which source a file is of."""
        return bisect_right(self._first_rows, row) - 1

    def paths(self, rows: range) -> Iterator[str]:
        """The paths, below their sources, of consecutive rows."""
        for first in range(rows.start, rows.stop, CHUNK):
            text = self._text[self._start(first) : self._ends[min(first + CHUNK, rows.stop) - 1]]
            yield from text[:-1].decode(errors="surrogateescape").split(END)

    def path(self, row: int) -> str:
        """The path of a file below its source."""
        start = self._ends[row - 1] if row else 0
        return self._text[start : self._ends[row] - 1].decode(errors="surrogateescape")

    def row_of(self, source: int, path: str) -> int | None:
        """The row of a file of a source by its path; None if it has none such."""
        rows = self.rows(source)
        if not rows:
            return None
        start, name = self._start(rows.start), os.fsencode(path) + b"\0"
        if self._text.startswith(name, start):
            return rows.start
        position = self._text.find(b"\0" + name, start, self._ends[rows.stop - 1])
        return bisect_right(self._ends, position + 1) if position >= 0 else None

    def ending(self, rows: NDArray[np.int32], extension: str) -> NDArray[np.bool_]:
        """Which of some files have an extension, such as ".npy", in letters of any case; [rows]."""
        letters = np.frombuffer(extension.lower().encode(), np.uint8)
        text, ends = np.frombuffer(self._text, np.uint8), np.frombuffer(self._ends, np.int64)[rows] - 1
        matches = np.ones(len(rows), bool)
        for place, letter in enumerate(letters.tolist(), -len(letters)):
            matches &= np.isin(text[np.maximum(ends + place, 0)], [letter, ord(chr(letter).upper())])
        return matches

    def files_ending(self, extension: str, depth: int = 0) -> list[int]:
        """The rows of the files with an extension, in small or capital letters, that lie `depth` folders deep."""
        rows = list[int]()
        for end in (os.fsencode(spelling) + b"\0" for spelling in (extension, extension.upper())):
            position = -1
            while (position := self._text.find(end, position + 1)) >= 0:
                row = bisect_right(self._ends, position)
                if self.path(row).count("/") == depth:
                    rows.append(row)
        return sorted(rows)

    def name(self, row: int) -> str:
        """The path of a file with the label of its source."""
        return self.sources[self.source_of(row)].label + self.path(row)

    def locate(self, row: int) -> tuple[str, MemberPlace | int]:
        """What `sources.FileReader.read` needs: the name of a file, and its place."""
        number = self.source_of(row) if len(self.sources) > 1 else 0
        name = self.path(row)
        if label := self.sources[number].label:
            name = label + name
        if number not in self._places:
            return name, number
        offset, size, method, crc32 = self._places[number][row - self._first_rows[number]].tolist()
        return name, MemberPlace(number, offset, size, method, crc32)

    def _start(self, row: int) -> int:
        return self._ends[row - 1] if row else 0

    def fingerprint(self) -> str:
        """A hash of which files there are, with their sizes, or CRCs in a zip; for times, see `newest_ns`."""
        told = [(source.kind, source.label, *([source.etag] if source.etag and source.kind != ZIP else []))
                for source in self.sources]  # fmt: skip
        about = told, self._first_rows, self.refused
        digest = hashlib.sha256(repr(about).encode(errors="surrogateescape"))
        digest.update(self._text)
        digest.update(self._content.digest())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the paths and stamps to an .npz file, which `difference` compares with a later listing."""
        temporary = path.with_name(f"{path.name}.{uuid4().hex}")  # several parts of a run may write it at once
        with written_file(temporary) as file:
            archives = [[str(source.path), *source.stamp()] for source in self.sources]
            text, stamps = np.frombuffer(self._text, np.uint8), np.array(self._stamps)
            np.savez(file, text=text, stamps=stamps, archives=np.array(json.dumps(archives)))
        temporary.replace(path)

    def difference(self, path: Path) -> str:
        """Compare with a saved listing: one file that differs, and how; "" if none does, or nothing was saved."""
        try:
            with np.load(path) as saved:
                text, stamps = saved["text"].tobytes(), saved["stamps"].tolist()
                archives = {tuple(stamp): path for path, *stamp in json.loads(str(saved["archives"]))}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return ""
        if text == self._text and stamps == self._stamps.tolist():
            changed = [str(source.path) for source in self.sources if tuple(source.stamp()) not in archives]
            return f"{changed[0]} was changed" if changed else ""
        paths = text[:-1].decode(errors="surrogateescape").split(END)
        saved_files = set(zip(paths, stamps, strict=True))
        files = set(zip(self.paths(range(len(self))), self._stamps, strict=True))
        path_changed = min((path for path, _ in saved_files ^ files), default="")
        was_there, is_there = (any(name == path_changed for name, _ in pairs) for pairs in (saved_files, files))
        how = "was changed" if was_there and is_there else "is new" if is_there else "is gone"
        return f"{path_changed} {how}" if path_changed else ""
