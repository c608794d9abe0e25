import copy
import gzip
import os
import random
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.format.images import BadImage
from pipeline.packing.archives import MemberPlace
from pipeline.packing.listing import Listing
from pipeline.packing.sources import FileReader, archive_members, open_sources, unpack_compressed
from tests.miniatures import write_folder, write_tar, write_zip
from tests.samples import write

FILES = {
    f"{folder}{number}{end}": random.Random(number).randbytes(number * 37) * 3
    for number in range(40)
    for folder, end in (("", ".jpg"), ("a/b/", ".png"), ("ä/", ""))
}


def content(listing: Listing, *, unpacked: Path | None = None) -> dict[str, bytes]:
    """Everything as a worker reads it."""
    sources = unpack_compressed(listing.sources, unpacked) if unpacked else listing.sources
    reader = FileReader(sources)
    return {listing.name(row): reader.read(*listing.locate(row)) for row in range(len(listing))}


@pytest.mark.parametrize("kind", ["folder", "stored", "deflated", "w", "w:gz", "w:xz", "w:bz2"])
def test_every_kind_of_source_holds_the_same(kind: str, tmp_path: Path) -> None:
    if kind == "folder":
        source = write_folder(FILES, tmp_path / "source")
    elif kind in ("stored", "deflated"):
        source = write_zip(FILES, tmp_path / "source.bin", {"stored": 0, "deflated": 8}[kind])
    else:
        source = write_tar(FILES, tmp_path / "source.bin", kind)
    listing = Listing(open_sources([source]))
    assert content(listing) == FILES
    assert content(listing, unpacked=tmp_path) == FILES
    assert [listing.path(row) for row in range(len(listing))] == list(listing.paths(range(len(listing))))
    for row in range(len(listing)):
        assert listing.row_of(0, listing.path(row)) == row
    assert listing.row_of(0, "0.jp") is None
    assert {listing.path(row) for row in listing.files_ending(".jpg")} == {f"{number}.jpg" for number in range(40)}


def test_a_zip_reads_as_zipfile_does_whatever_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "odd.zip"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
        archive.writestr("folder/", b"")
        with archive.open(zipfile.ZipInfo("wide.jpg"), "w", force_zip64=True) as file:
            file.write(b"x" * 1000)
        archive.comment = b"what a directory may end with"
    path.write_bytes(b"#!/bin/sh\nexit\n" + path.read_bytes())  # as an archive that unpacks itself begins
    with zipfile.ZipFile(path) as archive:
        expected = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    listing = Listing(open_sources([path]))
    assert content(listing) == expected


def test_more_members_than_a_zip_counts_in_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(66000):
            archive.writestr(f"{number}.jpg", b"")
    listing = Listing(open_sources([path]))
    assert len(listing) == 66000
    assert listing.path(65999) == "65999.jpg"


def test_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    wrong = {"../up.jpg": "'..'", "a/../../up.jpg": "'..'", "/abs.jpg": "absolute", "..\\up.jpg": "'..'",
             "C:/abs.jpg": "absolute"}  # fmt: skip
    files = dict.fromkeys([*wrong, "fine.jpg", "a..b/c...jpg"], b"x")
    for source in (write_zip(files, tmp_path / "x.zip"), write_tar(files, tmp_path / "x.tar")):
        listing = Listing(open_sources([source]))
        assert set(listing.paths(range(len(listing)))) == {"fine.jpg", "a..b/c...jpg"}
        assert dict(listing.refused).keys() == wrong.keys()
        assert all(wrong[path] in why for path, why in listing.refused)


