"""Scan: a tar as it lies on disk, read once from its beginning to its end, with nothing taken on trust.

What was written (`pipeline.format.tar`) is told from the bytes alone: members, sets, and what
is wrong with them. `check` compares that with the index and the manifest; `repair` makes these anew from it.
"""

import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from math import isqrt
from typing import IO, Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from pipeline.format.images import BadImage, check_image, image_format, jpeg_size
from pipeline.format.index_rows import MAX_KEY_BYTES, row_type
from pipeline.format.planes import PLANES
from pipeline.format.sample import PARTS, UNKNOWN, set_key
from pipeline.format.tar import BLOCK, ZEROS, Member, tar_header
from pipeline.storage import Location, open_location

READ_BYTES = 1 << 20
MAX_MEMBER_BYTES = 1 << 30  # of a picture: more is none
MAX_LOST_BYTES = 1 << 26  # without a header, after which none is looked for: a sparse file can be of any length
INT32, INT64 = range(-(1 << 31), 1 << 31), range(-(1 << 63), 1 << 63)
Rows = NDArray[np.void]  # of the index: `manifest.row_type`
WIDE = row_type(MAX_KEY_BYTES)  # of rows that any tar may hold


class StoredPart(NamedTuple):
    """One member of each set, `KEY.NAME.EXTENSION`, which has a place in the set's row of the index."""

    name: str
    check: Callable[[bytes, str], tuple[str, int, int]]
    """(content, verify) -> extension, height, width; raises `BadImage` (see `images.check_image`)."""


def stored_parts(codec: str, parts: tuple[str, ...]) -> tuple[StoredPart, ...]:
    """The members of a set but for its json, in the order in which they lie in a shard and in the index.

    `codec` and `parts` are those of the manifest.
    """
    if codec == PLANES:
        return (StoredPart(PLANES, partial(check_planes, len(parts))),)
    return tuple(StoredPart(part, check_stored_picture) for part in parts)


def stored_background(codec: str) -> StoredPart:
    """The member of a background in backgrounds.tar."""
    return StoredPart("bg", partial(check_planes, 1) if codec == PLANES else check_stored_picture)


def check_stored_picture(data: bytes, verify: str) -> tuple[str, int, int]:
    """As `images.check_image`, but "header" looks for no end mark: a CRC, which is compared anyway, tells more."""
    if verify == "header" and image_format(data) == "jpg":
        return "jpg", *jpeg_size(data)
    return check_image(data, verify)


