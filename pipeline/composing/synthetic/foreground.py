"""One synthetic foreground: mostly cars, and whatever else is met on a road."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.composing.synthetic.cycle import draw_bicycle, draw_motorbike
from pipeline.composing.synthetic.lorry import draw_bus, draw_truck
from pipeline.composing.synthetic.people import draw_people
from pipeline.composing.synthetic.roadworks import draw_barrier, draw_cart, draw_cones
from pipeline.composing.synthetic.vehicles import draw_car

KINDS = {  # what is drawn, and how often
    draw_car: 0.6,
    draw_people: 0.1,
    draw_bicycle: 0.06,
    draw_motorbike: 0.06,
    draw_truck: 0.05,
    draw_bus: 0.04,
    draw_cart: 0.03,
    draw_barrier: 0.03,
    draw_cones: 0.03,
}


@dataclass(frozen=True)
class Foreground:
    """A drawn foreground: straight-alpha uint8 RGBA [H, W, 4] and the metres that H and W measure where it stands.

    The picture's last opaque row is where it touches the ground nearest to us.
    """

    rgba: NDArray[np.uint8]
    width_m: float
    height_m: float


def draw_foreground(seed: int, foreground: int) -> Foreground:
    """Foreground number `foreground` of `seed`: the same picture whenever and wherever it is drawn."""
    rng = np.random.default_rng((seed, 2, foreground))
    draw = list(KINDS)[rng.choice(len(KINDS), p=list(KINDS.values()))]
    sun = np.array([rng.uniform(-0.7, 0.7), rng.uniform(0.5, 0.9), -0.6])
    rgba, metres_px = draw(rng, sun / np.sqrt((sun**2).sum()))
    rgba = _weather(rgba, rng)
    return Foreground(rgba, rgba.shape[1] * metres_px, rgba.shape[0] * metres_px)


def _weather(rgba: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Less even than paint from a brush: blotches, grain, and less light near the ground."""
    height, width, _ = rgba.shape
    blotches = Image.fromarray(rng.normal(size=(7, 7)).astype(np.float32))
    blotch = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC))
    above = (height - np.arange(height, dtype=np.float32)[:, None]) / (0.4 * height)
    light = 0.76 + 0.24 * np.minimum(above, 1) + 0.045 * blotch
    light = light + rng.normal(0, 0.018, (height, width)).astype(np.float32)
    weathered = rgba.copy()
    weathered[..., :3] = np.minimum(rgba[..., :3] * light[..., None], 255)
    return weathered
