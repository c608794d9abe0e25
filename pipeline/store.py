"""Store: index rows -> bytes. One positional read a set, and no byte leaves without its checksum having been compared.

Shards are read, never mapped into memory: a mapped file that is cut short kills the process (SIGBUS), a read only comes
back short.
"""

import os
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.index import BACKGROUNDS, Manifest, load_index
from pipeline.layouts import PARTS

MAX_OPEN_FILES = 256


class Damaged(Exception):  # noqa: N818 - a finding about the data, not a fault of the program
    """A set's bytes are not those that were packed; the message names the set, the shard and what differs."""


class Store:
    """The bytes of a shard directory. Not thread-safe; `close` it, or let it go."""

    def __init__(self, shards: Path, manifest: Manifest, rows: NDArray[np.void]) -> None:
        """`rows` is the index, [sets] of `index.row_type`."""
        self._open_files: OrderedDict[str, int] = OrderedDict()
        self.shards = shards
        self.manifest = manifest
        self.index = rows = rows.view(np.ndarray)  # still mapped, without the cost of `np.memmap` at every access
        self._backgrounds = {background.id: background for background in manifest.backgrounds}
        self._key, self._shard = rows["key"], rows["shard"]
        self._offset, self._size, self._crc32 = rows["offset"], rows["size"], rows["crc32"]

    @classmethod
    def open(cls, shards: Path) -> "Store":
        """The store of a finished shard directory; raise `InputError` if it is none, or does not belong together."""
        manifest = Manifest.load(shards)
        return cls(shards, manifest, load_index(shards, manifest))

    def key(self, row: int) -> str:
        """The name of the set at a row of the index."""
        return bytes(self._key[row]).decode()

    def shard_name(self, row: int) -> str:
        """The tar that holds the set at a row of the index."""
        return self.manifest.shards[int(self._shard[row])].name

    def read(self, row: int) -> list[NDArray[np.uint8]]:
        """The encoded parts of one set, in the order of PARTS, each uint8 [size]; raise `Damaged` if a CRC differs."""
        offsets, sizes = self._offset[row].tolist(), self._size[row].tolist()
        name = self.shard_name(row)
        try:
            content = os.pread(self._file(name), offsets[-1] + sizes[-1] - offsets[0], offsets[0])
        except OSError as error:
            raise Damaged(f"{self.key(row)}: {name} cannot be read ({error.strerror})") from error
        whole, view, parts = np.frombuffer(content, np.uint8), memoryview(content), []
        for part, offset, size, crc32 in zip(PARTS, offsets, sizes, self._crc32[row].tolist(), strict=True):
            start = offset - offsets[0]
            if zlib.crc32(view[start : start + size]) != crc32:
                cut = start + size > len(content)
                raise Damaged(f"{self.key(row)}: {part} in {name} is {'cut short' if cut else 'damaged (CRC differs)'}")
            parts.append(whole[start : start + size])
        return parts

    def read_background(self, bg: int) -> NDArray[np.uint8]:
        """The encoded picture of background `bg`, uint8 [size]; raise `InputError` if it is not as it was packed."""
        background = self._backgrounds[bg]
        try:
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
