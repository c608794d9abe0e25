"""Depth files: the depth maps of a source, in any encoding -> the pictures that are stored.

Gray pictures, and those of maps that one table on gray inverts, are stored as they came. Everything else is converted
once, at packing, to gray of 8 bits with near = bright: arrays (.npy), maps whose luma is ambiguous, and 16 bits with a
range of their own. As a data set has one encoding, all its pictures are then gray with near = bright.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.depth import CONVERTED, depth_table, recognise_encoding, scalar_of_colours
from pipeline.format.images import (
    BadImage,
    Picture,
    check_picture,
    decode_16_bit,
    decode_gray,
    decode_rgb,
    encode_gray,
    is_16_bit,
)
from pipeline.packing.metadata import Metadata
from pipeline.packing.npy import NPY_START, NPZ_START, load_array

QUALITY = 90  # of the JPEG that a converted picture becomes, as of depth that this project makes
DIM = 1 / 4  # of the 16-bit range: depth that uses less of it is worth a remark


@dataclass(frozen=True)
class DepthFiles:
    """How the depth files of one source are read."""

    encoding: str
    """The encoding of its pictures: one of `depth.ENCODINGS` or `depth.CONVERTED`."""
    near: str
    """The near end of what the files hold, whether pictures or numbers: "bright" (large) or "dark" (small)."""
    arrays: bool = False
    """Whether any of them is an array of numbers (.npy)."""
    per_image: bool = False
    """Whether 16 bits are scaled from each picture's smallest to its largest value, as arrays are."""
    limits: tuple[float, float] | None = None
    """Low and high end of the one scale of all arrays and 16-bit pictures, in their units; else each has its own."""

    @property
    def converts(self) -> bool:
        """Whether what is stored is always gray with near = bright."""
        return self.arrays or self.per_image or self.limits is not None or self.encoding in CONVERTED

    @property
    def stored(self) -> tuple[str, str]:
        """Encoding and near end of what is stored, for the manifest."""
        return ("gray", "bright") if self.converts else (self.encoding, self.near)

    def read(self, content: bytes, verify: str) -> tuple[Picture, Metadata]:
        """Check a file, and convert it if need be; return it with the metadata of its scale.

        That is empty, or `depth_range` [far, near], the file's values that became 0 and 255 (beyond them it saturates).
        Raises `BadImage` for what is no depth.
        """
        if not self.converts:
            return check_picture(content, verify), {}
        if content.startswith((NPY_START, NPZ_START)):
            return self._scaled(load_array(content))
        picture = check_picture(content, verify)
        if is_16_bit(content) and (self.per_image or self.limits):
            return self._scaled(decode_16_bit(content))
        if self.encoding in CONVERTED:
            table, levels = depth_table("gray", self.near), scalar_of_colours(decode_rgb(content), self.encoding)
        elif self.encoding == "gray" and self.near == "bright":
            return picture, {}
        else:
            table, levels = depth_table(self.encoding, self.near), decode_gray(content)
        return _encoded(table[levels]), {}

    def _scaled(self, values: NDArray[np.generic]) -> tuple[Picture, Metadata]:
        if np.isnan(values).any():
            raise BadImage(".npy has values that are not numbers (nan)")
        low, high = self.limits or (float(values.min()), float(values.max()))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadImage("depth has infinite values: state the range that counts with --depth-range LOW HIGH")
        far, near = (low, high) if self.near == "bright" else (high, low)
        scaled = np.subtract(values, far, dtype=np.float64) / ((near - far) or 1.0)
        levels = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
        return _encoded(levels), {"depth_range": [far, near]}


def _encoded(levels: NDArray[np.uint8]) -> Picture:
    height, width = levels.shape
    try:
        return Picture("jpg", encode_gray(np.ascontiguousarray(levels), QUALITY), (height, width))
    except ValueError as error:
        raise BadImage(f"{width:,} x {height:,} pixels of depth are too many for a JPEG ({error})") from error


def recognise_depth_files(
    sample: Sequence[tuple[str, bytes]],
    arrays: int,
    encoding: str,
    near: str,
    per_image: bool = False,
    limits: tuple[float, float] | None = None,
) -> tuple[DepthFiles, str]:
    """Decide how the depth files of a source are read, and say why in a line.

    `sample`: (name, content) of some of its depth pictures, all of which decode, none if there are only arrays.
    `arrays`: how many depth files are arrays. `encoding`: "auto", or that of the pictures. Raises `InputError` for
    pictures whose encoding cannot be told (see `depth.recognise_encoding`), and a range where nothing could be scaled.
    """
    largest = max((int(decode_16_bit(content).max()) for _, content in sample if is_16_bit(content)), default=None)
    if (per_image or limits) and not arrays and largest is None:
        raise InputError(
            f"all {len(sample)} sampled depth maps are pictures of 8 bits: leave out --depth-range and "
            f"--depth-per-image, which scale .npy files and PNGs of 16 bits"
        )
    reasons = []
    if encoding != "auto":
        reasons.append(f"stated to be {encoding}")
    elif sample:
        recognised = recognise_encoding([(name, decode_rgb(content)) for name, content in sample])
        encoding = recognised.encoding
        reasons.append(str(recognised))
    else:
        encoding = "gray"
    files = DepthFiles(encoding, near, arrays > 0, per_image, limits)
    scale = f"from {limits[0]:g} to {limits[1]:g}" if limits else "each by its smallest and largest value"
    if arrays:
        reasons.append(f"{arrays:,} are numbers (.npy), scaled {scale}")
    if largest is not None and (per_image or limits):
        reasons.append(f"16 bits are scaled {scale}")
    elif largest is not None and largest < DIM * 65535:
        reasons.append(
            f"their 16 bits reach only {largest:,} of 65,535: scale them with --depth-range or --depth-per-image"
        )
    if files.converts:
        reasons.append("stored as gray, near bright")
    return files, "; ".join(reasons)
