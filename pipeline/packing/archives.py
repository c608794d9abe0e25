"""Archives: where the members of a zip or a tar lie, so that any process can read them in place.

Python's `zipfile` keeps an object of half a kilobyte for each member, in each process; a data set has a million.
"""

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from pipeline.errors import InputError
from pipeline.format.images import BadImage
from pipeline.packing.objects import Archive, open_archive, open_stream
from pipeline.storage import Location

END, END64, END64_AT, ENTRY, LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
STORED, DEFLATED, PLAIN = 0, 8, -1  # compression of a member: two methods of zips; members of a tar have none
_COMPRESSIONS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
TAR_LINK = ", which no --follow-links follows: make the tar with --dereference --hard-dereference"
METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd", 95: "xz", 98: "PPMd", 99: "AES"}  # APPNOTE 4.4.5
LOCAL_BYTES = 512
"""Of a local header in a zip, as a rule, so that a member is read at once."""
MAX_INFLATED = 256 << 20  # bytes of a member: more is a bomb, or a mistake
FULL32 = 0xFFFFFFFF  # the value stands in the extra field, in 64 bits


class MemberPlace(NamedTuple):
    """Where a member's bytes lie in its archive; in a zip `offset` is that of the local header before them."""

    source: int
    """Which of the sources the archive is."""
    offset: int
    size: int
    """Bytes as they are stored."""
    method: int
    crc32: int


class ArchiveMember(NamedTuple):
    """A file in an archive, as its directory or its header describes it."""

    path: str
    stamp: int
    """Changes with the content: size and CRC in a zip; size, time and place in a tar."""
    offset: int
    size: int
    method: int
    crc32: int
    refused: str = ""
    """Why it must not be read, "" if it may be."""


def _refusal(path: str, *, is_link: bool, remedy: str = "") -> str:
    if path.startswith("/") or (path[1:2] == ":" and path[0].isalpha()):
        return "an absolute name"
    if ".." in path.replace("\\", "/").split("/"):
        return "a name with '..'"
    if "\0" in path:
        return "a name with a zero byte"
    return f"a link{remedy}" if is_link else ""


def zip_members(path: Location) -> Iterator[ArchiveMember]:
    """The files in a zip, by its central directory (PKWARE APPNOTE 6.3, 4.3); raise `InputError` if it is damaged."""
    try:
        file = open_archive(path)
        for member in _zip_members(*_central_directory(file)):
            if member.offset + member.size > file.size:
                raise InputError(f"{path} is damaged (a member would lie beyond its end): copy it again")
            yield member
    except struct.error as error:
        raise InputError(f"{path} is damaged (its directory is cut short): copy it again") from error


def _central_directory(file: Archive) -> tuple[bytes, int]:
    """The central directory, and the number of bytes before the archive (a self-extracting one begins with code)."""
    length, path = file.size, file.path
    tail_start = max(0, length - 22 - 0xFFFF)
    tail = file.read(length - tail_start, tail_start)
    position = tail.rfind(END)
    if position < 0 or position + 22 + int.from_bytes(tail[position + 20 : position + 22], "little") > len(tail):
        raise InputError(f"{path} is no whole zip (its directory at the end is missing): copy it again")
    size, offset = struct.unpack_from("<II", tail, position + 12)
    end = tail_start + position
    if tail[max(0, position - 20) :].startswith(END64_AT):
        record_at = end - 20 - 56
        record = file.read(56, record_at)
        if record[:4] == END64:
            size, offset = struct.unpack_from("<QQ", record, 40)
            end = record_at
    prefix_bytes = end - size - offset
    directory = file.read(size, offset + prefix_bytes) if prefix_bytes >= 0 and size <= length else b""
    if prefix_bytes < 0 or len(directory) != size or (size and directory[:4] != ENTRY):
        raise InputError(f"{path} is damaged (its directory is not where it should be): copy it again")
    return directory, prefix_bytes


def _zip_members(directory: bytes, prefix_bytes: int) -> Iterator[ArchiveMember]:
    position, entry = 0, struct.Struct("<4s6H3I5H2I")
    while position < len(directory):
        (signature, maker, _, flags, method, _, _, crc32, stored, size, name_length, extra_length, comment_length, _, _,
         attributes, offset) = entry.unpack_from(directory, position)  # fmt: skip
        if signature != ENTRY:
            raise struct.error("no entry")
        name_start = position + entry.size
        name = directory[name_start : name_start + name_length]
        extra = directory[name_start + name_length : name_start + name_length + extra_length]
        position = name_start + name_length + extra_length + comment_length
        if name.endswith((b"/", b"\\")):
            continue
        path = _decoded_name(name, is_utf_8=bool(flags & 0x800))
        if FULL32 in (size, stored, offset):
            size, stored, offset = _zip64_values(extra, size, stored, offset)
        is_link = maker >> 8 == 3 and stat.S_ISLNK(attributes >> 16)  # 3: made on Unix
        refused = _refusal(path, is_link=is_link)
        if not refused and flags & 1:
            refused = "encrypted"
        if not refused and method not in (STORED, DEFLATED):
            refused = (
                f"compressed by {METHODS.get(method, f'method {method}')}; only stored and deflated members are read"
            )
        if not refused and "/" not in path:
            path = path.replace("\\", "/")  # as some Windows tools write it
        yield ArchiveMember(
            path, crc32 << 31 | size & 0x7FFFFFFF, offset + prefix_bytes, stored, method, crc32, refused
        )


