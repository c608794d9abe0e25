"""Opening a shard directory: its reader, from a local cache where it is behind a URL, and its backgrounds, decoded."""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from pipeline.devices import dali_problem, torch_device
from pipeline.errors import InputError
from pipeline.format.manifest import BACKGROUNDS, INDEX, Manifest
from pipeline.format.planes import PLANES
from pipeline.limits import byte_count
from pipeline.loading.caching.folder import cache_directory
from pipeline.loading.caching.shard_cache import ShardCache
from pipeline.loading.collate import Collator
from pipeline.loading.config import LoaderConfig
from pipeline.loading.decode import DecodeOptions
from pipeline.loading.shard_reader import ShardReader
from pipeline.storage import StrLocation, Url, storage_of
from pipeline.workers import available_cores

log = logging.getLogger(__name__)


class OpenedShards(NamedTuple):
    """A shard directory that is open, with all its backgrounds decoded: what loaders of its splits share."""

    reader: ShardReader
    collator: Collator
    options: DecodeOptions


def open_shards(shards: StrLocation, config: LoaderConfig) -> OpenedShards:
    """Open a shard directory, and decode its backgrounds; raises `InputError` as `Loader` does."""
    device = torch_device(config.device)
    if device.type == "cuda" and (problem := dali_problem()):
        log.warning("the GPU may fail: %s", problem)
    storage = storage_of(shards)
    manifest = Manifest.load(storage)
    if isinstance(storage.location, Url):
        cache = ShardCache(storage, manifest, cache_directory(config.cache), byte_count(config.cache_size))
        cache.fetch(INDEX, BACKGROUNDS)
        storage = cache
    reader = ShardReader.open(storage, manifest, depth=config.depth)
    if config.depth and "depth" not in reader.parts:
        add = f"add it (fgbg-depth {shards} --model FILE.onnx --shards NEW)"
        raise InputError(f"the sets of {shards} have no depth: {add}, or train the mask alone (--no-depth)")
    if reader.manifest.codec == PLANES and config.size != (stored := reader.manifest.plane_size):
        held = f"{shards} holds planes of {stored} x {stored} pixels, size {config.size} was asked for"
        raise InputError(f"{held}: ask for {stored}, or pack again with --size {config.size}")
    share = -(-config.batch_size // config.world)
    kind = "gpu" if device.type == "cuda" else "cpu"
    threads = config.threads or available_cores()
    options = DecodeOptions(share, config.size, kind, threads, config.prefetch, config.hw_decoder_load)
    with on_device(device):
        return OpenedShards(reader, Collator(reader, options), options)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Within it, `device` is the current CUDA device: DALI's graphs are built for that one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
