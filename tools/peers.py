"""The other loaders and writers that fgbg-bench measures beside ours, each on the same shards.

Every loader is a function of (shards, LoadOptions) that makes an iterable; iterating it is an epoch of `Loaded`.
"""

import functools
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.dlpack import from_dlpack

from pipeline.decode import Table, decode_part
from pipeline.depth import depth_table
from pipeline.finding.sets import Sets
from pipeline.index import Manifest, load_index
from pipeline.loader import Loader
from pipeline.parts import PARTS, set_key
from pipeline.store import Store


@dataclass(frozen=True)
class LoadOptions:
    """What all loaders are asked for alike."""

    batch_size: int
    size: int
    device: str
    workers: int
    """DALI threads, or DataLoader processes."""


class Loaded(NamedTuple):
    """A batch of any loader."""

    sets: int
    keys: Callable[[], list[str]]
    """Asked by the check of the pictures, and not while the clock runs."""
    pictures: dict[str, torch.Tensor]
    """For each part [sets, 1 or 3, size, size], uint8 0..255 or float32 0..1."""


def ours(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """`pipeline.loader.Loader`."""
    return _Ours(shards, options)


class _Ours:
    def __init__(self, shards: Path, options: LoadOptions) -> None:
        self._loader = Loader(
            shards, "all", options.batch_size, options.size, options.device, threads=options.workers, prefetch=4
        )
        self._keys = load_index(shards, self._loader.manifest)["key"]

    def __iter__(self) -> Iterator[Loaded]:
        for batch in self._loader:
            pictures = {name: picture for name, picture in vars(batch).items() if name != "index"}
            yield Loaded(len(batch.index), functools.partial(self._keys_of, batch.index), pictures)

    def _keys_of(self, index: torch.Tensor) -> list[str]:
        return [key.decode() for key in self._keys[index.numpy(force=True)].tolist()]


def dali_reader(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """`fn.readers.webdataset` with our .idx and the same graph behind it, without CRCs and without backgrounds."""
    return _DaliReader(shards, options)


class _DaliReader:
    def __init__(self, shards: Path, options: LoadOptions) -> None:
        from nvidia.dali import Pipeline, fn

        self._manifest = Manifest.load(shards)
        tars = [shards / shard.name for shard in self._manifest.shards]
        tables: list[Table] = [None, None, depth_table(self._manifest.depth_encoding, self._manifest.depth_near)]
        on_gpu = options.device == "gpu"
        self._batch_size = options.batch_size
        self._graph = Pipeline(
            options.batch_size, options.workers, torch.cuda.current_device() if on_gpu else None, prefetch_queue_depth=4
        )
        with self._graph:
            contents: Any = fn.readers.webdataset(
                paths=[str(tar) for tar in tars],
                index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
                ext=[*(f"{part}.jpg;{part}.png" for part in PARTS), "json"],
                random_shuffle=True,
                initial_fill=1024,
                tensor_init_bytes=32768,
                name="reader",
            )
            *parts, notes = contents
            decoder = "mixed" if on_gpu else "cpu"
            tasks = zip(parts, tables, strict=True)
            self._graph.set_outputs(*(decode_part(part, table, options.size, decoder) for part, table in tasks), notes)

    def __iter__(self) -> Iterator[Loaded]:
        left = self._manifest.sets
        while left:
            *pictures, notes = self._graph.run()
            count = min(left, self._batch_size)
            left -= count  # the reader fills the last batch of an epoch from the next epoch
            parts = [from_dlpack(part.as_tensor()).clone().movedim(3, 1)[:count] for part in pictures]
            yield Loaded(count, functools.partial(_noted_keys, notes, count), dict(zip(PARTS, parts, strict=True)))


def _noted_keys(notes: Any, count: int) -> list[str]:
    contents = [json.loads(notes.at(sample).tobytes()) for sample in range(count)]
    return [set_key(content["fg"], content["bg"], content["id"]) for content in contents]


def seed(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """What the original S15 code does: Pillow, four decodes a set, Resize + Grayscale(3) + ToTensor, DataLoader."""
    return _data_loader(_SeedDataset(shards, options.size), options, shuffle=True, collate_fn=_collate)


class _SeedDataset(Dataset[tuple[str, list[torch.Tensor]]]):
    """The original read loose files; reading the same bytes out of tars spares it the opening of 4 files a set."""

    def __init__(self, shards: Path, size: int) -> None:
        self._shards, self._size = shards, size
        self._store: Store | None = None

    def __len__(self) -> int:
        return Manifest.load(self._shards).sets

    def __getitem__(self, row: int) -> tuple[str, list[torch.Tensor]]:
        if self._store is None:  # opened in the worker
            self._store = Store.open(self._shards)
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
    manifest = Manifest.load(shards)
    urls = [str(shards / shard.name) for shard in manifest.shards]
    table = depth_table(manifest.depth_encoding, manifest.depth_near).tolist()
    samples = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .map(functools.partial(_gray_planes, table=table, size=options.size, backgrounds=_Backgrounds(shards)))
    )
    return _data_loader(samples, options, collate_fn=_collate)


class _Backgrounds:
    """id -> gray plane, decoded at first use, so that it travels to workers empty."""

    def __init__(self, shards: Path) -> None:
        self._shards, self._planes = shards, dict[int, torch.Tensor]()

    def __call__(self, bg: int, size: int) -> torch.Tensor:
        if not self._planes:
            store = Store.open(self._shards)
            for background in store.manifest.backgrounds:
                picture = Image.open(io.BytesIO(store.read_background(background.id).tobytes()))
                self._planes[background.id] = _plane(picture, size)
        return self._planes[bg]


def _plane(picture: Image.Image, size: int) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("L").resize((size, size), Image.Resampling.BILINEAR)))[None]


