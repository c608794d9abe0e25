"""Which layout files are in, told from their names alone."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.packing.join import find_sets
from pipeline.packing.known_layouts import known_layout, known_layouts
from tests.miniatures import COUNTS, SCHEMES, SETS, write_folder


@pytest.mark.parametrize("name", ["numbered-bgfg", "numbered-image"])
def test_numbers_alone_tell_nothing_unless_their_meaning_is_stated(name: str, tmp_path: Path) -> None:
    source = write_folder(SCHEMES[name].files(), tmp_path / "source")
    with pytest.raises(InputError, match=r"largest number is 24, with 3 backgrounds: state .*--counts"):
        find_sets(source, parts=("fg_bg", "mask"))
    sets = find_sets(source, known_layouts(COUNTS), parts=("fg_bg", "mask"))
    assert len(sets) == len(SETS)
    too_few = find_sets(source, known_layouts(COUNTS._replace(backgrounds=2, placements=1)), parts=("fg_bg", "mask"))
    assert +too_few.left_out == {"incomplete": 12}, "sets beyond the last background"


def test_files_of_two_schemes_are_refused_with_both_named(tmp_path: Path) -> None:
    both = SCHEMES["bg-fg-id"].files()
    both |= {path: content for path, content in SCHEMES["bg-fg-id-flat"].files().items() if not path.startswith("bg/")}
    source = write_folder(both, tmp_path / "source")
    with pytest.raises(
        InputError, match=r"fit 2 layouts: (bg-fg-id-flat|bg-fg-id) .*; (bg-fg-id-flat|bg-fg-id) .*: choose .* --layout"
    ):
        find_sets(source)
    assert len(find_sets(source, known_layout("bg-fg-id-flat"))) == len(SETS)


def test_a_stray_of_another_scheme_is_a_problem_not_a_second_layout(tmp_path: Path) -> None:
    files = {f"fg_bg/bg_0/fg_{fg}_bg_0_{fg}{end}": b"" for fg in range(200) for end in (".jpg", "_disp.jpg")}
    files |= {f"fg_bg_mask/bg_0/fg_{fg}_bg_0_mask_{fg}.jpg": b"" for fg in range(200)}
    source = write_folder({**files, "bg/0.jpg": b"", "fg_bg/bg_0/img_1.jpg": b""}, tmp_path / "source")
    sets = find_sets(source)
    assert (len(sets), sets.layout.name) == (200, "fg-bg-id")
    assert [problem.path for problem in sets.problems] == ["fg_bg/bg_0/img_1.jpg"]


def test_what_was_recognised_is_told_with_its_reason(tmp_path: Path) -> None:
    sets = find_sets(write_folder(SCHEMES["bg-fg-folders"].files(), tmp_path / "source"))
    counts = "75 of 75 files looked at fit it: 24 fg_bg, 24 mask, 24 depth, 3 bg"
    assert sets.layout.why == f"bg-fg-folders ({counts}; such as bg1/fg_0/overlay/1.jpg)"
