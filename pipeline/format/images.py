"""Encoded pictures: what format the bytes really are, and whether they decode."""

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.errors import NOT_OF_ONE_FILE
from pipeline.files import read_file
from pipeline.format.png import SIGNATURE, Png, encode_png, without_ancillary

VERIFY = ("decode", "header")
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
JFIF_START = b"\xff\xd8\xff\xe0\0\x10JFIF\0"
END_SLACK = 4096  # bytes: some writers leave something after the end mark
MAX_PIXELS = 100_000_000
"""Of one picture, for every command: more is a decompression bomb, or a mistake."""

JPEG, PNG = "JPEG", "PNG"
EXTENSIONS = {
    ".jpg": JPEG, ".jpeg": JPEG, ".jpe": JPEG, ".jfif": JPEG, ".png": PNG, ".webp": "WebP", ".tif": "TIFF",
    ".tiff": "TIFF", ".bmp": "BMP", ".gif": "GIF", ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".avif": "AVIF",
    ".ppm": "PPM", ".pgm": "PPM",
}  # fmt: skip
"""The formats that are read, by the extensions of their files."""
AS_THEY_CAME = (JPEG, PNG)
"""Those of which the bytes are stored; the others become PNG."""
UNREAD_EXTENSIONS = {
    ".exr": "OpenEXR", ".hdr": "Radiance HDR", ".pfm": "PFM", ".heic": "HEIC", ".heif": "HEIC", ".jxl": "JPEG XL",
    ".psd": "Photoshop", ".tga": "TGA", ".dds": "DDS", ".svg": "SVG", ".pdf": "PDF", ".raw": "raw camera",
    ".dng": "raw camera", ".cr2": "raw camera", ".cr3": "raw camera", ".nef": "raw camera", ".arw": "raw camera",
}  # fmt: skip
"""Formats of pictures that are not read."""
SIGNATURES = {
    JPEG: rb"\xff\xd8\xff", PNG: re.escape(SIGNATURE), "WebP": rb"RIFF....WEBP", "TIFF": rb"II[*+]\0|MM\0[*+]",
    "BMP": rb"BM", "GIF": rb"GIF8[79]a", "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "PPM": rb"P[1-6]\s",
    "AVIF": rb"....ftypavi[fs]", "HEIC": rb"....ftyp(?:hei|hev|mif1|msf1)", "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?RADIANCE", "PFM": rb"P[Ff]\s", "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "Photoshop": rb"8BPS", "DDS": rb"DDS ", "SVG": rb"<svg", "PDF": rb"%PDF",
}  # fmt: skip
"""How the bytes of each format begin."""


class BadImage(Exception):  # noqa: N818 - a finding about the data, not a fault of the program
    """These bytes are no picture that can be trained on; the message says why."""

    kind = "undecodable"  # of the problem that the file is


class TooManyPixels(BadImage):
    """A picture has more than MAX_PIXELS; the message says how many, and what to do."""


def sniff_format(data: bytes) -> str:
    """The format of a picture, one of SIGNATURES, by its first bytes, whatever the file is called; "" if it is none."""
    start = data[:16]
    return next((name for name, pattern in SIGNATURES.items() if re.match(pattern, start, re.DOTALL)), "")


def is_converted(path: str) -> bool:
    """Whether a file is by its name a picture that is stored in another format than its own."""
    return (
        not path.endswith((".jpg", ".jpeg", ".png"))
        and EXTENSIONS.get(PurePosixPath(path).suffix.lower(), PNG) not in AS_THEY_CAME
    )


def unread_format(path: str) -> str:
    """Why a file is not read, if by its extension it is a picture of UNREAD_EXTENSIONS; else ""."""
    name = UNREAD_EXTENSIONS.get(PurePosixPath(path).suffix.lower())
    return _why_unread(name) if name else ""


def _why_unread(name: str) -> str:
    return f"{name} pictures are not read: convert to PNG, or depth to .npy"


def image_format(data: bytes) -> str:
    """Tell "jpg" or "png" from the first bytes, whatever the file is called; raise `BadImage` for anything else."""
    if data.startswith(JPEG_START):
        return "jpg"
    if data.startswith(SIGNATURE):
        return "png"
    if (name := sniff_format(data)) in UNREAD_EXTENSIONS.values():
        raise BadImage(_why_unread(name))
    if name:
        raise BadImage(f"neither JPEG nor PNG but {name}")
    raise BadImage(f"neither JPEG nor PNG: starts with {data[:8]!r}" if data else "empty file")


