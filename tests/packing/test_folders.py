"""Which files below a folder may be data: what is passed over, what is refused, and what links lead to."""

from pathlib import Path

import pytest

from pipeline.composing.photos import find_pictures
from pipeline.errors import InputError
from pipeline.packing.folders import describe_refused, find_files, folder_files, is_no_data, is_readme
from pipeline.packing.join import find_sets
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.workers import Progress
from tests.miniatures import SCHEMES, SETS, write_folder, write_zip
from tests.samples import write, write_sets
from train.predict import find_pairs

LEFT_BY_SYSTEMS = (
    "._x.jpg", ".DS_Store", ".ipynb_checkpoints/x-checkpoint.jpg", "Thumbs.db", "thumbs.db", "Desktop.ini",
    "__MACOSX/a/._x.jpg", "a/@eaDir/x.jpg/SYNOPHOTO_THUMB_M.jpg", ".git/objects/x.jpg", "$RECYCLE.BIN/x.jpg",
    ".Trash-1000/files/x.jpg", "a/.cache/x.jpg", "lost+found/x.jpg", "__pycache__/x.jpg",
    "System Volume Information/x.jpg",
)  # fmt: skip


def paths(folder: Path, *, follow_links: bool = False, output: Path | None = None) -> list[str]:
    found = folder_files(str(folder), follow_links=follow_links, output=output)
    return sorted(path for files in found for path in files.paths)


def refused(folder: Path, *, follow_links: bool = False) -> dict[str, str]:
    return {path: why for files in folder_files(str(folder), follow_links=follow_links) for path, why in files.refused}


def test_what_systems_leave_behind_is_no_data_in_a_folder_and_an_archive(tmp_path: Path) -> None:
    members = dict.fromkeys((*LEFT_BY_SYSTEMS, "a..b/c...jpg", "x.jpg", "a/README.md"), b"x")
    assert paths(write_folder(members, tmp_path / "folder")) == ["a..b/c...jpg", "a/README.md", "x.jpg"]
    assert [path for path in members if not is_no_data(path)] == ["a..b/c...jpg", "x.jpg", "a/README.md"]
    assert not is_no_data("../up.jpg"), "it is refused by name, not passed over"


def test_sets_are_found_among_what_systems_leave(tmp_path: Path) -> None:
    files = SCHEMES["bg-fg-id"].files() | dict.fromkeys((*LEFT_BY_SYSTEMS, "LICENSE", "README.md"), b"x")
    for source in (write_folder(files, tmp_path / "folder"), write_zip(files, tmp_path / "x.zip")):
        sets = find_sets(source)
        assert (len(sets), sets.problems, sets.layout.roots) == (len(SETS), [], ("",))


