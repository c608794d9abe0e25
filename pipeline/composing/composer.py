"""Composing one image set from a background and a foreground, as a function of the options and its number alone."""

import random
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.composing.overlay import (
    U8,
    contact_shadow,
    make_noise,
    perturb_exposure,
    random_perturbation,
    shift_picture,
)
from pipeline.composing.photos import capped_foregrounds
from pipeline.composing.recipe import Recipe
from pipeline.composing.stage import Stage
from pipeline.errors import InputError

SOLID = 128  # where a mask is this or more, depth is the foreground's: two depths must not be mixed
SHADOW = (0.35, 0.7)  # range of the strength of contact shadows


@dataclass(frozen=True)
class ComposeOptions:
    """How to compose. Raises `InputError` for a value out of range."""

    sets: int | None = None
    """How many sets, an even sample of all; None: all."""
    placements: int | None = 20
    """Places of each foreground on each background; None: as many as `sets` needs."""
    mirror: bool = True
    """Whether each placement comes twice, the second time with the foreground mirrored."""
    seed: int = 0
    """Another seed, other places."""
    quality: int = 90
    """JPEG quality of colour pictures."""
    shadow: bool = False
    """Whether foregrounds cast a contact shadow (on the overlay; the mask is of the foreground alone)."""
    hard: bool = False
    """Whether overlays have a camera perturbation: other exposure and noise than their backgrounds, a small shift."""

    def __post_init__(self) -> None:
        for name in ("sets", "placements"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"--{name} {value}: expected 1 or more")
        if not 1 <= self.quality <= 100 or self.seed < 0:
            raise InputError(f"--quality {self.quality}, --seed {self.seed}: expected 1 to 100, and 0 or more")

    @property
    def label_quality(self) -> int:
        """JPEG quality of masks and depth, the targets of training: 90 at least, as below that edges ring."""
        return max(self.quality, 90)

    def recipe(self, backgrounds: int, foregrounds: int) -> Recipe:
        """Which sets these options make of so many pictures; raises `InputError` if there are too few."""
        sides = 2 if self.mirror else 1
        pairs = backgrounds * foregrounds
        placements = self.placements or -(-(self.sets or 1) // (pairs * sides))
        sets = self.sets or pairs * placements * sides
        return Recipe(backgrounds, foregrounds, placements, self.mirror, sets)


class Label(NamedTuple):
    """Rectangle of the foreground in a set's overlay, pixels, which may leave the frame; a line of labels.csv."""

    x: int
    y: int
    width: int
    height: int
    mirrored: int
    visible: float
    """The share of its alpha that is inside the frame."""
    capped: int | None = None
    """Whether a larger height was drawn, at which it does not fit; None where all foregrounds fit at all heights."""

    def known(self) -> dict[str, int | float]:
        """What is recorded of it."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class ImageSet(NamedTuple):
    """One image set, not yet encoded."""

    overlay: U8  # [size, size, 3]
    mask: U8  # [size, size], the foreground's alpha
    levels: U8 | None  # [size, size], near bright; None: without depth
    label: Label
    bg: int
    fg: int


class Composer:
    """Makes any set of a recipe from a stage."""

    def __init__(self, stage: Stage, recipe: Recipe, options: ComposeOptions) -> None:
        self.stage, self.recipe, self._options = stage, recipe, options
        self._some_capped = capped_foregrounds(stage) > 0

    def compose(self, number: int) -> ImageSet:
        """Set `number`. A set and its mirrored twin have the same place."""
        stage, options = self.stage, self._options
        bg, fg, placement, mirrored = self.recipe.ingredients(number)
        # Python's own generator: a fifth of the cost of numpy's for the few numbers that a set takes.
        rng = random.Random(f"place {options.seed} {bg} {fg} {placement}")
        left, top, width, height, level, light_rgb, capped = stage.source.place(stage, bg, fg, rng)
        sprite = stage.sprite(fg, width, height, mirrored)
        if light_rgb:
            sprite = sprite.relit(light_rgb)
        background, levels = stage.rgb(bg), stage.levels(bg) if stage.source.has_depth else None
        size = len(background)
        perturbation = None
        if options.hard:
            room = (left, top, size - left - width, size - top - height)
            perturbation = random_perturbation(random.Random(f"hard {options.seed} {number}"), room)
            right, down = shift = perturbation.shift
            # The background moves first: a foreground at the border would be smeared along with it.
            background = shift_picture(background, shift)
            levels = None if levels is None else shift_picture(levels, shift)
            left, top = left + right, top + down
        overlay = background.copy()
        if options.shadow:
            shadow, right, down = contact_shadow(sprite.alpha, rng.uniform(*SHADOW))
            shadow.blend_into(overlay, left + right, top + down)
        sprite.blend_into(overlay, left, top)
        mask = sprite.mask(left, top, size)
        if levels is not None:
            levels = levels.copy()
            levels[mask >= SOLID] = level
        if perturbation:
            overlay = perturb_exposure(overlay, perturbation, make_noise(size, options.seed))
        visible = round(sprite.visible_share(left, top, size), 4)
        label = Label(left, top, width, height, int(mirrored), visible, int(capped) if self._some_capped else None)
        return ImageSet(overlay, mask, levels, label, bg, fg)
