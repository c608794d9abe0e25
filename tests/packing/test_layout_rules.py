"""Templates of one's own: what joins with what, and what is refused."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.packing.csv_layout import SetList
from pipeline.packing.custom_layouts import load_layout
from pipeline.packing.formulas import Formula
from pipeline.packing.join import find_sets
from pipeline.packing.layouts import Layout, Template
from tests.samples import write

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
    layout = Layout("both", parts, computed={"bg": Formula("n // 10"), "id": Formula("n")})
    assert layout.match("4/42.jpg") == ("fg_bg", {"bg": 4, "n": 42, "id": 42})
    assert layout.match("m/42.jpg") == ("mask", {"bg": 4, "n": 42, "id": 42})
    with pytest.raises(ValueError, match="bg is both 4 and 5"):
        layout.match("5/42.jpg")
    with pytest.raises(InputError, match="computes n: expected one of bg, fg, id"):
        Layout("wrong", parts, computed={"n": Formula("id")})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("overlay = ", "is no TOML"),
        ("colour = 'red'", "has colour: expected name, overlay"),
        ("overlay = 7\nmask = 'm{bg}'", "overlay is 7: expected a template, or several in a list"),
        ("overlay = 'a{bg}'\nmask = []", r"mask is \[\]: expected"),
        ("overlay = 'a{n}'\nmask = 'm{n}'\nfields = 7", "fields is 7: expected a table of formulas"),
        ("overlay = 'a{n}'\nmask = 'm{n}'\nfields = {bg = 'n ** 2'}", "is not allowed"),
        ("overlay = 'a{n}'\nmask = 'm{n}'\nfields = {bg = 'n'}\nconstants = {a = 'x'}", "expected a table of numbers"),
        ("overlay = 'a{bg}'", "mine.toml: layout mine has no template for mask"),
    ],
)
def test_wrong_layout_files(text: str, why: str, tmp_path: Path) -> None:
    write(tmp_path / "mine.toml", text.encode())
    with pytest.raises(InputError, match=why):
        load_layout(tmp_path / "mine.toml")


def test_a_list_of_sets_names_what_is_missing_and_what_it_does_not_name(tmp_path: Path) -> None:
    table = "overlay,mask,background,bg,fg,id\no1.jpg,m1.jpg,b1.jpg,7,3,5\no2.jpg,m2.jpg,b1.jpg,7,x,6\n"
    table += "o3.jpg,m3.jpg,b1.jpg,7,,8\no1.jpg,m4.jpg,b1.jpg,7,3,9\nshort\n"
    write(tmp_path / "my sets.csv", table.encode())
    source = files(tmp_path, "o1.jpg", "m1.jpg", "m3.jpg", "b1.jpg", "extra.jpg", "o4.jpg", "m4.jpg")
    sets = find_sets(source, parts=NO_DEPTH)
    assert len(sets) == 0, "set 5 is claimed by two rows"
    why = {problem.path: problem.why for problem in sets.problems if problem.path != "my sets.csv"}
    assert why == {
        "o1.jpg": "more than one file claims fg_bg, mask of set fg_003_bg_007_000005",
        "m1.jpg": "more than one file claims fg_bg, mask of set fg_003_bg_007_000005",
        "m4.jpg": "more than one file claims fg_bg, mask of set fg_003_bg_007_000005",
        "o3.jpg": "row 3 of my sets.csv names it as its fg_bg, but no source has it",
        "m3.jpg": "set fg_unknown_bg_007_000008 has no fg_bg",
        "extra.jpg": "my sets.csv does not name it",
        "o4.jpg": "my sets.csv does not name it",
    }
    rows = [problem.why for problem in sets.problems if problem.path == "my sets.csv"]
    assert rows == [
        "row 2 of my sets.csv: fg is 'x', no number from 0 to 999,999,999",
        "row 5 of my sets.csv has 1 of 6 columns",
    ]
    write(tmp_path / "broken.csv", b"x" * 200000)
    assert len(find_sets(source, parts=NO_DEPTH).problems) == len(sets.problems), "it is no list"
    with pytest.raises(InputError, match="names no sets: it needs a column each of overlay or fg_bg or imagename"):
        write(tmp_path / "other.csv", b"a,b\n")
        SetList.load(tmp_path / "other.csv")
