"""Tars: plain USTAR whose bytes depend on their members alone, DALI's .idx beside them, and shards, tars of image sets.

A member's header is the 512 bytes of `tar_header` and nothing else, so that the same sets give the same bytes on any
machine, and a reader can tell a damaged header from a good one.
"""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, Problem
from pipeline.files import ReadFile, open_file, written_file
from pipeline.format.images import Picture
from pipeline.format.index_rows import are_plain, row_type
from pipeline.format.manifest import ShardInfo
from pipeline.format.sample import PARTS, UNKNOWN, set_key
from pipeline.regular_files import open_regular
from pipeline.resume import atomic_file

BLOCK = 512
ZEROS = bytes(2 * BLOCK)  # padding, and the end of an archive

MODE, TIME = b"0000644\0" + b"0000000\0" * 2, b"\0" + b"00000000000\0"  # with the owner, after the length's end
REST = (b"0".ljust(101, b"\0") + b"ustar\x0000").ljust(BLOCK - 156, b"\0")
SUM_OF_THE_REST = sum(MODE + TIME + b" " * 8 + REST)  # the checksum counts its own field as blanks


class Member(NamedTuple):
    """Where a member's bytes lie in its tar."""

    offset: int
    size: int
    crc32: int


def tar_header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header (POSIX.1-1988) of a regular file: mode 0644, owner 0, time 0.

    Raises `InputError` for a name of more than 100 bytes.
    """
    encoded = name.encode()
    if len(encoded) > 100:
        raise InputError(f"name too long for a tar member ({len(encoded)} bytes, at most 100): {name}")
    length = b"%011o" % size
    checksum = sum(encoded) + sum(length) + SUM_OF_THE_REST
    return b"".join((encoded.ljust(100, b"\0"), MODE, length, TIME, b"%06o\0 " % checksum, REST))


class TarWriter:
    """Write one tar, and beside it the .idx of DALI's `fn.readers.webdataset`; both appear when it closes well."""

    def __init__(self, path: Path, *, index: bool = True) -> None:
        self.path = path
        self.bytes = 0
        self._index: list[str] | None = [] if index else None
        self._hash = hashlib.sha256()
        self._opening = atomic_file(path)

    def __enter__(self) -> "TarWriter":
        self._file = self._opening.__enter__()
        return self

    def add(self, key: str, parts: list[tuple[str, bytes]]) -> list[Member]:
        """Append one set: (extension, bytes) of each part; return where each of them lies."""
        members, chunks, entries, end = list[Member](), list[bytes](), list[str](), self.bytes
        for extension, content in parts:
            name, offset, size = f"{key}.{extension}", end + BLOCK, len(content)
            padding = -size % BLOCK
            chunks += (tar_header(name, size), content, ZEROS[:padding])
            members.append(Member(offset, size, zlib.crc32(content)))
            entries.append(f"{extension} {offset} {size} {name}")
            end = offset + size + padding
        self._append(b"".join(chunks))
        if self._index is not None:
            self._index.append(" ".join(entries))
        return members

    def _append(self, record: bytes) -> None:
        self._file.write(record)
        self._hash.update(record)
        self.bytes += len(record)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._append(ZEROS)
        self._opening.__exit__(kind, error, trace)
        if error is None and self._index is not None:
            with atomic_file(self.path.with_suffix(".idx")) as file:
                file.write("\n".join([f"v1.2 {len(self._index)}", *self._index, ""]).encode())

    @property
    def sha256(self) -> str:
        """Hash of all that was written so far."""
        return self._hash.hexdigest()


