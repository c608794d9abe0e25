"""Peers that decode with Pillow in DataLoader workers: the original's loader, webdataset, Streaming and LitData.

The last two read formats of their own, which are written from the shards once. Their packages are imported only when
they are asked for.
"""

import functools
import importlib.util
import io
import os
import pickle
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from benchmarks.harness import Loaded
from pipeline.devices import torch_device
from pipeline.errors import InputError
from pipeline.format.depth import depth_table
from pipeline.format.images import gray_levels, is_16_bit
from pipeline.format.manifest import Manifest
from pipeline.format.sample import PARTS
from pipeline.loading.shard_reader import Damaged, ShardReader
from pipeline.resume import UNFINISHED, resumable
from tools.bench_loader import LoadOptions

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
        self._reader: ShardReader | None = None

    def __len__(self) -> int:
        return Manifest.load(self._shards).sets

    def __getitem__(self, row: int) -> Planes:
        if self._reader is None:  # opened in the worker
            self._reader = ShardReader.open(self._shards)
            manifest = self._reader.manifest
            self._coloured = manifest.depth_encoding != "gray"
            self._table = depth_table(manifest.depth_encoding, manifest.depth_near).tolist()
        background = self._reader.read_background(int(self._reader.index["bg"][row]))
        pictures = [open_8_bits(data.tobytes()) for data in (background, *self._reader.read(row))]
        if self._coloured:
            pictures[3] = pictures[3].convert("L").point(self._table)
        return self._reader.key(row), [self._transform(picture) for picture in pictures]

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
        .decode(sixteen_bits, "pil")
        .map(functools.partial(_sample_planes, gray=GrayPlanes(shards, options.size)))
    )
    return PillowLoader(DataLoader(samples, **worker_settings(options)), options)


def open_8_bits(content: bytes) -> Image.Image:
    """A picture as Pillow opens it, but gray where it has palettes, alpha or 16 bits, which Pillow would cut off."""
    picture = Image.open(io.BytesIO(content))
    return picture if picture.mode in ("L", "RGB") else Image.fromarray(gray_levels(picture))


def sixteen_bits(name: str, content: bytes) -> Image.Image | None:
    """What stands for webdataset's decoder where that would cut 16 bits off; None elsewhere."""
    return open_8_bits(content).convert("RGB") if is_16_bit(content) else None


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
            reader = ShardReader.open(self._shards)
            for background in reader.manifest.backgrounds:
                picture = open_8_bits(reader.read_background(background.id).tobytes())
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
        self.batches, self._device = batches, torch_device(options.device)
        # LitData's iterator and loader hold each other; workers that live until the interpreter's end are killed there.
        weakref.finalize(self, setattr, batches, "_iterator", None)

    def __iter__(self) -> Iterator[Loaded]:
        for keys, parts in self.batches:
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


# Formats of their own.


def sample(reader: ShardReader, row: int) -> dict[str, Any]:
    """What other formats hold of a set: its key, the id of its background (bg), and the bytes of each of PARTS."""
    parts = {part: data.tobytes() for part, data in zip(PARTS, reader.read(row), strict=True)}
    return {"key": reader.key(row), "bg": int(reader.index["bg"][row]), **parts}


def decoded(found: dict[str, Any], gray: GrayPlanes) -> Planes:
    """Decode what another loader gives back of a `sample`."""
    return found["key"], gray(found["bg"], [open_8_bits(found[part]) for part in PARTS])


def in_format(package: str, shards: Path, cache: Path, write: Callable[[Path, Path, Path], None]) -> Path:
    """The folder with the sets of `shards` as `package` stores them, written if it is not there.

    `write(shards, folder, scratch)` makes the first folder of two that do not exist; the second is removed. The sets
    are told by the hash of their manifest, so that the same sets are written once, wherever they lie. Raises
    `InputError` for sets that are damaged, and while another process writes them.
    """
    home = cache.expanduser() / f"{package}-{version(package)}-{Manifest.load(shards).sha256[:16]}"
    folder = home / "sets"
    if not folder.exists() or (home / UNFINISHED).exists():
        with resumable(home, {"command": f"fgbg-bench for {package}"}) as notes:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            scratch = notes / ".scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            _require_intact(shards)
            write(shards, folder, scratch)
    return folder


def _require_intact(shards: Path) -> None:
    # Before others read them in processes of their own, which have other ways of saying that they cannot.
    reader = ShardReader.open(shards)
    try:
        for row in range(len(reader.index)):
            reader.read(row)
    except Damaged as error:
        raise InputError(f"{error}: loaders are compared on whole sets, see fgbg-check --shards {shards}") from error


