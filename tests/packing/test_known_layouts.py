"""Every scheme in use packs to the same sets, from folders and archives."""

import zipfile
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.loading.shard_reader import Store
from pipeline.packing.join import find_sets
from pipeline.packing.known_layouts import Counts, scheme, schemes
from pipeline.packing.layouts import Layout
from pipeline.packing.pack import PackOptions, pack
from tests.miniatures import COUNTS, SCHEMES, SETS, Scheme, picture, set_list, write_folder, write_tar, write_zip
from tests.samples import files_below


def packed_sets(
    sources: list[Path], shards: Path, layout: object = None, *, depth: bool = True
) -> dict[str, list[bytes]]:
    """What is in the shards: the pictures of each set by its key, its background before them."""
    assert layout is None or isinstance(layout, list | Layout)
    pack(sources, shards, PackOptions(workers=1, sets_per_shard=7, depth=depth), layout=layout)
    store = Store.open(shards)
    rows = range(store.manifest.sets)
    backgrounds = [store.read_background(int(store.index["bg"][row])).tobytes() for row in rows]
    return {store.key(row): [backgrounds[row], *(part.tobytes() for part in store.read(row))] for row in rows}


def expected_sets(name: str) -> dict[str, list[bytes]]:
    """The slow, obvious pairing."""
    chosen, sets = SCHEMES[name], {}
    numbered = name in ("seed-overlays", "seed-depth-run", "akshat", "deepjyoti")
    for one in SETS:
        fg = f"{one.fg:03}" if chosen.tells_fg else "unknown"
        number = one.n if numbered else one.i + (name == "rohitrnath")
        pictures = [picture("bg", one.bg), *(picture(part, one.n) for part in chosen.paths(one))]
        sets[f"fg_{fg}_bg_{one.bg + chosen.first_bg:03}_{number:06}"] = pictures
    return sets


@pytest.mark.parametrize("kind", ["folder", "zip", "deflated zip below a folder"])
@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_packs_to_the_same_sets(name: str, kind: str, tmp_path: Path) -> None:
    files = SCHEMES[name].files()
    if kind == "folder":
        source = write_folder(files, tmp_path / "source")
    elif kind == "zip":
        source = write_zip(files, tmp_path / "source.zip")
    else:
        below = {f"data/set 1/{path}": content for path, content in files.items()} | {"__MACOSX/data/._x": b""}
        source = write_zip(below, tmp_path / "source.zip", zipfile.ZIP_DEFLATED)
    counts = SCHEMES[name].counts
    found = packed_sets(
        [source], tmp_path / "shards", counts and schemes(counts), depth=SCHEMES[name].depth is not None
    )
    assert found == expected_sets(name)
    assert (tmp_path / "shards" / "problems.csv").read_text() == "path,kind,why\n"


@pytest.mark.parametrize("extension", ["tar", "tar.gz"])
def test_any_mix_of_sources_gives_the_same_bytes(extension: str, tmp_path: Path) -> None:
    files = SCHEMES["uday96"].files()
    pack(write_folder(files, tmp_path / "all"), tmp_path / "one", PackOptions(workers=1, sets_per_shard=7))
    parts = [{path: files[path] for path in files if path.startswith(f"{top}/")}
             for top in ("bg", "fg_bg", "fg_bg_masks", "fg_bg_depth")]  # fmt: skip
    sources = [
        write_zip(parts[0], tmp_path / "bg.zip"),
        write_tar(parts[1], tmp_path / f"overlays.{extension}", "w:gz" if extension.endswith("gz") else "w"),
        write_folder(parts[2], tmp_path / "masks"),
        write_zip(parts[3], tmp_path / "depth.zip", zipfile.ZIP_DEFLATED),
    ]
    pack(sources, tmp_path / "mixed", PackOptions(workers=2, sets_per_shard=7))
    assert files_below(tmp_path / "mixed") == files_below(tmp_path / "one")


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


