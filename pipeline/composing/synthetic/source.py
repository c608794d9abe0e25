"""Synthetic streets and foregrounds as the pictures of a composing: nothing is read, and depth is exact.

Depth pictures hold *disparity at a fixed scale*: value = round(255 * NEAR_M / depth_m), at most 255; sky is 0. So near
is bright, and depth_m = 255 * NEAR_M / value in every set alike. A foreground is a plane at the depth of its foot.
"""

import functools
import json
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.composing.stage import Backdrop, Cutout, Place, Stage
from pipeline.composing.synthetic.camera import SIZE_PX
from pipeline.composing.synthetic.foreground import draw_foreground
from pipeline.composing.synthetic.ground import Ground, stand
from pipeline.composing.synthetic.street import render_street

NEAR_M = 3.0  # what is this near or nearer is white


def disparity(depth_m: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Depth in metres (inf: sky) to uint8, near bright, at the fixed scale of this module."""
    levels: NDArray[np.float32] = 255 * np.float32(NEAR_M) / depth_m + np.float32(0.5)
    return np.minimum(levels, 255).astype(np.uint8)


@functools.lru_cache(maxsize=4096)
def _ground(text: str) -> Ground:
    return Ground.from_json(text)


@dataclass(frozen=True)
class Synthetic:
    """Rendered streets and drawn foregrounds (a `stage.Source`); all follows from these numbers."""

    seed: int
    streets: int
    things: int

    @property
    def size(self) -> int:
        """Pictures are drawn at one size, pixels."""
        return SIZE_PX

    @property
    def has_depth(self) -> bool:
        """Always, and exact."""
        return True

    @property
    def backgrounds(self) -> tuple[str, ...]:
        """Streets have no names."""
        return ("",) * self.streets

    @property
    def foregrounds(self) -> tuple[str, ...]:
        """Nor have foregrounds."""
        return ("",) * self.things

    def background(self, number: int) -> Backdrop:
        """Render a street; what it remembers is its ground."""
        street = render_street(self.seed, number)
        return Backdrop(street.rgb, disparity(street.depth_m), street.ground.to_json())

    def foreground(self, number: int) -> Cutout:
        """Draw a foreground; what it remembers is its size in metres."""
        drawn = draw_foreground(self.seed, number)
        return Cutout(drawn.rgba, json.dumps([drawn.width_m, drawn.height_m]))

    def place(self, stage: Stage, bg: int, fg: int, rng: random.Random) -> Place:
        """Somewhere on the road, as large as the distance makes it, in the street's light."""
        about_ground, about_size = stage.about(bg, fg)
        ground, (width_m, height_m) = _ground(about_ground), json.loads(about_size)
        at = stand(ground, width_m, height_m, rng)
        level = int(disparity(np.array([at.depth_m], np.float32))[0])
        return Place(at.left, at.bottom - at.height, at.width, at.height, level, ground.light_rgb)
