"""A CSV file that names the files of each set."""

import unicodedata
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline.errors import InputError
from pipeline.packing.csv_layout import CsvLayout
from pipeline.packing.join import find_sets
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
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


Rows = Sequence[tuple[str, ...]]

NAMES: Rows = [(f"fg_bg/{n}/ü {n}.jpg", f"masks/{n}/ü {n}.jpg", f"bg/b{n % 2}.jpg") for n in range(6)]
HEADER = ("overlay", "mask", "background")


def source_of(folder: Path, names: Rows = NAMES, root: str = "") -> Path:
    return files(folder, *{f"{root}{path}" for row in names for path in row})


def table_of(names: Rows, separator: str = ",", header: tuple[str, ...] = HEADER) -> str:
    return "".join(f"{separator.join(row)}\n" for row in (header, *names))


def joined(source: Path, content: bytes) -> Rows:
    """Overlay, mask and background of each set that a table makes of a source; none may be left out or doubled."""
    write(source.parent / "sets.csv", content)
    sets = find_sets(source, CsvLayout.load(source.parent / "sets.csv"), parts=NO_DEPTH)
    assert sets.problems == []
    return [(*sets[place].paths, sets.backgrounds[sets[place].bg]) for place in range(len(sets))]


def by_background(names: Rows) -> Rows:
    return sorted(names, key=lambda row: row[2])


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"]
)
def test_a_table_is_read_in_any_encoding_and_with_any_separator(encoding: str, tmp_path: Path) -> None:
    source = source_of(tmp_path / "source")
    for separator, newline in product((",", ";", "\t", "|", ", "), ("\n", "\r\n")):
        text = table_of(NAMES, separator).replace("\n", newline)
        assert joined(source, text.encode(encoding)) == by_background(NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\n" + table_of(NAMES, ";"),
        "\n\n" + table_of(NAMES).replace("\n", "\n\n,,\n"),
        table_of(NAMES, header=("Over Lay", "MASK", '"BackGround"')),
        table_of([tuple(f'"{path}"' for path in row) for row in NAMES], " ,  "),
        table_of([tuple(f"'./{path}'" for path in row) for row in NAMES]),
        table_of([(*row[:2], row[2].upper()) for row in NAMES]),
    ],
)
def test_a_table_is_read_as_people_write_it(text: str, tmp_path: Path) -> None:
    assert joined(source_of(tmp_path / "source"), text.encode()) == by_background(NAMES)


def test_numbers_may_be_written_as_spreadsheets_write_them(tmp_path: Path) -> None:
    rows: Rows = [(*row, f"{n % 2}.0", "", f"{n}.0") for n, row in enumerate(NAMES)]
    assert joined(source_of(tmp_path / "source"), table_of(rows, header=(*HEADER, "bg", "fg", "id")).encode())


@pytest.mark.parametrize(
    "elsewhere",
    [
        lambda path: f"/home/me/data/{path}",
        lambda path: f"C:\\data\\{path}".replace("/", "\\"),
        lambda path: f"\\\\server\\share\\{path}".replace("/", "\\"),
        lambda path: f"../../data/{path}",
        lambda path: f"data//./{path}",
        lambda path: f"file:///mnt/my%20disk/{quote(path)}",
        lambda path: unicodedata.normalize("NFD", f"/mnt/{path}"),
        lambda path: f"/mnt/{'b' if path.startswith('bg/') else 'a'}/{path}",
    ],
)
@pytest.mark.parametrize("root", ["", "copy/"])
def test_paths_of_another_machine_are_joined_by_where_the_files_were_moved(
    elsewhere: Callable[[str], str], root: str, tmp_path: Path
) -> None:
    moved = [tuple(elsewhere(path) for path in row) for row in NAMES]
    expected = [tuple(f"{root}{path}" for path in row) for row in NAMES]
    assert joined(source_of(tmp_path / "source", root=root), table_of(moved).encode()) == by_background(expected)


def test_paths_of_this_machine_are_exact(tmp_path: Path) -> None:
    source = source_of(source_of(tmp_path / "source"), root="old/")
    here = [tuple(str(source / path) for path in row) for row in NAMES]
    write(tmp_path / "sets.csv", table_of(here).encode())
    sets = find_sets(source, CsvLayout.load(tmp_path / "sets.csv"), parts=NO_DEPTH)
    assert [sets[place].paths for place in range(len(sets))] == [row[:2] for row in by_background(NAMES)]
    assert {problem.path.partition("/")[0] for problem in sets.problems} == {"old"}


def test_names_decomposed_on_either_side_are_the_same(tmp_path: Path) -> None:
    decomposed = [tuple(unicodedata.normalize("NFD", path) for path in row) for row in NAMES]
    assert decomposed != NAMES
    source = source_of(tmp_path / "source", decomposed)
    assert joined(source, table_of(NAMES).encode()) == by_background(decomposed)
    mixed = [decomposed[0], *NAMES[1:]]
    assert joined(source, table_of(mixed).encode()) == by_background(decomposed)


def test_a_file_elsewhere_is_never_taken_for_one_of_the_same_name(tmp_path: Path) -> None:
    """Masks are missing, and called as overlays are: a longest common end would take overlays for masks."""
    names = [(f"fg_bg/{n}.jpg", f"masks/{n}.jpg", f"bg/b{n}.jpg") for n in range(4)]
    source = source_of(tmp_path / "source", [(row[0], row[2]) for row in names])
    moved = [tuple(f"D:/set/{path}" for path in row) for row in names]
    write(tmp_path / "sets.csv", table_of(moved).encode())
    with pytest.raises(
        InputError,
        match=r"no usable set in .*: 4 incomplete; the first problem is D:/set/masks/0\.jpg: row 1 of sets\.csv names "
        r"it as its mask, but no source has it",
    ):
        pack(
            source,
            tmp_path / "shards",
            PackOptions(workers=1, depth=False),
            layout=CsvLayout.load(tmp_path / "sets.csv"),
        )


def test_a_row_that_repeats_another_is_one_set(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source")
    write(tmp_path / "sets.csv", table_of([*NAMES, NAMES[2]]).encode())
    sets = find_sets(source, CsvLayout.load(tmp_path / "sets.csv"), parts=NO_DEPTH)
    assert len(sets) == len(NAMES)
    assert [problem.why for problem in sets.problems] == ["row 7 of sets.csv repeats row 3, which is taken"]


def test_a_table_is_found_in_the_one_folder_of_an_archive(tmp_path: Path) -> None:
    members = {f"data/{path}": b"" for row in NAMES for path in row}
    source = write_zip({**members, "data/Sets.CSV": table_of(NAMES).encode(), "README": b""}, tmp_path / "x.zip")
    sets = find_sets(source, parts=NO_DEPTH)
    assert (len(sets), sets.problems, sets.layout.name) == (len(NAMES), [], "data/Sets.CSV")
