import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.packing.join import Sets, find_sets
from pipeline.packing.known_layouts import SEED_DEPTH_RUN
from tests.samples import set_paths, write


def names(source: Path, *paths: str) -> Path:
    for path in paths:
        write(source / path, b"")
    return source


def find(source: Path) -> Sets:
    return find_sets(source, SEED_DEPTH_RUN)


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
