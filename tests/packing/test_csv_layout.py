"""A CSV file that names the files of each set."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.packing.csv_layout import CsvLayout
from pipeline.packing.join import find_sets
from tests.miniatures import SETS, picture, set_list, write_folder, write_zip
from tests.packing.test_known_layouts import packed_sets
from tests.samples import write

NO_DEPTH = ("fg_bg", "mask")


def files(folder: Path, *paths: str) -> Path:
    for path in paths:
        write(folder / path, b"")
    return folder


@pytest.mark.parametrize("apart", [False, True])
def test_a_list_of_sets_is_a_layout(apart: bool, tmp_path: Path) -> None:
    table, archives = set_list()
    if apart:
        sources = [write_zip(members, tmp_path / name) for name, members in archives.items()]
        sources.append(write_folder(table, tmp_path / "list"))
    else:
        members = {
            f"{name[:-4]}/{path}": content for name, files in archives.items() for path, content in files.items()
        }
        sources = [write_folder(table | members, tmp_path / "source")]
    found = packed_sets(sources, tmp_path / "shards")
    assert found == {
        f"fg_unknown_bg_{one.bg:03}_{one.n:06}": [
            picture("bg", one.bg), *(picture(part, one.n) for part in ("fg_bg", "mask", "depth"))
        ]
        for one in SETS
    }  # fmt: skip


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
        CsvLayout.load(tmp_path / "other.csv")
