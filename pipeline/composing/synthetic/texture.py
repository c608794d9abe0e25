"""Noise and stripes, from which all surfaces of a synthetic street are painted."""

import numpy as np

from pipeline.composing.synthetic.camera import F32, vec

TILE = 256  # noise tile, texels


def make_noise(rng: np.random.Generator) -> F32:
    """A periodic tile [TILE, TILE], mean 0, deviation 1, whose amplitude falls with frequency, as weathering's does."""
    f = np.fft.fftfreq(TILE)[:, None] ** 2 + np.fft.rfftfreq(TILE)[None, :] ** 2
    f[0, 0] = np.inf
    tile = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(TILE, TILE))) / np.sqrt(f))
    return vec(tile / tile.std())


def texture(noise: F32, u: F32, v: F32) -> F32:
    """The noise tile at texel coordinates (nearest texel; the supersampled rays smooth it)."""
    row, column = v.astype(np.int32) & (TILE - 1), u.astype(np.int32) & (TILE - 1)
    return noise.ravel().take(row * TILE + column)


def smooth_texture(noise: F32, u: F32, v: F32) -> F32:
    """The noise tile at texel coordinates, bilinear: for what is magnified, such as clouds."""
    u0, v0 = np.floor(u), np.floor(v)
    fu, fv = u - u0, v - v0
    low = texture(noise, u0, v0) * (1 - fu) + texture(noise, u0 + 1, v0) * fu
    high = texture(noise, u0, v0 + 1) * (1 - fu) + texture(noise, u0 + 1, v0 + 1) * fu
    return vec(low * (1 - fv) + high * fv)


def leaf_texture(noise: F32, x: F32, y: F32, z: F32) -> F32:
    """The noise tile laid through space twice, so that it is streaked on no side of a ball."""
    return 0.7 * (texture(noise, x * 14, y * 14) + texture(noise, z * 14 + 77, x * 9 - y * 11))


def pulse(x: F32, low: F32 | float, high: F32 | float, width: F32) -> F32:
    """How much of a window of `width` around x lies in [low, high] of each unit period: stripes that never alias."""

    def area(at: F32) -> F32:
        whole = np.floor(at)
        return whole * (high - low) + np.clip(at - whole - low, 0, high - low)

    width = np.maximum(width, np.float32(1e-3))
    return vec((area(x + width / 2) - area(x - width / 2)) / width)


def span(x: F32, low: F32 | float, high: F32 | float, width: F32) -> F32:
    """How much of a window of `width` around x lies in [low, high]."""
    width = np.maximum(width, np.float32(1e-4))
    share: F32 = np.clip((np.minimum(x + width / 2, high) - np.maximum(x - width / 2, low)) / width, 0, 1)
    return share


def mix(base: F32, over: F32, amount: F32) -> F32:
    """`base` where amount is 0, `over` where it is 1."""
    mixed: F32 = (over - base) * amount
    mixed += base
    return mixed


def column(values: tuple[float, ...] | F32) -> F32:
    """A colour as float32 [3, 1], to be spread over N points."""
    return np.asarray(values, np.float32)[:, None]
