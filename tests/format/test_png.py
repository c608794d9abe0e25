import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.format.images import BadImage, as_stored, check_image, check_picture, decode_gray, decode_rgb
from pipeline.format.png import GRAY, RGB, encode_png, without_ancillary
from pipeline.loading.decode import DecodeOptions, Decoder, Undecodable
from pipeline.packing.encode_planes import NoPlanes, PlaneRasterizer
from tests.png_files import COLOUR_CHUNKS, SIDE, chunks_of, damaged, kinds, repairable, with_wrong_checksum, write_png
from tests.samples import smooth_picture

KINDS, REPAIRABLE, DAMAGED = kinds(), repairable(), damaged()


@pytest.fixture(scope="module")
def rasterizer() -> PlaneRasterizer:
    return PlaneRasterizer({"fg_bg": None}, SIDE)


def decoded(rasterizer: PlaneRasterizer, content: bytes) -> NDArray[np.int64]:
    """What DALI makes of a picture, for the loader, for planes and for predictions alike; int64 [SIDE, SIDE]."""
    [planes] = rasterizer.rasterize([[check_picture(content)]])
    assert not isinstance(planes, NoPlanes), planes.why
    levels: NDArray[np.int64] = planes[0].astype(np.int64)
    return levels


def luma(content: bytes) -> NDArray[np.float64]:
    """BT.601 of the values that a PNG stores, as Pillow reads them; float64 [SIDE, SIDE]."""
    return np.rint(decode_rgb(content).astype(np.float64) @ (0.299, 0.587, 0.114))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_png_is_the_luma_of_what_it_stores(rasterizer: PlaneRasterizer, kind: str) -> None:
    content = KINDS[kind]
    assert check_image(content) == ("png", SIDE, SIDE)
    assert as_stored(content) == (content, "")  # the bytes stay
    by_dali = decoded(rasterizer, content)
    assert np.abs(by_dali - luma(content)).max() <= 1
    assert np.abs(by_dali - decode_gray(content)).max() <= 1


@pytest.mark.parametrize("colour", [GRAY, RGB, 3, 4, 6])
def test_no_chunk_changes_the_gray_of_the_same_pixels(rasterizer: PlaneRasterizer, colour: int) -> None:
    plain = decoded(rasterizer, write_png(chunks_of(colour, 8)))
    for extra in COLOUR_CHUNKS.values():
        assert np.array_equal(decoded(rasterizer, write_png(chunks_of(colour, 8, before=[extra]))), plain)


@pytest.mark.parametrize("why", REPAIRABLE)
def test_what_dali_refuses_for_a_fault_that_leaves_the_pixels_whole_is_repaired(
    rasterizer: PlaneRasterizer, why: str
) -> None:
    content, good = REPAIRABLE[why], write_png(chunks_of(RGB, 8))
    with pytest.raises(Undecodable):
        list(
            Decoder({"x": None}, DecodeOptions(1, SIDE, "cpu", 1, 1)).decode(
                iter([[[np.frombuffer(content, np.uint8)]]])
            )
        )
    with pytest.raises(BadImage, match="PNG does not decode: ") as refused:
        check_image(content)  # of shards
    assert str(refused.value).endswith(why)
    assert as_stored(content) == (good, f"{why}; all of its pixels are there: stored without that fault")
    assert as_stored(content, "header")[0] == content
    assert np.array_equal(decoded(rasterizer, content), decoded(rasterizer, good))


@pytest.mark.parametrize("why", DAMAGED)
def test_what_cannot_be_trusted_is_refused_and_told_why(why: str) -> None:
    with pytest.raises(BadImage) as refused:
        check_picture(DAMAGED[why])
    assert why in str(refused.value)


def test_damaged_pixels_under_a_wrong_checksum_are_not_repaired() -> None:
    content = write_png(chunks_of(RGB, 8))
    for place in range(content.index(b"IDAT") + 4, len(content) - 16, 7):
        with pytest.raises(BadImage, match="PNG does not decode"):
            check_picture(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])


def test_random_damage_that_passes_the_check_decodes(rasterizer: PlaneRasterizer) -> None:
    rng, passed = np.random.default_rng(5), 0
    for content in (*KINDS.values(), *REPAIRABLE.values()):
        for _ in range(3):
            broken = bytearray(content)
            for _ in range(rng.integers(1, 3)):
                broken[rng.integers(8, len(broken))] ^= 1 << rng.integers(8)
            try:
                picture = check_picture(bytes(broken))
            except BadImage:
                continue
            passed += 1
            assert not isinstance(rasterizer.rasterize([[picture]])[0], NoPlanes), broken.hex()
    assert passed > 5  # where an ancillary chunk was hit


def test_ancillary_chunks_alone_are_left_out() -> None:
    for content in KINDS.values():
        data = np.frombuffer(content, np.uint8)
        plain = bytes(without_ancillary(data))
        assert np.array_equal(decode_gray(plain), decode_gray(content))
        assert all(kind not in plain for kind in (b"gAMA", b"sRGB", b"iCCP", b"acTL", b"tEXt"))
        assert (b"tRNS" in plain) == (b"tRNS" in content)
    bare = np.frombuffer(write_png(chunks_of(RGB, 8)), np.uint8)
    assert without_ancillary(bare) is bare  # no copy
    for garbage in (b"", b"\x89PNG", b"\xff\xd8\xff", write_png([])[:8] + b"\xff" * 20, bare[:40].tobytes()):
        assert bytes(without_ancillary(np.frombuffer(garbage, np.uint8))) == garbage


def test_a_whole_picture_is_inflated_in_pieces() -> None:
    side = 3000  # 27 MB of pixels that hardly deflate, and as many that deflate to nothing
    for row in (np.random.default_rng(0).bytes(3 * side), bytes(3 * side)):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        for rows, why in ((side, ""), (side - 1, "cut short"), (side + 10, "holds more")):
            content = write_png([(b"IHDR", header), (b"IDAT", zlib.compress((b"\0" + row) * rows, 1)), (b"IEND", b"")])
            if not why:
                assert check_image(content) == ("png", side, side)
                continue
            with pytest.raises(BadImage, match=why):
                check_image(content)


@pytest.mark.parametrize(
    "picture",
    [
        smooth_picture(0),
        smooth_picture(0)[..., 0],
        smooth_picture(0, 4),
        smooth_picture(0, 2),
        smooth_picture(1, 1)[:5, :9, 0].astype(np.uint16) * 257,
        np.zeros((1, 1), np.uint8),
    ],
)
def test_what_is_encoded_is_read_back_by_others(picture: NDArray[np.uint8]) -> None:
    content = encode_png(picture)
    check_image(content)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(np.asarray(image), picture)


def test_a_wrong_checksum_of_the_pixels_is_not_looked_for_in_the_header() -> None:
    content = with_wrong_checksum(write_png(chunks_of(RGB, 8)), b"IDAT")
    assert check_image(content, "header") == ("png", SIDE, SIDE)
