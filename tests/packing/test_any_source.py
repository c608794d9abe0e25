"""Whatever happens to the files of a source: exactly the right sets survive, and every other file is named."""

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, load_index
from pipeline.packing.join import find_sets
from pipeline.packing.pack import PackOptions, pack
from pipeline.workers import SourceProgress
from tests.miniatures import COUNTS, SCHEMES, SETS, write_folder, write_tar, write_zip
from tests.samples import write

SCHEME = SCHEMES["uday96"]
CHOSEN = [one for one in SETS if one.i < 2]
FILES = {
    path: content
    for path, content in SCHEME.files().items()
    if path.startswith("bg/") or path in {name for one in CHOSEN for name in SCHEME.paths(one).values()}
}
paths_of = st.sets(st.sampled_from(sorted(FILES)), max_size=4)


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
    corrupted=st.dictionaries(st.sampled_from(sorted(FILES)), st.integers(0, 3), max_size=4),
    kind=st.sampled_from(["folder", "zip", "tar"]),
)
def test_exactly_the_right_sets_survive(
    removed: set[str], doubled: set[str], corrupted: dict[str, int], kind: str
) -> None:
    files = {path: content for path, content in FILES.items() if path not in removed}
    files |= {path: damaged(files[path], how) for path, how in corrupted.items() if path in files}
    files |= {other_name(path): FILES[path] for path in doubled if path in files}
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
    one = write_folder(FILES, tmp_path / "one")
    path = SCHEME.fg_bg(CHOSEN[0])
    two = write_zip({path: FILES[path]}, tmp_path / "two.zip")
    sets = find_sets([one, two])
    assert len(sets) == len(CHOSEN) - 1
    duplicates = {problem.path for problem in sets.problems if problem.kind == "duplicate"}
    assert {f"one/{path}", f"two.zip/{path}"} <= duplicates
    assert sets[0].paths[0] == f"one/{SCHEME.fg_bg(CHOSEN[1])}"


def test_sources_of_the_same_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    masks = {path: content for path, content in FILES.items() if "mask" in path}
    rest = {path: content for path, content in FILES.items() if path not in masks}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sets = find_sets([write_zip(masks, tmp_path / "a" / "x.zip"), write_zip(rest, tmp_path / "b" / "x.zip")])
    assert len(sets) == len(CHOSEN)
    assert sets[0].paths[:2] == (f"b/x.zip/{SCHEME.fg_bg(CHOSEN[0])}", f"a/x.zip/{SCHEME.mask(CHOSEN[0])}")


@pytest.mark.parametrize("change", ["is gone", "is new", "was changed"])
def test_a_changed_source_is_refused_by_the_name_of_the_file(change: str, tmp_path: Path) -> None:
    source, shards = write_folder(FILES, tmp_path / "source"), tmp_path / "shards"
    path = SCHEME.depth(CHOSEN[3]) if SCHEME.depth else ""

    class Stop(Exception):  # noqa: N818
        pass

    def stop(more: int) -> None:
        if more:
            raise Stop

    options = PackOptions(workers=1, sets_per_shard=5)
    with pytest.raises(Stop):
        pack(source, shards, options, SourceProgress(sets_done=stop))
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

    source = write_zip(FILES, tmp_path / "source.zip")
    with pytest.raises(KeyboardInterrupt):
        pack(source, shards, options, SourceProgress(sets_done=stop))
    write_zip(FILES, source, 8)  # deflated: other offsets, the same names, sizes and CRCs
    assert pack(source, shards, options).manifest.sets == len(CHOSEN)
