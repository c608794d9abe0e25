import csv
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, load_index
from pipeline.packing.join import Sets, find_sets
from pipeline.packing.known_layouts import known_layout
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.workers import Progress
from tests.miniatures import COUNTS, SCHEMES, SETS, write_folder, write_tar, write_zip
from tests.samples import set_paths, write


def names(source: Path, *paths: str) -> Path:
    for path in paths:
        write(source / path, b"")
    return source


def find(source: Path) -> Sets:
    return find_sets(source, known_layout())


def test_parts_are_joined_by_ids_not_by_position(tmp_path: Path) -> None:
    # Sorted as text, 10 comes before 9 in one folder and is padded in the other.
    overlay9, mask9, depth9 = set_paths(1, 9, 9)
    names(tmp_path, "bg/bg_1.jpg", overlay9, mask9, depth9)
    names(tmp_path, "fg_bg/bg_1/fg_10_bg_1_10.jpg", *set_paths(1, 10, 10)[1:])
    sets = find(tmp_path)
    assert [sets[position].paths for position in range(len(sets))] == [
        (overlay9, mask9, depth9),
        ("fg_bg/bg_1/fg_10_bg_1_10.jpg", *set_paths(1, 10, 10)[1:]),
    ]
    assert sets[1].key == "fg_010_bg_001_000010"
    assert sets.backgrounds == {1: "bg/bg_1.jpg"}
    assert not sets.problems
    assert not +sets.left_out


def test_an_incomplete_set_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    names(tmp_path, "bg/bg_1.jpg", *set_paths(1, 0, 0), *set_paths(1, 0, 1)[:2], *set_paths(2, 0, 2))
    sets = find(tmp_path)
    assert len(sets) == 1
    assert +sets.left_out == Counter(incomplete=2)
    assert {problem.path: problem.why for problem in sets.problems} == {
        **dict.fromkeys(set_paths(1, 0, 1)[:2], "set fg_000_bg_001_000001 has no depth"),
        **dict.fromkeys(set_paths(2, 0, 2), "set fg_000_bg_002_000002 has no background 2"),
    }


def test_two_files_that_claim_the_same_set_are_both_named(tmp_path: Path) -> None:
    twin = "fg_bg/bg_1/fg_0_bg_1_0.jpeg"
    names(tmp_path, "bg/bg_1.jpg", *set_paths(1, 0, 0), twin, *set_paths(1, 0, 1))
    sets = find(tmp_path)
    assert [sets[0].number] == [1]
    assert +sets.left_out == Counter(duplicate=1)
    assert {problem.path for problem in sets.problems} == {twin, *set_paths(1, 0, 0)}
    assert sets.problems[0].why == "more than one file claims fg_bg of set fg_000_bg_001_000000"


def test_two_files_that_claim_the_same_background(tmp_path: Path) -> None:
    names(tmp_path, "bg/bg_1.jpg", "bg/bg_001.png", "bg/bg_2.jpg", *set_paths(1, 0, 0), *set_paths(2, 0, 1))
    sets = find(tmp_path)
    assert sets.backgrounds == {2: "bg/bg_2.jpg"}
    assert len(sets) == 1
    assert {problem.path for problem in sets.problems} == {"bg/bg_1.jpg", "bg/bg_001.png", *set_paths(1, 0, 0)}


def test_strangers_and_contradictions_are_named(tmp_path: Path) -> None:
    contradiction = "fg_bg/bg_001/fg_000_bg_002_000000.jpg"
    names(tmp_path, "bg/bg_1.jpg", *set_paths(1, 0, 0), "notes.txt", contradiction)
    assert {(problem.path, problem.kind) for problem in find(tmp_path).problems} == {
        ("notes.txt", "unknown"),
        (contradiction, "contradiction"),
    }


