"""The weather and the hour of a synthetic street: sun, sky, haze, lamps."""

from dataclasses import dataclass

import numpy as np

from pipeline.composing.synthetic.camera import F32, vec


@dataclass(frozen=True)
class Light:
    """Linear RGB of sun, ambient light and sky, the direction to the sun, and how far one sees."""

    sun_rgb: F32
    ambient_rgb: F32
    zenith_rgb: F32
    horizon_rgb: F32
    to_sun: F32
    haze_m: float
    clouds: float
    lit: float  # share of windows with a lamp on
    lamps: float  # how brightly street lamps burn
    saturation: float

    @property
    def white_rgb(self) -> tuple[float, float, float]:
        """How a white thing standing on the road appears, display RGB."""
        white = self.ambient_rgb * 0.9 + self.sun_rgb * (0.55 * max(0.25, float(self.to_sun[1])))
        red, green, blue = (float(v) for v in np.sqrt(white + self.lamps * vec((0.1, 0.075, 0.045))))
        return red, green, blue


# (weight, sun, ambient, zenith, horizon, sun elevation range in degrees, haze m, lit windows, street lamps)
_SKIES = (
    (0.36, (2.1, 1.95, 1.7), (0.42, 0.5, 0.62), (0.1, 0.25, 0.62), (0.55, 0.7, 0.86), (30, 65), 700, 0.0, 0.0),
    (0.30, (0.15, 0.15, 0.15), (0.8, 0.83, 0.88), (0.5, 0.55, 0.62), (0.8, 0.82, 0.85), (40, 70), 350, 0.05, 0.0),
    (0.20, (2.2, 1.35, 0.65), (0.34, 0.36, 0.46), (0.16, 0.28, 0.55), (0.95, 0.72, 0.46), (14, 28), 450, 0.06, 0.0),
    (0.14, (0.03, 0.02, 0.02), (0.13, 0.15, 0.22), (0.02, 0.04, 0.13), (0.36, 0.2, 0.17), (5, 15), 500, 0.42, 1.0),
)


def draw_light(rng: np.random.Generator) -> Light:
    """Day, overcast, low sun or dusk."""
    sky = _SKIES[rng.choice(len(_SKIES), p=[s[0] for s in _SKIES])]
    up, around = np.radians(rng.uniform(*sky[5])), rng.uniform(0, 2 * np.pi)
    to_sun = vec((np.cos(up) * np.sin(around), np.sin(up), np.cos(up) * np.cos(around)))
    exposure = rng.uniform(0.7, 1.15)
    sun, ambient, zenith, horizon = (vec(c) * np.float32(exposure) for c in sky[1:5])
    saturation = float(rng.choice([1.0, 0.75, 0.3], p=[0.6, 0.28, 0.12]))
    haze_m = sky[6] * rng.uniform(0.5, 1.5)
    return Light(sun, ambient, zenith, horizon, to_sun, haze_m, rng.uniform(0, 1), sky[7], sky[8], saturation)
