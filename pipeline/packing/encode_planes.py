"""Encoding planes: pictures -> gray planes, decoded on the CPU by the graph that the loader would decode them with."""

import functools
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import Problem
from pipeline.files import ReadFile
from pipeline.format.depth import NO_DEPTH
from pipeline.format.images import MAX_PIXELS, BadImage, Picture
from pipeline.format.manifest import Background
from pipeline.format.planes import EXTENSION, compress_frame, decompress_frames, encode_set
from pipeline.format.sample import PARTS
from pipeline.loading.decode import DecodeOptions, Decoder, Encoded, Table, Undecodable, depth_levels
from pipeline.packing.join import SetFiles
from pipeline.packing.set_reader import ReadSet, SetReader
from pipeline.resume import atomic_file
from pipeline.staging import process_folder
from pipeline.storage import Location, open_location

T = TypeVar("T")
BATCH = 64  # sets decoded together


class NoPlanes(NamedTuple):
    """Why there are no planes of a set."""

    part: int
    """Position of the picture that DALI cannot decode."""
    why: str


def batches_of(items: Sequence[T], pixels: Sequence[int], most: int = BATCH) -> Iterator[list[T]]:
    """Runs of at most `most` items, which end before they have more than MAX_PIXELS: all are decoded at once."""
    batch, total = list[T](), 0
    for item, count in zip(items, pixels, strict=True):
        if batch and (len(batch) == most or total + count > MAX_PIXELS):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += count
    if batch:
        yield batch


class PlaneRasterizer:
    """Makes planes of encoded pictures: decodes, resizes and grays them."""

    def __init__(self, tables: Mapping[str, Table], size: int) -> None:
        """`tables` names the parts; `size` is that of the planes, pixels. Raises `InputError` where DALI is missing."""
        self._tables, self._options = tables, DecodeOptions(BATCH, size, "cpu", threads=1, prefetch=1)
        self._decoder = Decoder(tables, self._options)

    def rasterize(self, sets: Sequence[Sequence[Picture]]) -> list[NDArray[np.uint8] | NoPlanes]:
        """The planes of at most BATCH sets of pictures, uint8 [parts, size, size] each, or why a set has none."""
        pixels = [sum(height * width for _, _, (height, width) in pictures) for pictures in sets]
        return [planes for batch in batches_of(sets, pixels) for planes in self._rasterize_batch(batch)]

    def _rasterize_batch(self, sets: Sequence[Sequence[Picture]]) -> list[NDArray[np.uint8] | NoPlanes]:
        try:
            [decoded] = self._decoder.decode(iter([_by_part(sets)]))
        except Undecodable:
            return [self._rasterize_one(pictures) for pictures in sets]
        return list(torch.cat(list(decoded.values()), dim=1).numpy())

    def _rasterize_one(self, pictures: Sequence[Picture]) -> NDArray[np.uint8] | NoPlanes:
        """The planes of a set, or which of its pictures does not decode: of a batch, DALI does not tell."""
        planes = []
        for part, (picture, (name, table)) in enumerate(zip(pictures, self._tables.items(), strict=True)):
            decoder = Decoder({name: table}, replace(self._options, batch_size=1))
            try:
                [decoded] = decoder.decode(iter([_by_part([[picture]])]))
            except Undecodable as error:
                return NoPlanes(part, f"DALI cannot decode it: {error}")
            planes.append(decoded[name].numpy()[0, 0])
        return np.stack(planes)


def _by_part(sets: Sequence[Sequence[Picture]]) -> Encoded:
    return [[np.frombuffer(picture.content, np.uint8) for picture in part] for part in zip(*sets, strict=True)]


class BackgroundEncoder:
    """Encodes backgrounds as files of one plane."""

    def __init__(self, size: int) -> None:
        """`size` of the planes, pixels. Raises `InputError` where DALI is missing."""
        self._rasterizer = PlaneRasterizer({"bg": None}, size)

    def encode(self, picture: Picture) -> Picture:
        """Encode a background; raise `BadImage` if DALI cannot decode it."""
        [planes] = self._rasterizer.rasterize([[picture]])
        if isinstance(planes, NoPlanes):
            raise BadImage(planes.why)
        return Picture(EXTENSION, compress_frame(planes), planes.shape[1:])


class PlanesJob(NamedTuple):
    """What a worker needs to encode sets as planes."""

    size: int
    """Height and width of the planes, pixels."""
    depth: tuple[str, str]
    """Encoding and near end of the depth pictures, as in the manifest."""
    backgrounds: Location
    """Where backgrounds.tar is, which is complete."""
    places: Mapping[int, Background]
    """By id, where in it each background of the sets is."""

    def limited_to(self, ids: Collection[int]) -> "PlanesJob":
        """The same with some of the backgrounds alone, which is less to hand to a worker."""
        return self._replace(places={bg: self.places[bg] for bg in ids})

    def reader(self, reader: SetReader) -> "PlanesReader":
        """A reader of sets that encodes as planes what `reader` reads."""
        return PlanesReader(reader, self)


class PlanesReader:
    """A `SetReader` whose sets have one picture: the file with their planes."""

    def __init__(self, reader: SetReader, job: PlanesJob) -> None:
        self._reader, self._job = reader, job
        self._rasterizer = _rasterizer(job.size, job.depth)
        self._encode_sec = 0.0

    @property
    def decode_sec(self) -> float:
        """Seconds spent so far on checking, converting and encoding, without reading."""
        return self._reader.decode_sec + self._encode_sec

    def read_all(self, sets: Iterable[SetFiles]) -> Iterator[ReadSet]:
        """Read one set after the other."""
        rest = iter(sets)
        while batch := list(islice(rest, BATCH)):
            reads = list(self._reader.read_all(batch))
            start = time.perf_counter()
            good = [(files, read) for files, read in zip(batch, reads, strict=True) if not read.problems]
            backgrounds = self._background_planes([files.bg for files, _ in good])
            planes = self._rasterizer.rasterize([read.pictures for _, read in good])
            for (files, read), result, background in zip(good, planes, backgrounds, strict=True):
                if isinstance(result, NoPlanes):
                    read.problems.append(Problem(files.paths[result.part], "undecodable", result.why))
                else:
                    read.pictures[:] = [Picture(EXTENSION, encode_set(result, background), background.shape)]
            self._encode_sec += time.perf_counter() - start
            yield from reads

    def _background_planes(self, ids: Sequence[int]) -> list[NDArray[np.uint8]]:
        """The planes of some backgrounds, uint8 [size, size] each."""
        size, file = self._job.size, ReadFile(_local(self._job.backgrounds))
        places = [self._job.places[bg] for bg in ids]
        frames = [file.read(place.size, place.offset) for place in places]
        return [content.reshape(size, size) for content in decompress_frames(frames, size**2)]


@functools.lru_cache(1)
def _local(file: Location) -> Path:
    """A file on this machine: itself, or a copy for as long as this process lives."""
    if isinstance(file, Path):
        return file
    copy = process_folder() / file.name
    with open_location(file) as stored, atomic_file(copy) as whole:
        shutil.copyfileobj(stored, whole)
    return copy


@functools.lru_cache(1)
def _rasterizer(size: int, depth: tuple[str, str]) -> PlaneRasterizer:
    """One rasterizer for all jobs of a process: to build a DALI graph for every shard would take time."""
    tables: dict[str, Table] = dict.fromkeys(PARTS[:2])
    if depth[0] != NO_DEPTH:
        tables["depth"] = depth_levels(*depth)
    return PlaneRasterizer(tables, size)
