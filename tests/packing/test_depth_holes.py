import re

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.packing.depth_holes import NO_HOLES, Values, find_holes, parse_invalid, zeros_are_holes
from tests.samples import street_depth

NEARNESS = street_depth()
MILLIMETRES = (6000 - NEARNESS.astype(np.uint16) * 20).astype(np.uint16)  # 900 to 6000, as a depth camera has it


def holed(values: NDArray[np.generic], hole: float = 0) -> NDArray[np.generic]:
    values = values.copy()
    values[20:40, 30:60] = hole
    return values


def test_what_is_stated_is_parsed() -> None:
    assert [parse_invalid(text) for text in ("auto", "zero", "nan", "none")] == [None] * 4
    assert [parse_invalid(text) for text in ("65535", "-1", "1e10")] == [65535, -1, 1e10]
    for text in ("black", "inf", ""):
        with pytest.raises(InputError, match=f"depth invalid {text!r}: expected auto, zero, nan, none, or a number"):
            parse_invalid(text)


@pytest.mark.parametrize(
    ("values", "looks_so"),
    [
        (holed(MILLIMETRES), True),
        (holed(MILLIMETRES.astype(">f4") / 1000), True),
        (holed(MILLIMETRES.astype(np.float32) / 1000, np.nan), False),  # nothing is 0
        (np.where(np.arange(128 * 128).reshape(128, 128) % 20, 0, MILLIMETRES), True),  # scanned: 5 % is measured
        (MILLIMETRES, False),
        (np.zeros_like(MILLIMETRES), True),  # a camera that saw nothing
        (NEARNESS.astype(np.uint16) * 20, False),  # values go on from 0
        (MILLIMETRES - MILLIMETRES.min(), False),  # stretched to begin at 0
        (holed(65535 - (NEARNESS.max() - NEARNESS).astype(np.uint16) * 100), False),  # the whole scale of 16 bits
        (holed(0.5 + NEARNESS / NEARNESS.max() / 2), False),  # of 0 to 1
        (holed(MILLIMETRES.astype(np.float32) - 5000), False),  # goes on below 0
    ],
)
def test_zeros_look_like_holes_where_nothing_lies_beside_them(values: Values, looks_so: bool) -> None:
    assert zeros_are_holes(values) == looks_so


def test_a_sample_tells_of_holes_and_why() -> None:
    found = find_holes("auto", "dark", [MILLIMETRES, holed(MILLIMETRES)], [], arrays=False)
    assert (found.stored, found.value, found.watched, found.zeros_watched) == (True, 0, True, False)
    assert found.why == "0, 1.8% of the pixels sampled, is no measurement: nothing else lies near it"
    for hole in (np.nan, np.inf, -np.inf):
        found = find_holes("auto", "bright", [holed(MILLIMETRES.astype(np.float16), hole)], [], arrays=True)
        assert (found.stored, found.value) == (True, None)
        assert found.why == "nan or infinity, 3.7% of the pixels sampled, is no measurement"


def test_zero_is_no_hole_where_it_may_be_a_measurement() -> None:
    # What is 0 near the sky of a disparity map lies infinitely far.
    found = find_holes("auto", "bright", [holed(MILLIMETRES)], [], arrays=False)
    assert (found.stored, found.value) == (False, None)
    assert found.why == "0, 3.7% of the pixels sampled, counts as far; if it is no measurement: --depth-invalid zero"
    found = find_holes("auto", "dark", [MILLIMETRES - MILLIMETRES.min()], [], arrays=False)
    assert not found.stored
    assert re.match(r"0, .*% of the pixels sampled, counts as near: other values lie beside it", found.why)
    found = find_holes("auto", "dark", [], [holed(NEARNESS // 2 + 100)], arrays=False)
    assert not found.stored
    assert found.why == "0 of 8 bits counts as near; if it is no measurement: --depth-invalid zero"
    assert find_holes("auto", "bright", [], [NEARNESS], arrays=False)[:3] == (False, None, True)
    assert find_holes("auto", "bright", [], [NEARNESS], arrays=False).why == ""


@pytest.mark.parametrize(
    ("numbers", "lone"),
    [
        ([holed(MILLIMETRES.astype(np.float32) / 1000, -1)], -1),
        ([holed(MILLIMETRES.astype(np.float64), -999)], -999),
        ([holed(MILLIMETRES, 65535), holed(MILLIMETRES - 9, 65535), MILLIMETRES], 65535),
    ],
)
def test_a_value_far_from_all_others_is_told_of(numbers: list[Values], lone: int) -> None:
    found = find_holes("auto", "dark", numbers, [], arrays=True)
    assert found.value is None
    assert f"{lone} lies far from all other values; if it is no measurement: --depth-invalid {lone}" in found.why
    assert "far from" not in find_holes("auto", "dark", [MILLIMETRES, holed(MILLIMETRES)], [], arrays=True).why


def test_maps_of_which_nothing_was_measured_do_not_vouch_for_zeros() -> None:
    sample = [MILLIMETRES] * 9 + [np.zeros_like(MILLIMETRES)]
    assert find_holes("auto", "dark", sample, [], arrays=False)[:2] == (True, 0)


def test_what_is_stated_is_believed() -> None:
    sample = [holed(MILLIMETRES)]
    assert find_holes("none", "dark", sample, [], arrays=True) == NO_HOLES
    zero = find_holes("zero", "bright", [MILLIMETRES], [], arrays=True)
    assert (zero.stored, zero.value, zero.watched) == (True, 0, False)
    assert zero.why == "stated that 0, nan and infinity is no measurement"
    assert find_holes("65535", "bright", sample, [], arrays=False).value == 65535
    nan = find_holes("nan", "dark", sample, [], arrays=True)
    assert (nan.stored, nan.value) == (True, None)
    assert not find_holes("nan", "dark", sample, [], arrays=False).stored  # pictures hold none
