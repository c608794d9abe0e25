import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.composing.recipe import Ingredients, Recipe
from pipeline.errors import InputError


def recipe(backgrounds: int, foregrounds: int, placements: int, mirror: bool = True, sets: int = 1) -> Recipe:
    return Recipe(backgrounds, foregrounds, placements, mirror, sets)


SHAPES = (st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.booleans())


@given(*SHAPES)
def test_numbers_and_ingredients_are_one_to_one(b: int, f: int, p: int, mirror: bool) -> None:
    whole = recipe(b, f, p, mirror)
    every = [
        Ingredients(bg, fg, placement, mirrored)
        for bg in range(b)
        for fg in range(f)
        for placement in range(p)
        for mirrored in ((False, True) if mirror else (False,))
    ]
    assert [whole.ingredients(number) for number in range(whole.total)] == every


@given(*SHAPES)
def test_the_order_of_turns_holds_every_set_once(b: int, f: int, p: int, mirror: bool) -> None:
    whole = recipe(b, f, p, mirror)
    assert sorted(whole.number_at(np.arange(whole.total)).tolist()) == list(range(whole.total))


@given(*SHAPES, st.data())
def test_any_beginning_is_an_even_sample(b: int, f: int, p: int, mirror: bool, data: st.DataObject) -> None:
    whole = recipe(b, f, p, mirror)
    sets = data.draw(st.integers(1, whole.total))
    found = recipe(b, f, p, mirror, sets).numbers()
    assert found.tolist() == sorted(set(found.tolist()))
    assert len(found) == sets
    made = [whole.ingredients(number) for number in found.tolist()]
    for ids, kinds in ((0, b), (1, f)):
        counts = np.bincount([int(one[ids]) for one in made], minlength=kinds)
        assert counts.max() - counts.min() <= 1
    pairs = np.bincount([one.bg * f + one.fg for one in made], minlength=b * f)
    assert pairs.max() - pairs.min() <= 1
    if mirror:
        for bg in range(b):
            of_bg = [one.mirrored for one in made if one.bg == bg]
            assert abs(2 * sum(of_bg) - len(of_bg)) <= 1 + p * f % 2 * 2


def test_more_sets_add_to_fewer() -> None:
    few, many = (set(recipe(7, 6, 3, sets=sets).numbers().tolist()) for sets in (50, 180))
    assert few < many


def test_the_originals_400_000() -> None:
    whole = recipe(100, 100, 20, sets=400_000)
    assert whole.total == 400_000
    assert whole.numbers().tolist()[-1] == 399_999
    assert whole.key_length == len("fg_099_bg_099_399999")


def test_more_than_there_are_is_an_error() -> None:
    with pytest.raises(
        InputError, match=r"81 sets: 4 backgrounds x 5 foregrounds x 2 placements x 2 \(mirrored\) make"
    ):
        recipe(4, 5, 2, sets=81)
