"""Stored parts: which members a set has in its shard under each codec, and how one of them is looked at.

The one place that tells; what checks, repairs or joins shards asks here.
"""

from collections.abc import Callable
from functools import partial
from math import isqrt
from typing import NamedTuple

import zstandard

from pipeline.format.images import BadImage, check_image, image_format, jpeg_size
from pipeline.format.planes import PLANES


class StoredPart(NamedTuple):
    """One member of each set, `KEY.NAME.EXTENSION`, which has a place in the set's row of the index."""

    name: str
    check: Callable[[bytes, str], tuple[str, int, int]]
    """(content, verify) -> extension, height, width; raises `BadImage` (see `images.check_image`)."""


def stored_parts(codec: str, parts: tuple[str, ...]) -> tuple[StoredPart, ...]:
    """The members of a set but for its json, in the order in which they lie in a shard and in the index.

    `codec` and `parts` are those of the manifest.
    """
    if codec == PLANES:
        return (StoredPart(PLANES, partial(check_planes, len(parts))),)
    return tuple(StoredPart(part, check_stored_picture) for part in parts)


def stored_background(codec: str) -> StoredPart:
    """The member of a background in backgrounds.tar."""
    return StoredPart("bg", partial(check_planes, 1) if codec == PLANES else check_stored_picture)


def check_stored_picture(data: bytes, verify: str) -> tuple[str, int, int]:
    """As `images.check_image`, but "header" looks for no end mark: a CRC, which is compared anyway, tells more."""
    if verify == "header" and image_format(data) == "jpg":
        return "jpg", *jpeg_size(data)
    return check_image(data, verify)


def check_planes(planes: int, data: bytes, verify: str) -> tuple[str, int, int]:
    """Look at a zstd frame of uint8 [planes, size, size]: its extension, height and width (see `images.check_image`).

    `verify` is "decode", or "header" to trust what follows the frame's header. Raises `BadImage`.
    """
    try:
        content_bytes = zstandard.get_frame_parameters(data).content_size
        size = isqrt(content_bytes // planes)
        if planes * size * size != content_bytes or not size:
            raise BadImage(f"{content_bytes:,} bytes are not {planes} square planes")
        if verify == "decode" and len(zstandard.ZstdDecompressor().decompress(data)) != content_bytes:
            raise BadImage("it does not decompress to the size in its header")
    except zstandard.ZstdError as error:
        raise BadImage(f"it does not decompress: {error}") from error
    return "zst", size, size
