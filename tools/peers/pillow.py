"""Loaders that decode with Pillow in DataLoader workers: the original's and stock `webdataset`, and what such share."""

import functools
import io
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.devices import torch_device
from pipeline.format.depth import depth_table
from pipeline.format.manifest import Manifest
from pipeline.format.sample import PARTS
from pipeline.loading.shard_reader import ShardReader
from tools.peers.options import Loaded, LoadOptions

Planes = tuple[str, list[torch.Tensor]]
"""The key of a set and its pictures, bg first, each [1 or 3, size, size]."""


def seed(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """What the original S15 code does: Pillow, four decodes a set, Resize + Grayscale(3) + ToTensor, DataLoader."""
    batches: DataLoader[Any] = DataLoader(_SeedDataset(shards, options.size), shuffle=True, **worker_settings(options))
    return PillowLoader(batches, options)


class _SeedDataset(Dataset[Planes]):
    """The original read loose files; reading the same bytes out of tars spares it the opening of 4 files a set."""

    def __init__(self, shards: Path, size: int) -> None:
        self._shards, self._size = shards, size
        self._store: ShardReader | None = None

    def __len__(self) -> int:
        return Manifest.load(self._shards).sets

    def __getitem__(self, row: int) -> Planes:
        if self._store is None:  # opened in the worker
            self._store = ShardReader.open(self._shards)
            manifest = self._store.manifest
            self._coloured = manifest.depth_encoding != "gray"
            self._table = depth_table(manifest.depth_encoding, manifest.depth_near).tolist()
        background = self._store.read_background(int(self._store.index["bg"][row]))
        pictures: list[Image.Image] = [
            Image.open(io.BytesIO(data.tobytes())) for data in (background, *self._store.read(row))
        ]
        if self._coloured:
            pictures[3] = pictures[3].convert("L").point(self._table)
        return self._store.key(row), [self._transform(picture) for picture in pictures]

    def _transform(self, picture: Image.Image) -> torch.Tensor:
        # torchvision's Resize, Grayscale(num_output_channels=3) and ToTensor, step by step as it does them on pictures.
        gray = np.array(picture.resize((self._size, self._size), Image.Resampling.BILINEAR).convert("L"))
        three_channels = np.array(Image.fromarray(np.dstack([gray, gray, gray])))
        return torch.from_numpy(three_channels).permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def webdataset_pillow(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """Stock `webdataset` with its Pillow decoder, gray and resize in its workers; backgrounds decoded once a worker."""
    urls = [str(shards / shard.name) for shard in Manifest.load(shards).shards]
    samples = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .map(functools.partial(_sample_planes, gray=GrayPlanes(shards, options.size)))
    )
    return PillowLoader(DataLoader(samples, **worker_settings(options)), options)


class GrayPlanes:
    """Makes of a set's pictures gray planes of one size, [1, size, size]; backgrounds are decoded once a worker."""

    def __init__(self, shards: Path, size: int) -> None:
        manifest = Manifest.load(shards)
        self._shards, self._size = shards, size
        self._table = depth_table(manifest.depth_encoding, manifest.depth_near).tolist()
        self._backgrounds = dict[int, torch.Tensor]()  # filled at first use, so that it travels to workers empty

    def __call__(self, bg: int, pictures: Sequence[Image.Image]) -> list[torch.Tensor]:
        """The planes of background `bg` and of `pictures`, which are one for each of PARTS."""
        if not self._backgrounds:
            store = ShardReader.open(self._shards)
            for background in store.manifest.backgrounds:
                picture = Image.open(io.BytesIO(store.read_background(background.id).tobytes()))
                self._backgrounds[background.id] = self._plane(picture)
        overlay, mask, depth = pictures
        depth = depth.convert("L").point(self._table)
        return [self._backgrounds[bg], *(self._plane(picture) for picture in (overlay, mask, depth))]

    def _plane(self, picture: Image.Image) -> torch.Tensor:
        gray = picture.convert("L").resize((self._size, self._size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(gray))[None]


def _sample_planes(sample: dict[str, Any], gray: GrayPlanes) -> Planes:
    pictures = [next(value for name, value in sample.items() if name.split(".")[0] == part) for part in PARTS]
    return sample["__key__"], gray(sample["json"]["bg"], pictures)


class PillowLoader:
    """Batches of a DataLoader as `Loaded`, on the device; an iteration is an epoch. Letting it go ends the workers."""

    def __init__(self, batches: DataLoader[Any], options: LoadOptions) -> None:
        """`batches` has `worker_settings`."""
        self._batches, self._device = batches, torch_device(options.device)
        # LitData's iterator and loader hold each other; workers that live until the interpreter's end are killed there.
        weakref.finalize(self, setattr, batches, "_iterator", None)

    def __iter__(self) -> Iterator[Loaded]:
        for keys, parts in self._batches:
            moved = [part.to(self._device, non_blocking=True) for part in parts]
            yield Loaded(len(keys), functools.partial(list, keys), dict(zip(("bg", *PARTS), moved, strict=True)))


def worker_settings(options: LoadOptions) -> dict[str, Any]:
    """Arguments of a DataLoader, or of what is derived from it, whose dataset gives `Planes`."""
    # Spawned workers: a fork would copy DALI's locks. They persist, so that only the warm-up pays for their start.
    return {
        "batch_size": options.batch_size,
        "num_workers": options.workers,
        "collate_fn": _collate,
        "pin_memory": options.device == "gpu",
        "persistent_workers": True,
        "multiprocessing_context": "spawn",
    }


def _collate(samples: list[Planes]) -> tuple[list[str], list[torch.Tensor]]:
    keys, planes = zip(*samples, strict=True)
    return list(keys), [torch.stack(part) for part in zip(*planes, strict=True)]
