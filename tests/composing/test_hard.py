import random

import numpy as np

from pipeline.composing.hard import NOISE, SHIFT_PX, TILE, Disturbance, draw, expose, make_noise, move
from tests.samples import smooth_picture

STILL = Disturbance(gain=1.0, offset=0.0, noise=0.0, shift=(0, 0), noise_at=(3, 4))


def test_nothing_is_nothing() -> None:
    picture = smooth_picture(0)
    assert (expose(picture, STILL, make_noise(48, 0)) == picture).all()
    assert (move(picture, (0, 0)) == picture).all()


def test_exposure_is_that_of_its_formula() -> None:
    picture = smooth_picture(0)
    exposed = expose(picture, STILL._replace(gain=1.1, offset=-6.0), make_noise(48, 0))
    assert np.abs(exposed - np.clip((picture - 127.5) * 1.1 + 121.5, 0, 255)).max() <= 0.5


def test_noise_has_its_deviation_and_differs_from_place_to_place() -> None:
    gray, noise = np.full((224, 224, 3), 128, np.uint8), make_noise(224, 0)
    one, other = (
        expose(gray, STILL._replace(noise=6.0, noise_at=at), noise).astype(int) for at in ((0, 0), (TILE - 1, 70))
    )
    for noisy in (one, other):
        assert abs(noisy.std() - 6) < 0.2
        assert abs(noisy.mean() - 128) < 0.2
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


def test_moving_repeats_the_border() -> None:
    picture = smooth_picture(0)
    moved = move(picture, (3, -2))
    assert (moved[:-2, 3:] == picture[2:, :-3]).all()
    assert (moved[:-2, :3] == picture[2:, :1]).all()
    assert (moved[-2:, 3:] == picture[-1:, :-3]).all()


def test_drawing_stays_in_bounds_and_in_the_room() -> None:
    rng = random.Random(0)
    drawn = [draw(rng, (0, 1, 9, 9)) for _ in range(400)]
    assert {by.shift[0] for by in drawn} == set(range(SHIFT_PX + 1))
    assert {by.shift[1] for by in drawn} == set(range(-1, SHIFT_PX + 1))
    assert all(NOISE[0] <= by.noise <= NOISE[1] and 0.88 <= by.gain <= 1.12 and abs(by.offset) <= 10 for by in drawn)
    assert np.std([by.gain for by in drawn]) > 0.05