def litdata_pillow(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """LitData's `StreamingDataset` over local chunks, which it maps in place, with its own shuffle."""
    return _litdata(shards, options, str(litdata_format(shards, options.cache)))


def litdata_remote(url: str, shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """The same over chunks in object storage, through a cache of its own that is new."""
    cache = tempfile.mkdtemp(prefix="fgbg-litdata-")
    loader = _litdata(shards, options, url, cache_dir=cache)
    loader.batches.worker_init_fn = _allow_http
    weakref.finalize(loader, shutil.rmtree, cache, ignore_errors=True)
    return loader


def _allow_http(worker: int) -> None:
    # It hands an endpoint without TLS, as a gateway on this machine has, on to obstore, which refuses it unless told.
    downloader: Any = importlib.import_module("litdata.streaming.downloader")
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True


def _litdata(shards: Path, options: LoadOptions, place: str, **more: Any) -> PillowLoader:
    import litdata

    decode = functools.partial(decoded, gray=GrayPlanes(shards, options.size))
    sets = litdata.StreamingDataset(place, shuffle=True, transform=decode, **more)
    return PillowLoader(litdata.StreamingDataLoader(sets, **worker_settings(options)), options)


def litdata_format(shards: Path, cache: Path) -> Path:
    """The sets as LitData stores them: see `in_format`."""
    return in_format("litdata", shards, cache, _write_litdata)


def _write_litdata(shards: Path, folder: Path, scratch: Path) -> None:
    import litdata

    with _environment(DATA_OPTIMIZER_CACHE_FOLDER=str(scratch), DATA_OPTIMIZER_DATA_CACHE_FOLDER=str(scratch)):
        litdata.optimize(
            functools.partial(_litdata_sample, shards=shards),
            inputs=list(range(len(ShardReader.open(shards).index))),
            output_dir=str(folder),
            chunk_bytes="64MB",
            num_workers=1,
            keep_data_ordered=True,
            verbose=False,
        )


def _litdata_sample(row: int, shards: Path) -> dict[str, Any]:
    return sample(_opened(shards), row)


_opened = functools.lru_cache(maxsize=1)(ShardReader.open)  # opened once, in the process that LitData writes in


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


# `import streaming` imports its ready-made data sets, too, and with them these names of packages of gigabytes, which
# nothing of what is used here calls: its DataLoader asks whether a batch is of one of the classes of transformers.
UNUSED = {
    "torchvision": (),
    "torchvision.datasets": ("VisionDataset",),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("to_tensor",),
    "transformers": (),
    "transformers.feature_extraction_utils": ("BatchFeature",),
    "transformers.models": (),
    "transformers.models.auto": (),
    "transformers.models.auto.tokenization_auto": ("AutoTokenizer",),
    "transformers.tokenization_utils_base": ("BatchEncoding",),
}


def import_streaming() -> Any:
    """Import MosaicML Streaming; empty classes stand in for `UNUSED`, as far as their packages are not installed."""
    missing = {name for name in UNUSED if importlib.util.find_spec(name.split(".")[0]) is None}
    for name in missing:
        sys.modules[name] = module = ModuleType(name)
        vars(module).update({unused: type(unused, (), {}) for unused in UNUSED[name]})
    try:
        return importlib.import_module("streaming")
    finally:
        for name in missing:  # others find out by an import whether the packages are there
            del sys.modules[name]


def streaming_pillow(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """MosaicML's `StreamingDataset` over local MDS shards with its own shuffle."""
    return _streaming(shards, options, local=str(streaming_format(shards, options.cache)))


def streaming_remote(url: str, shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """The same over MDS shards in object storage, through a folder of its own that is new."""
    return _streaming(shards, options, remote=url)


def _streaming(shards: Path, options: LoadOptions, local: str | None = None, remote: str | None = None) -> PillowLoader:
    streaming = import_streaming()
    own = tempfile.mkdtemp(prefix="fgbg-streaming-")
    with _temporary_files(own):
        place = {"local": local or f"{own}/sets", "remote": remote}
        sets = streaming.StreamingDataset(**place, shuffle=True, batch_size=options.batch_size)
    sets = _StreamingSets(sets, GrayPlanes(shards, options.size))
    loader = PillowLoader(streaming.StreamingDataLoader(sets, **worker_settings(options)), options)
    weakref.finalize(loader, shutil.rmtree, own, ignore_errors=True)
    return loader


def streaming_format(shards: Path, cache: Path) -> Path:
    """The sets as MosaicML Streaming stores them: see `in_format`."""
    return in_format("mosaicml-streaming", shards, cache, _write_streaming)


class _StreamingSets(IterableDataset[Planes]):
    """A `StreamingDataset`, decoded; spawned workers import Streaming as we do before they are given it."""

    def __init__(self, sets: Any, gray: GrayPlanes) -> None:
        self._sets, self._gray = sets, gray

    def __iter__(self) -> Iterator[Planes]:
        for found in self._sets:
            yield decoded(found, self._gray)

    def __reduce__(self) -> tuple[Any, ...]:
        return _streaming_sets, (pickle.dumps(self._sets), self._gray)


def _streaming_sets(pickled: bytes, gray: GrayPlanes) -> _StreamingSets:
    import_streaming()
    return _StreamingSets(pickle.loads(pickled), gray)


def _write_streaming(shards: Path, folder: Path, scratch: Path) -> None:
    reader, columns = ShardReader.open(shards), {"key": "str", "bg": "int", **dict.fromkeys(PARTS, "bytes")}
    with import_streaming().MDSWriter(columns=columns, out=str(folder)) as writer:
        for row in range(len(reader.index)):
            writer.write(sample(reader, row))


@contextmanager
def _temporary_files(folder: str) -> Iterator[None]:
    """Let temporary files go to `folder`: Streaming leaves its lock files behind."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before
