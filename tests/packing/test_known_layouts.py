"""Every scheme in use packs to the same sets, from folders and archives."""

import os
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.loading.shard_reader import ShardReader
from pipeline.packing.join import find_sets
from pipeline.packing.known_layouts import (
    FORMER_NAMES,
    SetCounts,
    choose_layout,
    known_layout,
    known_layouts,
    layout_names,
    load_layout,
)
from pipeline.packing.known_layouts import SCHEMES as SCHEME_FILES
from pipeline.packing.layouts import Layout
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from tests.miniatures import COUNTS, SCHEMES, SETS, Scheme, picture, write_folder, write_tar, write_zip
from tests.samples import files_below, write


def packed_sets(
    sources: list[Path], shards: Path, layout: object = None, *, depth: bool = True
) -> dict[str, list[bytes]]:
    """What is in the shards: the pictures of each set by its key, its background before them."""
    assert layout is None or isinstance(layout, list | Layout)
    pack(sources, shards, PackOptions(workers=1, sets_per_shard=7, depth=depth), layout=layout)
    store = ShardReader.open(shards)
    rows = range(store.manifest.sets)
    backgrounds = [store.read_background(int(store.index["bg"][row])).tobytes() for row in rows]
    return {store.key(row): [backgrounds[row], *(part.tobytes() for part in store.read(row))] for row in rows}


def expected_sets(name: str) -> dict[str, list[bytes]]:
    """The slow, obvious pairing."""
    chosen, sets = SCHEMES[name], {}
    numbered = name in ("numbered-bgfg", "fg-bg-id", "bg-folders", "numbered-image")
    for one in SETS:
        fg = f"{one.fg:03}" if chosen.tells_fg else "unknown"
        number = one.n if numbered else one.i + (name == "bg-fg-folders")
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
        [source], tmp_path / "shards", counts and known_layouts(counts), depth=SCHEMES[name].depth is not None
    )
    assert found == expected_sets(name)
    assert (tmp_path / "shards" / "problems.csv").read_text() == "path,kind,why\n"


@pytest.mark.parametrize("extension", ["tar", "tar.gz"])
def test_any_mix_of_sources_gives_the_same_bytes(extension: str, tmp_path: Path) -> None:
    files = SCHEMES["bg-fg-id"].files()
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


def test_an_unknown_foreground_is_recorded_as_such(tmp_path: Path) -> None:
    source = write_folder(SCHEMES["bg-folders"].files(), tmp_path / "source")
    pack(source, tmp_path / "shards", PackOptions(workers=1))
    store = ShardReader.open(tmp_path / "shards")
    assert set(store.index["fg"].tolist()) == {-1}
    assert store.read_metadata(0)["fg"] is None
    assert store.key(0).startswith("fg_unknown_bg_")
    assert Manifest.load(tmp_path / "shards").foregrounds == 0


def test_wrong_counts_and_names() -> None:
    assert SetCounts.parse("3x2x2x2") == COUNTS
    for wrong in ("", "3x2", "3x2x2x0", "axbxcxd", "3x2x2x2x1"):
        with pytest.raises(InputError, match="expected BACKGROUNDSxFOREGROUNDSxPLACEMENTSxMIRRORED"):
            SetCounts.parse(wrong)
    with pytest.raises(InputError, match="no layout called 'sead': expected one of fg-bg-id, bg-fg-folders"):
        known_layout("sead")


def test_the_table_of_schemes_is_whole() -> None:
    assert {layout.name for layout in known_layouts()} == set(SCHEMES)
    assert all(isinstance(one, Scheme) for one in SCHEMES.values())


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
        ("overlay = 'a{bg}'\nmask = 'm{bg}'\ncounts = 7", "mine.toml: counts '7': expected BACKGROUNDSx"),
    ],
)
def test_wrong_layout_files(text: str, why: str, tmp_path: Path) -> None:
    write(tmp_path / "mine.toml", text.encode())
    with pytest.raises(InputError, match=why):
        load_layout(tmp_path / "mine.toml")


@pytest.mark.parametrize("name", layout_names())
def test_a_scheme_is_a_layout_file_like_a_users(name: str, tmp_path: Path) -> None:
    write(tmp_path / f"{name}.toml", (SCHEME_FILES / f"{name}.toml").read_bytes())
    own, known = load_layout(tmp_path / f"{name}.toml"), known_layout(name)
    assert (own.name, own.parts, own.ignored, own.assumed_sets) == (
        name, known.parts, known.ignored, known.assumed_sets
    )  # fmt: skip
    assert {field: formula.text for field, formula in own.formulas.items()} == {
        field: formula.text for field, formula in known.formulas.items()
    }


def test_former_names_are_still_taken() -> None:
    assert {known_layout(name).name for name in FORMER_NAMES} == set(layout_names())
    chosen = choose_layout("deepjyoti", {}, {}, COUNTS)
    assert isinstance(chosen, Layout)
    assert (chosen.name, chosen.assumed_sets) == ("numbered-image", 0)


def test_counts_in_a_layout_file_are_assumed_until_they_are_stated(tmp_path: Path) -> None:
    text = (SCHEME_FILES / "numbered-image.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("100x100x20x2", "3x2x2x2"))
    source = write_folder(SCHEMES["numbered-image"].files(), tmp_path / "source")
    assert len(find_sets(source, load_layout(tmp_path / "mine.toml"))) == len(SETS)
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(
        InputError, match=r"layout mine only numbers its sets, originally from 1 to 400,000; .*--counts"
    ):
        find_sets(source, load_layout(tmp_path / "mine.toml"))
    stated = choose_layout(str(tmp_path / "mine.toml"), {}, {}, COUNTS)
    assert len(find_sets(source, stated)) == len(SETS)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, f"a = {'9' * 10_000}", 'a = "\xff'])
def test_a_toml_of_any_depth_or_size_of_number_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(InputError, match=r"a\.toml is no TOML"):
        load_layout(tmp_path / "a.toml")


@pytest.mark.parametrize("name", ["a.toml", "a.csv"])
def test_a_layout_file_that_is_none_is_not_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(InputError, match="is a folder, a pipe or a device: give a file"):
        choose_layout(str(path), {}, {}, None)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is a folder, a pipe or a device: give a file"):
        choose_layout(str(path), {}, {}, None)
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(InputError, match=r"is no layout .it has 1,099,511,627,776 bytes"):
        choose_layout(str(path), {}, {}, None)