def check_image(data: bytes, verify: str = "decode") -> tuple[str, int, int]:
    """Return the format ("jpg" or "png"), height and width in pixels of a picture as it is stored.

    `verify` is "decode", which looks at all that the loader's decoder wants, or "header", which trusts what lies
    between header and end mark. Raises `BadImage` for bytes that are no JPEG or PNG, have four colours (CMYK) or more
    than MAX_PIXELS, are cut short or would not decode without a warning.
    """
    if image_format(data) == "jpg":
        height, width = jpeg_size(data)
        if verify == "decode":
            decode_jpeg_gray(data, eighth=True)
        elif not data.endswith(JPEG_END) and JPEG_END not in data[-END_SLACK:]:  # the first is much faster
            raise BadImage("JPEG does not decode: no end mark, it is cut short")
        return "jpg", height, width
    with _png_errors():
        png = Png.parse(data, checksums=verify == "decode")
        require_size(png.height, png.width)
        if png.fault:
            raise ValueError(png.fault)
        if verify == "decode":
            png.check_pixels()
    return "png", png.height, png.width


@contextmanager
def _png_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise BadImage(f"PNG does not decode: {error}") from error


def require_size(height: int, width: int) -> None:
    """Raise `TooManyPixels` for a picture of more than MAX_PIXELS."""
    if height * width > MAX_PIXELS:
        raise TooManyPixels(f"{width} x {height} pixels, at most {MAX_PIXELS // 1_000_000} million: make it smaller")


def as_stored(data: bytes, verify: str = "decode") -> tuple[bytes, str]:
    """What a picture is stored as, and what was wrong with its file and is no longer, "" if nothing was.

    JPEG and PNG are stored as they came. Faults of a PNG that leave its pixels whole are removed, but not with `verify`
    "header", for which nobody looks. The other formats of EXTENSIONS become PNG with the same pixels. What is none of
    them comes back as it is. Raises `BadImage` for a picture of these others that does not decode, has several frames,
    or values that no PNG holds.
    """
    name = sniff_format(data)
    if name == PNG and verify == "decode":
        with suppress(ValueError):  # `check_image` tells of it
            if (png := Png.parse(data)).fault:
                return png.repaired(), f"{png.fault}; all of its pixels are there: stored without that fault"
    elif name in EXTENSIONS.values() and name not in AS_THEY_CAME:
        return _as_png(data), ""
    return data, ""


def _as_png(data: bytes) -> bytes:
    """A PNG of the pixels of a picture of another format, with its palette and its alpha."""
    with open_picture(data) as image:
        image.load()
        transparency = image.info.get("transparency")
        if image.mode == "P" and (palette := image.getpalette("RGB")) and not isinstance(transparency, tuple):
            if isinstance(transparency, int):
                transparency = b"\xff" * transparency + b"\0"
            return encode_png(np.asarray(image), bytes(palette), transparency or b"")
        if image.mode in ("1", "P", "PA", "YCbCr"):
            image = image.convert({"1": "L", "YCbCr": "RGB"}.get(image.mode, "RGBA"))
        pixels = np.asarray(image)
        if image.mode == "I" and pixels.min() >= 0 and pixels.max() < 1 << 16:  # 16 bits of PPM, for instance
            pixels = pixels.astype(np.uint16)
        if image.mode not in ("L", "LA", "RGB", "RGBA") and pixels.dtype.newbyteorder("=") != np.uint16:
            raise ValueError(f"its values ({image.mode}) do not fit a PNG: convert it, or save depth as .npy")
        return encode_png(pixels)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG, pixels, by its header; raise `BadImage` for none, four colours, over MAX_PIXELS."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise BadImage(f"JPEG does not decode: {error}") from error
    require_size(height, width)
    if colours in ("CMYK", "YCCK"):  # no two programs agree on what its numbers mean
        raise BadImage(f"JPEG has four colours ({colours}): convert it to RGB or gray")
    return height, width


def decode_jpeg_gray(data: bytes | NDArray[np.uint8], *, eighth: bool = False) -> NDArray[np.uint8]:
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
    if data.startswith(SIGNATURE):
        return bool(data[25] & 2)  # of its header: the colour type
    return str(simplejpeg.decode_jpeg_header(data)[2]) != "Gray"


