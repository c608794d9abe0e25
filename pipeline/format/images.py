"""Encoded pictures: what format the bytes really are, and whether they decode."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import NOT_OF_ONE_FILE
from pipeline.files import read_file

VERIFY = ("decode", "header")
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
END_SLACK = 4096  # bytes: some writers leave something after the end mark


class BadImage(Exception):  # noqa: N818 - a finding about the data, not a fault of the program
    """These bytes are no picture that can be trained on; the message says why."""

    kind = "undecodable"  # of the problem that the file is


def image_format(data: bytes) -> str:
    """Tell "jpg" or "png" from the first bytes, whatever the file is called; raise `BadImage` for anything else."""
    if data.startswith(JPEG_START):
        return "jpg"
    if data.startswith(PNG_START):
        return "png"
    raise BadImage(f"neither JPEG nor PNG: starts with {data[:8]!r}" if data else "empty file")


def check_image(data: bytes, verify: str = "decode") -> tuple[str, int, int]:
    """Return a picture's format ("jpg" or "png"), height and width in pixels.

    `verify` is "decode", which decodes all of it, or "header", which trusts what lies between header and end mark.
    Raises `BadImage` for bytes that are no JPEG or PNG, have four colours (CMYK), are cut short or do not decode
    without a warning.
    """
    kind = image_format(data)
    if kind == "jpg":
        height, width = jpeg_size(data)
        if verify == "decode":
            decode_jpeg_gray(data, eighth=True)
        elif not data.endswith(JPEG_END) and JPEG_END not in data[-END_SLACK:]:  # the first is much faster
            raise BadImage("JPEG does not decode: no end mark, it is cut short")
        return kind, height, width
    with _opened(data, "PNG") as image:
        if verify == "decode":
            image.load()
        elif PNG_END not in data[-END_SLACK:]:
            raise BadImage("PNG does not decode: no end mark, it is cut short")
        return kind, image.height, image.width


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG, pixels, from its header; raise `BadImage` if it has none, or four colours."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise BadImage(f"JPEG does not decode: {error}") from error
    if colours in ("CMYK", "YCCK"):  # no two programs agree on what its numbers mean
        raise BadImage(f"JPEG has four colours ({colours}): convert it to RGB or gray")
    return height, width


def decode_jpeg_gray(data: bytes, *, eighth: bool = False) -> NDArray[np.uint8]:
    """Decode a JPEG to uint8 [H, W], or to the means of its blocks of 8 x 8 pixels, uint8 [ceil(H / 8), ceil(W / 8)].

    An eighth takes half to a third of the time, and every coded bit is parsed, which is where damage shows. Raises
    `BadImage` for a JPEG that does not decode without a warning.
    """
    side = 1 if eighth else 0  # the least that is wanted; 0 is all
    try:
        gray: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "GRAY", min_height=side, min_width=side, strict=True)
    except ValueError as error:
        raise BadImage(f"JPEG does not decode: {error}") from error
    return gray[..., 0]


def decode_jpeg_colours(data: bytes) -> NDArray[np.uint8]:
    """The means of a JPEG's blocks of 8 x 8 pixels, uint8 [ceil(H / 8), ceil(W / 8), 3]; see `decode_jpeg_gray`."""
    try:
        colours: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=1, min_width=1, strict=True)
    except ValueError as error:
        raise BadImage(f"JPEG does not decode: {error}") from error
    return colours


def has_colours(data: bytes) -> bool:
    """Whether a JPEG or PNG, whose header is whole, has several channels beside alpha; they may all be the same."""
    if data.startswith(PNG_START):
        return bool(data[25] & 2)  # of its header: the colour type
    return str(simplejpeg.decode_jpeg_header(data)[2]) != "Gray"


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """PNG of uint8 [H, W]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def encode_rgb(image: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG (4:2:0) of uint8 [H, W, 3]; `quality` 1 to 100."""
    data: bytes = simplejpeg.encode_jpeg(image, quality, colorspace="RGB", colorsubsampling="420")
    return data


def encode_gray(image: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG of uint8 [H, W]; `quality` 1 to 100."""
    data: bytes = simplejpeg.encode_jpeg(image[..., None], quality, colorspace="GRAY", colorsubsampling="Gray")
    return data


def decode_rgb(data: bytes) -> NDArray[np.uint8]:
    """Decode a picture to uint8 [H, W, 3]; raise `BadImage` if it does not decode."""
    with _opened(data) as image:
        if image.mode.startswith("I"):
            return np.repeat(_gray(image)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def decode_gray(data: bytes) -> NDArray[np.uint8]:
    """Decode a picture to uint8 [H, W] (BT.601 luma, as JPEG and DALI define it); raise `BadImage` if that fails."""
    with _opened(data) as image:
        return _gray(image)


def is_16_bit(data: bytes) -> bool:
    """Tell whether these bytes are a gray PNG of 16 bits."""
    return data.startswith(PNG_START) and data[24:26] == b"\x10\0"  # of its header: bits a sample, colour type


def decode_16_bit(data: bytes) -> NDArray[np.uint16]:
    """Decode a gray PNG of 16 bits to uint16 [H, W]; raise `BadImage` if that fails."""
    with _opened(data, "PNG") as image:
        return np.asarray(image).astype(np.uint16)


def _gray(image: Image.Image) -> NDArray[np.uint8]:
    """The gray values of an opened picture, uint8 [H, W]; of 16 bits the whole range is scaled to 8, as by DALI."""
    if image.mode.startswith("I"):  # Pillow's own conversion cuts them off at 255
        return ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.asarray(image.convert("L"))


@contextmanager
def _opened(data: bytes, kind: str = "picture") -> Iterator[Image.Image]:
    """A picture in Pillow's hands; whatever it objects to, then or later, is a `BadImage`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"{kind} does not decode: {error}") from error


class Picture(NamedTuple):
    """An encoded picture that was checked."""

    extension: str
    """What its bytes are, whatever the file is called: "jpg" or "png"."""
    content: bytes
    size: tuple[int, int]
    """Height and width, pixels."""


@contextmanager
def unreadable_as_bad_image() -> Iterator[None]:
    """Turn an `OSError` into a `BadImage`, unless other files would fail alike: then the run ends, to be continued."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno in NOT_OF_ONE_FILE:
            raise
        raise BadImage(f"cannot be read ({error.strerror})") from error


def check_picture(content: bytes, verify: str = "decode") -> Picture:
    """An encoded picture as a `Picture` (see `check_image`); raise `BadImage` if it is none."""
    extension, height, width = check_image(content, verify)
    return Picture(extension, content, (height, width))


def read_picture(path: str, verify: str = "decode") -> Picture:
    """Read a file and check it (see `check_image`); raise `BadImage` if either fails."""
    with unreadable_as_bad_image():
        content = read_file(path)
    return check_picture(content, verify)
