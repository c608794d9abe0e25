"""Tars: plain USTAR whose bytes depend on their members alone, and the index that DALI's own reader takes."""

import hashlib
import zlib
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from pipeline.errors import InputError
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
