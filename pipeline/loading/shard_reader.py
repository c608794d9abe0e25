"""Index rows -> bytes: one positional read a set, and no byte leaves without its checksum having been compared.

Shards are read, never mapped into memory: a mapped file that is cut short kills the process (SIGBUS), a read only comes
back short.
"""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import ReadFile
from pipeline.format.manifest import BACKGROUNDS, INDEX, MANIFEST, MAX_MANIFEST_BYTES, Manifest, load_index
from pipeline.format.planes import PLANES
from pipeline.format.sample import UNKNOWN
from pipeline.format.tar import BLOCK
from pipeline.regular_files import open_regular
from pipeline.storage import Content, Folder, Location, Storage, StrLocation, Url, storage_of

MAX_JSON_BYTES = 1 << 26


class Damaged(Exception):  # noqa: N818 - a finding about the data, not a fault of the program
    """A set's bytes are not those that were packed, or no pictures; the message names the set, the shard and why."""

    def __init__(self, key: str, what: str, shard: str, remedy: str = "copy it again") -> None:
        super().__init__(f"{key}: {what}")
        self.shard, self.remedy = shard, remedy


class ShardReader:
    """The bytes of a shard directory; threads may share it. `close` it, or let it go."""

    def __init__(
        self, shards: StrLocation | Storage, manifest: Manifest, rows: NDArray[np.void], *, depth: bool = True
    ) -> None:
        """`rows` is the index, [sets] of `manifest.row_type`.

        Without `depth`, its pictures are left unread where they are files of their own.
        """
        self._index_file: ReadFile | None = None
        self._index_bytes = 0
        self._is_compared = False
        self.storage = storage_of(shards)
        self.manifest = manifest
        self.index = rows.view(np.ndarray)  # still mapped, without the cost of `np.memmap` at every access
        self._backgrounds = {background.id: background for background in manifest.backgrounds}
        self.parts = tuple(part for part in manifest.parts if depth or part != "depth")
        """The pictures asked for."""
        self.members = manifest.members if manifest.codec == PLANES else self.parts
        """What `read` returns, in this order."""

    @classmethod
    def open(
        cls, shards: StrLocation | Storage, manifest: Manifest | None = None, *, depth: bool = True
    ) -> "ShardReader":
        """The reader of a finished shard directory; raise `InputError` if it is none, or does not belong together."""
        storage = storage_of(shards)
        manifest = manifest or Manifest.load(storage)
        reader = cls(storage, manifest, load_index(storage, manifest), depth=depth)
        if isinstance(storage, Folder):
            reader._index_file = ReadFile(storage.location / INDEX, open_regular)
            reader._index_bytes = reader._index_file.size
        return reader

    def __reduce__(self) -> tuple[Callable[..., "ShardReader"], tuple[Any, ...]]:
        """A copy, or what is unpickled, opens the files anew."""
        return partial(_reopened, "depth" in self.parts), self.storage.__reduce__()

    @property
    def location(self) -> Location:
        """The shard directory."""
        return self.storage.location

    def records(self, rows: NDArray[np.int64]) -> NDArray[np.void]:
        """These rows of the index, [N] of `manifest.row_type`, copied out of the file; raise `InputError` if it shrank.

        It is mapped into memory, and to touch what was cut off kills the process: a loader asks here, once a batch,
        and touches it nowhere else. (Cut off within the microseconds of a call it still does.)
        """
        self.check_index()
        return self.index[rows]

    def check_index(self) -> None:
        """Raise `InputError` if index.npy was cut short since it was opened. (One that is replaced never is.)"""
        if self._index_file and self._index_file.size < self._index_bytes:
            raise InputError(f"{self.storage / INDEX} was cut short while it was in use: copy it again, then resume")

    def key(self, row: int) -> str:
        """The name of the set at a row of the index."""
        return bytes(self.index["key"][row]).decode()

    def shard_name(self, row: int) -> str:
        """The tar that holds the set at a row of the index."""
        return self.manifest.shards[int(self.index["shard"][row])].name

    def read(self, row: int) -> list[NDArray[np.uint8]]:
        """The files of a set's pictures, one for each of `members`, uint8 [size]; raise `Damaged` if a CRC differs."""
        [parts] = self.read_records(self.records(np.array([row])))
        if isinstance(parts, Damaged):
            raise parts
        return parts

    def read_records(self, records: NDArray[np.void]) -> list[list[NDArray[np.uint8]] | Damaged]:
        """What `read` returns, or raises, for each of these records of the index."""
        columns = slice(len(self.members))  # depth is the last of PARTS
        places = (records[name][:, columns].tolist() for name in ("offset", "size", "crc32"))
        found: list[list[NDArray[np.uint8]] | Damaged] = []
        for key, shard, *place in zip(records["key"].tolist(), records["shard"].tolist(), *places, strict=True):
            try:
                found.append(self._read_set(key, self.manifest.shards[shard].name, *place))
            except Damaged as damage:
                found.append(damage.with_traceback(None))
        return found

    def _read_set(
        self, key: bytes, name: str, offsets: Sequence[int], sizes: Sequence[int], crc32s: Sequence[int]
    ) -> list[NDArray[np.uint8]]:
        first = offsets[0]
        content = self._read(key.decode(), name, first, offsets[-1] + sizes[-1] - first)
        whole, view, parts = np.frombuffer(content, np.uint8), memoryview(content), []
        for part, offset, size, crc32 in zip(self.members, offsets, sizes, crc32s, strict=True):
            start, end = offset - first, offset - first + size
            if zlib.crc32(view[start:end]) != crc32:
                if self.storage.drop(name):
                    return self._read_set(key, name, offsets, sizes, crc32s)
                self._require_same()
                how = "cut short" if end > len(content) else "damaged (CRC differs)"
                raise Damaged(key.decode(), f"{part} in {name} is {how}", name)
            parts.append(whole[start:end])
        return parts

    def _require_same(self) -> None:
        """Raise `InputError` if all that is behind a URL was replaced: looked at when a first set is damaged."""
        if self._is_compared or not isinstance(self.location, Url):
            return
        self._is_compared = True
        with suppress(OSError, ValueError):
            text = self.storage.read_all(MANIFEST, MAX_MANIFEST_BYTES)
            if hashlib.sha256(text).hexdigest() != self.manifest.sha256:
                how = "begin a new run on what is there, or put the former shards back"
                raise InputError(f"{self.location} was replaced while it was read: {how}")

    def read_metadata(self, row: int) -> dict[str, Any]:
        """The json of one set, which follows its last picture; raise `Damaged` if it does not, or is none.

        The index has no checksum of it: the tar header's own, its name and its syntax are what there is to compare.
        """
        name, shard = f"{self.key(row)}.json", self.shard_name(row)
        last = len(self.manifest.members) - 1
        end = int(self.index["offset"][row, last]) + int(self.index["size"][row, last])
        start = -(-end // BLOCK) * BLOCK
        try:
            header = tarfile.TarInfo.frombuf(bytes(self._read(self.key(row), shard, start, BLOCK)), "utf-8", "strict")
            if header.name != name:
                raise ValueError(f"found {header.name}")
            if header.size > MAX_JSON_BYTES:
                raise ValueError(f"it has {header.size:,} bytes")
            note = json.loads(bytes(self._read(self.key(row), shard, start + BLOCK, header.size)))
            if not isinstance(note, dict):
                raise ValueError(f"found a {type(note).__name__}")
            ids = [UNKNOWN if note[name] is None else note[name] for name in ("bg", "fg", "id")]
            if ids[:2] != [self.index[name][row] for name in ("bg", "fg")] or {*map(type, ids)} != {int}:
                raise ValueError("its ids are not those of the index")
        except (tarfile.HeaderError, KeyError, ValueError, RecursionError) as error:
            raise Damaged(self.key(row), f"{name} in {shard} is damaged ({error})", shard) from error
        return note

    def _read(self, key: str, name: str, offset: int, size: int) -> Content:
        """Bytes of a shard, fewer where it is cut short; raise `Damaged` if it cannot be read, for the set `key`.

        Raises `OSError` where storage behind a URL gives nothing else, either: that is no fault of the set.
        """
        try:
            return self.storage.read(name, offset, size)
        except OSError as error:
            failure = error
        if isinstance(self.location, Url):
            storage_of(self.location).read(MANIFEST, 0, 1)  # by a new client, which gives up after seconds
            try:  # it answers, perhaps again
                return self.storage.read(name, offset, size)
            except OSError as error:
                failure = error
        raise Damaged(key, f"{name} cannot be read ({failure.strerror})", name) from failure

    def read_background(self, bg: int) -> NDArray[np.uint8]:
        """The encoded picture of background `bg`, uint8 [size]; raise `InputError` if it is not as it was packed."""
        background = self._backgrounds[bg]
        try:
            content = self.storage.read(BACKGROUNDS, background.offset, background.size)
        except OSError as error:
            if isinstance(self.location, Url):
                raise
            raise InputError(
                f"{self.storage / BACKGROUNDS} cannot be read ({error.strerror}): copy it again"
            ) from error
        if zlib.crc32(content) != background.crc32:
            if self.storage.drop(BACKGROUNDS):
                return self.read_background(bg)
            where = f"{self.storage / BACKGROUNDS}: background {bg}"
            raise InputError(f"{where} is damaged (CRC differs), and every set on it needs it: copy or pack again")
        return np.frombuffer(content, np.uint8)

    def read_backgrounds(self, ids: Sequence[int]) -> list[NDArray[np.uint8]]:
        """What `read_background` returns for each of these; at once where each would be a request to object storage."""
        if isinstance(self.storage, Folder):
            return [self.read_background(bg) for bg in ids]
        whole = memoryview(b"")
        with suppress(OSError):  # which is told of below
            whole = memoryview(self.storage.map(BACKGROUNDS))
        found = []
        for bg in ids:
            background = self._backgrounds[bg]
            content = whole[background.offset : background.offset + background.size]
            good = zlib.crc32(content) == background.crc32
            found.append(np.frombuffer(content, np.uint8) if good else self.read_background(bg))
        return found

    def close(self) -> None:
        """Close the files; reading again opens them again."""
        self.storage.close()


def _reopened(depth: bool, open_storage: Callable[..., Storage], arguments: tuple[Any, ...]) -> ShardReader:
    return ShardReader.open(open_storage(*arguments), depth=depth)
