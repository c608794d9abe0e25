from pathlib import Path

import pytest

from pipeline.errors import InputError
from tests.samples import write
from train.predict import Pair, find_pairs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three overlays on two backgrounds, and files that are no pictures."""
    names = ["bg/bg_007.jpg", "bg/bg_8.png", "bg/Thumbs.db", "bg/bg_x.jpg"]
    names += ["o/bg_7/fg_1_bg_7.PNG", "o/bg_7/fg_2_bg_7.jpg", "o/bg_008/fg_1_bg_8.jpg", "o/notes.txt"]
    for name in names:
        write(tmp_path / name, b"")
    return tmp_path


def found(root: Path, background: str, overlay: str) -> list[tuple[str, str, str]]:
    return [
        (name, str(bg.relative_to(root)), str(fg_bg.relative_to(root)))
        for name, bg, fg_bg in find_pairs(root / background, root / overlay)
    ]


def test_templates_join_by_numbers_in_the_fields_of_the_background(root: Path) -> None:
    assert found(root, "bg/bg_{bg}.jpg", "o/bg_{bg}/fg_{fg}_bg_{bg}.jpg") == [
        ("bg_008/fg_1_bg_8", "bg/bg_8.png", "o/bg_008/fg_1_bg_8.jpg"),
        ("bg_7/fg_1_bg_7", "bg/bg_007.jpg", "o/bg_7/fg_1_bg_7.PNG"),
        ("bg_7/fg_2_bg_7", "bg/bg_007.jpg", "o/bg_7/fg_2_bg_7.jpg"),
    ]


def test_a_name_that_contradicts_itself_does_not_fit(root: Path) -> None:
    write(root / "o/bg_7/fg_1_bg_8.jpg", b"")
    assert len(found(root, "bg/bg_{bg}.jpg", "o/bg_{bg}/fg_{fg}_bg_{bg}.jpg")) == 3


def test_folders_join_by_paths_whatever_the_extension(root: Path) -> None:
    for name in ("a/x/1.jpg", "a/2.png", "a/unused.png", "b/x/1.PNG", "b/2.jpeg"):
        write(root / name, b"")
    assert found(root, "a", "b") == [("2", "a/2.png", "b/2.jpeg"), ("x/1", "a/x/1.jpg", "b/x/1.PNG")]


def test_names_decomposed_on_either_side_are_the_same(root: Path) -> None:
    for name in ("c/s\u00e9jour.jpg", "d/se\u0301jour.jpg"):
        write(root / name, b"")
    for one, other in ("cd", "dc"):
        assert [Path(pair[1]).parent.name for pair in found(root, one, other)] == [one]


def test_one_background_goes_with_all_overlays(root: Path) -> None:
    assert {bg for _, bg, _ in found(root, "bg/bg_x.jpg", "o")} == {"bg/bg_x.jpg"}
    assert len(found(root, "bg/bg_x.jpg", "o")) == 3


def test_two_pictures_are_a_pair_whatever_they_are_called(root: Path) -> None:
    bg, fg_bg, bare = root / "bg/Thumbs.db", root / "o/notes.txt", root / "bare"
    write(bare, b"")
    assert find_pairs(bg, fg_bg) == [Pair("notes", bg, fg_bg)]
    assert find_pairs(bg, bare) == [Pair("bare", bg, bare)]


def test_a_file_with_braces_in_its_name_is_a_file(root: Path) -> None:
    write(root / "o/{a}.jpg", b"")
    assert found(root, "bg/bg_x.jpg", "o/{a}.jpg") == [("{a}", "bg/bg_x.jpg", "o/{a}.jpg")]


@pytest.mark.parametrize(
    ("background", "overlay", "message"),
    [
        ("bg/none.jpg", "o", "no such file or folder"),
        ("none/{bg}.jpg", "o/bg_{bg}/*.jpg", "no such folder"),
        ("bg/{}.jpg", "o/bg_{bg}/*.jpg", "template '{}.jpg'"),
        ("bg/street_{bg}.jpg", "o", "bg: 3 files (2 .jpg, 1 .png): expected names such as street_{bg}.jpg"),
        ("empty", "o", "empty: the folder is empty: expected a picture"),
        ("bg/bg_{bg}.jpg", "o", "give both as templates"),
        ("bg", "o/bg_7/fg_2_bg_7.jpg", "is one overlay"),
        ("bg/bg_{bg}.jpg", "o/bg_{b}/*.jpg", "no field {bg}"),
        ("bg/bg_007.jpg", "twice", "1.jpg and 1.png claim one place"),
        ("twice/{bg}.jpg", "o/bg_{bg}/*.jpg", "1.jpg and 1.png claim one place"),
        ("bg", "o", "3 of 3 overlays"),
    ],
)
def test_what_does_not_join_is_one_line(root: Path, background: str, overlay: str, message: str) -> None:
    (root / "empty").mkdir()
    write(root / "twice/1.jpg", b"")
    write(root / "twice/1.png", b"")
    with pytest.raises(InputError) as raised:
        find_pairs(root / background, root / overlay)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_at_most_five_overlays_without_background_are_named_beside_their_count(root: Path) -> None:
    for number in range(9):
        write(root / f"many/{number}.jpg", b"")
    write(root / "few/0.jpg", b"")
    with pytest.raises(InputError, match=r"^8 of 9 overlays .*: 1\.jpg, 2\.jpg, 3\.jpg, 4\.jpg, 5\.jpg, \.\.\.: "):
        find_pairs(root / "few", root / "many")
