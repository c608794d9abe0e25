"""The shards as a stock `webdataset` pipeline, for training loops that are built on one.

`Loader` is many times faster, compares checksums and can be resumed at any step; this is for code that wants samples,
mixes several data sets, or runs where NVIDIA DALI does not.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.files import ReadFile
from pipeline.format.depth import WITH_HOLES, depth_table
from pipeline.format.images import BadImage, decode_gray
from pipeline.format.manifest import Manifest
from pipeline.format.planes import PLANES, decode_set, decompress_frames
from pipeline.format.sample import PARTS, UNKNOWN
from pipeline.loading.shard_reader import ShardReader
from pipeline.loading.split import CELL_SPLITS, SPLITS, Membership
from pipeline.regular_files import open_regular
from pipeline.storage import location_of

if TYPE_CHECKING:
    import webdataset

BUFFER_SETS = 1000  # that are shuffled among each other, beside the shuffled order of the shards

RawSample = dict[str, Any]
"""What webdataset makes of a set: `__key__`, and for each of its files its extension -> its bytes."""


def as_webdataset(
    shards: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int = 128,
    shuffle: bool = True,
    seed: int | None = None,
) -> "webdataset.WebDataset":
    """A `webdataset.WebDataset` of one split's sets, for a `torch.utils.data.DataLoader` with `batch_size=None` or N.

    A sample is a dict: `__key__` (str), `bg_id` and `fg_id` (int), and `bg`, `fg_bg`, `mask` and, where the sets have
    it, `depth`: uint8 [1, size, size], gray (ITU-R BT.601), near is bright, resized by Pillow's antialiased bilinear
    filter: the loader's pictures but for rounding. Of depth with holes also `depth_valid`, bool [1, size, size], False
    where depth is 0 since nothing was measured there. Shards go to nodes and workers as a whole; the order depends on
    their number, unlike the loader's. It is another in each epoch; with a `seed`, the same in each. `size` in pixels;
    planes have one of their own, which it must be.

    Raises `InputError` for a directory that is no shard directory, another split than train, val, test, their cells
    and all, and planes of another size.
    """
    import webdataset

    place = location_of(shards)
    if not isinstance(place, Path):
        raise InputError(f"webdataset cannot read {place}: copy the shards to a folder, or use Loader")
    shards = place
    manifest = ShardReader.open(shards).manifest
    if split not in (*SPLITS, *CELL_SPLITS, "all"):
        raise InputError(f"no split called {split!r} here: expected one of {', '.join((*SPLITS, *CELL_SPLITS))} or all")
    if manifest.codec == PLANES and size != manifest.plane_size:
        raise InputError(f"{shards} holds planes of {manifest.plane_size} pixels, size {size} was asked for")
    for shard in manifest.shards:
        ReadFile(shards / shard.name, open_regular)  # webdataset would wait for a pipe
    samples = webdataset.WebDataset(
        [str(shards / shard.name) for shard in manifest.shards],
        shardshuffle=len(manifest.shards) if shuffle else False,
        nodesplitter=webdataset.split_by_node,
        seed=seed,
        empty_check=False,  # a worker may have no shard
    )
    if shuffle:
        samples = samples.shuffle(BUFFER_SETS, seed=seed)
    return samples.map(_read_ids).select(_InSplit(split)).map(_PillowDecoder(shards, size))


def _read_ids(sample: RawSample) -> RawSample:
    """With bg_id and fg_id; raise `InputError` where the json does not tell them."""
    try:
        metadata = json.loads(sample["json"])
        ids = {"bg_id": metadata["bg"], "fg_id": UNKNOWN if metadata["fg"] is None else metadata["fg"]}
        if not all(type(number) is int for number in ids.values()):
            raise ValueError(ids)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{sample['__key__']}: its json is missing or damaged: see fgbg-check") from error
    return {**sample, **ids}


class _InSplit:
    """Whether a sample belongs to a split; travels to the workers of a DataLoader."""

    def __init__(self, split: str) -> None:
        self._contains = Membership(split)

    def __call__(self, sample: RawSample) -> bool:
        ids = (np.array([sample[name]], np.int32) for name in ("bg_id", "fg_id"))
        return bool(self._contains(*ids)[0])


class _PillowDecoder:
    """Makes planes of a sample's files; backgrounds are decoded once a worker."""

    def __init__(self, shards: Path, size: int) -> None:
        self._shards, self._size = shards, size
        self._manifest: Manifest | None = None  # read at first use, so that what travels to a worker is small
        self._backgrounds = dict[int, NDArray[np.uint8]]()

    def __call__(self, sample: RawSample) -> RawSample:
        """`__key__`, the ids, and the planes, uint8 [1, size, size]."""
        if self._manifest is None:
            self._open()
        assert self._manifest is not None
        try:
            bg = self._backgrounds[sample["bg_id"]]
            planes = {"bg": bg, **self._decode(sample, bg, self._manifest)}
        except (KeyError, ValueError, BadImage) as error:
            raise InputError(f"{sample['__key__']}: its pictures are missing or damaged: see fgbg-check") from error
        named = {name: torch.from_numpy(np.array(plane)[None]) for name, plane in planes.items()}
        if self._holes:
            named["depth_valid"] = named["depth"] > 0
        return {"__key__": sample["__key__"], "bg_id": sample["bg_id"], "fg_id": sample["fg_id"], **named}

    def _open(self) -> None:
        reader = ShardReader.open(self._shards)
        self._manifest = reader.manifest
        for background in reader.manifest.backgrounds:
            content = reader.read_background(background.id)
            if reader.manifest.codec == PLANES:
                [plane] = decompress_frames([content.data], self._size**2)
                self._backgrounds[background.id] = plane.reshape(self._size, self._size)
            else:
                self._backgrounds[background.id] = self._resized(decode_gray(content.tobytes()))
        self._table = depth_table(self._manifest.depth_encoding, self._manifest.depth_near) if self._deep else None
        reader.close()

    @property
    def _holes(self) -> bool:
        return self._manifest is not None and self._manifest.depth_encoding == WITH_HOLES

    @property
    def _deep(self) -> bool:
        return self._manifest is not None and "depth" in self._manifest.parts

    def _decode(self, sample: RawSample, bg: NDArray[np.uint8], manifest: Manifest) -> Mapping[str, NDArray[np.uint8]]:
        parts = [part for part in PARTS if part in manifest.parts]
        if manifest.codec == PLANES:
            return dict(zip(parts, decode_set(sample[f"{PLANES}.zst"], bg, len(parts)), strict=True))
        planes = {}
        for part in parts:
            [content] = [sample[name] for name in sample if name.partition(".")[0] == part]
            gray = decode_gray(content)
            if part == "depth" and self._table is not None:
                gray = self._table[gray]  # before any resizing: a mean of codes is not the code of the mean
            planes[part] = self._resized_measured(gray) if part == "depth" and self._holes else self._resized(gray)
        return planes

    def _resized(self, gray: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(Image.fromarray(gray).resize((self._size, self._size), Image.Resampling.BILINEAR))

    def _resized_measured(self, depth: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """As `decode.decode_part` resizes depth with holes."""
        levels, share = (self._resized(plane.astype(np.float32)) for plane in (depth, depth > 0))
        mean = np.rint(np.clip(levels / np.maximum(share, 0.5), 1, 255))
        return np.where(share >= 0.5, mean, 0).astype(np.uint8)
