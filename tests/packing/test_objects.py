"""Sources behind URLs are packed as the same data on this machine are."""

import shutil
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.object_errors import told
from pipeline.object_storage import ObjectStorage
from pipeline.packing.folders import folder_files
from pipeline.packing.listing import Listing
from pipeline.packing.objects import prefix_files
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack, sets_to_pack
from pipeline.packing.sources import FileReader, open_sources, require_unreplaced
from pipeline.storage import Folder, Stat, Url, storage_of
from pipeline.workers import Progress
from tests.miniatures import write_tar, write_zip
from tests.samples import files_below, write, write_sets
from tests.services.fixtures import WebFolder

HOW = PackOptions(sets_per_shard=4, workers=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("small"), 3, 3)


def visible(shards: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_below(shards).items() if not name.startswith(".")}


def archive(kind: str, folder: Path, path: Path) -> Path:
    if kind == "zip":
        return write_zip(files_below(folder), path, 8)
    return write_tar(files_below(folder), path, {"tar": "w", "tar.gz": "w:gz"}[kind])


def test_objects_of_a_prefix_are_told_as_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/2.jpg", "a/10.jpg", "a-b/1.jpg", "a/b/c/1.jpg", ".hidden/1.jpg", "a/._x.jpg", "Thumbs.db",
                 "z/shards/manifest.json", "z/shards/index.npy", "z/shards/sets-000000.tar", "z/out/deep/1.jpg",
                 "run/.unfinished/arguments.json", "run/below/1.jpg", "train/metrics.jsonl",
                 "train/best.pt"):  # fmt: skip
        write(tmp_path / name, name.encode())
    output = tmp_path / "z" / "out"
    local = [files.paths for files in folder_files(str(tmp_path), output=output) if files.paths]
    found = list(prefix_files(Folder(tmp_path), output))
    assert [files.paths for files in found] == local
    assert sum(local, []) == ["b.jpg", "a/10.jpg", "a/2.jpg", "a/b/c/1.jpg", "a-b/1.jpg"]
    before = [files.stamps for files in found]
    (tmp_path / "new").write_bytes(b"a/2.jpg")
    (tmp_path / "new").replace(tmp_path / "a" / "2.jpg")
    after = [files.stamps for files in prefix_files(Folder(tmp_path), output)]
    assert before[1][0] == after[1][0]
    assert before[1][1] != after[1][1]


class Marked(Folder):
    """A storage with the marks of folders that consoles leave."""

    def stats(self) -> dict[str, Stat]:
        return {"": Stat(0, "x"), "a": Stat(0, "y"), **super().stats()}


def test_marks_of_folders_are_no_objects(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.jpg", b"")
    assert [files.paths for files in prefix_files(Marked(tmp_path))] == [["a/1.jpg"]]


def test_a_prefix_without_objects_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is nothing at .*: check the URL"):
        list(prefix_files(Folder(tmp_path)))


@pytest.mark.parametrize("kind", ["prefix", "zip", "tar", "tar.gz"])
def test_a_source_in_s3_gives_the_bytes_of_a_local_one(
    kind: str, small: Path, s3: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, source = storage_of(s3), s3
    if kind == "prefix":
        local = small
        for name, content in files_below(small).items():
            storage.put(name, content)
    else:
        local = archive(kind, small, tmp_path / f"data.{kind}")
        storage.put(f"raw/data.{kind}", local)
        source = s3 / "raw" / f"data.{kind}"
    reads, read = list[int](), ObjectStorage.read

    def counted(self: ObjectStorage, name: str, offset: int, size: int) -> bytes | memoryview:
        reads.append(size)
        return read(self, name, offset, size)

    monkeypatch.setattr(ObjectStorage, "read", counted)
    sets = sets_to_pack(source, HOW, Progress())
    assert len(sets) == 9
    assert len(reads) <= 16  # the source has 30 files
    pack(source, tmp_path / "remote", HOW)
    pack(local, tmp_path / "local", HOW)
    assert visible(tmp_path / "remote") == visible(tmp_path / "local")
    one, other = (Listing(open_sources([place])).fingerprint() for place in (source, source))
    assert one == other


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_that_is_replaced_while_it_is_read_is_told(
    kind: str, small: Path, s3: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, source = archive(kind, small, tmp_path / "data"), s3 / "data"
    storage_of(s3).put("data", path)
    sources = open_sources([source])
    listing = Listing(sources)
    require_unreplaced(sources)
    name, place = listing.locate(0)
    assert FileReader(sources).read(name, place)
    shutil.rmtree(other := tmp_path / "other", ignore_errors=True)
    storage_of(s3).put("data", archive(kind, write_sets(other, 2, 3), path))
    with pytest.raises(InputError, match=r"s3://.*/data was replaced while it was read: give the same command again"):
        require_unreplaced(sources)
    assert Listing(open_sources([source])).fingerprint() != listing.fingerprint()
    if kind != "tar.gz":
        with pytest.raises(InputError, match="was replaced"):
            FileReader(sources).read(name, place)


def test_several_sources_here_and_there(small: Path, s3: Url, tmp_path: Path) -> None:
    local = tmp_path / "local"
    shutil.copytree(small, local)
    (remote := tmp_path / "remote").mkdir()
    (local / "bg").rename(remote / "bg")
    for name, content in files_below(remote).items():
        storage_of(s3 / "raw").put(name, content)
    sets = sets_to_pack([local, s3 / "raw"], HOW, Progress())
    assert len(sets) == 9
    assert all(path.startswith("raw/bg/") for path in sets.backgrounds.values())
    with pytest.raises(InputError, match=r"is given twice"):
        open_sources([s3 / "raw", Url(f"{s3}/raw/")])


def test_an_archive_on_a_web_server_is_read_and_a_folder_there_is_none(web: WebFolder, small: Path) -> None:
    archive("zip", small, web.path / "data.zip")
    assert len(sets_to_pack(web.url / "data.zip", HOW, Progress())) == 9
    (web.path / "notes.txt").write_text("no archive")
    with pytest.raises(InputError, match=r"notes.txt is neither a folder nor a zip or a tar: it starts with b'no a'"):
        open_sources([web.url / "notes.txt"])
    with pytest.raises(InputError, match=r"gone.zip is no file, and a web server lists none"):
        open_sources([web.url / "gone.zip"])


def test_what_is_not_in_s3_is_told(s3: Url) -> None:
    with pytest.raises(InputError, match=r"there is nothing at s3://.*/raw: check the URL"):
        sets_to_pack(s3 / "raw", HOW, Progress())
    with pytest.raises(InputError, match="there is nothing at"):
        sets_to_pack(s3, HOW, Progress())
    with pytest.raises(OSError, match="there is no bucket no-such-bucket"):
        sets_to_pack(Url("s3://no-such-bucket/raw"), HOW, Progress())


def test_a_name_that_no_file_could_have_is_told() -> None:
    error = pytest.importorskip("obstore.exceptions").InvalidPathError("secret")
    failure = told(error, "s3://bucket/raw")
    assert str(failure.strerror).startswith("the bucket bucket has an object whose name no file could have")
    assert failure.filename == "s3://bucket/raw"