def _decoded_name(name: bytes, *, is_utf_8: bool) -> str:
    """A member's path, which macOS writes in UTF-8 without saying so."""
    try:
        path = name.decode()
    except UnicodeDecodeError:
        path = name.decode("utf-8" if is_utf_8 else "cp437", "surrogateescape")
    return path.removeprefix("./")


def _zip64_values(extra: bytes, *values: int) -> list[int]:
    """The values, those that are FULL32 replaced by the 64-bit ones of the extra field (APPNOTE 4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return [next(numbers, value) if value == FULL32 else value for value in values]
        at += 4 + length
    return list(values)


def tar_members(path: Location) -> Iterator[ArchiveMember]:
    """The files in a tar, plain or compressed; offsets are those in the plain one.

    Raises `InputError` if it is damaged or cut short.
    """
    try:
        compressed = starts_compressed(open_archive(path).read(6, 0))
        with (
            open_decompressed(path) if compressed else open_stream(path) as file,
            tarfile.open(fileobj=file, mode="r|" if compressed else "r:") as tar,
        ):
            while (info := tar.next()) is not None:
                if not 0 <= info.size <= 1 << 62:
                    raise tarfile.TarError("a member's size is none")
                tar.members.clear()  # type: ignore[attr-defined] # else it keeps every one of them
                if info.isdir():
                    continue
                refused = _refusal(info.name, is_link=info.issym() or info.islnk(), remedy=TAR_LINK)
                if not refused and (not info.isreg() or info.issparse()):
                    refused = "neither a plain file nor a folder"
                stamp = hash((info.size, int(info.mtime), info.offset_data))
                yield ArchiveMember(info.name.removeprefix("./"), stamp, info.offset_data, info.size, PLAIN, 0, refused)
            if compressed:
                while file.read(1 << 20):  # to its end, where the compressed stream has its checksum
                    pass
            elif open_archive(path).read(512, tar.offset) != bytes(512):
                raise InputError(f"{path} is cut short or damaged (no end mark): copy it again")
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(f"{path} is damaged ({error}): copy it again") from error


def open_decompressed(path: Location) -> IO[bytes]:
    """Open a compressed file to read what it holds; raise `InputError` if it is compressed in no known way."""
    file = open_stream(path)
    start = file.read(6)
    file.seek(0)
    for magic, opener in _COMPRESSIONS.items():
        if start.startswith(magic):
            content: IO[bytes] = opener(file)
            return content
    raise InputError(f"{path} is compressed neither by gzip nor by bzip2 or xz")


def starts_compressed(start: bytes) -> bool:
    """Whether the first 6 bytes of a file are those of gzip, bzip2 or xz."""
    return start.startswith(tuple(_COMPRESSIONS))


def read_member(file: Archive, place: MemberPlace) -> bytes:
    """The content of a member of the open archive `file`; raise `BadImage` if it is not as the archive says."""
    offset, start = place.offset, 0
    content = file.read(place.size + (LOCAL_BYTES if place.method != PLAIN else 0), offset)
    if place.method != PLAIN:
        if len(content) < 30 or content[:4] != LOCAL:
            raise BadImage("not where its archive says")
        start = 30 + sum(struct.unpack_from("<HH", content, 26))
        content = content[start : start + place.size]
    if missing := place.size - len(content):  # behind a local header that is longer than most are
        content += file.read(missing, offset + start + len(content))
    if len(content) < place.size:
        raise BadImage("cut short: its archive ends before it")
    if place.method == DEFLATED:
        try:
            inflating = zlib.decompressobj(-zlib.MAX_WBITS)
            content = inflating.decompress(content, MAX_INFLATED)
        except zlib.error as error:
            raise BadImage(f"does not inflate ({error})") from error
        if not inflating.eof:
            is_short = len(content) < MAX_INFLATED
            raise BadImage(
                "does not inflate (it is cut short)" if is_short else f"inflates to over {MAX_INFLATED >> 20} MiB"
            )
    if place.method != PLAIN and zlib.crc32(content) != place.crc32:
        raise BadImage("its CRC differs from the archive's")
    return content