@pytest.mark.parametrize("stray", ["README.md", "notes.txt", "preview.jpg", "raw/0001.jpg", "x/LICENSE"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_stray_file_above_does_not_hide_the_layout(stray: str, depth: int, tmp_path: Path) -> None:
    root = "data set/" * depth
    files = {f"{root}{path}": content for path, content in SCHEMES["bg-fg-id"].files().items()} | {stray: b"hi"}
    for source in (write_folder(files, tmp_path / "folder"), write_zip(files, tmp_path / "x.zip")):
        sets = find_sets(source)
        assert (len(sets), sets.layout.roots) == (len(SETS), (root,))
        assert [problem.path for problem in sets.problems] == ([] if is_readme(stray) else [stray])


def test_two_data_sets_side_by_side_are_not_mixed(tmp_path: Path) -> None:
    files = {f"{name}/{path}": b"" for name in "ab" for path in SCHEMES["bg-fg-id"].files()}
    with pytest.raises(InputError, match="several folders hold image sets: a/, b/: pack one of them, or give each"):
        find_sets(write_folder(files, tmp_path))


def test_what_this_project_writes_below_a_source_is_not_read(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 2)
    pack(source, source / "shards", PackOptions(workers=1))
    write(source / "runs/a/metrics.jsonl", b"")
    write(source / "runs/a/last.pt", b"")
    write(source / "runs/a/curves.png", b"")
    write(source / "half/.unfinished/arguments.json", b'{"command": "fgbg-pack"}')
    write(source / "half/sets-000000.tar", b"")
    write(source / "out/anything.jpg", b"")
    assert paths(source, output=source / "out") == [path for path in paths(source) if path != "out/anything.jpg"]
    assert [path for path in paths(source) if path.startswith(("shards", "runs", "half"))] == []
    assert find_sets(source, output=source / "out").problems == []
    write(source / "composing/.unfinished/arguments.json", b'{"command": "fgbg-compose"}')
    write(source / "composing/fg_bg/x.jpg", b"")
    with pytest.raises(InputError, match="source/composing is unfinished: run the same fgbg-compose again"):
        find_sets(source)


def test_a_packing_goes_on_with_its_shards_within_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_sets(tmp_path / "source", 2, 2))
    options = PackOptions(workers=1, sets_per_shard=1)

    def stop(more: int) -> None:
        if more:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(Path(), Path("shards"), options, Progress(sets_done=stop))
    assert Path("shards/.unfinished").is_dir()
    summary = pack(Path(), Path("shards"), options)
    assert (summary.manifest.sets, summary.problems) == (4, 0)


def linked(tmp_path: Path) -> Path:
    """A source whose sets are all behind links: to folders, to files, through two links; and loops."""
    real = write_folder(SCHEMES["bg-fg-id"].files(), tmp_path / "real")
    source = tmp_path / "source"
    source.mkdir()
    for folder in sorted(real.iterdir()):
        (source / folder.name).symlink_to(folder)
    (real / "bg" / "again").symlink_to(real / "bg")
    (source / "top").symlink_to(source)
    (source / "twice").symlink_to(real / "bg")
    return source


def test_links_are_followed_when_told_to_and_loops_end(tmp_path: Path) -> None:
    source = linked(tmp_path)
    sets = find_sets(source, follow_links=True)
    assert len(sets) == len(SETS)
    assert dict(sets.listing.refused) == {
        "bg/again": "a link to a folder that it lies in",
        "top": "a link to a folder that it lies in",
        "twice": "a second link to the same folder",
    }
    assert paths(source) == []
    assert set(refused(source).values()) == {"a link to a folder, not followed without --follow-links"}


def test_links_that_fan_out_are_each_followed_once(tmp_path: Path) -> None:
    """Ten folders, each with two links to the next: 1,024 ways to the last."""
    for number in range(10):
        (tmp_path / f"{number}").mkdir()
        for name in "ab":
            (tmp_path / f"{number}" / name).symlink_to(tmp_path / f"{number + 1}")
    write(tmp_path / "10" / "x.jpg", b"")
    assert [Path(path).name for path in paths(tmp_path / "0", follow_links=True)] == ["x.jpg"]


def test_none_of_use_says_what_is_there_and_what_was_refused(tmp_path: Path) -> None:
    source = linked(tmp_path)
    with pytest.raises(
        InputError,
        match=r"no image sets in .*source: \d not read: a link to a folder, not followed without --follow-links "
        r"\(\d, as bg\); expected files such as",
    ):
        find_sets(source)
    with pytest.raises(InputError, match=r"no picture in .*source: \d not read: a link to a folder, .*: expected this"):
        find_files(source, lambda path: True, "expected this")
    write(source / "a.exr", b"")
    with pytest.raises(InputError, match=r"no picture in .*source: 1 file \(1 \.exr\); \d not read: .*: expected"):
        find_files(source, lambda path: path.endswith(".jpg"), "expected that")
    told = list[str]()
    assert find_files(source, lambda path: path.endswith(".exr"), "", tell=told.append) == ["a.exr"]
    assert told == [f"{source}: {describe_refused(refused(source).items())}"]


def test_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    files = [path.replace(".jpg", ".exr") for path in SCHEMES["bg-fg-id"].files()]
    source = write_folder(dict.fromkeys(files, b""), tmp_path / "all")
    with pytest.raises(
        InputError, match=r"75 files \(75 \.exr\)\); .*\.exr: OpenEXR pictures are not read: convert to PNG"
    ):
        find_sets(source)
    depth = {path.replace(".jpg", ".exr") if "depth" in path else path: b"" for path in SCHEMES["bg-fg-id"].files()}
    with pytest.raises(
        InputError, match=r"24 incomplete; 24 files, as .*\.exr: OpenEXR pictures are not read: .*\.npy.* has no depth"
    ):
        pack(write_folder(depth, tmp_path / "depth"), tmp_path / "shards", PackOptions(workers=1))


def test_every_command_passes_over_the_same(tmp_path: Path) -> None:
    write_folder(dict.fromkeys((*LEFT_BY_SYSTEMS, "x.jpg", "out/y.jpg"), b"x"), tmp_path)
    assert find_pictures(tmp_path, output=tmp_path / "out") == ("x.jpg",)
    for background in ("", "{n}.jpg"):
        write(tmp_path / "1.jpg", b"")
        names = [name for name, _, _ in find_pairs(tmp_path / background, tmp_path / background)]
        assert names == (["1"] if background else ["1", "out/y", "x"])
