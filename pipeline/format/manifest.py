"""The index and the manifest: where every byte of a shard directory is, and what it must hash to."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.depth import ENCODINGS, NEAR, NO_DEPTH
from pipeline.format.planes import PLANES
from pipeline.format.sample import PARTS
from pipeline.resume import atomic_file, require_finished

FORMAT = "fgbg-shards"
VERSION = 1
MANIFEST, INDEX, BACKGROUNDS = "manifest.json", "index.npy", "backgrounds.tar"
CODECS = ("jpeg", PLANES)
BLOCK = 1 << 16  # rows looked at together: what is made of them fits a cache, and no column of an index is in memory
REBUILD = "rebuild it from the tars (fgbg-check --repair-index)"


def stored_members(codec: str, depth_encoding: str) -> tuple[str, ...]:
    """The files that a set's pictures are in, one a column of the index: a file a part, or all in one."""
    parts = PARTS if depth_encoding != NO_DEPTH else PARTS[:-1]
    return (PLANES,) if codec == PLANES else parts


def row_type(key_length: int) -> np.dtype[np.void]:
    """One set: its key and ids, its shard, and where each of `Manifest.members` lies in it, then zeros."""
    return np.dtype(
        [
            ("key", f"S{key_length}"),
            ("bg", "<i4"),
            ("fg", "<i4"),
            ("shard", "<i4"),
            ("offset", "<i8", (len(PARTS),)),
            ("size", "<i4", (len(PARTS),)),
            ("crc32", "<u4", (len(PARTS),)),
        ]
    )


@dataclass(frozen=True)
class ShardInfo:
    """One tar of sets."""

    name: str
    sets: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Background:
    """One member of backgrounds.tar: bytes [offset, offset + size)."""

    id: int
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says. No clock and no paths: the same data and flags give the same bytes."""

    sets: int
    """Number of sets, the rows of index.npy."""
    foregrounds: int
    """Number of distinct foreground ids."""
    depth_encoding: str
    """How depth pictures map to numbers: one of `depth.ENCODINGS`, or "none" for sets without depth."""
    depth_near: str
    """The near end of the encoded scalar: "bright" or "dark"."""
    sizes: dict[str, dict[str, list[int]]]
    """For each of `members`, and bg, the smallest and the largest: {"min": [height, width], "max": [height, width]}."""
    shards: list[ShardInfo]
    backgrounds: list[Background]
    backgrounds_sha256: str
    index_sha256: str
    codec: str = "jpeg"
    """How pictures are stored: "jpeg" means as they came (JPEG or PNG), "planes" as gray planes of one size."""
    format: str = FORMAT
    version: int = VERSION
    sha256: str = field(default="", compare=False)
    """Hash of manifest.json itself, which names the data set; filled when it is loaded."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of PARTS that every set has."""
        return PARTS if self.depth_encoding != NO_DEPTH else PARTS[:-1]

    @property
    def members(self) -> tuple[str, ...]:
        """See `stored_members`."""
        return stored_members(self.codec, self.depth_encoding)

    @property
    def plane_size(self) -> int:
        """Height and width of all planes, pixels; only of the codec "planes"."""
        return self.sizes["bg"]["min"][0]

    def to_json(self) -> str:
        """The text of manifest.json."""
        content = {name: value for name, value in asdict(self).items() if name != "sha256"}
        return json.dumps(content, indent=1, sort_keys=True) + "\n"

    def save(self, shards: Path) -> None:
        """Write manifest.json: from now on the directory is a data set."""
        with atomic_file(shards / MANIFEST) as file:
            file.write(self.to_json().encode())

    @classmethod
    def load(cls, shards: Path) -> "Manifest":
        """Read manifest.json; raise `InputError` if there is none, or if it is of another format or version."""
        path = shards / MANIFEST
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            require_finished(shards)
            remedy = "make them with fgbg-pack SOURCE --shards DIR"
            raise InputError(f"no shards in {shards}: {MANIFEST} is missing; {remedy}") from None
        try:
            content: dict[str, Any] = json.loads(text)
            found = (content.get("format"), content.get("version"))
            if found != (FORMAT, VERSION):
                raise InputError(f"{path} is {found[0]} version {found[1]}; this fgbg reads {FORMAT} version {VERSION}")
            content["shards"] = [ShardInfo(**shard) for shard in content["shards"]]
            content["backgrounds"] = [Background(**background) for background in content["backgrounds"]]
            manifest = cls(**content, sha256=hashlib.sha256(text).hexdigest())
            if len({background.id for background in manifest.backgrounds}) < len(manifest.backgrounds):
                raise ValueError("two backgrounds have one id")
            if any(type(sets) is not int or sets < 0 for sets in (manifest.sets, *(s.sets for s in manifest.shards))):
                raise ValueError("a number of sets is none")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(f"{path} is damaged ({error}): {REBUILD}") from error
        if (
            manifest.depth_encoding not in (*ENCODINGS, NO_DEPTH)
            or manifest.depth_near not in NEAR
            or manifest.codec not in CODECS
        ):
            stored = f"codec {manifest.codec}, depth {manifest.depth_encoding} with near {manifest.depth_near}"
            raise InputError(f"{path} has {stored}: this fgbg cannot read that; update it, or pack again")
        return manifest


