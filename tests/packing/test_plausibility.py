"""Whether parts belong together: right data passes in silence, whatever a camera does to it; what is wrong is told."""

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.format.depth import LUMA
from pipeline.packing.plausibility import (
    FINE,
    NOISE,
    SIDE,
    Plane,
    SampledSet,
    Verdict,
    best_place,
    difference,
    judge,
    judge_set,
)
from tests.samples import smooth_picture

SETS, BACKGROUNDS = 16, 4
Y, X = np.mgrid[0:SIDE, 0:SIDE]


def background(bg: int) -> Plane:
    """Waves and blocks of 8 x 8 pixels."""
    blocks = np.random.default_rng(bg).integers(-30, 30, (SIDE // 8, SIDE // 8, 3))
    waves = smooth_picture(bg, 3, SIDE) * 0.5 + 60
    return (waves + np.kron(blocks, np.ones((8, 8, 1)))).astype(np.float32)


def scene(number: int) -> SampledSet:
    """A set with a rectangle of one colour, or with a disc, at a place of its own."""
    rng, bg = np.random.default_rng(number), number % BACKGROUNDS
    half, back = rng.integers(5, 11), background(bg)
    row, column = rng.integers(half, SIDE - half, 2)
    within = (abs(Y - row) < half) & (abs(X - column) < half * 2 // 3)
    if number % 3 == 0:
        within = np.hypot(Y - row, X - column) < half
    colour = rng.integers(0, 255, 3)
    overlay = np.where(within[..., None], colour, back).astype(np.float32)
    return SampledSet(f"set {number}", bg, overlay, back, within.astype(np.float32))


SCENES = [scene(number) for number in range(SETS)]


def noisy(one: SampledSet, rng: np.random.Generator) -> SampledSet:
    noise = rng.normal(0, 8, one.overlay.shape)
    return one._replace(overlay=(one.overlay + noise).astype(np.float32))


def shadowed(one: SampledSet, rng: np.random.Generator) -> SampledSet:
    """As long and wide as the foreground, beside it, in all sets on the same side."""
    shadow = (np.roll(one.mask, (2, 6), (0, 1)) > 0) & (one.mask == 0)
    return one._replace(overlay=np.where(shadow[..., None], 0.7 * one.overlay, one.overlay))


def in_gray(picture: Plane) -> Plane:
    """Three equal channels of its luma."""
    return np.repeat((picture @ LUMA)[..., None], 3, axis=2).astype(np.float32)


RIGHT: dict[str, Callable[[SampledSet, np.random.Generator], SampledSet]] = {
    "as it is": lambda one, rng: one,
    "noise": noisy,
    "another exposure": lambda one, rng: one._replace(overlay=rng.uniform(0.7, 1.3) * one.overlay + rng.uniform(-9, 9)),
    "another white balance": lambda one, rng: one._replace(overlay=one.overlay * np.array([1.2, 1, 0.8])),
    "the camera has moved": lambda one, rng: one._replace(overlay=np.roll(one.overlay, rng.integers(-1, 2, 2), (0, 1))),
    "a shadow": shadowed,
    "a gray overlay": lambda one, rng: one._replace(overlay=in_gray(one.overlay)),
    "a gray background": lambda one, rng: one._replace(background=in_gray(one.background)),
    "hardly visible": lambda one, rng: one._replace(overlay=one.background + 0.15 * (one.overlay - one.background)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_data_is_silent(name: str) -> None:
    rng = np.random.default_rng(0)
    assert judge([RIGHT[name](one, rng) for one in SCENES]) == Verdict("", refused=False)


WRONG: dict[str, tuple[Callable[[int], SampledSet], str]] = {
    "inverted": (lambda n: SCENES[n]._replace(mask=1 - SCENES[n].mask), "masks look inverted"),
    "permuted backgrounds": (
        lambda n: SCENES[n]._replace(background=background((n + 1) % BACKGROUNDS)),
        "overlays lie on another background than theirs",
    ),
    "foreign backgrounds": (
        lambda n: SCENES[n]._replace(bg=100 + n, background=background(100 + n)),
        "overlays lie on another background than theirs",
    ),
    "mirrored backgrounds": (
        lambda n: SCENES[n]._replace(background=SCENES[n].background[:, ::-1]),
        "backgrounds look turned or mirrored",
    ),
    "turned backgrounds": (
        lambda n: SCENES[n]._replace(background=np.rot90(SCENES[n].background)),
        "backgrounds look turned or mirrored",
    ),
    "shifted masks": (
        lambda n: SCENES[n]._replace(mask=np.roll(SCENES[n].mask, 3, 1)),
        "masks look shifted: the foregrounds are 5 % left of them",
    ),
    "masks of the next sets": (
        lambda n: SCENES[n]._replace(mask=SCENES[(n + 1) % SETS].mask),
        "masks look like those of other sets",
    ),
    "turned masks": (lambda n: SCENES[n]._replace(mask=SCENES[n].mask[::-1]), "masks look turned or mirrored"),
    "no foreground": (
        lambda n: SCENES[n]._replace(overlay=SCENES[n].background + np.float32(0.5)),
        "overlays do not differ from their backgrounds",
    ),
    "blank": (lambda n: SCENES[n]._replace(mask=0 * SCENES[n].mask), "masks are blank"),
}


@pytest.mark.parametrize("count", [1, 3, SETS])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_data_is_told(name: str, count: int) -> None:
    spoil, words = WRONG[name]
    verdict = judge([spoil(n) for n in range(count)])
    assert verdict.refused
    if count == SETS:
        assert f"sampled sets look wrong: {verdict.text.split(': ')[1].split(' ')[0]} {words}" in (verdict.text), (
            "what most sets look like comes first"
        )


def with_wrong(name: str, count: int) -> Verdict:
    return judge([WRONG[name][0](n) if n < count else SCENES[n] for n in range(SETS)])


def test_some_wrong_sets_are_a_warning_and_few_are_none() -> None:
    assert with_wrong("no foreground", 9).refused
    assert with_wrong("no foreground", 4) == Verdict(
        "4 of 16 sampled sets look wrong: 4 overlays do not differ from their backgrounds (the first is set 0)",
        refused=False,
    )
    assert with_wrong("no foreground", 3).text == ""
    assert judge([]) == Verdict("", refused=False)


@pytest.mark.parametrize("name", ["inverted", "mirrored backgrounds", "turned backgrounds"])
def test_one_set_that_is_certainly_wrong_is_a_warning(name: str) -> None:
    verdict = with_wrong(name, 1)
    assert not verdict.refused
    assert verdict.text.startswith(f"1 of 16 sampled sets look wrong: 1 {WRONG[name][1]}")


def test_one_background_that_is_another_is_a_warning() -> None:
    """It is one of six, with 2 of 12 sets on it."""
    scenes = [
        scene(n)._replace(bg=n // 2, overlay=np.where(scene(n).mask[..., None] > 0, 255, background(n // 2)))
        for n in range(12)
    ]
    told = [one._replace(background=background(one.bg if one.bg else 99)) for one in scenes]
    assert judge([one._replace(background=background(one.bg)) for one in scenes]).text == ""
    assert judge(told).text.startswith("2 of 12 sampled sets look wrong: 2 overlays lie on another background")


def test_a_data_set_on_one_background_is_judged_too() -> None:
    alone = [one for one in SCENES if one.bg == 0]
    assert judge(alone).text == ""
    assert judge([one._replace(background=background(9)) for one in alone]).refused


def test_a_set_that_tells_nothing_is_not_judged() -> None:
    one = SCENES[0]
    far = one._replace(mask=np.zeros_like(one.mask), overlay=one.background)
    far.mask[9, 9:12] = 1  # too small to be seen
    assert judge_set(far, []) is None
    found = judge_set(one, [])
    assert found
    assert (found.look, found.shift) == (FINE, (0, 0))


@pytest.mark.parametrize("shift", [(0, 0), (5, -9), (-20, 3)])
def test_the_best_place_of_a_mask_is_where_the_difference_is(shift: tuple[int, int]) -> None:
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[24:34, 22:30] = 1
    found, where = best_place(mask, 40 * np.roll(mask, shift, (0, 1)))
    assert where == shift
    assert found == pytest.approx(1, abs=0.02)


def test_what_a_camera_changes_is_no_difference() -> None:
    one = SCENES[3]
    moved = np.roll(1.2 * one.background - 20, (1, -1), (0, 1))
    assert (difference(moved, one.background)[2:-2, 2:-2] < NOISE).all()
    assert difference(one.overlay, one.background)[one.mask == 0].max() < NOISE
