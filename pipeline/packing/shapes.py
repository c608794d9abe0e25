"""Shapes: pictures of one view have sides in one ratio, whatever their resolution; what is done where they do not.

The loader brings all parts of a set to one square. Parts of another shape would be stretched, and no longer lie on each
other: such a set is left out, or its background and depth are cropped to the overlay's shape.
"""

import io

from PIL import Image

from pipeline.format.images import BadImage, Picture

FITS = ("refuse", "crop", "stretch")
"""What to do with a background or depth of another shape than its overlay's: leave the set out; crop around the middle,
as large as the overlay's shape allows; or store it as it came, which loads stretched."""
FITTED = {
    "crop": "backgrounds and depth of another shape were cropped around their middle to their overlays' shape",
    "stretch": "backgrounds and depth of another shape were stored as they came, and load stretched",
}
ORIENTATION = 0x0112  # of EXIF

Size = tuple[int, int]
"""Height and width, pixels."""


def same_shape(one: Size, other: Size) -> bool:
    """Whether two sizes are one shape at two resolutions.

    They are if the sides of the smaller one are those of the larger times one number, each rounded up or down.
    """
    (height, width), (full_height, full_width) = sorted((one, other))
    return abs(width * full_height - height * full_width) < full_height + full_width


def crop_box(size: Size, shape: Size) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest part of a picture of `size`, around its middle, that is of `shape`."""
    height, width = size
    cropped_width = min(width, max(1, round(height * shape[1] / shape[0])))
    cropped_height = min(height, max(1, round(width * shape[0] / shape[1])))
    left, top = (width - cropped_width) // 2, (height - cropped_height) // 2
    return left, top, left + cropped_width, top + cropped_height


def cropped(picture: Picture, shape: Size) -> Picture:
    """The part of a picture that is of the shape of the size `shape`, as PNG; itself if it is of this shape.

    Raises `BadImage` if it does not decode.
    """
    if same_shape(picture.size, shape):
        return picture
    try:
        with Image.open(io.BytesIO(picture.content)) as image:
            buffer = io.BytesIO()
            part = image.crop(crop_box(picture.size, shape))
            part.save(buffer, "PNG", icc_profile=None)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"picture does not decode: {error}") from error
    return Picture("png", buffer.getvalue(), (part.height, part.width))


def shape_problem(name: str, size: Size, overlay: Size, content: bytes = b"") -> str:
    """Say that a part is of another shape than its overlay, and what to do. `content` tells if it is to be turned."""
    turned = orientation(content)
    exif = f"; its EXIF orientation is {turned}, pictures are taken as stored" if turned > 1 else ""
    return (
        f"{name} is {_pixels(size)}, its overlay {_pixels(overlay)} pixels: of another shape{exif}; "
        f"make them alike, or pack with --fit crop or --fit stretch"
    )


def orientation(content: bytes) -> int:
    """The EXIF orientation of a picture: 1 is as stored, 3 to 8 are turned or mirrored; 1 if it says nothing."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return int(image.getexif().get(ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):
        return 1


def _pixels(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
