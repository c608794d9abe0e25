import hashlib
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.format.tar import TarWriter, tar_header


def test_headers_are_those_of_the_standard_library() -> None:
    for name, size in [("a.jpg", 0), ("fg_000_bg_005_000003.fg_bg.jpg", 123_456_789), ("x" * 100, 8**11 - 1)]:
        info = tarfile.TarInfo(name)
        info.size = size
        ours = tarfile.TarInfo.frombuf(tar_header(name, size), "utf-8", "strict")
        assert (ours.name, ours.size, ours.mode, ours.mtime, ours.uid, ours.gid) == (name, size, 0o644, 0, 0, 0)
        assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_a_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="name too long for a tar member \\(101 bytes"):
        tar_header("x" * 101, 1)


def test_nothing_appears_before_it_is_complete(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with TarWriter(tmp_path / "a.tar") as writer:
            writer.add("k", [("txt", b"1")])
            assert not (tmp_path / "a.tar").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_are_frozen(tmp_path: Path) -> None:
    # Golden: the same input gives the same shards under any later version, or it is another format version.
    with TarWriter(tmp_path / "a.tar") as writer:
        members = writer.add("fg_000_bg_005_000003", [("fg_bg.jpg", b"abc"), ("json", b"{}")])
    assert writer.sha256 == "21fe37889483a476562f04d18e26737852c4a1741a74abb04d923ba8a311b7d3"
    assert writer.sha256 == hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
    assert [(member.offset, member.size) for member in members] == [(512, 3), (1536, 2)]
