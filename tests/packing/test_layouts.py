import pytest

from pipeline.format.sample import set_key
from pipeline.packing.known_layouts import SEED_DEPTH_RUN
from pipeline.packing.layouts import Template


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
    assert SEED_DEPTH_RUN.match(path) == (part, fields)


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "bg/noon.jpg",
        "bg/deeper/bg_001.jpg",
        "fg_bg/bg_005/fg_004_bg_005_000001.gif",
        "fg_bg/bg_005/fg_004_bg_005_000001.jpg.bak",
        "x/fg_bg/bg_005/fg_004_bg_005_000001.jpg",
        "fg_bg/bg_005/fg_004_bg_005_1234567890.jpg",
    ],
)
def test_other_names_fit_nothing(path: str) -> None:
    assert SEED_DEPTH_RUN.match(path) is None


def test_a_name_may_not_contradict_itself() -> None:
    with pytest.raises(ValueError, match="bg is both 5 and 6"):
        SEED_DEPTH_RUN.match("fg_bg/bg_005/fg_004_bg_006_000001.jpg")


def test_dots_in_a_template_are_dots() -> None:
    template = Template("a.b/{bg}")
    assert template.matches("a.b/1.jpg")
    assert not template.matches("aXb/1.jpg")


def test_keys_have_no_dot_since_webdataset_splits_there() -> None:
    assert set_key(4, 5, 1) == "fg_004_bg_005_000001"
