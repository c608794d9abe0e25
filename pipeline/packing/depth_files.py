"""Depth files: the depth maps of a source, in any encoding -> the pictures that are stored.

Gray pictures, and those of maps that one table on gray inverts, are stored as they came. Everything else is converted
once, at packing, to gray of 8 bits with near = bright: arrays (.npy), maps whose luma is ambiguous, and 16 bits with a
range of their own. As a data set has one encoding, all its pictures are then gray with near = bright. Where some depth
has holes, all of it is stored as `depth.WITH_HOLES`, without loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.format.depth import (
    CONVERTED,
    HOLES_KEY,
    WITH_HOLES,
    depth_table,
    other_encoding,
    recognise_encoding,
    scalar_of_colours,
)
from pipeline.format.images import (
    JPEG_START,
    BadImage,
    Picture,
    check_picture,
    decode_16_bit,
    decode_gray,
    decode_jpeg_colours,
    decode_rgb,
    encode_gray,
    has_colours,
    image_format,
    is_16_bit,
    jpeg_size,
)
from pipeline.format.png import encode_png
from pipeline.packing.depth_holes import AUTO, NO_HOLES, Holes, Values, find_holes, finite, zeros_are_holes
from pipeline.packing.metadata import Metadata
from pipeline.packing.npy import NPY_START, NPZ_START, load_array

QUALITY = 90  # of the JPEG that a converted picture becomes, as of depth that this project makes
DIM = 1 / 4  # of the 16-bit range: depth that uses less of it is worth a remark


class OtherEncoding(BadImage):
    """A depth picture is not of the encoding that the sampled ones are of."""

    kind = "other encoding"


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
    percentiles: tuple[float, float] | None = None
    """The percentiles of its values between which each has its own scale; else from the smallest to the largest."""
    holes: Holes = NO_HOLES
    """What in them is no measurement."""
    recognised: bool = False
    """Whether the encoding is that of a sample, so that a picture of another one is refused."""

    @property
    def own_scale(self) -> bool:
        """Whether 16 bits are scaled each picture by itself."""
        return self.per_image or self.percentiles is not None

    @property
    def converts(self) -> bool:
        """Whether what is stored is always gray with near = bright."""
        scaled = self.arrays or self.own_scale or self.limits is not None
        return scaled or self.holes.stored or self.encoding in CONVERTED

    @property
    def looks_at_each(self) -> bool:
        """Whether each file is looked at for more than whether it decodes."""
        return self.converts or self.recognised or self.holes.zeros_watched

    @property
    def stored(self) -> tuple[str, str]:
        """Encoding and near end of what is stored, for the manifest."""
        if self.holes.stored:
            return WITH_HOLES, "bright"
        return ("gray", "bright") if self.converts else (self.encoding, self.near)

    def read(self, content: bytes, verify: str) -> tuple[Picture, Metadata]:
        """Check a file, and convert it if need be; return it with the metadata of its scale.

        That is `depth_range` [far, near], the file's values that became 0 and 255 (beyond them it saturates), where
        there is one, and `depth_holes`, the share of its pixels that are holes, where depth is stored with them.
        Raises `BadImage` for what is no depth, of which nothing was measured, or has holes where none are expected.
        """
        if (self.converts and content.startswith(NPY_START)) or content.startswith(NPZ_START):
            return self._scaled(load_array(content))
        picture = self._checked(content, verify)
        is_deep = is_16_bit(content)
        if is_deep and (self.own_scale or self.limits):
            return self._scaled(decode_16_bit(content))
        if is_deep and self.holes.zeros_watched:
            self._require_no_holes(decode_16_bit(content))
        if not self.converts or (not self.holes.stored and (self.encoding, self.near) == ("gray", "bright")):
            return picture, {}
        if self.encoding in CONVERTED:
            table, levels = depth_table("gray", self.near), scalar_of_colours(decode_rgb(content), self.encoding)
        else:
            table, levels = depth_table(self.encoding, self.near), decode_gray(content)
        if not self.holes.stored:
            return _encoded(table[levels]), {}
        if self.holes.value is not None and picture.extension == "jpg":
            raise BadImage(f"a JPEG, in which no value is exactly {self.holes.value:g}: convert such depth to PNG")
        measured = self._measured(decode_16_bit(content) if is_deep else levels)
        return _encoded_with_holes(table[levels], measured), share_of_holes(measured)

    def _checked(self, content: bytes, verify: str) -> Picture:
        """See `check_picture`; raises `OtherEncoding` for a picture that is of another encoding than those sampled.

        Told by the number of channels and, of a picture that is decoded anyway, some of the colours.
        """
        if not self.recognised:
            return check_picture(content, verify)
        decoded, colours = verify == "decode", None
        if decoded and image_format(content) == "jpg" and (size := jpeg_size(content)) and has_colours(content):
            picture, colours = Picture("jpg", content, size), decode_jpeg_colours(content)
        else:
            picture = check_picture(content, verify)
            if has_colours(content) and not decoded:
                return picture
            if has_colours(content):
                colours = decode_rgb(content)
        found = other_encoding(colours, self.encoding)
        if found and colours is not None and colours.shape[:2] != picture.size:  # means of blocks mix colours at edges
            found = other_encoding(decode_rgb(content), self.encoding)
        if found:
            raise OtherEncoding(f"it is {found}, the sampled depth maps are {self.encoding}")
        return picture

    def _measured(self, values: NDArray[np.generic]) -> NDArray[np.bool_]:
        """Which pixels of a map, [H, W], were measured; raise `BadImage` if none was."""
        measured = finite(values)
        if self.holes.value is not None:
            measured &= values != self.holes.value
        if not measured.any():
            raise BadImage("nothing of it was measured: every pixel is a hole")
        return measured

    def _require_no_holes(self, values: NDArray[np.generic]) -> None:
        """Raise `BadImage` for a map, [H, W], that has holes although depth is stored without."""
        if not finite(values).all():
            if self.holes.watched:
                raise BadImage("has nan or infinity, the sampled depth maps have none: state --depth-invalid nan")
            if np.isnan(values).any():
                raise BadImage(".npy has values that are not numbers (nan)")
        if self.holes.zeros_watched and zeros_are_holes(values):
            share = f"{(values == 0).mean():.1%} of it is 0, which looks like no measurement"
            raise BadImage(f"{share}, the sampled depth maps have none: state --depth-invalid zero, or none")

    def _scaled(self, values: NDArray[np.generic]) -> tuple[Picture, Metadata]:
        measured = None
        if self.holes.stored:
            measured = self._measured(values)
            if self.holes.zeros_watched:
                self._require_no_holes(values[measured])
        else:
            self._require_no_holes(values)
        low, high = self.limits or self._own_limits(values if measured is None else values[measured])
        if not np.isfinite([low, high, high - low]).all():
            raise BadImage("depth has infinite values: state the range that counts with --depth-range LOW HIGH")
        far, near = (low, high) if self.near == "bright" else (high, low)
        if measured is not None:
            values = np.where(measured, values, values[measured][0])
        scaled = np.subtract(values, far, dtype=np.float64) / ((near - far) or 1.0)
        levels = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
        scale: Metadata = {"depth_range": [far, near]}
        if measured is None:
            return _encoded(levels), scale
        return _encoded_with_holes(levels, measured), scale | share_of_holes(measured)

    def _own_limits(self, values: NDArray[np.generic]) -> tuple[float, float]:
        """Low and high end of the scale of a map that has its own."""
        if self.percentiles is None:
            return float(values.min()), float(values.max())
        low, high = np.percentile(values.astype(np.float64), self.percentiles).tolist()
        return low, high


def share_of_holes(measured: NDArray[np.bool_]) -> Metadata:
    """The metadata of a map that is stored with holes, by which its tar tells that it is."""
    return {HOLES_KEY: round(1 - float(measured.mean()), 6)}


def _encoded(levels: NDArray[np.uint8]) -> Picture:
    height, width = levels.shape
    try:
        return Picture("jpg", encode_gray(np.ascontiguousarray(levels), QUALITY), (height, width))
    except ValueError as error:
        raise BadImage(f"{width:,} x {height:,} pixels of depth are too many for a JPEG ({error})") from error


def _encoded_with_holes(nearness: NDArray[np.uint8], measured: NDArray[np.bool_]) -> Picture:
    """Depth as WITH_HOLES has it, of which 0 is no nearness."""
    height, width = nearness.shape
    return Picture("png", encode_png(np.where(measured, np.maximum(nearness, 1), 0)), (height, width))


def recognise_depth_files(
    sample: Sequence[tuple[str, bytes]],
    arrays: int,
    encoding: str,
    near: str,
    per_image: bool = False,
    limits: tuple[float, float] | None = None,
    *,
    percentiles: tuple[float, float] | None = None,
    invalid: str = AUTO,
    numbers: Sequence[Values] = (),
) -> tuple[DepthFiles, str]:
    """Decide how the depth files of a source are read, and say why in a line.

    `sample`: (name, content) of some of its depth pictures, all of which decode, none if there are only arrays.
    `arrays`: how many depth files are arrays, of which `numbers` are some. `encoding`: "auto", or that of the pictures.
    `invalid`: see `depth_holes.find_holes`. Raises `InputError` for pictures whose encoding cannot be told (see
    `depth.recognise_encoding`), for a range where nothing could be scaled, and a value of pictures that hold none
    exactly.
    """
    deep = [decode_16_bit(content) for _, content in sample if is_16_bit(content)]
    largest = max((int(values.max()) for values in deep), default=None)
    own_scale = per_image or percentiles is not None
    if (own_scale or limits) and not arrays and largest is None:
        raise InputError(
            f"all {len(sample)} sampled depth maps are pictures of 8 bits: leave out --depth-range and "
            f"--depth-per-image (or --depth-percentiles), which scale .npy files and PNGs of 16 bits"
        )
    recognised, reasons = encoding == "auto", list[str]()
    if encoding != "auto":
        reasons.append(f"stated to be {encoding}")
    elif sample:
        found = recognise_encoding([(name, decode_rgb(content)) for name, content in sample])
        encoding = found.encoding
        reasons.append(str(found))
    else:
        encoding = "gray"
    lossless = [
        decode_gray(content)
        for _, content in sample
        if not content.startswith(JPEG_START) and not is_16_bit(content) and encoding == "gray"
    ]
    holes = find_holes(invalid, near, [*deep, *numbers], lossless, arrays > 0)
    if holes.value is not None and not holes.watched:
        _require_exact(sample, encoding)
    files = DepthFiles(encoding, near, arrays > 0, per_image, limits, percentiles, holes, recognised)
    scale = "each by its smallest and largest value"
    if limits:
        scale = f"from {limits[0]:g} to {limits[1]:g}"
    elif percentiles:
        scale = f"each between its percentiles {percentiles[0]:g} and {percentiles[1]:g}"
    if arrays:
        reasons.append(f"{arrays:,} are numbers (.npy), scaled {scale}")
    if largest is not None and (own_scale or limits):
        reasons.append(f"16 bits are scaled {scale}")
    elif largest is not None and largest < DIM * 65535:
        reasons.append(
            f"their 16 bits reach only {largest:,} of 65,535: scale them with --depth-range or --depth-per-image"
        )
    if holes.why:
        reasons.append(holes.why)
    if files.converts:
        reasons.append(f"stored as gray, near bright{', with holes' * holes.stored}")
    return files, "; ".join(reasons)


def _require_exact(sample: Sequence[tuple[str, bytes]], encoding: str) -> None:
    """Raise `InputError` if a value that means no measurement cannot be told in depth pictures of an encoding."""
    if sample and encoding != "gray":
        raise InputError(
            f"depth coloured by {encoding} has no exact values: convert it to gray, or leave out --depth-invalid"
        )
    if jpeg := next((name for name, content in sample if content.startswith(JPEG_START)), None):
        raise InputError(
            f"{jpeg} is a JPEG, which has no exact values: convert depth to PNG, or leave out --depth-invalid"
        )
