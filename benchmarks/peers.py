"""The loaders of a race by name, ours and its peers, each on the same shards; and DALI's own reader among them.

Every loader is a function of (shards, LoadOptions) that makes an iterable; iterating it is an epoch of `Loaded`.
"""

import functools
import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from benchmarks.harness import Loaded, Make
from benchmarks.peers_pillow import litdata_pillow, seed, streaming_pillow, webdataset_pillow
from pipeline.errors import InputError
from pipeline.format.depth import depth_table
from pipeline.format.manifest import Manifest
from pipeline.format.sample import PARTS, set_key
from pipeline.loading.decode import DecodeOptions, Table, decode_part, results_stream
from pipeline.storage import Location
from tools.bench_loader import OURS_PLANES, OURS_RESIDENT, LoadOptions, our_loader, our_options

PACKAGES = {"streaming": "mosaicml-streaming", "litdata": "litdata"}
"""Loader, which is what its module is called, too -> the package; imported only when the loader is asked for."""
INSTALL = "install the peers (make peers, or pip install --no-deps -r peers.txt), or leave them out (--loader)"


class Ours:
    """Our loader, by one of its names. Close it when it is done with."""

    def __init__(self, shards: Location, options: LoadOptions, name: str = "ours", **settings: Any) -> None:
        self._loader = our_loader(shards, "all", our_options(name, options), **settings)

    def __iter__(self) -> Iterator[Loaded]:
        for batch in self._loader:
            pictures: dict[str, Any] = {part: getattr(batch, part) for part in ("bg", *PARTS)}
            yield Loaded(len(batch.index), functools.partial(self._keys_of, batch.index), pictures)

    def _keys_of(self, index: torch.Tensor) -> list[str]:
        return [self._loader.key(row) for row in index.tolist()]

    def close(self) -> None:
        """End its threads."""
        self._loader.close()


class DaliReader:
    """`fn.readers.webdataset` with our .idx and the same graph behind it, without CRCs and without backgrounds."""

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


def from_package(name: str, make: Make, shards: Path, options: LoadOptions) -> Iterable[Loaded]:
    """Make a loader; raise `InputError` if its package is not installed."""
    try:
        return make(shards, options)
    except ImportError as error:
        raise InputError(missing_peer(name) or f"{error}: {INSTALL}") from error


def missing_peer(name: str) -> str | None:
    """Why a loader of `LOADERS` cannot be measured here, in one line with the remedy; None if it can."""
    if name in PACKAGES and find_spec(name) is None:
        return f"{PACKAGES[name]} is not installed: {INSTALL}"
    return None


LOADERS: dict[str, Make] = {
    "ours": Ours,
    OURS_PLANES: Ours,
    OURS_RESIDENT: functools.partial(Ours, name=OURS_RESIDENT),
    "dali-reader": DaliReader,
    "seed": seed,
    "webdataset": webdataset_pillow,
    "streaming": functools.partial(from_package, "streaming", streaming_pillow),
    "litdata": functools.partial(from_package, "litdata", litdata_pillow),
}
