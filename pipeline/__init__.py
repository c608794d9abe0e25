"""Image sets -> WebDataset shards -> batches on the device."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.loading.augment import Augmentation
    from pipeline.loading.batch import Batch
    from pipeline.loading.config import LoaderConfig
    from pipeline.loading.interop import as_webdataset
    from pipeline.loading.loader import Loader

__all__ = ["Augmentation", "Batch", "Loader", "LoaderConfig", "as_webdataset"]

_MODULES = {
    "Augmentation": "augment",
    "Batch": "batch",
    "Loader": "loader",
    "LoaderConfig": "config",
    "as_webdataset": "interop",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: commands that only print their help load no PyTorch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pipeline.loading.{_MODULES[name]}"), name)
