"""Store: index rows -> bytes. One positional read a set, and no byte leaves without its checksum having been compared.

Shards are read, never mapped into memory: a mapped file that is cut short kills the process (SIGBUS), a read only comes
back short.
"""

import json
import os
import tarfile
import zlib
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.index import BACKGROUNDS, Manifest, load_index
from pipeline.planes import PLANES
from pipeline.tar import BLOCK

MAX_OPEN_FILES = 256


class Damaged(Exception):  # noqa: N818 - a finding about the data, not a fault of the program
    """A set's bytes are not those that were packed; the message names the set, the shard and what differs."""


class Store:
    """The bytes of a shard directory; threads may share it. `close` it, or let it go."""

    def __init__(self, shards: Path, manifest: Manifest, rows: NDArray[np.void], *, depth: bool = True) -> None:
        """`rows` is the index, [sets] of `index.row_type`.

        Without `depth`, its pictures are left unread where they are files of their own.
        """
        self._open_files: OrderedDict[str, int] = OrderedDict()
        self._reading = Lock()  # no file is closed while another thread reads it
        self.shards = shards
        self.manifest = manifest
        self.index = rows = rows.view(np.ndarray)  # still mapped, without the cost of `np.memmap` at every access
        self._backgrounds = {background.id: background for background in manifest.backgrounds}
        self._key, self._shard = rows["key"], rows["shard"]
        self.parts = tuple(part for part in manifest.parts if depth or part != "depth")
        """The pictures asked for."""
        self.members = manifest.members if manifest.codec == PLANES else self.parts
        """What `read` returns, in this order."""
        columns = slice(len(self.members))  # depth is the last of PARTS
        self._offset, self._size, self._crc32 = (rows[name][:, columns] for name in ("offset", "size", "crc32"))

    @classmethod
    def open(cls, shards: Path, *, depth: bool = True) -> "Store":
        """The store of a finished shard directory; raise `InputError` if it is none, or does not belong together."""
        manifest = Manifest.load(shards)
        return cls(shards, manifest, load_index(shards, manifest), depth=depth)

    def key(self, row: int) -> str:
        """The name of the set at a row of the index."""
        return bytes(self._key[row]).decode()

    def shard_name(self, row: int) -> str:
        """The tar that holds the set at a row of the index."""
        return self.manifest.shards[int(self._shard[row])].name

    def read(self, row: int) -> list[NDArray[np.uint8]]:
        """The files of a set's pictures, one for each of `members`, uint8 [size]; raise `Damaged` if a CRC differs."""
        offsets, sizes = self._offset[row].tolist(), self._size[row].tolist()
        name = self.shard_name(row)
        content = self._read(row, offsets[0], offsets[-1] + sizes[-1] - offsets[0])
        whole, view, parts = np.frombuffer(content, np.uint8), memoryview(content), []
        for part, offset, size, crc32 in zip(self.members, offsets, sizes, self._crc32[row].tolist(), strict=True):
            start = offset - offsets[0]
            if zlib.crc32(view[start : start + size]) != crc32:
                cut = start + size > len(content)
                raise Damaged(f"{self.key(row)}: {part} in {name} is {'cut short' if cut else 'damaged (CRC differs)'}")
            parts.append(whole[start : start + size])
        return parts

    def read_note(self, row: int) -> dict[str, Any]:
        """The json of one set, which follows its last picture; raise `Damaged` if it does not, or is none.

        The index has no checksum of it: the tar header's own, its name and its syntax are what there is to compare.
        """
        name = f"{self.key(row)}.json"
        last = len(self.manifest.members) - 1
        end = int(self.index["offset"][row, last]) + int(self.index["size"][row, last])
        start = -(-end // BLOCK) * BLOCK
        try:
            header = tarfile.TarInfo.frombuf(self._read(row, start, BLOCK), "utf-8", "strict")
            if header.name != name:
                raise ValueError(f"found {header.name}")
            note = json.loads(self._read(row, start + BLOCK, header.size))
            if not isinstance(note, dict):
                raise ValueError(f"found a {type(note).__name__}")
        except (tarfile.HeaderError, ValueError) as error:
            raise Damaged(f"{self.key(row)}: {name} in {self.shard_name(row)} is damaged ({error})") from error
        return note

    def _read(self, row: int, offset: int, size: int) -> bytes:
        """Bytes of the shard that holds a row, fewer where it is cut short; raise `Damaged` if it cannot be read."""
        name = self.shard_name(row)
        try:
            with self._reading:
                return os.pread(self._file(name), size, offset)
        except OSError as error:
            raise Damaged(f"{self.key(row)}: {name} cannot be read ({error.strerror})") from error

    def read_background(self, bg: int) -> NDArray[np.uint8]:
        """The encoded picture of background `bg`, uint8 [size]; raise `InputError` if it is not as it was packed."""
        background = self._backgrounds[bg]
        try:
            with self._reading:
                content = os.pread(self._file(BACKGROUNDS), background.size, background.offset)
        except OSError as error:
            raise InputError(f"{self.shards / BACKGROUNDS} cannot be read ({error.strerror}): copy it again") from error
        if zlib.crc32(content) != background.crc32:
            where = f"{self.shards / BACKGROUNDS}: background {bg}"
            raise InputError(f"{where} is damaged (CRC differs), and every set on it needs it: copy or pack again")
        return np.frombuffer(content, np.uint8)

    def _file(self, name: str) -> int:
        descriptor = self._open_files.get(name)
        if descriptor is None:
            if len(self._open_files) >= MAX_OPEN_FILES:
                os.close(self._open_files.popitem(last=False)[1])
            descriptor = self._open_files[name] = os.open(self.shards / name, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self._open_files.move_to_end(name)
        return descriptor

    def close(self) -> None:
        """Close the files; reading again opens them again."""
        while self._open_files:
            os.close(self._open_files.popitem()[1])

    def __del__(self) -> None:
        self.close()