def check_planes(planes: int, data: bytes, verify: str) -> tuple[str, int, int]:
    """Look at a zstd frame of uint8 [planes, size, size]: its extension, height and width (see `images.check_image`).

    `verify` is "decode", or "header" to trust what follows the frame's header. Raises `BadImage`.
    """
    try:
        content_bytes = zstandard.get_frame_parameters(data).content_size
        size = isqrt(content_bytes // planes)
        if planes * size * size != content_bytes or not size:
            raise BadImage(f"{content_bytes:,} bytes are not {planes} square planes")
        if verify == "decode" and len(zstandard.ZstdDecompressor().decompress(data)) != content_bytes:
            raise BadImage("it does not decompress to the size in its header")
    except zstandard.ZstdError as error:
        raise BadImage(f"it does not decompress: {error}") from error
    return "zst", size, size


class Fault(NamedTuple):
    """Something in a tar that is not as it was written."""

    offset: int  # of the header where the fault begins, bytes
    key: str  # of the set or background; empty for what belongs to none
    what: str  # which part, and what is wrong with it

    def __str__(self) -> str:
        return f"{self.key}: {self.what}" if self.key else self.what


class ScannedMember(NamedTuple):
    """A member of a tar, with its bytes."""

    key: str
    extension: str
    offset: int  # of its bytes
    content: bytes


class Entry(NamedTuple):
    """A set, or a background, all of whose members are there and whole."""

    key: str
    numbers: tuple[int, int, int]  # bg, fg, number, as its json has them; zeros for a background
    places: list[Member]  # of its parts, in the order in which they are stored
    members: list[tuple[str, int, int]]  # extension, offset and size of its parts and its json
    sizes: list[tuple[int, int]]  # of its parts: height, width


class _HashedStream(io.RawIOBase):
    """A file that is read from its beginning to its end, and hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash, self.bytes = hashlib.sha256(), 0
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self.hash.update(content)
        self.bytes += len(content)
        return len(content)


class Scan:
    """The contents of one tar. The constructor reads it, and raises `OSError` if that fails."""

    entries: list[Entry]
    """The sets in which the tar alone shows no fault, in their order."""
    faults: list[Fault]
    """The faults of the other sets, and between sets."""
    sha256: str
    total_bytes: int
    index: bytes
    """The .idx that belongs to it."""
    whole: bool
    """Whether no header is lost, nor the tar's end."""

    def __init__(self, path: Location, parts: Sequence[StoredPart], verify: str, *, has_json: bool = True) -> None:
        """`parts` that every entry has, `verify` as in `images.check_image`; without `has_json` no entry has one."""
        self.entries, self.faults, self.whole = [], [], True
        self._parts, self._verify, self._has_json = parts, verify, has_json
        self._names = [part.name for part in parts] + ["json"] * has_json
        lines = list[str]()
        with open_location(path) as stored, io.BufferedReader(hashed := _HashedStream(stored), READ_BYTES) as file:
            members = self._members(file, hashed.size)
            for key, group in groupby(members, lambda member: member.key):
                entry = list(group)
                lines.append(" ".join(f"{m.extension} {m.offset} {len(m.content)} {key}.{m.extension}" for m in entry))
                self._add(key, entry)
        self.sha256, self.total_bytes = hashed.hash.hexdigest(), hashed.bytes
        self.index = "\n".join([f"v1.2 {len(lines)}", *lines, ""]).encode()

    def _members(self, file: IO[bytes], total: int) -> Iterator[ScannedMember]:
        """Every member whose header is whole; a damaged header is skipped, block by block, up to the next whole one."""
        header, position, lost_bytes = file.read(BLOCK), 0, 0
        while header and position + len(ZEROS) < total:
            name, size = parse_header(header)
            if not name or size > MAX_MEMBER_BYTES:
                if not lost_bytes:
                    self.faults.append(Fault(position, "", f"the tar header at byte {position:,} is damaged"))
                    self.whole = False
                header, position, lost_bytes = file.read(BLOCK), position + BLOCK, lost_bytes + BLOCK
                if lost_bytes > MAX_LOST_BYTES:
                    unread = f"of its {total:,} bytes those from {position:,} on are not read"
                    self.faults.append(Fault(position, "", unread))
                    return
                continue
            padding, lost_bytes = -size % BLOCK, 0
            content, rest = file.read(size), file.read(padding + BLOCK)
            key, _, extension = name.partition(".")
            if rest[:padding] != ZEROS[:padding]:
                self.faults.append(Fault(position, key, f"{_part(extension)} is not followed by zeros"))
            if len(content) == size:
                yield ScannedMember(key, extension, position + BLOCK, content)
            header, position = rest[padding:], position + BLOCK + size + padding
        if header + file.read() != ZEROS:
            self.faults.append(Fault(position, "", f"the tar is cut short, or its end is damaged (at {total:,} bytes)"))
            self.whole = False

    def _add(self, key: str, members: list[ScannedMember]) -> None:
        """Look at the members of an entry, and keep it if nothing is wrong with it."""
        start = members[0].offset - BLOCK
        names = [_part(member.extension) for member in members]
        if names != self._names:
            missing = [name for name in self._names if name not in names]
            what = f"no {', no '.join(missing)} there" if missing else f"holds {', '.join(names)}"
            self.faults.append(Fault(start, key, f"{what}; expected {', '.join(self._names)}"))
            return
        numbers, places, sizes, faults = (0, 0, 0), list[Member](), list[tuple[int, int]](), list[Fault]()
        for part, member in zip(self._parts, members, strict=False):
            places.append(Member(member.offset, len(member.content), zlib.crc32(member.content)))
            try:
                kind, *size = part.check(member.content, self._verify)
                if member.extension != f"{part.name}.{kind}":
                    raise BadImage(f"it is called {member.extension}, but it is {kind}")
                sizes.append((size[0], size[1]))
            except BadImage as error:
                faults.append(Fault(start, key, f"{part.name} is damaged ({error})"))
        if self._has_json:
            try:
                numbers = _numbers(key, members[-1].content)
            except (ValueError, RecursionError) as error:
                faults.append(Fault(start, key, f"json is damaged ({error})"))
        elif background_id(key) is None:
            faults.append(Fault(start, key, "no background is called that"))
        if faults:
            self.faults += faults
        else:
            extents = [(member.extension, member.offset, len(member.content)) for member in members]
            self.entries.append(Entry(key, numbers, places, extents, sizes))

    def rows(self, key_type: np.dtype[np.void]) -> NDArray[np.void]:
        """The rows of the index for its entries, [entries] of a `manifest.row_type`, but for the shard's place."""
        none = [Member(0, 0, 0)] * (len(PARTS) - len(self._parts))
        rows = [(e.key, *e.numbers[:2], 0, *zip(*e.places, *none, strict=True)) for e in self.entries]
        return np.array(rows, key_type)

    def size_ranges(self) -> NDArray[np.int64]:
        """Smallest and largest (height, width) of each part, [2, parts, 2]; empty without entries."""
        sizes = np.array([entry.sizes for entry in self.entries], np.int64)
        return np.stack([sizes.min(axis=0), sizes.max(axis=0)]) if self.entries else sizes


def parse_header(header: bytes) -> tuple[str, int]:
    """Name and size (bytes) in a tar header; the name is empty if these are not the bytes of `tar_header`."""
    try:
        name, size = header[:100].rstrip(b"\0").decode(), int(header[124:135], 8)
        return (name, size) if size >= 0 and tar_header(name, size) == header else ("", 0)
    except ValueError:
        return "", 0


def background_id(key: str) -> int | None:
    """The id of a background by its name in backgrounds.tar; None if it is none."""
    number = key.removeprefix("bg_")
    if not re.fullmatch("-?[0-9]{1,10}", number):
        return None
    found = int(number)
    return found if found in INT32 and f"bg_{found:03}" == key else None


def _part(extension: str) -> str:
    """The part that a member is, by its extension: "mask" for "mask.jpg"."""
    return extension.rpartition(".")[0] or extension


def _numbers(key: str, text: bytes) -> tuple[int, int, int]:
    """(bg, fg, number) of a set's json; raise ValueError unless they are those of its key."""
    metadata = json.loads(text)
    if not isinstance(metadata, dict):
        raise ValueError(f"found a {type(metadata).__name__}")
    bg, fg, number = (metadata.get(name) for name in ("bg", "fg", "id"))
    fg = UNKNOWN if fg is None else fg
    if not (type(bg) is type(fg) is type(number) is int and bg in INT32 and fg in INT32 and number in INT64):
        raise ValueError(f"bg, fg and id are {bg!r}, {fg!r} and {number!r}")
    if set_key(fg, bg, number) != key:
        raise ValueError(f"it is that of {set_key(fg, bg, number)}")
    return bg, fg, number
