"""The reference that every loader has to agree with before it is timed, and the part of the shards that is loaded."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from pipeline.errors import InputError
from pipeline.format.depth import depth_table
from pipeline.format.images import decode_gray
from pipeline.format.manifest import BACKGROUNDS, Manifest, load_index, save_index
from pipeline.format.sample import PARTS
from pipeline.loading.shard_reader import ShardReader
from tools.peers.options import Loaded

COMPARED_SETS = 256
# Levels of 255, against Pillow's gray decode and antialiased resize. Decoders round differently, and at the border
# DALI's filter repeats the edge where Pillow's leaves the outside out; a wrong picture, a missing antialiasing or a
# resize before the depth table are far outside.
MEAN_TOLERANCE, P999_TOLERANCE = 0.6, 8


class Difference(NamedTuple):
    """How far a loader's pictures are from the reference, in levels of 255."""

    mean: float
    p999: float
    max: float


@contextmanager
def first_shards(shards: Path, sets: int, codec: str = "jpeg") -> Iterator[Path]:
    """A temporary shard directory of links to the first shards, as many as it takes to hold `sets` sets.

    Raises `InputError` for shards of another codec, or without depth.
    """
    manifest = Manifest.load(shards)
    if manifest.codec != codec:
        raise InputError(f"{shards} holds {manifest.codec}: give pictures with --shards, planes of them with --planes")
    if "depth" not in manifest.parts:
        raise InputError(f"the sets of {shards} have no depth: loaders are compared on sets with it, see fgbg-depth")
    index = load_index(shards, manifest)
    totals = np.cumsum([shard.sets for shard in manifest.shards])
    taken = min(int(np.searchsorted(totals, sets)) + 1, len(totals))
    with tempfile.TemporaryDirectory(prefix="fgbg-bench-") as name:
        folder = Path(name)
        kept = manifest.shards[:taken]
        indexes = [Path(shard.name).with_suffix(".idx").name for shard in kept]
        for file in (BACKGROUNDS, *(shard.name for shard in kept), *indexes):
            (folder / file).symlink_to((shards / file).resolve())
        rows = np.array(index[: totals[taken - 1]])
        replace(manifest, sets=len(rows), shards=kept, index_sha256=save_index(folder, len(rows), [rows])).save(folder)
        yield folder


class Reference:
    """The slow, obvious loader: Pillow decodes to gray, looks depth up in the table and resizes."""

    def __init__(self, shards: Path, size: int) -> None:
        self._store = ShardReader.open(shards)
        self._rows = {key.decode(): row for row, key in enumerate(self._store.index["key"].tolist())}
        self._table = depth_table(self._store.manifest.depth_encoding, self._store.manifest.depth_near)
        self._size = size
        self._stored_pixels: list[tuple[int, int]] = []

    @property
    def stored_pixels(self) -> tuple[float, float]:
        """Mean pixels, as stored, of a background and of all other pictures of a set, of the sets compared so far."""
        background, others = np.mean(self._stored_pixels, axis=0).tolist()
        return background, others

    @property
    def sets(self) -> int:
        """Sets in an epoch."""
        return len(self._rows)

    def compare(self, batches: Iterable[Loaded]) -> Difference:
        """Check a whole epoch: every key once, and the pictures of the first sets; raise `InputError` if not."""
        keys, differences = list[str](), list[np.ndarray]()
        for loaded in batches:
            batch_keys = loaded.keys()
            for sample, key in enumerate(batch_keys[: max(0, COMPARED_SETS - len(keys))]):
                expected = self._pictures(key)
                for part, pictures in loaded.pictures.items():
                    found = torch.as_tensor(pictures[sample, 0]).cpu().float()
                    found = found * 255 if pictures.dtype == torch.float32 else found
                    differences.append(np.abs(found.numpy() - expected[part]).ravel())
            keys += batch_keys
        if sorted(keys) != sorted(self._rows):
            raise InputError(f"an epoch gave {len(keys):,} sets, {len(set(keys)):,} of them different; the shards hold "
                             f"{len(self._rows):,}")  # fmt: skip
        levels = np.concatenate(differences)
        difference = Difference(float(levels.mean()), float(np.quantile(levels, 0.999)), float(levels.max()))
        if difference.mean > MEAN_TOLERANCE or difference.p999 > P999_TOLERANCE:
            raise InputError(f"the pictures differ by {difference} levels: more than {MEAN_TOLERANCE} in the mean or "
                             f"{P999_TOLERANCE} in 99.9 % of the pixels")  # fmt: skip
        return difference

    def _pictures(self, key: str) -> dict[str, np.ndarray]:
        row = self._rows[key]
        background = self._store.read_background(int(self._store.index["bg"][row]))
        grays = [decode_gray(data.tobytes()) for data in (background, *self._store.read(row))]
        self._stored_pixels.append((grays[0].size, sum(gray.size for gray in grays[1:])))
        grays[3] = self._table[grays[3]]
        resized = [Image.fromarray(gray).resize((self._size,) * 2, Image.Resampling.BILINEAR) for gray in grays]
        return dict(zip(("bg", *PARTS), (np.asarray(picture, dtype=np.float32) for picture in resized), strict=True))