def _gray_planes(
    sample: dict[str, Any], table: list[int], size: int, backgrounds: _Backgrounds
) -> tuple[str, list[torch.Tensor]]:
    found = [next(value for name, value in sample.items() if name.split(".")[0] == part) for part in PARTS]
    found[2] = found[2].convert("L").point(table)
    planes = [_plane(picture, size) for picture in found]
    return sample["__key__"], [backgrounds(sample["json"]["bg"], size), *planes]


def _collate(samples: list[tuple[str, list[torch.Tensor]]]) -> Loaded:
    keys, pictures = zip(*samples, strict=True)
    stacked = [torch.stack(part) for part in zip(*pictures, strict=True)]
    return Loaded(len(keys), functools.partial(list, keys), dict(zip(("bg", *PARTS), stacked, strict=True)))


def _data_loader(dataset: Any, options: LoadOptions, **settings: Any) -> Iterable[Loaded]:
    # Spawned workers: a fork would copy DALI's locks. They persist, so that only the warm-up pays for their start.
    return DataLoader(
        dataset, options.batch_size, num_workers=options.workers, multiprocessing_context="spawn",
        persistent_workers=True, **settings,
    )  # fmt: skip


LOADERS: dict[str, Callable[[Path, LoadOptions], Iterable[Loaded]]] = {
    "ours": ours,
    "dali-reader": dali_reader,
    "seed": seed,
    "webdataset": webdataset_pillow,
}


def pack_with_shard_writer(source: Path, target: Path, sets: Sets) -> None:
    """`webdataset.ShardWriter` on the same files, 1,000 sets a tar, nothing checked."""
    with webdataset.ShardWriter(str(target / "sets-%06d.tar"), maxcount=1000, verbose=0) as writer:
        for position in range(len(sets)):
            files = sets[position]
            parts = {f"{part}.jpg": (source / path).read_bytes() for part, path in zip(PARTS, files.paths, strict=True)}
            note = {"bg": files.bg, "fg": files.fg, "id": files.number}
            writer.write({"__key__": files.key, **parts, "json": note})
