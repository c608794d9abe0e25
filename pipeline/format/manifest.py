"""The index and the manifest: where every byte of a shard directory is, and what it must hash to."""

import hashlib
import io
import json
import mmap
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import npy_array
from pipeline.format.depth import NEAR, NO_DEPTH, STORED, WITH_HOLES
from pipeline.format.index_rows import MAX_KEY_BYTES, START_BYTES, are_plain, can_lie, index_start, is_index, row_type
from pipeline.format.planes import PLANES
from pipeline.format.sample import PARTS
from pipeline.remote_resume import begun_arguments
from pipeline.resume import atomic_file, require_finished, unfinished
from pipeline.storage import Folder, Location, Storage, StrLocation, storage_of

FORMAT = "fgbg-shards"
VERSION = 1
MANIFEST, INDEX, BACKGROUNDS = "manifest.json", "index.npy", "backgrounds.tar"
CODECS = ("jpeg", PLANES)
BLOCK = 1 << 16  # rows looked at together: what is made of them fits a cache, and no column of an index is in memory
MAX_MANIFEST_BYTES = 1 << 29  # 100 million sets in 100,000 shards on a million backgrounds need 130 MB
REBUILD = "rebuild it from the tars (fgbg-check --repair-index)"


def stored_members(codec: str, depth_encoding: str) -> tuple[str, ...]:
    """The files that a set's pictures are in, one a column of the index: a file a part, or all in one."""
    parts = PARTS if depth_encoding != NO_DEPTH else PARTS[:-1]
    return (PLANES,) if codec == PLANES else parts


Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]  # two of them add up in int64
Id = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
Crc32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
TAR_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.tar\Z"
"""A plain name: it leads to no other folder."""
TarName = Annotated[str, msgspec.Meta(pattern=TAR_NAME)]
Extent = Annotated[list[Size], msgspec.Meta(min_length=2, max_length=2)]


class ShardInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tar of sets."""

    name: TarName
    sets: Count
    bytes: Count
    sha256: Sha256


def idx_name(shard: ShardInfo) -> str:
    """The .idx beside a tar."""
    return shard.name.removesuffix(".tar") + ".idx"


class Background(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member of backgrounds.tar: bytes [offset, offset + size)."""

    id: Id
    offset: Count
    size: Size
    crc32: Crc32


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What manifest.json says. No clock and no paths: the same data and flags give the same bytes.

    A field that came after version 1 has a default, at which it is not written: data that does not need it has the
    bytes that it always had, and an fgbg that does not know it refuses the rest.
    """

    sets: Count
    """Number of sets, the rows of index.npy."""
    foregrounds: Count
    """Number of distinct foreground ids."""
    depth_encoding: str
    """How depth pictures map to numbers: one of `depth.STORED`, or "none" for sets without depth."""
    depth_near: str
    """The near end of the encoded scalar: "bright" or "dark"."""
    sizes: dict[str, dict[str, Extent]]
    """For each of `members`, and bg, the smallest and the largest: {"min": [height, width], "max": [height, width]}."""
    shards: list[ShardInfo]
    backgrounds: list[Background]
    backgrounds_sha256: Sha256
    index_sha256: Sha256
    codec: str = "jpeg"
    """How pictures are stored: "jpeg" means as they came (JPEG or PNG), "planes" as gray planes of one size."""
    format: str = FORMAT
    version: int = VERSION
    warnings: list[str] = msgspec.field(default_factory=list)
    """What was suspicious at packing, a line each."""
    conversions: list[str] = msgspec.field(default_factory=list)
    """What was made of the source's pictures at packing and does not show in the other fields, a line each."""
    sha256: str = ""
    """Hash of manifest.json itself, which names the data set; filled when it is loaded, and not in it."""

    @property
    def optional(self) -> dict[str, Any]:
        """The fields that came after version 1, those that are not at their defaults."""
        first = self.__struct_fields__.index("version") + 1
        return {name: getattr(self, name) for name in self._stored() if name in self.__struct_fields__[first:]}

    def _stored(self) -> dict[str, Any]:
        """What is written of it."""
        always = {"codec": self.codec, "format": self.format, "version": self.version}
        return {**always, **msgspec.to_builtins(msgspec.structs.replace(self, sha256=""))}

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
        return json.dumps(self._stored(), indent=1, sort_keys=True) + "\n"

    def save(self, shards: Path) -> None:
        """Write manifest.json: from now on the directory is a data set."""
        with atomic_file(shards / MANIFEST) as file:
            file.write(self.to_json().encode())

    @classmethod
    def load(cls, shards: StrLocation | Storage) -> "Manifest":
        """Read manifest.json; raise `InputError` if there is none, or not one that this fgbg reads, in every field."""
        storage = storage_of(shards)
        path, text = storage / MANIFEST, read_manifest(storage)
        try:
            _require_version(text, path)
            manifest = msgspec.json.decode(text, type=cls)
        except (ValueError, RecursionError) as error:
            what = _printable(error)
            if unknown := re.search("unknown field `(.*?)`", what):
                newer = (
                    f"{path} has a field that this fgbg does not know ({unknown[1]}); a newer one may have written it"
                )
                raise InputError(f"{newer}: update fgbg, or pack again") from None
            raise InputError(f"{path} is damaged ({what}): {REBUILD}") from None
        if (
            manifest.depth_encoding not in (*STORED, NO_DEPTH)
            or manifest.depth_near not in (NEAR if manifest.depth_encoding != WITH_HOLES else NEAR[:1])
            or manifest.codec not in CODECS
        ):
            names = (_printable(name) for name in (manifest.codec, manifest.depth_encoding, manifest.depth_near))
            stored = "codec {}, depth {} with near {}".format(*names)
            raise InputError(f"{path} has {stored}: this fgbg cannot read that; update it, or pack again")
        if (contradiction := _contradiction(manifest)) is not None:
            raise InputError(f"{path} is damaged ({contradiction}): {REBUILD}")
        return msgspec.structs.replace(manifest, sha256=hashlib.sha256(text).hexdigest())


