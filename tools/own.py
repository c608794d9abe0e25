"""Our own loader, made from the options of fgbg-bench."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.loader import Loader
from tools.peers import LoadOptions


@contextmanager
def opened(shards: Path, split: str, options: LoadOptions) -> Iterator[Loader]:
    """A loader within this context, closed after it."""
    loader = Loader(
        shards,
        split,
        options.batch_size,
        options.size,
        options.device,
        resident=options.resident,
        threads=options.workers,
        prefetch=options.prefetch,
        hw_decoder_load=options.hw_decoder_load,
    )
    try:
        yield loader
    finally:
        loader.close()


def plain(options: LoadOptions) -> dict[str, Any]:
    """Options as JSON takes them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