def test_a_dropped_background_takes_its_sets_along(tmp_path: Path) -> None:
    names(tmp_path, "bg/bg_1.jpg", "bg/bg_2.jpg", *set_paths(1, 0, 0), *set_paths(1, 0, 1), *set_paths(2, 0, 2))
    sets = find(tmp_path)
    sets.drop_background(1, "undecodable", "it is a poem")
    assert [sets[position].number for position in range(len(sets))] == [2]
    assert sets[0].paths == tuple(set_paths(2, 0, 2))
    assert +sets.left_out == Counter(undecodable=2)
    assert {problem.path for problem in sets.problems} == {
        "bg/bg_1.jpg",
        *set_paths(1, 0, 0),
        *set_paths(1, 0, 1),
    }


def test_sources_without_sets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(InputError, match="the folder is empty; expected files such as"):
        find(tmp_path)
    names(tmp_path, "a.txt", "b/c.jpg")
    with pytest.raises(InputError, match="none of its 2 files is an overlay"):
        find(tmp_path)


IDS = [(bg, fg) for bg in range(2) for fg in range(3)]
FILES = ["bg/bg_000.jpg", "bg/bg_001.jpg", *(path for bg, fg in IDS for path in set_paths(bg, fg, 0))]


@settings(max_examples=40)
@given(removed=st.sets(st.sampled_from(FILES)))
def test_exactly_the_complete_sets_survive_any_loss(removed: set[str]) -> None:
    kept = [path for path in FILES if path not in removed]
    survivors = [
        (bg, fg) for bg, fg in IDS if not removed & {f"bg/bg_{bg:03}.jpg", *set_paths(bg, fg, 0)}
    ]  # the slow, obvious join
    with tempfile.TemporaryDirectory() as folder:
        if not kept:
            return
        sets = find(names(Path(folder), *kept))
    found = [sets[position] for position in range(len(sets))]
    assert [(files.bg, files.fg) for files in found] == survivors
    used = {path for files in found for path in files.paths} | set(sets.backgrounds.values())
    assert used | {problem.path for problem in sets.problems} == set(kept)
    assert not used & {problem.path for problem in sets.problems}


SCHEME = SCHEMES["bg-fg-id"]
CHOSEN = [one for one in SETS if one.i < 2]
PICTURES = {
    path: content
    for path, content in SCHEME.files().items()
    if path.startswith("bg/") or path in {name for one in CHOSEN for name in SCHEME.paths(one).values()}
}
paths_of = st.sets(st.sampled_from(sorted(PICTURES)), max_size=4)


def other_name(path: str) -> str:
    """The same ids, written otherwise."""
    stem, _, number = path.removesuffix(".jpg").rpartition("_")
    return f"{stem}_0{number}.JPG"


def damaged(content: bytes, how: int) -> bytes:
    return (content[:-300], b"", b"<html>", content[:300])[how % 4]


@settings(max_examples=25)
@given(
    removed=paths_of,
    doubled=paths_of,
    corrupted=st.dictionaries(st.sampled_from(sorted(PICTURES)), st.integers(0, 3), max_size=4),
    kind=st.sampled_from(["folder", "zip", "tar"]),
)
def test_exactly_the_right_sets_survive(
    removed: set[str], doubled: set[str], corrupted: dict[str, int], kind: str
) -> None:
    files = {path: content for path, content in PICTURES.items() if path not in removed}
    files |= {path: damaged(files[path], how) for path, how in corrupted.items() if path in files}
    files |= {other_name(path): PICTURES[path] for path in doubled if path in files}
    files["notes/read me.txt"] = b""
    spoilt = removed | corrupted.keys() | {path for path in doubled if path in files}
    survivors = [one for one in CHOSEN if not spoilt & {SCHEME.bg(one.bg), *SCHEME.paths(one).values()}]
    used = {path for one in survivors for path in SCHEME.paths(one).values()}
    # A background that is whole is packed, whether or not a set on it survives.
    used |= {SCHEME.bg(bg) for bg in range(COUNTS.backgrounds)} - spoilt
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make: dict[str, Callable[[dict[str, bytes], Path], Path]]
        make = {"folder": write_folder, "zip": write_zip, "tar": write_tar}
        source = make[kind](files, folder / "source")
        if not survivors:
            with pytest.raises(InputError, match="no usable set"):
                pack(source, folder / "shards", PackOptions(workers=1, sets_per_shard=5))
            return
        pack(source, folder / "shards", PackOptions(workers=1, sets_per_shard=5))
        index = load_index(folder / "shards", Manifest.load(folder / "shards"))
        with (folder / "shards" / "problems.csv").open(newline="") as table:
            named = [row[0] for row in list(csv.reader(table))[1:]]
    assert sorted(zip(index["bg"].tolist(), index["fg"].tolist(), strict=True)) == sorted(
        (one.bg, one.fg) for one in survivors
    )
    assert len(named) == len(set(named)), "each is named once"
    assert set(named) == set(files) - used