def holds_rgb(data: NDArray[np.uint8]) -> bool:
    """Whether a picture, uint8 [bytes], is a JPEG of red, green and blue, and not of Y, Cb and Cr as nearly all are.

    libjpeg says so, by the Adobe marker, or by the names of the components; where there is a JFIF marker, it never
    does. That takes a microsecond, and less of files that begin as nearly all do.
    """
    view = data.data
    if view[: len(JFIF_START)] == JFIF_START or view[: len(JPEG_START)] != JPEG_START:
        return False
    try:
        return str(simplejpeg.decode_jpeg_header(view)[2]) == "RGB"
    except ValueError:  # no decoder can do with it
        return False


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
    with open_picture(_plain(data)) as image:
        if image.mode.startswith("I"):
            return np.repeat(gray_levels(image)[..., None], 3, axis=2)
        return np.asarray(image if image.mode == "RGB" else _without_alpha(image).convert("RGB"))


def decode_gray(data: bytes) -> NDArray[np.uint8]:
    """Decode a picture to uint8 [H, W], BT.601 luma of what is stored, as DALI does; raise `BadImage` if that fails."""
    with open_picture(_plain(data)) as image:
        image.draft("L", None)  # of a JPEG the luma that it holds, and not that of its colours, cut off at 0 and 255
        return gray_levels(image)


def is_16_bit(data: bytes) -> bool:
    """Tell whether these bytes are a gray PNG of 16 bits."""
    return data.startswith(SIGNATURE) and data[24:26] == b"\x10\0"  # of its header: bits a sample, colour type


def decode_16_bit(data: bytes) -> NDArray[np.uint16]:
    """Decode a gray PNG of 16 bits to uint16 [H, W]; raise `BadImage` if that fails."""
    with open_picture(_plain(data)) as image:
        return np.asarray(image).astype(np.uint16)


def gray_levels(image: Image.Image) -> NDArray[np.uint8]:
    """The gray values of an opened picture, uint8 [H, W]; of 16 bits the whole range is scaled to 8, as by DALI."""
    if image.mode.startswith("I"):  # Pillow's own conversion cuts them off at 255
        return ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.asarray(image if image.mode == "L" else _without_alpha(image).convert("L"))


def _without_alpha(image: Image.Image) -> Image.Image:
    image.info.pop("transparency", None)  # of which Pillow warns
    return image


def _plain(data: bytes) -> bytes:
    return bytes(without_ancillary(np.frombuffer(data, np.uint8)))


@contextmanager
def open_picture(data: bytes) -> Iterator[Image.Image]:
    """A picture of a format of EXTENSIONS, opened by Pillow; whatever that objects to, then or later, is a `BadImage`.

    So is one of more than MAX_PIXELS, or of several frames or pages.
    """
    if (name := sniff_format(data)) not in EXTENSIONS.values():
        image_format(data)  # says what it is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, where the limit is ours, and of metadata
            opened = Image.open(io.BytesIO(data), formats=[name.replace(" ", "").upper()])
        with opened as image:
            require_size(image.height, image.width)
            if (frames := getattr(image, "n_frames", 1)) > 1 and name != JPEG:  # phones' JPEGs have extras
                raise BadImage(f"{name} is animated or has pages ({frames} frames), not a still picture")
            yield image
    except UnidentifiedImageError as error:
        raise BadImage(f"{name} does not decode: its header is damaged, or this Pillow does not know it") from error
    except Image.DecompressionBombError as error:  # "Image size (... pixels) exceeds limit of ... pixels, ..."
        raise TooManyPixels(f"{error}: make it smaller") from error
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, RuntimeError, struct.error) as error:
        raise BadImage(f"{name} does not decode: {error}") from error


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


def check_stored(content: bytes, verify: str = "decode") -> Picture:
    """A picture as it is stored, checked (see `check_image`); raise `BadImage` if it is none."""
    extension, height, width = check_image(content, verify)
    return Picture(extension, content, (height, width))


def check_picture(content: bytes, verify: str = "decode") -> Picture:
    """What a picture is stored as (see `as_stored`), checked (see `check_image`); raise `BadImage` if it is none."""
    content, _ = as_stored(content, verify)
    return check_stored(content, verify)


def read_picture(path: str, verify: str = "decode") -> Picture:
    """Read a file and check it (see `check_image`); raise `BadImage` if either fails."""
    with unreadable_as_bad_image():
        content = read_file(path)
    return check_picture(content, verify)
