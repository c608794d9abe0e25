"""MosaicML Streaming, fed the same sets as MDS, decoded with Pillow in its workers.

Importing this needs mosaicml-streaming; spawned workers do, too, before they are given a `_Sets`.
"""

import importlib.util
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.format.sample import PARTS
from pipeline.loading.shard_reader import ShardReader
from tools.peers.cache import decoded, in_format, sample
from tools.peers.options import LoadOptions
from tools.peers.pillow import GrayPlanes, PillowLoader, Planes, worker_settings

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


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Meanwhile, empty classes stand in for `UNUSED`, as far as their packages are not installed."""
    missing = {name for name in UNUSED if importlib.util.find_spec(name.split(".")[0]) is None}
    for name in missing:
        sys.modules[name] = module = ModuleType(name)
        vars(module).update({unused: type(unused, (), {}) for unused in UNUSED[name]})
    try:
        yield
    finally:
        for name in missing:  # others find out by an import whether the packages are there
            del sys.modules[name]


with _stand_ins():
    import streaming

COLUMNS = {"key": "str", "bg": "int", **dict.fromkeys(PARTS, "bytes")}


class StreamingLoader(PillowLoader):
    """`StreamingDataset` over local shards with its own shuffle, and `StreamingDataLoader`."""

    def __init__(self, shards: Path, options: LoadOptions) -> None:
        folder = in_format("mosaicml-streaming", shards, options.cache, _write)
        locks = tempfile.mkdtemp(prefix="fgbg-streaming-")
        weakref.finalize(self, shutil.rmtree, locks, ignore_errors=True)
        with _temporary_files(locks):
            sets = _Sets(GrayPlanes(shards, options.size), local=str(folder), shuffle=True,
                         batch_size=options.batch_size)  # fmt: skip
        super().__init__(streaming.StreamingDataLoader(sets, **worker_settings(options)), options)


class _Sets(streaming.StreamingDataset):  # type: ignore[misc]
    def __init__(self, gray: GrayPlanes, **settings: Any) -> None:
        super().__init__(**settings)
        self._gray = gray

    def __getitem__(self, index: int) -> Planes:
        return decoded(super().__getitem__(index), self._gray)


def _write(shards: Path, folder: Path, scratch: Path) -> None:
    store = ShardReader.open(shards)
    with streaming.MDSWriter(columns=COLUMNS, out=str(folder)) as writer:
        for row in range(len(store.index)):
            writer.write(sample(store, row))


@contextmanager
def _temporary_files(folder: str) -> Iterator[None]:
    """Let temporary files go to `folder`: Streaming leaves its lock files behind."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before