def test_the_same_path_in_two_sources_is_a_duplicate_in_both(tmp_path: Path) -> None:
    one = write_folder(PICTURES, tmp_path / "one")
    path = SCHEME.fg_bg(CHOSEN[0])
    two = write_zip({path: PICTURES[path]}, tmp_path / "two.zip")
    sets = find_sets([one, two])
    assert len(sets) == len(CHOSEN) - 1
    duplicates = {problem.path for problem in sets.problems if problem.kind == "duplicate"}
    assert {f"one/{path}", f"two.zip/{path}"} <= duplicates
    assert sets[0].paths[0] == f"one/{SCHEME.fg_bg(CHOSEN[1])}"


def test_sources_of_the_same_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    masks = {path: content for path, content in PICTURES.items() if "mask" in path}
    rest = {path: content for path, content in PICTURES.items() if path not in masks}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sets = find_sets([write_zip(masks, tmp_path / "a" / "x.zip"), write_zip(rest, tmp_path / "b" / "x.zip")])
    assert len(sets) == len(CHOSEN)
    assert sets[0].paths[:2] == (f"b/x.zip/{SCHEME.fg_bg(CHOSEN[0])}", f"a/x.zip/{SCHEME.mask(CHOSEN[0])}")


@pytest.mark.parametrize("change", ["is gone", "is new", "was changed"])
def test_a_changed_source_is_refused_by_the_name_of_the_file(change: str, tmp_path: Path) -> None:
    source, shards = write_folder(PICTURES, tmp_path / "source"), tmp_path / "shards"
    path = SCHEME.depth(CHOSEN[3]) if SCHEME.depth else ""

    class Stop(Exception):  # noqa: N818
        pass

    def stop(more: int) -> None:
        if more:
            raise Stop

    options = PackOptions(workers=1, sets_per_shard=5)
    with pytest.raises(Stop):
        pack(source, shards, options, Progress(sets_done=stop))
    content = (source / path).read_bytes()
    if change == "is gone":
        (source / path).unlink()
    elif change == "is new":
        path = path.replace(".jpg", ".txt")
        write(source / path, b"")
    else:
        write(source / path, content[:-1])
    with pytest.raises(InputError, match=f"unfinished packing of other files: {path} {change} since: bring it back"):
        pack(source, shards, options)
    assert (shards / ".unfinished").exists(), "what is done is kept"


def test_a_zip_rewritten_with_the_same_content_goes_on(tmp_path: Path) -> None:
    shards, options = tmp_path / "shards", PackOptions(workers=1, sets_per_shard=5)

    def stop(more: int) -> None:
        if more:
            raise KeyboardInterrupt

    source = write_zip(PICTURES, tmp_path / "source.zip")
    with pytest.raises(KeyboardInterrupt):
        pack(source, shards, options, Progress(sets_done=stop))
    write_zip(PICTURES, source, 8)  # deflated: other offsets, the same names, sizes and CRCs
    assert pack(source, shards, options).manifest.sets == len(CHOSEN)