def save_index(shards: Path, sets: int, blocks: Iterable[NDArray[np.void]]) -> str:
    """Write index.npy from `blocks` of rows, `sets` rows in all, of which one block is in memory; return its sha256."""
    with atomic_file(shards / INDEX) as file:
        for number, rows in enumerate(blocks):
            if not number:
                about = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": (sets,)}
                np.lib.format.write_array_header_1_0(file, about)
            file.write(rows.tobytes())
    return _file_sha256(shards / INDEX)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_index(shards: Path, manifest: Manifest) -> NDArray[np.void]:
    """Map index.npy, [sets] of `row_type`; raise `InputError` unless it is the one the manifest was written with."""
    path = shards / INDEX
    try:
        digest = _file_sha256(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: copy it again, or {REBUILD}") from None
    if digest != manifest.index_sha256:
        differs = f"{path} does not belong to the manifest beside it (its hash differs)"
        raise InputError(f"{differs}: copy it again, or {REBUILD}")
    rows: NDArray[np.void] = np.load(path, mmap_mode="r")
    if (problem := _disagreement(manifest, rows.view(np.ndarray))) is not None:
        raise InputError(f"{shards / MANIFEST} {problem}: {REBUILD}")
    return rows


def _disagreement(manifest: Manifest, rows: NDArray[np.void]) -> str | None:
    """What a manifest says otherwise than the rows of an index, if anything: rows are found by its counts."""
    counted = sum(info.sets for info in manifest.shards)
    if not manifest.sets == counted == len(rows):
        return f"has {manifest.sets:,} sets, {counted:,} in its shards and {len(rows):,} in {INDEX}"
    bank = np.array([background.id for background in manifest.backgrounds])
    bounds = np.cumsum([0, *(info.sets for info in manifest.shards)])
    for first in range(0, len(rows), BLOCK):
        block = rows[first : first + BLOCK]
        shards = shards_between(bounds, first, first + BLOCK)
        sets = np.diff(bounds[shards.start : shards.stop + 1].clip(first, first + len(block)))
        if (wrong := np.flatnonzero(block["shard"] != np.repeat(np.arange(shards.start, shards.stop), sets))).size:
            row = first + int(wrong[0])
            place = int(np.searchsorted(bounds, row, "right")) - 1
            return f"has set {row:,} of {INDEX} in shard {place}, {INDEX} has it in shard {rows['shard'][row]}"
        missing = block["bg"][~np.isin(block["bg"], bank)]
        if missing.size:  # a bank that is searched for it would give another
            return f"has no background {missing[0]}, which sets need"
    return None


def shards_between(bounds: NDArray[np.int64], first: int, last: int) -> slice:
    """The shards that have rows among [first, last), and empty ones between them.

    `bounds` are int64 [shards + 1]: shard i has the rows bounds[i] to bounds[i + 1].
    """
    return slice(int(np.searchsorted(bounds[1:], first, "right")), int(np.searchsorted(bounds[:-1], last)))
