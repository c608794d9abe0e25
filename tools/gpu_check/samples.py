"""Pictures in every form in which sets may hold them, to be decoded on both devices."""

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TURNED = 0x0112  # the EXIF field for the orientation; 6: turn by 90 degrees to view


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture with slopes, edges and texture, as photographs have them; uint8 [height, width, 3]."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    y, x = y / height, x / width
    waves = [np.sin(generator.uniform(1, 9) * x + generator.uniform(1, 9) * y + generator.uniform(0, 6)) for _ in "RGB"]
    picture = 127.5 + 80 * np.stack(waves, axis=2)
    for _ in range(6):
        (top, left), side = generator.uniform(0, 0.8, 2), generator.uniform(0.05, 0.3)
        picture[(y >= top) & (y < top + side) & (x >= left) & (x < left + side)] = generator.uniform(0, 255, 3)
    picture += generator.normal(0, 6, (height, width, 1))
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)


def sample_files() -> Mapping[str, bytes]:
    """Encoded pictures by what is special about each; the same bytes at every call."""
    colour = scene(224, 224)
    gray = np.asarray(Image.fromarray(colour).convert("L"))
    exif = Image.Exif()
    exif[TURNED] = 6
    return {
        "gray": _encoded(gray, "JPEG", quality=90),
        "colour 4:4:4": _encoded(colour, "JPEG", quality=90, subsampling="4:4:4"),
        "colour 4:2:2": _encoded(colour, "JPEG", quality=90, subsampling="4:2:2"),
        "colour 4:2:0": _encoded(colour, "JPEG", quality=90, subsampling="4:2:0"),
        "quality 30, 4:2:0": _encoded(colour, "JPEG", quality=30, subsampling="4:2:0"),
        "progressive 4:2:0": _encoded(colour, "JPEG", quality=90, subsampling="4:2:0", progressive=True),
        "gray, progressive": _encoded(gray, "JPEG", quality=90, progressive=True),
        "restart markers": _encoded(colour, "JPEG", quality=90, subsampling="4:2:0", restart_marker_rows=1),
        "odd 157 x 223, 4:2:0": _encoded(scene(157, 223, 1), "JPEG", quality=90, subsampling="4:2:0"),
        "odd 33 x 47, 4:4:4": _encoded(scene(33, 47, 2), "JPEG", quality=90, subsampling="4:4:4"),
        "960 x 1280, 4:2:0": _encoded(scene(960, 1280, 3), "JPEG", quality=90, subsampling="4:2:0"),
        "EXIF: turned": _encoded(scene(160, 224, 4), "JPEG", quality=90, exif=exif),
        "PNG, gray": _encoded(gray, "PNG"),
        "PNG, colour": _encoded(colour, "PNG"),
        "PNG, 16 bits": _encoded((gray.astype(np.uint16) * 256 + gray[::-1]).astype(np.uint16), "PNG"),
    }


def _encoded(picture: NDArray[np.uint8] | NDArray[np.uint16], kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **how)
    return buffer.getvalue()
