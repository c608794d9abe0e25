"""Encoded pictures: what format the bytes really are, and whether they decode."""

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

VERIFY = ("decode", "header")
JPEG_END, PNG_END = b"\xff\xd9", b"IEND"
END_SLACK = 64  # bytes: some writers leave a few after the end mark
SIGNATURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png"}


class BadImage(Exception):  # noqa: N818 - a finding about the data, not a fault of the program
    """These bytes are no picture that can be trained on; the message says why."""


def image_format(data: bytes) -> str:
    """Tell "jpg" or "png" from the first bytes, whatever the file is called; raise `BadImage` for anything else."""
    for signature, name in SIGNATURES.items():
        if data.startswith(signature):
            return name
    raise BadImage(f"neither JPEG nor PNG: starts with {data[:8]!r}" if data else "empty file")


def check_image(data: bytes, verify: str = "decode") -> tuple[str, int, int]:
    """Return a picture's format ("jpg" or "png"), height and width in pixels.

    `verify` is "decode", which decodes all of it, or "header", which trusts what lies between header and end mark.
    Raises `BadImage` for bytes that are no JPEG or PNG, are cut short or do not decode without a warning.
    """
    kind = image_format(data)
    if kind == "jpg":
        try:
            if verify == "decode":
                height, width = simplejpeg.decode_jpeg(data, "GRAY", strict=True).shape[:2]
            else:
                height, width = simplejpeg.decode_jpeg_header(data)[:2]
        except ValueError as error:
            raise BadImage(f"JPEG does not decode: {error}") from error
        if JPEG_END not in data[-END_SLACK:]:
            raise BadImage("JPEG does not decode: no end mark, it is cut short")
        return kind, height, width
    try:
        with Image.open(io.BytesIO(data)) as image:
            if verify == "decode":
                image.load()
            elif PNG_END not in data[-END_SLACK:]:
                raise BadImage("PNG does not decode: no end mark, it is cut short")
            return kind, image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"PNG does not decode: {error}") from error


def decode_rgb(data: bytes) -> NDArray[np.uint8]:
    """Decode a picture that `check_image` accepts to uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def decode_gray(data: bytes) -> NDArray[np.uint8]:
    """Decode a picture that `check_image` accepts to uint8 [H, W] (BT.601 luma, as JPEG and DALI define it)."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L"))


class Picture(NamedTuple):
    """An encoded picture that was checked."""

    extension: str
    """What its bytes are, whatever the file is called: "jpg" or "png"."""
    content: bytes
    size: tuple[int, int]
    """Height and width, pixels."""


def read_picture(path: str, verify: str = "decode") -> Picture:
    """Read a file and check it (see `check_image`); raise `BadImage` if either fails."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - four times as fast as Path.read_bytes
            content = file.read()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error
    extension, height, width = check_image(content, verify)
    return Picture(extension, content, (height, width))
