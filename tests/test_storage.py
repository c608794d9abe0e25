"""A folder as a storage, and what is a URL."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.storage import Folder, Storage, Url, location_of, storage_of


def test_objects_of_a_folder_are_read_in_ranges_and_whole(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("below/a.bin", bytes(range(100)))
    assert folder.read("below/a.bin", 10, 5) == bytes(range(10, 15))
    assert folder.read("below/a.bin", 95, 50) == bytes(range(95, 100))
    assert folder.read_all("below/a.bin", 100) == folder.open("below/a.bin").read() == bytes(range(100))
    assert bytes(folder.map("below/a.bin")) == bytes(range(100))
    with pytest.raises(ValueError, match="it has 100 bytes"):
        folder.read_all("below/a.bin", 99)
    with pytest.raises(FileNotFoundError):
        folder.read("b.bin", 0, 1)


def test_what_replaces_an_object_of_a_folder_has_another_etag(tmp_path: Path) -> None:
    folder, source = Folder(tmp_path), tmp_path / "source"
    source.write_bytes(b"one")
    folder.put("a", source)
    before = folder.stat("a")
    folder.put("a", b"two")
    folder.close()
    assert before.size == 3
    assert folder.stat("a").etag != before.etag
    assert folder.read("a", 0, 9) == b"two"
    folder.remove("a")
    folder.remove("a")
    folder.close()
    assert folder.names() == ["source"]


def test_one_of_many_creates_an_object(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: folder.create("a/b", b"%d" % number), range(8)))
    assert sum(made) == 1
    assert folder.read_all("a/b") == b"%d" % made.index(True)
    assert folder.names() == folder.names("a/") == ["a/b"]
    assert folder.names("b") == []


def test_a_copy_of_a_folder_opens_its_files_anew(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("a", b"content")
    copy: Storage = pickle.loads(pickle.dumps(folder))
    assert copy.read("a", 3, 4) == b"tent"
    assert storage_of(folder) is folder


@pytest.mark.parametrize("text", ["s3://bucket", "gs://bucket/a/b", "az://account/container", "https://host:8/a"])
def test_urls_are_places(text: str) -> None:
    url = location_of(text + "/")
    assert isinstance(url, Url)
    assert str(url) == text
    assert (url / "a.tar").parent == url
    assert (url / "a.tar").name == "a.tar"


def test_what_has_no_scheme_and_file_urls_are_paths(tmp_path: Path) -> None:
    assert location_of("shards") == Path("shards")
    assert location_of("C:/shards") == Path("C:/shards")
    assert location_of("file:///data/a%20b") == location_of("FILE://localhost/data/a%20b") == Path("/data/a b")
    assert location_of("/data/s3:/a") == Path("/data/s3:/a")
    assert isinstance(storage_of(tmp_path), Folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://host/a", "ftp://host/a is no URL that fgbg reads: expected s3, gs, az, http, https"),
        ("s3:///a", "is no URL"),
        ("s3://a bucket/a", "is no URL"),
        ("http://[::1/a", "is no URL"),
        ("S3:/bucket/a", "S3:/bucket/a is no URL, but looks like one: give it as text, with two slashes"),
        (Path("s3://bucket/a"), "s3:/bucket/a is no URL, but looks like one"),
        ("file:/data", "is no URL, but looks like one"),
        ("file://data/a", "file://data/a names the machine data: expected file:///data/a"),
        ("https://user:SECRET@host/a", "https://host/a was given with a user or a password"),
        ("https://host/a?sig=SECRET", "https://host/a was given with something behind"),
    ],
)
def test_other_urls_are_refused_without_their_secrets(text: str | Path, said: str) -> None:
    with pytest.raises(InputError) as caught:
        location_of(text)
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)
