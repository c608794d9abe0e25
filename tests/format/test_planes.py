import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.format.planes import BadFrame, compress_frame, decode_set, decode_sets, decompress_frames, encode_set


def random_planes(seed: int, count: int, size: int) -> NDArray[np.uint8]:
    """Every difference modulo 256 comes up."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size), dtype=np.uint8)


def decoded_slowly(frame: bytes, background: NDArray[np.uint8], parts: int) -> list[list[list[int]]]:
    """What docs/format.md says of a frame, one pixel at a time."""
    size, content = len(background), list(zstandard.decompress(frame))
    pixels = [content[start : start + size] for start in range(0, len(content), size)]
    overlay, mask, *depth = (pixels[part * size : (part + 1) * size] for part in range(parts))
    for y in range(size):
        for x in range(size):
            overlay[y][x] = (overlay[y][x] + int(background[y, x])) % 256
            for plane in depth:
                plane[y][x] = (plane[y][x] + (plane[y - 1][x] if y else 0)) % 256
    return [overlay, mask, *depth]


@given(seed=st.integers(0, 1000), parts=st.sampled_from([2, 3]), size=st.integers(1, 9))
def test_a_set_comes_back_as_it_was(seed: int, parts: int, size: int) -> None:
    background, *planes = random_planes(seed, parts + 1, size)
    frame = encode_set(np.stack(planes), background)
    assert np.array_equal(decode_set(frame, background, parts), planes)
    assert np.array_equal(decoded_slowly(frame, background, parts), planes)


@pytest.mark.parametrize("asked", [2, 3])
def test_many_sets_are_decoded_but_for_their_differences(asked: int) -> None:
    frames = [compress_frame(random_planes(seed, 3, 8)) for seed in range(5)]
    out = np.zeros((asked, 5, 8, 8), np.uint8)
    decode_sets(frames, out, 3)
    for seed in range(5):
        assert np.array_equal(out[:, seed], random_planes(seed, 3, 8)[:asked])


def test_what_is_no_frame_of_the_planes_expected_is_told() -> None:
    good = compress_frame(random_planes(0, 3, 8))
    cut = compress_frame(np.zeros(192, np.uint8))[:-3]
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(192))
    boast = zstandard.ZstdCompressor().compress(bytes(1 << 24))  # asks for more memory than a set may
    for bad, reason in [
        (cut, "decompress|corrupt|incomplete|truncated|Src"),
        (b"", "determining content size"),
        (b"\xff\xd8\xff\xe0 a JPEG", "determining content size"),
        (unsized, "-1 bytes where 192 were expected"),
        (compress_frame(random_planes(0, 2, 8)), "128 bytes where 192 were expected"),
        (boast, "16777216 bytes where 192 were expected"),
    ]:
        with pytest.raises(BadFrame, match=reason):
            list(decompress_frames([good, bad], 192))
    assert [len(content) for content in decompress_frames([good, good], 192)] == [192, 192]


def test_overlays_that_are_their_background_cost_next_to_nothing() -> None:
    background, mask = random_planes(0, 2, 64)
    overlay = background.copy()
    overlay[20:30, 20:30] = mask[20:30, 20:30]
    mask[:] = 0
    assert len(encode_set(np.stack([overlay, mask]), background)) < 300 < len(compress_frame(overlay))
