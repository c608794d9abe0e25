"""Templates are matched as a regular expression would, in a number of steps that no name can drive up."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packing.layouts import Layout
from pipeline.packing.templates import Template, search

PIECES = st.lists(st.sampled_from(["*", "{a}", "{b}", "{c}", "/", "a", "_", "1", "x1"]), min_size=1, max_size=8)
PATHS = st.lists(st.sampled_from([*"aaxx__/01123", "1234567890"]), max_size=14)


def by_steps(template: Template, path: str) -> tuple[tuple[str, ...] | None, int]:
    """What the search finds, and in how many steps."""
    states = list(search(template.pieces, template.extension, path))
    found = states[-1].piece > len(template.pieces)
    return states[-1].taken() if found else None, len(states)


@given(pieces=PIECES, path=PATHS)
def test_the_search_finds_what_the_regular_expression_finds(pieces: list[str], path: list[str]) -> None:
    template, name = Template("".join(pieces)), f"{''.join(path)}.jpg"
    expected = re.fullmatch(template.pattern, name)
    assert by_steps(template, name)[0] == (expected.groups() if expected else None)
    assert template.match(name) == (expected.groups() if expected else None)


@pytest.mark.parametrize(
    "text",
    [
        "*a" * 40 + "*{id}",
        "{a}" * 30 + "x",
        "*{a}" * 20 + "_{id}",
        "*1" * 50,
        "**{id}" * 9,
        "*_*_*_*_*_{id}",
        "*" * 999,
    ],
)
@pytest.mark.parametrize(
    "name", ["a" * 250, "1" * 250, "a1_" * 83, "a/" * 120, "_" * 250, "11a" * 80 + "/" + "1_" * 125]
)
def test_no_name_takes_more_steps_than_pieces_times_places(text: str, name: str) -> None:
    """A regular expression would take some 250 ** 40 steps for the first: any test of it would not end."""
    template, path = Template(text), f"{name}.exr"
    found, steps = by_steps(template, path)
    assert found is None
    assert steps <= (len(template.pieces) + 1) * (len(path) + 1)
    assert template.is_simple == (text == "*" * 999)


def test_a_layout_with_such_a_template_takes_it_beside_others() -> None:
    many = "*_*_*_*_{bg}_{id}"
    parts = {
        "bg": Template("bg/{bg}"),
        "fg_bg": Template(many),
        "mask": Template(f"m/{many}"),
        "depth": Template("d/{id}{bg}"),
    }
    layout = Layout("mine", parts, ignored=(Template("{x}_{x}/*"),))
    for path, expected in (
        ("bg/7.jpg", ("bg", {"bg": 7})),
        ("a_b_c_d_07_12.png", ("fg_bg", {"bg": 7, "id": 12})),
        ("m/a__c_d_e_07_12.png", ("mask", {"bg": 7, "id": 12})),
        ("d/123.jpg", ("depth", {"id": 12, "bg": 3})),
        ("3_03/x.jpg", ("", {"x": 3})),
        ("a_b.png", None),
        (f"{'a_' * 120}.png", None),
    ):
        assert layout.match(path) == expected
    with pytest.raises(ValueError, match="x is both 3 and 4"):
        layout.match("3_4/x.jpg")
