import io
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.format.images import VERIFY, BadImage, check_image, decode_16_bit, decode_gray, decode_rgb, is_16_bit
from pipeline.loading.decode import DecodeOptions, Decoder
from tests.samples import jpeg, png, smooth_picture


def test_good_pictures() -> None:
    wide = np.ascontiguousarray(smooth_picture(0)[:20])
    assert check_image(jpeg(wide)) == ("jpg", 20, 48)
    assert check_image(png(wide)) == ("png", 20, 48)
    assert np.array_equal(decode_rgb(png(wide)), wide)
    assert np.array_equal(decode_gray(png(np.ascontiguousarray(wide[..., 0]))), wide[..., 0])


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    for verify in VERIFY:
        assert check_image(jpeg(smooth_picture(0)) + bytes(1000), verify) == ("jpg", 48, 48)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty file"),
        (b"GIF89a......", "neither JPEG nor PNG but GIF"),
        (b"v/1\x01\2\0\0\0", "OpenEXR pictures are not read: convert to PNG, or depth to .npy"),
        (b"<html></html>", "neither JPEG nor PNG: starts with b'<html></'"),
        (jpeg(smooth_picture(0))[:-300], "JPEG does not decode"),
        (jpeg(smooth_picture(0))[:20], "JPEG does not decode"),
        (png(smooth_picture(0))[:-40], "PNG does not decode"),
        (png(smooth_picture(0))[:60] + b"\0" * 100, "PNG does not decode"),
    ],
)
def test_bad_pictures_say_why(content: bytes, why: str) -> None:
    with pytest.raises(BadImage, match=why):
        check_image(content)


def test_the_check_needs_no_torch() -> None:
    # Packing starts a fresh interpreter for each worker: it must stay light.
    code = (
        "import sys, pipeline.packing.pack; sys.exit(bool({'torch', 'nvidia', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_jpeg_of_four_colours_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (16, 16), (10, 20, 30, 40)).save(buffer, "JPEG")
    for verify in VERIFY:
        with pytest.raises(BadImage, match=r"four colours \(CMYK\)"):
            check_image(buffer.getvalue(), verify)


def test_sixteen_bits_are_scaled_as_by_dali() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    content = png(values)
    assert is_16_bit(content)
    assert np.array_equal(decode_16_bit(content), values)
    gray = decode_gray(content)
    assert np.array_equal(gray, np.rint(values / 257))
    assert (decode_rgb(content) == gray[..., None]).all()
    [decoded] = Decoder({"depth": None}, DecodeOptions(1, 256, "cpu", 1, 1)).decode(
        iter([[[np.frombuffer(content, np.uint8)]]])
    )
    assert np.array_equal(decoded["depth"][0, 0].numpy(), gray)


@pytest.mark.parametrize("picture", [smooth_picture(0), smooth_picture(0)[..., 0]])
def test_eight_bits_are_not_sixteen(picture: NDArray[np.uint8]) -> None:
    assert not is_16_bit(png(picture))
    assert not is_16_bit(jpeg(smooth_picture(0)))
