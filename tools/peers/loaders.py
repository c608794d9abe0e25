"""The loaders that fgbg-bench measures, ours and others, each on the same shards.

Every loader is a function of (shards, LoadOptions) that makes an iterable; iterating it is an epoch of `Loaded`.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from pipeline.errors import InputError
from pipeline.format.depth import depth_table
from pipeline.format.manifest import Manifest
from pipeline.format.sample import PARTS, set_key
from pipeline.loading.decode import DecodeOptions, Table, decode_part, results_stream
from pipeline.loading.loader import Loader
from tools.peers.options import Loaded, LoadOptions
from tools.peers.pillow import seed, webdataset_pillow

PACKAGES = {"streaming": "mosaicml-streaming", "litdata": "litdata"}
"""Loader, which is what its module is called, too -> the package; imported only when the loader is asked for."""
INSTALL = "install the peers (make peers, or pip install --no-deps -r peers.txt), or leave them out (--loader)"


def our_loader(shards: Path, split: str, options: LoadOptions) -> Loader:
    """`pipeline.loading.loader.Loader` under these options."""
    return Loader(
        shards,
        split,
        batch_size=options.batch_size,
        size=options.size,
        device=options.device,
        threads=options.workers,
        prefetch=options.prefetch,
        resident=options.resident,
        hw_decoder_load=options.hw_decoder_load,
    )


def ours(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """`pipeline.loading.loader.Loader`."""
    return _Ours(shards, options)


def ours_resident(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """The same, with the decoded sets of its first epoch kept on the device."""
    return _Ours(shards, replace(options, resident="device"))


class _Ours:
    """Close it when it is done with."""

    def __init__(self, shards: Path, options: LoadOptions) -> None:
        self._loader = our_loader(shards, "all", options)

    def __iter__(self) -> Iterator[Loaded]:
        for batch in self._loader:
            pictures = {name: picture for name, picture in vars(batch).items() if name != "index"}
            yield Loaded(len(batch.index), functools.partial(self._keys_of, batch.index), pictures)

    def _keys_of(self, index: torch.Tensor) -> list[str]:
        return [self._loader.key(row) for row in index.tolist()]

    def close(self) -> None:
        """End its threads."""
        self._loader.close()


def dali_reader(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """`fn.readers.webdataset` with our .idx and the same graph behind it, without CRCs and without backgrounds."""
    return _DaliReader(shards, options)


class _DaliReader:
    def __init__(self, shards: Path, options: LoadOptions) -> None:
        from nvidia.dali import Pipeline, fn

        self._manifest = Manifest.load(shards)
        tars = [shards / shard.name for shard in self._manifest.shards]
        tables: list[Table] = [None, None, depth_table(self._manifest.depth_encoding, self._manifest.depth_near)]
        self._batch_size = options.batch_size
        self._device = options.device
        asked = DecodeOptions(
            options.batch_size,
            options.size,
            options.device,
            options.workers,
            options.prefetch,
            options.hw_decoder_load,
        )
        self._graph = Pipeline(
            options.batch_size,
            options.workers,
            torch.cuda.current_device() if options.device == "gpu" else None,
            prefetch_queue_depth=options.prefetch,
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
            tasks = zip(parts, tables, strict=True)
            self._graph.set_outputs(*(decode_part(part, table, asked) for part, table in tasks), notes)

    def __iter__(self) -> Iterator[Loaded]:
        left = self._manifest.sets
        while left:
            *pictures, notes = self._graph.run(results_stream(self._device))
            count = min(left, self._batch_size)
            left -= count  # the reader fills the last batch of an epoch from the next epoch
            parts = [from_dlpack(part.as_tensor()).clone().movedim(3, 1)[:count] for part in pictures]
            yield Loaded(count, functools.partial(_noted_keys, notes, count), dict(zip(PARTS, parts, strict=True)))


def _noted_keys(notes: Any, count: int) -> list[str]:
    contents = [json.loads(notes.at(sample).tobytes()) for sample in range(count)]
    return [set_key(content["fg"], content["bg"], content["id"]) for content in contents]


def streaming(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """MosaicML Streaming; raise `InputError` if it is not installed."""
    with _installed("streaming"):
        from tools.peers.mosaic import StreamingLoader
    return StreamingLoader(shards, options)


def litdata(shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """LitData; raise `InputError` if it is not installed."""
    with _installed("litdata"):
        from tools.peers.lit import LitDataLoader
    return LitDataLoader(shards, options)


@contextmanager
def _installed(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InputError(missing_peer(name) or f"{error}: {INSTALL}") from error


def missing_peer(name: str) -> str | None:
    """Why a loader of `LOADERS` cannot be measured here, in one line with the remedy; None if it can."""
    if name in PACKAGES and find_spec(name) is None:
        return f"{PACKAGES[name]} is not installed: {INSTALL}"
    return None


LOADERS: dict[str, Callable[[Path, LoadOptions], Iterable[Loaded]]] = {
    "ours": ours,
    "ours-resident": ours_resident,
    "dali-reader": dali_reader,
    "seed": seed,
    "webdataset": webdataset_pillow,
    "streaming": streaming,
    "litdata": litdata,
}
