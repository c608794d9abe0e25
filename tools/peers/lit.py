"""LitData, fed the same sets as its chunks, decoded with Pillow in its workers. Importing this needs litdata."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import litdata

from pipeline.loading.shard_reader import ShardReader
from tools.peers.cache import decoded, in_format, sample
from tools.peers.options import LoadOptions
from tools.peers.pillow import GrayPlanes, PillowLoader, Planes, worker_settings


class LitDataLoader(PillowLoader):
    """`StreamingDataset` over local chunks, which it maps in place, with its own shuffle, and `StreamingDataLoader`."""

    def __init__(self, shards: Path, options: LoadOptions) -> None:
        folder = in_format("litdata", shards, options.cache, _write)
        sets = _Sets(GrayPlanes(shards, options.size), input_dir=str(folder), shuffle=True)
        super().__init__(litdata.StreamingDataLoader(sets, **worker_settings(options)), options)


class _Sets(litdata.StreamingDataset):  # type: ignore[misc]
    def __init__(self, gray: GrayPlanes, **settings: Any) -> None:
        super().__init__(**settings)
        self._gray = gray

    def __getitem__(self, index: Any) -> Planes:
        return decoded(super().__getitem__(index), self._gray)


def _write(shards: Path, folder: Path, scratch: Path) -> None:
    with _environment(DATA_OPTIMIZER_CACHE_FOLDER=str(scratch), DATA_OPTIMIZER_DATA_CACHE_FOLDER=str(scratch)):
        litdata.optimize(
            functools.partial(_sample, shards=shards),
            inputs=list(range(len(ShardReader.open(shards).index))),
            output_dir=str(folder),
            chunk_bytes="64MB",
            num_workers=1,
            keep_data_ordered=True,
            verbose=False,
        )


def _sample(row: int, shards: Path) -> dict[str, Any]:
    return sample(_store(shards), row)


_store = functools.lru_cache(maxsize=1)(ShardReader.open)  # opened once, in the process that LitData writes in


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
