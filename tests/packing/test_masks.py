from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.format.images import BadImage, decode_jpeg_gray, encode_gray
from pipeline.packing.masks import BLANK, BRIGHT, DARK, EDGE, NOT_BINARY, check_mask, judge, plausible
from tests.samples import jpeg, png, smooth_picture

Mask = NDArray[np.uint8]


def disc(radius: float, value: int = 255, size: int = 96) -> Mask:
    y, x = np.mgrid[0:size, 0:size] - size / 2 + 0.5
    return np.where(np.hypot(y, x) < radius, value, 0).astype(np.uint8)


def blurred(mask: Mask, sigma: float) -> Mask:
    return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(sigma)))


def pole() -> Mask:
    mask = np.zeros((96, 96), np.uint8)
    mask[20:90, 40:43] = 255
    return mask


GOOD: dict[str, Mask] = {
    "car": disc(30),
    "far car": disc(4),
    "soft edge": blurred(disc(30), 2.5),
    "soft and small": blurred(disc(8), 1.5),
    "pole": pole(),
    "soft pole": blurred(pole(), 0.7),
    "at the frame": np.roll(disc(30), 40, axis=1),
    "nearly all": 255 - disc(5),
    "a window": np.where(disc(6) > 0, 128, disc(30)).astype(np.uint8),
}
BAD: dict[str, tuple[Mask, str, str]] = {
    "black": (disc(0), BLANK, "no foreground: its largest value is 0 of 255"),
    "0 and 1": (disc(30, 1), BLANK, "no foreground: its largest value is 1 of 255"),
    "white": (255 - disc(0), BLANK, "foreground all over: its smallest value is 255 of 255"),
    "half as bright": (disc(30, 128), NOT_BINARY, "100% of the mask's foreground is gray"),
    "small and gray": (disc(5, 150), NOT_BINARY, "100% of the mask's foreground is gray"),
    "half gray": (
        np.where(np.arange(96) < 48, disc(30), disc(30, 100)),
        NOT_BINARY,
        "of the mask's foreground is gray",
    ),
    "a photograph": (smooth_picture(3, 1, 96)[..., 0], NOT_BINARY, "of the mask's foreground is gray"),
}


def both(mask: Mask) -> list[bytes]:
    return [png(mask), encode_gray(mask, 90)]


@pytest.mark.parametrize("name", GOOD)
def test_masks_are_masks(name: str) -> None:
    for content in both(GOOD[name]):
        picture, finding = check_mask(content)
        assert finding is None
        assert (picture.content, picture.size) == (content, (96, 96))


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_mask_is_told(name: str) -> None:
    mask, kind, why = BAD[name]
    for content in both(mask):
        _, finding = check_mask(content)
        assert finding
        assert finding.kind == kind
        if content == png(mask):
            assert why in finding.why


def slow_share(mask: Mask) -> float:
    """What share of the foreground is gray and not at an edge, pixel by pixel."""
    far = foreground = 0
    for (row, column), value in np.ndenumerate(mask):
        around = mask[max(0, row - EDGE) : row + EDGE + 1, max(0, column - EDGE) : column + EDGE + 1]
        foreground += bool(value >= DARK)
        far += bool(DARK <= value < BRIGHT and not (around.min() < DARK and around.max() >= BRIGHT))
    return far / foreground


def test_the_rule_is_the_stated_one() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        levels = rng.choice(np.array([0, 0, 255, 255, 255, 128], np.uint8), size=(4, 4))
        small = np.asarray(Image.fromarray(levels).resize((32, 32), Image.Resampling(int(rng.integers(2) * 2))))
        if (small < DARK).all() or (small >= BRIGHT).all():
            continue
        finding = judge(small)
        assert (finding is not None) == (slow_share(small) > 0.1)
        outcomes.add(finding is not None)
    assert outcomes == {True, False}


@pytest.mark.parametrize("edge", [lambda mask: mask, lambda mask: blurred(mask, 1.2)])
def test_a_glance_lets_no_blank_or_gray_mask_through(edge: Callable[[Mask], Mask]) -> None:
    # Whatever an eighth of the size lets pass, the full rule would pass, and most good masks do pass.
    passed = 0
    for radius in range(3, 48, 3):
        for value in (1, 63, 100, 150, 191, 255):
            mask = edge(disc(radius, value))
            likely = plausible(decode_jpeg_gray(encode_gray(mask, 90), eighth=True))
            assert not (likely and judge(mask))
            passed += likely
    assert passed >= 8


@pytest.mark.parametrize("content", [jpeg(smooth_picture(0))[:-300], png(disc(9))[:-40], b"", b"GIF89a"])
def test_damage_is_damage(content: bytes) -> None:
    with pytest.raises(BadImage):
        check_mask(content)