def test_an_unknown_foreground_is_recorded_as_such(tmp_path: Path) -> None:
    source = write_folder(SCHEMES["akshat"].files(), tmp_path / "source")
    pack(source, tmp_path / "shards", PackOptions(workers=1))
    store = Store.open(tmp_path / "shards")
    assert set(store.index["fg"].tolist()) == {-1}
    assert store.read_note(0)["fg"] is None
    assert store.key(0).startswith("fg_unknown_bg_")
    assert Manifest.load(tmp_path / "shards").foregrounds == 0


@pytest.mark.parametrize("name", ["seed-overlays", "deepjyoti"])
def test_numbers_alone_tell_nothing_unless_their_meaning_is_stated(name: str, tmp_path: Path) -> None:
    source = write_folder(SCHEMES[name].files(), tmp_path / "source")
    with pytest.raises(InputError, match=r"largest number is 24, with 3 backgrounds: state .*--counts"):
        find_sets(source, parts=("fg_bg", "mask"))
    sets = find_sets(source, schemes(COUNTS), parts=("fg_bg", "mask"))
    assert len(sets) == len(SETS)
    too_few = find_sets(source, schemes(COUNTS._replace(backgrounds=2, placements=1)), parts=("fg_bg", "mask"))
    assert +too_few.left_out == {"incomplete": 12}, "sets beyond the last background"


def test_files_of_two_schemes_are_refused_with_both_named(tmp_path: Path) -> None:
    both = SCHEMES["uday96"].files()
    both |= {path: content for path, content in SCHEMES["modest"].files().items() if not path.startswith("bg/")}
    source = write_folder(both, tmp_path / "source")
    with pytest.raises(InputError, match=r"fit 2 layouts: (modest|uday96) .*; (modest|uday96) .*: choose .* --layout"):
        find_sets(source)
    assert len(find_sets(source, scheme("modest"))) == len(SETS)


def test_a_stray_of_another_scheme_is_a_problem_not_a_second_layout(tmp_path: Path) -> None:
    files = {f"fg_bg/bg_0/fg_{fg}_bg_0_{fg}{end}": b"" for fg in range(200) for end in (".jpg", "_disp.jpg")}
    files |= {f"fg_bg_mask/bg_0/fg_{fg}_bg_0_mask_{fg}.jpg": b"" for fg in range(200)}
    source = write_folder({**files, "bg/0.jpg": b"", "fg_bg/bg_0/img_1.jpg": b""}, tmp_path / "source")
    sets = find_sets(source)
    assert (len(sets), sets.chosen.layout) == (200, "seed-depth-run")
    assert [problem.path for problem in sets.problems] == ["fg_bg/bg_0/img_1.jpg"]


def test_what_was_recognised_is_told_with_its_reason(tmp_path: Path) -> None:
    sets = find_sets(write_folder(SCHEMES["rohitrnath"].files(), tmp_path / "source"))
    counts = "75 of 75 files looked at fit it: 24 fg_bg, 24 mask, 24 depth, 3 bg"
    assert sets.chosen.why == f"rohitrnath ({counts}; such as bg1/fg_0/overlay/1.jpg)"


def test_wrong_counts_and_names() -> None:
    assert Counts.parse("3x2x2x2") == COUNTS
    for wrong in ("", "3x2", "3x2x2x0", "axbxcxd", "3x2x2x2x1"):
        with pytest.raises(InputError, match="expected BACKGROUNDSxFOREGROUNDSxPLACEMENTSxMIRRORED"):
            Counts.parse(wrong)
    with pytest.raises(InputError, match="no layout called 'sead': expected one of seed-depth-run, modest"):
        scheme("sead")


def test_the_table_of_schemes_is_whole() -> None:
    assert {layout.name for layout in schemes()} == set(SCHEMES)
    assert all(isinstance(one, Scheme) for one in SCHEMES.values())
