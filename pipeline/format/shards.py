"""Shards: one tar of image sets, its .idx, and its rows of the index. Shards know nothing of each other."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.format.images import Picture
from pipeline.format.manifest import ShardInfo, row_type
from pipeline.format.sample import PARTS, UNKNOWN, set_key
from pipeline.format.tar import TarWriter
from pipeline.problems import Problem


class Shard(NamedTuple):
    """What a finished shard holds, and what was left out of it."""

    info: ShardInfo
    rows: NDArray[np.void]  # those of index.npy, but for the shard's place in the manifest
    sizes: NDArray[np.int64]  # [2, members, 2]: smallest and largest (height, width); empty without sets
    left_out: Counter[str]
    problems: list[Problem]
    text: str = ""  # lines about its sets for a table beside the shards

    def save(self, path: Path) -> None:
        """Keep it as a note (.npz) of an unfinished work, which `load_shard` reads."""
        about = json.dumps([asdict(self.info), self.left_out, self.problems, self.text])
        temporary = path.with_name(f".{path.name}")  # a note that is cut short counts as none: no sync is needed
        with temporary.open("wb") as file:
            np.savez(file, rows=self.rows, sizes=self.sizes, about=np.array(about))
        temporary.replace(path)


def load_shard(path: Path, shards: Path) -> Shard | None:
    """The shard of a note that `Shard.save` wrote; None if there is none, or its tar is not there in full."""
    try:
        with np.load(path) as note:
            info, left_out, problems, text = json.loads(str(note["about"]))
            rows, sizes = note["rows"], note["sizes"]
        info = ShardInfo(**info)
        if info.sets and (shards / info.name).stat().st_size != info.bytes:
            return None
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
    return Shard(info, rows, sizes, Counter(left_out), [Problem(*problem) for problem in problems], text)


class ShardWriter:
    """Write one shard; its files appear when the context closes well, unless no set was added."""

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

    def add(self, ids: tuple[int, int, int], pictures: Sequence[Picture], note: Mapping[str, object]) -> None:
        """Append a set: (bg, fg, number), its pictures in the order of the members, and what else its json shall say.

        Without depth there are two pictures.
        """
        bg, fg, number = ids
        key = set_key(fg, bg, number)
        parts = [
            (f"{member}.{picture.extension}", picture.content)
            for member, picture in zip(self._members, pictures, strict=False)
        ]
        text = json.dumps({"bg": bg, "fg": None if fg == UNKNOWN else fg, "id": number, **note}).encode()
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