def test_links_are_not_followed_out(tmp_path: Path) -> None:
    write(tmp_path / "outside" / "secret.jpg", b"secret")
    source = tmp_path / "source"
    write(source / "real.jpg", b"real")
    (source / "inner.jpg").symlink_to("real.jpg")
    (source / "out.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (source / "folder").symlink_to(tmp_path / "outside")
    (source / "nothing.jpg").symlink_to("gone.jpg")
    (source / "twin").symlink_to(tmp_path / "source2")
    write(tmp_path / "source2" / "x.jpg", b"a name that begins alike is no inside")
    os.mkfifo(source / "pipe.jpg")
    listing = Listing(open_sources([source]))
    assert content(listing) == {"real.jpg": b"real", "inner.jpg": b"real"}
    assert {path: why.split(",")[0] for path, why in listing.refused} == {
        "out.jpg": "a link out of the source",
        "folder": "a link to a folder",
        "twin": "a link to a folder",
        "nothing.jpg": "a link to nothing",
        "pipe.jpg": "neither a plain file nor a folder",
    }
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        archive.add(source / "out.jpg", "out.jpg")
        archive.add(source / "real.jpg", "real.jpg")
    [(path, why)] = Listing(open_sources([tmp_path / "links.tar"])).refused
    assert (path, why.split(":")[0]) == ("out.jpg", "a link, which no --follow-links follows")


def test_a_member_that_inflates_without_end_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_sources([write_zip({"a.jpg": bytes(10_000)}, tmp_path / "bomb.zip", 8)])
    [member] = archive_members(source[0])
    place = MemberPlace(0, member.offset, member.size, member.method, member.crc32)
    assert FileReader(source).read("a.jpg", place) == bytes(10_000)
    reader = FileReader(source)
    assert reader.read("a.jpg", place) == copy.deepcopy(reader).read("a.jpg", place) == reader.read("a.jpg", place)
    monkeypatch.setattr("pipeline.packing.archives.MAX_INFLATED", 9_999)
    with pytest.raises(BadImage, match="inflates to over 0 MiB"):
        FileReader(source).read("a.jpg", place)


def test_a_damaged_member_is_no_picture(tmp_path: Path) -> None:
    for method in (0, 8):
        path = write_zip({"a.jpg": b"abc" * 100}, tmp_path / "x.zip", method)
        data = bytearray(path.read_bytes())
        data[30 + len("a.jpg") + 3] ^= 4
        path.write_bytes(data)
        with pytest.raises(BadImage, match=r"CRC differs|does not inflate"):
            content(Listing(open_sources([path])))


@pytest.mark.parametrize("cut", [1, 100, 600, 1500])
@pytest.mark.parametrize("mode", ["zip", "w", "w:gz"])
def test_an_archive_that_is_cut_short_is_refused(mode: str, cut: int, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write_zip(FILES, whole) if mode == "zip" else write_tar(FILES, whole, mode)
    size = len(whole.read_bytes())
    keep = size - cut if mode != "w" else size - 10240 - cut  # tarfile pads to 20 blocks, and two end it
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(InputError, match="copy it again"):
        Listing(open_sources([tmp_path / "cut"]))


def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    source = write_tar(FILES, tmp_path / "x.tar")
    with tarfile.open(source) as archive:
        offset = archive.getmembers()[60].offset
    source.write_bytes(source.read_bytes()[:offset])
    with pytest.raises(InputError, match=r"cut short or damaged .no end mark.: copy it again"):
        Listing(open_sources([source]))


def test_what_is_no_source(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt", b"hello")
    os.mkfifo(tmp_path / "pipe")
    for paths, message in (
        ([tmp_path / "pipe"], "pipe is a pipe or a device: save it as a file"),
        ([], "no source: give a folder"),
        ([tmp_path / "gone"], "no such folder: "),
        ([tmp_path / "notes.txt"], "neither a folder nor a zip or a tar: it starts with b'hell'"),
        ([tmp_path, tmp_path / "."], "is given twice"),
    ):
        with pytest.raises(InputError, match=message):
            open_sources(paths)


@pytest.mark.parametrize("field", [20, 42], ids=["size", "offset"])
def test_a_zip_member_beyond_the_file_is_refused(field: int, tmp_path: Path) -> None:
    path = write_zip({"a.jpg": b"abc"}, tmp_path / "x.zip")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2") + field
    data[at : at + 4] = struct.pack("<I", 1 << 31)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a member would lie beyond its end.: copy it again"):
        Listing(open_sources([path]))


@pytest.mark.parametrize(("size", "offset"), [(1 << 63, 0), (0, 1 << 63), (2**64 - 1, 2**64 - 1), (46, 1 << 40)])
def test_a_zip64_directory_of_absurd_size_is_refused(size: int, offset: int, tmp_path: Path) -> None:
    path = write_zip({"a.jpg": b"abc"}, tmp_path / "x.zip")
    data = path.read_bytes()
    end = data.rindex(b"PK\5\6")
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, size, offset)
    path.write_bytes(data[:end] + record + b"PK\6\7" + struct.pack("<IQI", 0, end, 1) + data[end:])
    with pytest.raises(InputError, match=r"its directory is not where it should be.: copy it again"):
        Listing(open_sources([path]))


@pytest.mark.parametrize("size", [b"7777777777", b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"-0000000010", b"00000100000"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_member_of_absurd_size_is_refused(size: bytes, mode: str, tmp_path: Path) -> None:
    path = write_tar({"a.jpg": b"abc", "b.jpg": b"abc"}, tmp_path / "x.tar")
    data = bytearray(path.read_bytes())
    header = data[1024:1536]
    header[124:136] = size.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    path.write_bytes(gzip.compress(bytes(data)) if mode == "w:gz" else data)
    with pytest.raises(InputError, match="copy it again"):
        Listing(open_sources([path]))


def test_a_file_of_absurd_size_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    os.truncate(tmp_path / "a.jpg", 1 << 40)
    with pytest.raises(BadImage, match="it has 1,099,511,627,776 bytes, at most"):
        content(Listing(open_sources([tmp_path])))


def test_an_encrypted_member_is_refused_by_name(tmp_path: Path) -> None:
    path = write_zip({"a.jpg": b"abc"}, tmp_path / "x.zip")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2") + 8
    data[at : at + 2] = struct.pack("<H", 1)
    path.write_bytes(data)
    assert Listing(open_sources([path])).refused == [("a.jpg", "encrypted")]


@pytest.mark.parametrize(
    ("method", "name"), [(9, "Deflate64"), (12, "bzip2"), (14, "LZMA"), (93, "zstd"), (1, "method 1")]
)
def test_a_member_compressed_otherwise_is_refused_by_the_name_of_the_method(
    method: int, name: str, tmp_path: Path
) -> None:
    path = write_zip({"a.jpg": b"abc"}, tmp_path / "x.zip")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2") + 10
    data[at : at + 2] = struct.pack("<H", method)
    path.write_bytes(data)
    [(_, why)] = Listing(open_sources([path])).refused
    assert why == f"compressed by {name}; only stored and deflated members are read"


def test_names_of_members_are_read_as_other_systems_write_them(tmp_path: Path) -> None:
    """UTF-8 without its flag (macOS), code page 437 (DOS), backslashes (Windows), "./" (tar to zip)."""
    path = write_zip(dict.fromkeys(("x_\u00fc1.jpg", "y_____.jpg", "b:g:1.jpg", ".:x.jpg"), b"x"), tmp_path / "x.zip")
    data = path.read_bytes().replace(b"\x00\x08\x00\x00", bytes(4))
    for old, new in ((b"b:g:1", b"b\\g\\1"), (b".:x", b"./x"), (b"y_____", b"y_\x81\x81\x81_")):
        data = data.replace(old, new)
    path.write_bytes(data)
    listing = Listing(open_sources([path]))
    assert sorted(listing.paths(range(len(listing)))) == ["b/g/1.jpg", "x.jpg", "x_ü1.jpg", "y_üüü_.jpg"]


def test_a_fingerprint_notices_what_changed(tmp_path: Path) -> None:
    source = write_folder(FILES, tmp_path / "source")
    before = Listing(open_sources([source])).fingerprint()
    assert Listing(open_sources([source])).fingerprint() == before
    about = (source / "7.jpg").stat()
    newest_ns = Listing(open_sources([source])).newest_ns
    os.utime(source / "7.jpg", ns=(about.st_atime_ns, newest_ns + 10**15))
    assert Listing(open_sources([source])).newest_ns == newest_ns + 10**15
    assert Listing(open_sources([source])).fingerprint() == before, "which is the same on any machine"
    write(source / "7.jpg", FILES["7.jpg"][:-1])
    os.utime(source / "7.jpg", ns=(about.st_atime_ns, about.st_mtime_ns))
    assert Listing(open_sources([source])).fingerprint() != before, "size"
    one, other = (write_zip(FILES | {"7.jpg": text}, tmp_path / f"{text.decode()}.zip") for text in (b"one", b"two"))
    assert Listing(open_sources([one])).fingerprint() != Listing(open_sources([other])).fingerprint(), "CRC"
