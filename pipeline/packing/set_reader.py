"""Set reader: the files of a set -> pictures that can be stored, and what is wrong with them."""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline.errors import Problem
from pipeline.format.images import BadImage, Picture, check_picture
from pipeline.format.sample import PARTS
from pipeline.packing.depth_files import DepthFiles
from pipeline.packing.join import SetFiles
from pipeline.packing.masks import check_mask
from pipeline.packing.metadata import Note
from pipeline.packing.sources import Reader


class ReadSet(NamedTuple):
    """A set that was read; it can be stored if it has no problems."""

    pictures: list[Picture]
    """In the order of PARTS; or one file with all of them (see `encode.PlanesReader`)."""
    note: Note
    """What its json shall say of its depth."""
    problems: list[Problem]
    """For which it is left out."""
    findings: list[Problem]
    """With which it is kept (see `masks.FINDINGS`)."""


class SetReader:
    """Reads and checks sets, each of its files once."""

    def __init__(self, reader: Reader, verify: str, depth: DepthFiles | None) -> None:
        """`verify` as in `images.check_image`; masks are looked at if it is "decode". `depth` if the sets have any."""
        self._reader, self._verify = reader, verify
        self._depth = depth if depth and depth.converts else None  # what is stored as it came is a picture like others
        self.decode_sec = 0.0
        """What checking and converting took so far, without reading."""

    def read_all(self, sets: Iterable[SetFiles]) -> Iterator[ReadSet]:
        """Read one set after the other."""
        return map(self.read, sets)

    def read(self, files: SetFiles) -> ReadSet:
        """Read a set; whatever is wrong with it is told, not raised."""
        read = pictures, note, problems, findings = ReadSet([], {}, [], [])
        for part, path, place in zip(PARTS, files.paths, files.places, strict=False):
            try:
                content = self._reader.read(path, place)
                start = time.perf_counter()
                if part == "mask" and self._verify == "decode":
                    picture, finding = check_mask(content)
                    if finding:
                        findings.append(Problem(path, *finding))
                elif part == "depth" and self._depth:
                    picture, scale = self._depth.read(content, self._verify)
                    note.update(scale)
                else:
                    picture = check_picture(content, self._verify)
                pictures.append(picture)
                self.decode_sec += time.perf_counter() - start
            except BadImage as error:
                problems.append(Problem(path, "undecodable", str(error)))
        if not problems and pictures[0].size != pictures[1].size:
            (overlay, mask) = (f"{width} x {height}" for height, width in (pictures[0].size, pictures[1].size))
            problems.append(Problem(files.paths[1], "mismatch", f"mask is {mask}, its overlay {overlay} pixels"))
        return read