class _Version(msgspec.Struct):
    """What every version of a manifest has."""

    format: msgspec.Raw = msgspec.Raw(b"null")
    version: msgspec.Raw = msgspec.Raw(b"null")


def read_manifest(storage: Storage) -> bytes:
    """The bytes of manifest.json; raise `InputError` if there is none, or no file that could be one."""
    try:
        return storage.read_all(MANIFEST, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        if isinstance(storage.location, Path):
            require_finished(storage.location)
        else:
            with suppress(OSError):  # a web server may refuse to tell
                if begun := begun_arguments(storage):
                    raise unfinished(storage.location, begun) from None
        remedy = "make them with fgbg-pack SOURCE --shards DIR"
        raise InputError(f"no shards in {storage.location}: {MANIFEST} is missing; {remedy}") from None
    except OSError as error:
        path = storage / MANIFEST
        if not isinstance(path, Path):
            raise
        raise InputError(f"{path} cannot be read ({error.strerror}): copy it again, or {REBUILD}") from None
    except ValueError:
        path, most = storage / MANIFEST, MAX_MANIFEST_BYTES >> 20
        raise InputError(f"{path} has over {most} MiB, which no manifest needs: {REBUILD}") from None


def _require_version(text: bytes, path: Location) -> None:
    """Raise `InputError` if a manifest is of another format or version, ValueError or RecursionError if it is none."""
    found = msgspec.json.decode(text, type=_Version)
    about = [_printable(bytes(raw).decode(errors="replace").strip('"')) for raw in (found.format, found.version)]
    if about != [FORMAT, str(VERSION)]:
        raise InputError(f"{path} is {about[0]} version {about[1]}; this fgbg reads {FORMAT} version {VERSION}")


def _contradiction(manifest: Manifest) -> str | None:
    """What of a manifest whose fields are each of their type contradicts itself, if anything."""
    if manifest.sha256:
        return "it has a sha256 of itself"
    if len({background.id for background in manifest.backgrounds}) < len(manifest.backgrounds):
        return "two backgrounds have one id"
    if len({shard.name for shard in manifest.shards} - {BACKGROUNDS}) < len(manifest.shards):
        return "two shards have one name"
    if empty := [shard.name for shard in manifest.shards if not shard.sets]:
        return f"{empty[0]} has no sets"
    ranges = manifest.sizes.values()
    if manifest.sizes.keys() != {*manifest.members, "bg"} or any(ends.keys() != {"min", "max"} for ends in ranges):
        return f"expected sizes, min and max, of {', '.join((*manifest.members, 'bg'))}"
    if any(low > high for ends in ranges for low, high in zip(ends["min"], ends["max"], strict=True)):
        return "a smallest size is above the largest"
    return None


def _printable(text: object) -> str:
    """The beginning of a text from elsewhere, escaped."""
    return str(text)[:200].encode("unicode_escape").decode()


def save_index(shards: Path, sets: int, blocks: Iterable[NDArray[np.void]]) -> str:
    """Write index.npy from `blocks` of rows, `sets` rows in all, of which one block is in memory; return its sha256."""
    with atomic_file(shards / INDEX) as file:
        for number, rows in enumerate(blocks):
            if not number:
                file.write(index_start(rows.dtype, sets))
            file.write(rows.tobytes())
    with storage_of(shards).open(INDEX) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_index(shards: StrLocation | Storage, manifest: Manifest) -> NDArray[np.void]:
    """Map index.npy, [sets] of `row_type`; raise `InputError` unless it is the one the manifest was written with."""
    storage = storage_of(shards)
    path = storage / INDEX
    try:
        content = _read_index(storage, manifest)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: copy it again, or {REBUILD}") from None
    if content is None:
        differs = f"{path} does not belong to the manifest beside it (its hash differs)"
        raise InputError(f"{differs}: copy it again, or {REBUILD}")
    if not is_index(content[:START_BYTES], len(content)):
        raise InputError(f"{path} is no index of this format: copy it again, or {REBUILD}")
    rows: NDArray[np.void] = npy_array(content)
    if (problem := _disagreement(manifest, rows.view(np.ndarray))) is not None:
        raise InputError(f"{storage / MANIFEST} {problem}: {REBUILD}")
    return rows


def _read_index(storage: Storage, manifest: Manifest) -> bytes | mmap.mmap | None:
    """The bytes of index.npy, mapped where they can be; None where they are not those that the manifest names."""
    try:
        content = storage.map(INDEX, START_BYTES + (manifest.sets + 1) * row_type(MAX_KEY_BYTES).itemsize)
    except ValueError:
        return None
    if not isinstance(content, bytes) and not isinstance(storage, Folder):
        return content  # a verified copy
    # What is mapped is read for its hash: to touch what is cut off meanwhile would kill the process.
    with io.BytesIO(content) if isinstance(content, bytes) else storage.open(INDEX) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return content if digest == manifest.index_sha256 else None


def _disagreement(manifest: Manifest, rows: NDArray[np.void]) -> str | None:
    """What a manifest says otherwise than the rows of an index, if anything: rows are found by its counts."""
    counted = sum(info.sets for info in manifest.shards)
    if not manifest.sets == counted == len(rows):
        return f"has {manifest.sets:,} sets, {counted:,} in its shards and {len(rows):,} in {INDEX}"
    bank = np.array([background.id for background in manifest.backgrounds])
    shard_bytes = np.array([info.bytes for info in manifest.shards])
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
        if (wrong := np.flatnonzero(~can_lie(block, np.repeat(shard_bytes[shards], sets), len(manifest.members)))).size:
            return f"has a shard in which set {first + int(wrong[0]):,} of {INDEX} cannot lie as {INDEX} says"
        if not are_plain(block["key"]):
            return f"belongs to an {INDEX} with a key that no set has"
    return None


def shards_between(bounds: NDArray[np.int64], first: int, last: int) -> slice:
    """The shards that have rows among [first, last), and empty ones between them.

    `bounds` are int64 [shards + 1]: shard i has the rows bounds[i] to bounds[i + 1].
    """
    return slice(int(np.searchsorted(bounds[1:], first, "right")), int(np.searchsorted(bounds[:-1], last)))
