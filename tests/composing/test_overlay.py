import random

import numpy as np
import pytest
from PIL import Image

from pipeline.composing.overlay import (
    NOISE,
    NOISE_PX,
    SHIFT_PX,
    CameraPerturbation,
    Sprite,
    contact_shadow,
    make_noise,
    perturb_exposure,
    random_perturbation,
    shift_picture,
)
from tests.samples import smooth_picture

IDENTITY = CameraPerturbation(gain=1.0, offset=0.0, noise=0.0, shift=(0, 0), noise_origin=(3, 4))


def sprite_of(height: int, width: int, seed: int = 0) -> tuple[Sprite, np.ndarray]:
    rgba = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Sprite.of(Image.fromarray(rgba)), rgba


def test_blending_is_exact_for_every_alpha_and_every_two_levels() -> None:
    over, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([over, over, over, alpha], axis=2).astype(np.uint8)
    sprite = Sprite.of(Image.fromarray(rgba))
    for under in range(256):
        canvas = np.full((256, 256, 3), under, np.uint8)
        sprite.blend_into(canvas, 0, 0)
        exact = (alpha * over + (255 - alpha) * under) / 255
        # Never is a result half-way between two levels: 255 is odd. So rounding leaves no choice.
        assert (canvas == np.rint(exact)[..., None]).all()


@pytest.mark.parametrize(("left", "top"), [(3, 4), (-5, 2), (4, -6), (30, 35), (-2, -3), (-40, 0), (0, 60)])
def test_what_is_outside_is_cut_off(left: int, top: int) -> None:
    (sprite, rgba), under = sprite_of(12, 16), smooth_picture(1, size=40)
    canvas = under.copy()
    sprite.blend_into(canvas, left, top)
    mask = sprite.mask(left, top, 40)
    alpha, expected = np.zeros((120, 120)), np.zeros((120, 120, 3))  # a larger picture, of which ours is the middle
    there = (
        (slice(40 + top, 52 + top), slice(40 + left, 56 + left))
        if left > -40 and top < 60
        else (slice(0, 12), slice(0, 16))
    )
    alpha[there], expected[there] = rgba[..., 3], rgba[..., :3]
    alpha, expected = alpha[40:80, 40:80], expected[40:80, 40:80]
    assert (mask == alpha).all()
    blended = (alpha[..., None] * expected + (255 - alpha[..., None]) * under) / 255
    assert np.abs(canvas - blended).max() <= 0.5
    share = sprite.visible_share(left, top, 40)
    assert share == pytest.approx(alpha.sum() / rgba[..., 3].astype(float).sum())


def test_another_light_multiplies_colours_and_leaves_alpha() -> None:
    sprite, rgba = sprite_of(9, 9)
    light, canvas = (0.5, 1.0, 1.5), np.full((9, 9, 3), 60, np.uint8)
    sprite.relit(light).blend_into(canvas, 0, 0)
    share = rgba[..., 3:] / 255
    expected = share * np.minimum(rgba[..., :3] * np.array(light), 255) + (1 - share) * 60
    assert np.abs(canvas - expected).max() <= 0.51
    assert (sprite.relit(light).mask(0, 0, 9) == rgba[..., 3]).all()


def test_a_contact_shadow_is_a_soft_dark_patch_around_the_foot() -> None:
    alpha = np.zeros((60, 40), np.uint8)
    alpha[:, 8:32] = 255
    shadow, right, down = contact_shadow(alpha, 0.6)
    canvas = np.full((200, 200, 3), 200, np.uint8)
    shadow.blend_into(canvas, 80 + right, 100 + down)
    dark = 1 - canvas[..., 0] / 200
    assert 0.5 < dark.max() <= 0.61
    rows, columns = np.nonzero(dark > 0.05)
    assert 100 + 60 - 12 < rows.min() < 160 < rows.max() < 160 + 12
    assert 80 + 8 - 8 < columns.min() < 80 + 8
    assert 80 + 32 < columns.max() < 80 + 32 + 8
    foot = dark[160]
    assert foot[100] == foot.max()
    assert (np.abs(np.diff(dark, axis=0)) < 0.25).all(), "no hard edge"


def test_the_identity_changes_nothing() -> None:
    picture = smooth_picture(0)
    assert (perturb_exposure(picture, IDENTITY, make_noise(48, 0)) == picture).all()
    assert (shift_picture(picture, (0, 0)) == picture).all()


def test_exposure_is_that_of_its_formula() -> None:
    picture = smooth_picture(0)
    exposed = perturb_exposure(picture, IDENTITY._replace(gain=1.1, offset=-6.0), make_noise(48, 0))
    assert np.abs(exposed - np.clip((picture - 127.5) * 1.1 + 121.5, 0, 255)).max() <= 0.5


def test_noise_has_its_deviation_and_differs_from_place_to_place() -> None:
    gray, noise = np.full((224, 224, 3), 128, np.uint8), make_noise(224, 0)
    one, other = (
        perturb_exposure(gray, IDENTITY._replace(noise=6.0, noise_origin=at), noise).astype(int)
        for at in ((0, 0), (NOISE_PX - 1, 70))
    )
    for noisy in (one, other):
        assert abs(noisy.std() - 6) < 0.2
        assert abs(noisy.mean() - 128) < 0.2
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


def test_shifting_repeats_the_border() -> None:
    picture = smooth_picture(0)
    moved = shift_picture(picture, (3, -2))
    assert (moved[:-2, 3:] == picture[2:, :-3]).all()
    assert (moved[:-2, :3] == picture[2:, :1]).all()
    assert (moved[-2:, 3:] == picture[-1:, :-3]).all()


def test_random_perturbations_stay_in_bounds_and_in_the_room() -> None:
    rng = random.Random(0)
    drawn = [random_perturbation(rng, (0, 1, 9, 9)) for _ in range(400)]
    assert {perturbation.shift[0] for perturbation in drawn} == set(range(SHIFT_PX + 1))
    assert {perturbation.shift[1] for perturbation in drawn} == set(range(-1, SHIFT_PX + 1))
    assert all(
        NOISE[0] <= perturbation.noise <= NOISE[1]
        and 0.88 <= perturbation.gain <= 1.12
        and abs(perturbation.offset) <= 10
        for perturbation in drawn
    )
    assert np.std([perturbation.gain for perturbation in drawn]) > 0.05