class Shard(NamedTuple):
    """What a finished shard holds, and what was left out of it. Shards know nothing of each other."""

    info: ShardInfo
    rows: NDArray[np.void]  # those of index.npy, but for the shard's place in the manifest
    sizes: NDArray[np.int64]  # [2, members, 2]: smallest and largest (height, width); empty without sets
    left_out: Counter[str]
    problems: list[Problem]
    text: str = ""  # lines about its sets for a table beside the shards

    def save(self, path: Path) -> None:
        """Keep it as a progress record (.npz) of an unfinished run, which `load_shard` reads."""
        about = json.dumps([msgspec.structs.asdict(self.info), self.left_out, self.problems, self.text])
        temporary = path.with_name(f".{path.name}")  # a record that is cut short counts as none: no sync is needed
        with written_file(temporary) as file:
            np.savez(file, rows=self.rows, sizes=self.sizes, about=np.array(about))
        temporary.replace(path)


def load_shard(path: Path, shards: Path | None) -> Shard | None:
    """The shard of a progress record (`Shard.save`); None if there is none, or its tar is not in `shards` in full.

    What is no such record counts as none, too: the shard is made again.
    """
    try:
        with open_file(path, open_regular) as file, np.load(file) as record:
            info, left_out, problems, text = msgspec.convert(json.loads(str(record["about"])), _About)
            rows, sizes = record["rows"], record["sizes"]
        if shards and info.sets and ReadFile(shards / info.name, open_regular).size != info.bytes:
            return None
    except (OSError, ValueError, KeyError, BadZipFile, EOFError, RecursionError, MemoryError, NotImplementedError):
        return None
    if sizes.ndim == 3 and sizes.shape[2] != 2:
        return None
    if rows.ndim != 1 or rows.dtype != row_type(rows.dtype["key"].itemsize if rows.dtype.names else 1):
        return None
    if len(rows) != info.sets or sizes.dtype.kind not in "if" or (info.sets and (sizes.ndim, len(sizes)) != (3, 2)):
        return None
    return Shard(info, rows, sizes, Counter(left_out), problems, text) if are_plain(rows["key"]) else None


_About = tuple[ShardInfo, dict[str, int], list[Problem], str]
"""What `Shard.save` writes beside arrays."""


class ShardWriter:
    """Write one shard, its tar and its .idx, which appear when the context closes well, unless no set was added."""

    def __init__(self, path: Path, key_length: int, members: Sequence[str] = PARTS) -> None:
        """`path` of the tar; `key_length` is that of the longest key of all shards, in bytes.

        `members` name the pictures of a set (see `Manifest.members`); there may be more of them than pictures.
        """
        self._members = members
        self._tar = TarWriter(path)
        self._row_type = row_type(key_length)
        self._rows = list[tuple[object, ...]]()
        self._sizes = list[list[tuple[int, int]]]()

    def __enter__(self) -> "ShardWriter":
        self._tar.__enter__()
        return self

    def add(self, ids: tuple[int, int, int], pictures: Sequence[Picture], metadata: Mapping[str, object]) -> None:
        """Append a set: (bg, fg, number), its pictures in the order of the members, and what else its json has.

        Without depth there are two pictures.
        """
        bg, fg, number = ids
        key = set_key(fg, bg, number)
        parts = [
            (f"{member}.{picture.extension}", picture.content)
            for member, picture in zip(self._members, pictures, strict=False)
        ]
        text = json.dumps({"bg": bg, "fg": None if fg == UNKNOWN else fg, "id": number, **metadata}).encode()
        places = [*self._tar.add(key, [*parts, ("json", text)])[:-1], *[(0, 0, 0)] * len(PARTS)][: len(PARTS)]
        self._rows.append((key, bg, fg, 0, *zip(*places, strict=True)))
        self._sizes.append([picture.size for picture in pictures])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.__exit__(kind, error, trace)
        if error is None and not self._rows:
            self._tar.path.unlink()
            self._tar.path.with_suffix(".idx").unlink()

    def shard(self, left_out: Counter[str], problems: list[Problem], text: str = "") -> Shard:
        """What was written, once the context is closed."""
        info = ShardInfo(self._tar.path.name, len(self._rows), self._tar.bytes, self._tar.sha256)
        sizes = np.array(self._sizes)
        ranges = np.stack([sizes.min(axis=0), sizes.max(axis=0)]) if self._rows else sizes
        return Shard(info, np.array(self._rows, self._row_type), ranges, left_out, problems, text)
