"""Depth maps for a shard directory, which is rewritten to a new one, shard by shard."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.depth_estimation.model import DepthModel, DepthModelSettings, hash_model, model_arguments
from pipeline.depth_estimation.run import EstimateOptions, EstimateReport, EstimateResult, estimate
from pipeline.errors import InputError, Problem
from pipeline.format.depth import HOLES_KEY
from pipeline.format.images import BadImage, Picture, check_stored
from pipeline.format.manifest import BACKGROUNDS, Manifest
from pipeline.format.planes import PLANES
from pipeline.format.tar import ShardWriter
from pipeline.loading.shard_reader import Damaged, ShardReader
from pipeline.packing.finalize import BackgroundsTar, finalize, write_backgrounds
from pipeline.packing.target import ShardPlace, Target
from pipeline.packing.writing import arguments_of, writing
from pipeline.parts import Part
from pipeline.storage import Location, Storage
from pipeline.workers import Progress


class StoredSet(NamedTuple):
    """A set of the source by its place in the index, and the shard it lies in by its place in the manifest."""

    row: int
    shard: int


def rewrite_with_depth(
    source: Location,
    shards: Location | Storage,
    model: DepthModel,
    options: EstimateOptions,
    progress: Progress | None = None,
    *,
    part: Part | None = None,
    way: "EstimateShards | None" = None,
    accelerator: str | None = None,
) -> EstimateReport:
    """Write the sets of the shard directory `source` to `shards` (new or empty) with depth maps by `model`.

    Either may be in object storage, see `packing.writing`. Depth maps that are there are replaced; the json of each set
    gets "depth_range": [far, near]. With `part`, only the shards of that part are written, see `finish_with_depth`.
    `way` does the work, else `estimate_shards`; on GPUs of the kind `accelerator`, on which the last bits of outputs
    may depend. Raises `InputError` if `source` is no shard directory or `shards` is in use, and what `estimate` raises.
    """
    progress = progress or Progress()
    reader = _open(source)
    manifest = reader.manifest
    arguments = _arguments(manifest, model.arguments(), options.quality)
    arguments |= {"accelerator": accelerator} if accelerator else {}
    with writing(shards, arguments, part=part) as target:
        count = len(manifest.shards)
        done = target.done(count)
        finished_sets = sum(done.values())
        progress.sets_found(sum(manifest.shards[shard].sets for shard in target.numbers(count)) - finished_sets)
        missing = [shard for shard in target.numbers(count) if shard not in done]
        # A damaged one is told of before hours of work. A part does not look at them: its work stays in any case.
        backgrounds = None if part else write_backgrounds(target.folder, _backgrounds(reader))
        report = (way or estimate_shards)(reader, target, missing, model, options, progress)
        if backgrounds:
            _finalize(reader, target, backgrounds)
    return report._replace(sets_before=finished_sets, part=target.part_done(count, len(done)))


def finish_with_depth(
    source: Location, shards: Location | Storage, model: Path, settings: DepthModelSettings, quality: int
) -> int:
    """Write what lies beside the shards of all parts of `rewrite_with_depth`; returns how many sets they hold.

    The network is not opened: if `settings` lack the size of its input, that of the parts is taken. Raises `InputError`
    for other arguments than those of the parts, and while some are missing.
    """
    reader = _open(source)
    arguments = _arguments(reader.manifest, model_arguments(hash_model(model), settings), quality)
    arguments["size"] = arguments["size"] or arguments_of(shards).get("size")
    with writing(shards, arguments, finish=True) as target:
        target.done(len(reader.manifest.shards))
        return _finalize(reader, target, write_backgrounds(target.folder, _backgrounds(reader)))


def _open(source: Location) -> ShardReader:
    reader = ShardReader.open(source, depth=False)
    if reader.manifest.codec == PLANES:
        raise InputError(f"{source} holds planes, which lack the pictures' colours: add depth before they are made")
    return reader


def _arguments(source: Manifest, model: dict[str, Any], quality: int) -> dict[str, Any]:
    return {"command": "fgbg-depth", **model, "quality": quality, "source": source.sha256}


def _finalize(reader: ShardReader, target: Target, backgrounds: BackgroundsTar) -> int:
    """Write what lies beside the shards; how many sets they hold."""
    count = len(reader.manifest.shards)
    total = target.tally(count)
    if not total.sets:
        raise InputError(f"no overlay in {reader.location} can be used; the first is {total.problems[0].path}")
    finalize(target, count, total, backgrounds, ("gray", "bright"))
    return total.sets


def _backgrounds(reader: ShardReader) -> Iterator[tuple[int, Picture]]:
    for background in reader.manifest.backgrounds:
        try:
            yield background.id, _picture(reader.read_background(background.id))
        except BadImage as error:
            raise InputError(
                f"{reader.location / BACKGROUNDS}: background {background.id}: {error}: pack again"
            ) from None


EstimateShards = Callable[[ShardReader, Target, Sequence[int], DepthModel, EstimateOptions, Progress], EstimateReport]
"""Writes some shards of a source with depth to a target."""


def estimate_shards(
    reader: ShardReader,
    target: Target,
    shards: Sequence[int],
    model: DepthModel,
    options: EstimateOptions,
    progress: Progress,
) -> EstimateReport:
    """Write some shards with depth, in this process."""
    with ShardsTarget(reader, target.place) as job:
        return estimate(model, job, job.batches(shards, model.batch_size), options, progress.sets_done)


class ShardsTarget:
    """A shard directory as a job of `estimate`. One shard is open at a time; leaving the context drops it."""

    def __init__(self, reader: ShardReader, place: Callable[[int], ShardPlace]) -> None:
        """`place` tells where a shard goes, by its place in the manifest."""
        self._store, self._place = reader, place
        self._key_length = reader.index.dtype["key"].itemsize
        self._sets_left = [shard.sets for shard in reader.manifest.shards]
        self._bounds = np.cumsum([0, *self._sets_left])  # rows of a shard follow each other
        self._open: ShardWriter | None = None

    def __enter__(self) -> "ShardsTarget":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._open.__exit__(kind, error, trace)
        self._store.close()

    def batches(self, shards: Iterable[int], size: int) -> Iterator[list[StoredSet]]:
        """The sets of some shards, in batches that never reach from one shard into the next.

        So a shard's batches, on which the last bit of an output may depend, are the same in a run that is continued.
        """
        for shard in shards:
            end = int(self._bounds[shard + 1])
            for first in range(int(self._bounds[shard]), end, size):
                yield [StoredSet(row, shard) for row in range(first, min(first + size, end))]

    def name(self, item: StoredSet) -> str:
        """See `EstimateJob`."""
        return f"{self._store.shard_name(item.row)}/{self._store.key(item.row)}"

    def read(self, item: StoredSet) -> bytes:
        """See `EstimateJob`."""
        try:
            self._store.read_metadata(item.row)  # what cannot be copied shall show before the network is asked
            overlay, *others = self._store.read(item.row)
            for part in others:
                _picture(part)
            return overlay.tobytes()
        except Damaged as error:
            raise BadImage(str(error).removeprefix(f"{self._store.key(item.row)}: ")) from error

    def save(self, batch: list[tuple[StoredSet, EstimateResult]]) -> None:
        """See `EstimateJob`."""
        shard = batch[0][0].shard
        if not self._open:
            self._open = ShardWriter(self._place(shard).path, self._key_length)
            self._open.__enter__()
            self._problems = list[Problem]()
        for item, result in batch:
            if isinstance(result, Problem):
                self._problems.append(result)
                continue
            metadata = self._store.read_metadata(item.row)
            ids = (metadata.pop("bg"), metadata.pop("fg"), metadata.pop("id"))
            metadata.pop(HOLES_KEY, None)  # of the depth that is replaced
            pictures = [_picture(part) for part in self._store.read(item.row)]
            scale = {"depth_range": [result.far, result.near]}
            self._open.add(ids, [*pictures, result.picture], metadata | scale)
        self._sets_left[shard] -= len(batch)
        if not self._sets_left[shard]:
            self._open.__exit__(None, None, None)
            left_out = Counter(problem.kind for problem in self._problems)
            self._place(shard).save(self._open.shard(left_out, self._problems))
            self._open = None


def _picture(content: NDArray[np.uint8]) -> Picture:
    return check_stored(content.tobytes(), "header")
