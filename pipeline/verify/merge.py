"""Merge: shard directories of one kind -> one shard directory. The bytes of their tars stay as they are.

A tar of the result is the same file under another number (a hard link) where the file system can do that, else a copy:
tars are never changed, only replaced.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, Problem
from pipeline.format.depth import NO_DEPTH
from pipeline.format.images import Picture
from pipeline.format.index_rows import row_type
from pipeline.format.manifest import Manifest, ShardInfo, idx_name
from pipeline.format.planes import PLANES
from pipeline.format.tar import Shard
from pipeline.loading.shard_reader import ShardReader
from pipeline.packing.finalize import finalize, read_problems, write_backgrounds
from pipeline.packing.metadata import LABELS, ORIGINS, join_table_files
from pipeline.packing.writing import writing
from pipeline.resume import atomic_file
from pipeline.storage import Location, Storage
from pipeline.verify.damage import rows_of_shards
from pipeline.verify.scan import Rows, stored_background
from pipeline.words import plural

log = logging.getLogger(__name__)
# What merged directories may differ in; everything else in their manifests has to be the same.
MAY_DIFFER = {
    "sets",
    "foregrounds",
    "sizes",
    "shards",
    "backgrounds",
    "backgrounds_sha256",
    "index_sha256",
    "sha256",
    "warnings",
    "conversions",
}


def merge(
    sources: Sequence[Location],
    shards: Location | Storage,
    sets_merged: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Join the shard directories `sources` in `shards`, a folder that is new or empty but for hidden files.

    All may be in object storage, see `packing.writing`. A background id that several have is one background, and has to
    be the same picture; foregrounds of the same id are taken to be the same, too. `sets_merged` is told (more,
    of all). A merge that is stopped is continued by the same call. Raises `InputError` for fewer than two sources,
    sources of different kinds, other pictures under the same background id, sets that are there twice, and files that
    are missing, cut short or do not belong together.
    """
    if len(sources) < 2:
        raise InputError(f"{len(sources)} shard directories to merge: give two or more")
    stores = [ShardReader.open(source) for source in sources]
    for other in stores[1:]:
        _require_same_kind(stores[0], other)
    backgrounds = _backgrounds(stores)
    _require_distinct_sets(stores)
    first, total = stores[0].manifest, sum(store.manifest.sets for store in stores)
    arguments = {"command": "fgbg-pack --merge", "sources": [store.manifest.sha256 for store in stores]}
    with writing(shards, arguments) as target:
        backgrounds_tar = write_backgrounds(target.folder, _pictures(backgrounds))
        count = sum(len(store.manifest.shards) for store in stores)
        done = target.done(count)
        for number, (source, info, rows, sizes) in enumerate(_shards(stores)):
            if number not in done:
                place = target.place(number)
                _require_idx(source, idx_name(info), info.sets)
                for name in (info.name, idx_name(info)):
                    _link_or_copy(source, name, place.path.with_suffix(Path(name).suffix))
                place.save(Shard(msgspec.structs.replace(info, name=place.path.name), rows, sizes, Counter(), []))
            if sets_merged:
                sets_merged(info.sets, total)
        result = target.tally(count)
        for store in stores:
            result.problems.extend(
                Problem(f"{_name(store)}/{path}", kind, why)
                for path, kind, why in read_problems(store.storage / "problems.csv")
            )
        _join_metadata(stores, target.folder)
        optional = first.optional | {
            name: list(dict.fromkeys(line for store in stores for line in getattr(store.manifest, name)))
            for name in ("warnings", "conversions")
        }
        depth = first.depth_encoding, first.depth_near
        return finalize(target, count, result, backgrounds_tar, depth, first.codec, **optional)


def _require_same_kind(one: ShardReader, other: ShardReader) -> None:
    """Raise `InputError` unless what two manifests say holds for all sets together."""
    kinds = []
    for store in (one, other):
        manifest = store.manifest
        kind = {name: value for name, value in msgspec.structs.asdict(manifest).items() if name not in MAY_DIFFER}
        if manifest.depth_encoding == NO_DEPTH:
            del kind["depth_near"]
        if manifest.codec == PLANES:
            kind["size of planes"] = manifest.plane_size
        kinds.append(kind)
    for name, value in kinds[0].items():
        if (differs := kinds[1].get(name)) != value:
            name = name.replace("_", " ")
            raise InputError(
                f"{one.location} has {name} {value}, {other.location} has {name} {differs}: only shards of one kind "
                f"can be merged; pack one of them again like the other"
            )


