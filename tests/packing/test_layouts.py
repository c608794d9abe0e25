"""Templates of one's own: what joins with what, and what is refused."""

from pathlib import Path
from typing import Literal
from unicodedata import normalize

import pytest

from pipeline.errors import InputError
from pipeline.format.sample import set_key
from pipeline.packing.join import find_sets
from pipeline.packing.known_layouts import known_layout
from pipeline.packing.layouts import LARGEST, Formula, Layout
from pipeline.packing.templates import Template
from tests.samples import write

Form = Literal["NFC", "NFD"]
NO_DEPTH = ("fg_bg", "mask")


def stated(**templates: str) -> Layout:
    return Layout("mine", {part: Template.parse(text) for part, text in templates.items()})


def files(folder: Path, *paths: str) -> Path:
    for path in paths:
        write(folder / path, b"")
    return folder


def test_parts_join_on_what_they_share(tmp_path: Path) -> None:
    layout = stated(bg="street{bg}", fg_bg="{bg}/{fg}/{id}", mask="mask/{fg}_{id}", depth="depth/{bg}_{fg}")
    overlays = ["1/1/1.jpg", "1/2/1.jpg", "2/1/1.jpg", "2/1/2.jpg"]
    labels = ["mask/1_1.jpg", "mask/2_1.jpg", "mask/9_9.jpg", "depth/1_1.jpg", "depth/1_2.jpg", "depth/2_1.jpg"]
    sets = find_sets(files(tmp_path, "street1.jpg", "street2.jpg", *overlays, *labels), layout)
    assert [sets[place].paths for place in range(len(sets))] == [
        ("1/1/1.jpg", "mask/1_1.jpg", "depth/1_1.jpg"),
        ("1/2/1.jpg", "mask/2_1.jpg", "depth/1_2.jpg"),
        ("2/1/1.jpg", "mask/1_1.jpg", "depth/2_1.jpg"),
    ]
    assert sorted((problem.path, problem.why) for problem in sets.problems) == [
        ("2/1/2.jpg", "set fg_001_bg_002_000002 has no mask"),
        ("depth/2_1.jpg", "set fg_001_bg_002_000002 has no mask"),
        ("mask/9_9.jpg", "no overlay has fg 9, id 9"),
    ]


def test_without_numbers_and_foregrounds_a_background_names_its_set(tmp_path: Path) -> None:
    layout = stated(bg="a{bg}", fg_bg="b{bg}", mask="c{bg}")
    sets = find_sets(files(tmp_path, "a1.jpg", "b01.jpg", "c001.jpg"), layout, parts=NO_DEPTH)
    assert sets[0].key == "fg_unknown_bg_001_000000"
    assert (sets[0].fg, sets[0].number) == (-1, 0)


def test_the_preferred_file_is_taken_and_the_lesser_passed_over(tmp_path: Path) -> None:
    parts = {"bg": Template("bg/{bg}"), "fg_bg": Template("o/{bg}"), "mask": Template("m/{bg}")}
    better, lesser = Template("d/{bg}", r"\.npy"), Template("d/{bg}")
    layout = Layout("two", parts | {"depth": (better, lesser)})
    source = files(tmp_path, *(f"{part}/{bg}.png" for part in ("bg", "o", "m") for bg in range(4)),
                   "d/0.npy", "d/0.jpg", "d/1.jpg", "d/2.npy", "d/3.npy", "d/03.npy")  # fmt: skip
    sets = find_sets(source, layout)
    assert [sets[place].paths[2] for place in range(len(sets))] == ["d/0.npy", "d/1.jpg", "d/2.npy"]
    assert {problem.path for problem in sets.problems} == {"o/3.png", "m/3.png", "d/3.npy", "d/03.npy"}


@pytest.mark.parametrize(
    ("templates", "why"),
    [
        ({"bg": "b{bg}", "fg_bg": "o{id}", "mask": "m{id}"}, "nothing in the overlay's name tells its background"),
        ({"bg": "b{bg}", "fg_bg": "o{bg}"}, "has no template for mask"),
        ({"bg": "b{bg}_{id}", "fg_bg": "o{bg}", "mask": "m{bg}"}, "expected {bg} alone"),
        ({"bg": "b{bg}", "fg_bg": "o{bg}", "mask": "m{bg}_{fg}"}, "mask tells bg, fg, the overlay's bg"),
        ({"bg": "b{bg}", "fg_bg": "o{bg}", "mask": "m"}, "mask tells no id"),
    ],
)
def test_layouts_that_cannot_join(templates: dict[str, str], why: str) -> None:
    with pytest.raises(InputError, match=why):
        stated(**templates)


@pytest.mark.parametrize("text", ["", "/a/{bg}", "a/{bg", "a/bg}", "a/{b g}", "a/{}", "{1}"])
def test_wrong_templates(text: str) -> None:
    with pytest.raises(InputError, match="expected a path below the source with fields"):
        Template.parse(text)


def test_an_extension_of_a_picture_stands_for_all() -> None:
    for text in ("a/{bg}", "a/{bg}.jpg", "a/{bg}.JPEG", "a/{bg}.png"):
        assert Template.parse(text) == Template("a/{bg}")
    assert Template.parse("a/{bg}.npy").matches("a/7.NPY")
    assert not Template.parse("a/{bg}.npy").matches("a/7.jpg")
    assert Template.parse("a.b/{bg}").matches("a.b/7.jpg")


