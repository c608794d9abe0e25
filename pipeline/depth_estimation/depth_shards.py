"""Depth maps for a shard directory, which is rewritten to a new one, shard by shard."""

from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.depth_estimation.model import Teacher
from pipeline.depth_estimation.run import EstimateOptions, Report, Result, estimate
from pipeline.errors import InputError, Problem
from pipeline.format.images import BadImage, Picture, check_image
from pipeline.format.planes import PLANES
from pipeline.format.tar import ShardWriter
from pipeline.loading.shard_reader import Damaged, Store
from pipeline.packing.finalize import assemble, done_shards, note_path, shard_path, tally, write_bank
from pipeline.resume import continued
from pipeline.workers import SourceProgress


class Row(NamedTuple):
    """A set of the source by its place in the index, and the shard it lies in by its place in the manifest."""

    row: int
    shard: int


def rewrite_with_depth(
    source: Path, shards: Path, teacher: Teacher, options: EstimateOptions, progress: SourceProgress | None = None
) -> Report:
    """Write the sets of the shard directory `source` to `shards` (new or empty) with depth maps by `teacher`.

    Depth maps that are there are replaced; the json of each set gets "depth_range": [far, near]. Raises `InputError` if
    `source` is no shard directory or `shards` is in use, and what `estimate` raises.
    """
    progress = progress or SourceProgress()
    store = Store.open(source, depth=False)
    manifest = store.manifest
    if manifest.codec == PLANES:
        raise InputError(f"{source} holds planes, which lack the pictures' colours: add depth before they are made")
    arguments = {"command": "fgbg-depth", **teacher.arguments(), "quality": options.quality, "source": manifest.sha256}
    with continued(shards, arguments) as notes:
        bank = write_bank(shards, _backgrounds(store))
        count = len(manifest.shards)
        done = done_shards(shards, notes, count)
        before = sum(done.values())
        progress.sets_found(manifest.sets - before)
        with _Shards(store, shards, notes) as job:
            report = estimate(teacher, job, job.batches(done, teacher.batch_size), options, progress.sets_done)
        total = tally(shards, notes, count)
        if not total.sets:
            raise InputError(f"no overlay in {source} can be used; the first is {total.problems[0].path}")
        assemble(shards, notes, count, total, bank, ("gray", "bright"))
    return report._replace(sets_before=before)


def _backgrounds(store: Store) -> Iterator[tuple[int, Picture]]:
    for background in store.manifest.backgrounds:
        yield background.id, _picture(store.read_background(background.id))


class _Shards:
    """A shard directory as a job of `estimate`. One shard is open at a time; leaving the context drops it."""

    def __init__(self, store: Store, shards: Path, notes: Path) -> None:
        self._store, self._shards, self._notes = store, shards, notes
        self._key_length = store.index.dtype["key"].itemsize
        self._sets_left = [shard.sets for shard in store.manifest.shards]
        self._open: ShardWriter | None = None

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._open.__exit__(kind, error, trace)
        self._store.close()

    def batches(self, done: Container[int], size: int) -> Iterator[list[Row]]:
        """The sets of the shards that are not `done`, in batches that never reach from one shard into the next.

        So a shard's batches, on which the last bit of an output may depend, are the same in a run that is continued.
        """
        for shard in range(len(self._sets_left)):
            rows = [] if shard in done else np.flatnonzero(self._store.index["shard"] == shard).tolist()
            for first in range(0, len(rows), size):
                yield [Row(row, shard) for row in rows[first : first + size]]

    def name(self, item: Row) -> str:
        return f"{self._store.shard_name(item.row)}/{self._store.key(item.row)}"

    def read(self, item: Row) -> bytes:
        try:
            self._store.read_note(item.row)  # what cannot be copied shall show before the network is asked
            return self._store.read(item.row)[0].tobytes()
        except Damaged as error:
            raise BadImage(str(error).removeprefix(f"{self._store.key(item.row)}: ")) from error

    def save(self, batch: list[tuple[Row, Result]]) -> None:
        shard = batch[0][0].shard
        if not self._open:
            self._open = ShardWriter(shard_path(self._shards, shard), self._key_length)
            self._open.__enter__()
            self._problems = list[Problem]()
        for item, result in batch:
            if isinstance(result, Problem):
                self._problems.append(result)
                continue
            note = self._store.read_note(item.row)
            ids = (note.pop("bg"), note.pop("fg"), note.pop("id"))
            pictures = [_picture(part) for part in self._store.read(item.row)]
            scale = {"depth_range": [result.far, result.near]}
            self._open.add(ids, [*pictures, result.picture], note | scale)
        self._sets_left[shard] -= len(batch)
        if not self._sets_left[shard]:
            self._open.__exit__(None, None, None)
            left_out = Counter(problem.kind for problem in self._problems)
            self._open.shard(left_out, self._problems).save(note_path(self._notes, shard))
            self._open = None


def _picture(content: NDArray[np.uint8]) -> Picture:
    extension, height, width = check_image(content.tobytes(), "header")
    return Picture(extension, content.tobytes(), (height, width))