def _backgrounds(stores: Sequence[ShardReader]) -> dict[int, ShardReader]:
    """Where to take each background from; raise `InputError` if one id means two pictures."""
    origins = dict[int, tuple[ShardReader, tuple[int, int]]]()
    for store in stores:
        for one in store.manifest.backgrounds:
            first, picture = origins.setdefault(one.id, (store, (one.size, one.crc32)))
            if picture != (one.size, one.crc32):
                raise InputError(
                    f"background {one.id} of {store.location} is another picture than background {one.id} of "
                    f"{first.location}: ids have to differ where pictures do; "
                    f"pack one of them again under other numbers (--field)"
                )
    return {bg: store for bg, (store, _) in sorted(origins.items())}


def _require_distinct_sets(stores: Sequence[ShardReader]) -> None:
    keys, counts = np.unique(np.concatenate([store.index["key"] for store in stores]), return_counts=True)
    if (duplicates := keys[counts > 1]).size:
        holders = [str(store.location) for store in stores if duplicates[0] in store.index["key"]]
        raise InputError(
            f"{plural(duplicates.size, 'set is', 'sets are')} there twice, the first is {duplicates[0].decode()} "
            f"(in {' and '.join(holders)}): take one of these away, or pack it again under other numbers (--field)"
        )


def _pictures(backgrounds: dict[int, ShardReader]) -> Iterator[tuple[int, Picture]]:
    for bg, store in backgrounds.items():
        content = store.read_background(bg).tobytes()
        extension, height, width = stored_background(store.manifest.codec).check(content, "header")
        yield bg, Picture(extension, content, (height, width))


def _shards(stores: Sequence[ShardReader]) -> Iterator[tuple[Storage, ShardInfo, Rows, NDArray[np.int64]]]:
    """Each shard: storage, entry in the manifest, index rows, smallest and largest picture sizes [2, parts, 2]."""
    key_type = row_type(max(store.index.dtype["key"].itemsize for store in stores))
    for store in stores:
        manifest = store.manifest
        sizes = np.array([[manifest.sizes[name][end] for name in manifest.members] for end in ("min", "max")])
        rows = rows_of_shards(store.index, len(manifest.shards))
        for info, of_shard in zip(manifest.shards, rows, strict=True):
            if (found := store.storage.stat(info.name).size) != info.bytes:
                raise InputError(f"{store.storage / info.name} has {found:,} bytes, not {info.bytes:,}: copy it again")
            yield store.storage, info, of_shard.astype(key_type), sizes


def _name(store: ShardReader) -> str:
    """How files of a shard directory are told from those of others."""
    return (store.location.resolve() if isinstance(store.location, Path) else store.location).name


def _require_idx(storage: Storage, name: str, sets: int) -> None:
    """Raise `InputError` unless a file begins as the .idx of so many sets: no checksum tells what else it is."""
    start = f"v1.2 {sets}\n".encode()
    if bytes(storage.read(name, 0, len(start))) != start:
        path = storage / name
        raise InputError(f"{path} is not the index of {plural(sets, 'set')}: rebuild it (fgbg-check --repair-index)")


def _link_or_copy(storage: Storage, name: str, target: Path) -> None:
    """Make `target` a hard link to a file, or a copy of it from another file system or from object storage."""
    target.unlink(missing_ok=True)  # of a merge that was stopped
    source = storage / name
    if isinstance(source, Path):
        try:
            os.link(source.resolve(), target)
            return
        except FileNotFoundError:
            raise
        except OSError:
            pass
    with storage.open(name) as file, atomic_file(target) as copy:
        shutil.copyfileobj(file, copy, 1 << 20)


def _join_metadata(stores: Sequence[ShardReader], folder: Path) -> None:
    """Join the tables beside the shards; one that is not beside all of them, or is damaged, is left out and told."""
    for name in (LABELS, ORIGINS):
        files = [store.storage / name for store in stores]
        missing = [store.storage / name for store in stores if not _has(store.storage, name)]
        try:
            if missing and missing != files:
                raise InputError(f"{missing[0]} is missing, and half of it would pass for all of it")
            if not missing:
                join_table_files(files, folder / name)
        except InputError as error:
            log.warning("the merged shards have no %s: %s", name, error)


def _has(storage: Storage, name: str) -> bool:
    try:
        storage.stat(name)
    except FileNotFoundError:
        return False
    return True