def test_a_computed_field_must_agree_with_a_named_one() -> None:
    parts = {"bg": Template("bg/{bg}"), "fg_bg": Template("{bg}/{n}"), "mask": Template("m/{n}")}
    layout = Layout("both", parts, formulas={"bg": Formula("n // 10"), "id": Formula("n")})
    assert layout.match("4/42.jpg") == ("fg_bg", {"bg": 4, "n": 42, "id": 42})
    assert layout.match("m/42.jpg") == ("mask", {"bg": 4, "n": 42, "id": 42})
    with pytest.raises(ValueError, match="bg is both 4 and 5"):
        layout.match("5/42.jpg")
    with pytest.raises(InputError, match="computes n: expected one of bg, fg, id"):
        Layout("wrong", parts, formulas={"n": Formula("id")})


@pytest.mark.parametrize(
    ("path", "part", "fields"),
    [
        ("fg_bg/bg_005/fg_004_bg_005_000001.jpg", "fg_bg", {"bg": 5, "fg": 4, "id": 1}),
        ("fg_bg/bg_5/fg_4_bg_005_1.PNG", "fg_bg", {"bg": 5, "fg": 4, "id": 1}),
        ("fg_bg/bg_005/fg_004_bg_005_000001_disp.jpeg", "depth", {"bg": 5, "fg": 4, "id": 1}),
        ("fg_bg_mask/bg_1000/fg_004_bg_1000_mask_000001.jpg", "mask", {"bg": 1000, "fg": 4, "id": 1}),
        ("bg/bg_007.jpg", "bg", {"bg": 7}),
        ("bg/42.jpeg", "bg", {"bg": 42}),
        ("bg/street2night07.png", "bg", {"bg": 7}),
        ("fg/fg_000.png", "", {}),
        ("fg_bg/bg_005/fg_004_bg_005_000001_disp.npy", "depth", {"bg": 5, "fg": 4, "id": 1}),
    ],
)
def test_the_seeds_names(path: str, part: str, fields: dict[str, int]) -> None:
    assert known_layout().match(path) == (part, fields)


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "bg/noon.jpg",
        "bg/deeper/bg_001.jpg",
        "fg_bg/bg_005/fg_004_bg_005_000001.exr",
        "fg_bg/bg_005/fg_004_bg_005_000001.jpg.bak",
        "x/fg_bg/bg_005/fg_004_bg_005_000001.jpg",
        "fg_bg/bg_005/fg_004_bg_005_1234567890.jpg",
    ],
)
def test_other_names_fit_nothing(path: str) -> None:
    assert known_layout().match(path) is None


def test_a_name_may_not_contradict_itself() -> None:
    with pytest.raises(ValueError, match="bg is both 5 and 6"):
        known_layout().match("fg_bg/bg_005/fg_004_bg_006_000001.jpg")


def test_dots_in_a_template_are_dots() -> None:
    template = Template("a.b/{bg}")
    assert template.matches("a.b/1.jpg")
    assert not template.matches("aXb/1.jpg")


def test_keys_have_no_dot_since_webdataset_splits_there() -> None:
    assert set_key(4, 5, 1) == "fg_004_bg_005_000001"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("ceil(n / 4)", [0, 1, 1, 1, 1, 2]),
        ("(n + 1) // (a * 2) % 2", [(n + 1) // 6 % 2 for n in range(6)]),
        ("max(n, 3) - min(n, 1)", [3, 2, 2, 2, 3, 4]),
        ("floor(n * 0.5) + 7", [7, 7, 8, 8, 9, 9]),
    ],
)
def test_arithmetic(text: str, values: list[int]) -> None:
    formula = Formula(text, {"a": 3})
    assert formula.fields == {"n"}
    assert [formula({"n": n}) for n in range(6)] == values


@pytest.mark.parametrize(
    "text",
    [
        "", "n +", "n ** 9", "__import__('os')", "n.real", "[n]", "'a'", "(lambda: 1)()", "n if n else 1", "ceil",
        "open(n)", "ceil(x=n)", "n << 9", "9999999999", "n == 1", "n @ n", "True and n", "(" * 1000, "f'{n}'", "n\0",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    if text == "ceil":  # a field may be called so; it is only no function then
        assert Formula(text).fields == {"ceil"}
        return
    with pytest.raises(InputError, match="formula "):
        Formula(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [("n / 2", "is 2.5"), ("n - 9", "is -4"), ("1 // (n - 5)", "has no value"), (f"n * {LARGEST}", "n \\* .* is ")],
)
def test_a_value_that_is_no_number_of_a_file(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Formula(text)({"n": 5})


@pytest.mark.parametrize(("template", "name"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_decomposed_on_either_side_are_the_same(template: Form, name: Form, tmp_path: Path) -> None:
    paths = {"bg": "bg/{bg}", "fg_bg": "möbel/é_{bg}", "mask": "möbel/mask_{bg}"}
    layout = stated(**{part: normalize(template, path) for part, path in paths.items()})
    names = [normalize(name, f"{path.format(bg=3)}.png") for path in paths.values()]
    sets = find_sets(files(tmp_path, *names), layout, parts=NO_DEPTH)
    assert [*sets.backgrounds.values(), *sets[0].paths] == names
