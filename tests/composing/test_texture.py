import numpy as np
import pytest

from pipeline.composing.synthetic.texture import TILE, make_noise, pulse, smooth_texture, span, texture

NOISE = make_noise(np.random.default_rng(0))


def test_noise_has_mean_0_deviation_1_and_no_seam() -> None:
    assert NOISE.shape == (TILE, TILE)
    assert NOISE.dtype == np.float32
    assert abs(NOISE.mean()) < 1e-4
    assert NOISE.std() == pytest.approx(1, abs=1e-4)
    inside = np.abs(np.diff(NOISE, axis=0)).mean()
    assert np.abs(NOISE[0] - NOISE[-1]).mean() < 1.3 * inside


def test_stripes_and_spans_are_the_means_over_a_window() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        x, width, low = rng.uniform(-3, 3), rng.uniform(0.01, 2.5), rng.uniform(0, 0.5)
        high = low + rng.uniform(0.05, 0.5)
        at = x + width * ((np.arange(20_000) + 0.5) / 20_000 - 0.5)
        one, wide = np.array([x], np.float32), np.array([width], np.float32)
        striped = ((at % 1 >= low) & (at % 1 < high)).mean()
        assert pulse(one, low, high, wide)[0] == pytest.approx(striped, abs=2e-3)
        spanned = ((at >= low) & (at < high)).mean()
        assert span(one, low, high, wide)[0] == pytest.approx(spanned, abs=2e-3)


def test_texture_is_periodic_and_smooth_texture_goes_through_it() -> None:
    u, v = np.meshgrid(np.arange(-5, 300, 7, dtype=np.float32), np.arange(0, 600, 11, dtype=np.float32))
    assert (texture(NOISE, u, v) == texture(NOISE, u + TILE, v + 2 * TILE)).all()
    np.testing.assert_allclose(smooth_texture(NOISE, u, v), texture(NOISE, u, v), atol=1e-6)
    between = smooth_texture(NOISE, u + np.float32(0.5), v)
    np.testing.assert_allclose(between, (texture(NOISE, u, v) + texture(NOISE, u + 1, v)) / 2, atol=1e-5)
