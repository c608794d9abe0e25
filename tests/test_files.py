"""Files on mounts that lack something, or fail in passing: the same bytes, or an error that names the file."""

import errno
import gc
import io
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import NOT_OF_ONE_FILE, REMEDIES, explain
from pipeline.files import (
    PASSING,
    PAUSES_SEC,
    ReadFile,
    map_array,
    map_file,
    open_file,
    read_file,
    retried,
    sync_folder,
    write_file,
    written_file,
)
from pipeline.format.images import BadImage, read_picture
from pipeline.resume import atomic_file
from tests.samples import files_below

CONTENT = bytes(np.random.default_rng(0).integers(0, 256, 300_000, np.uint8))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_file(tmp_path / "file", CONTENT)
    return tmp_path / "file"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept = list[float]()
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def open_files() -> list[Path]:
    gc.collect()  # of tests before, which may have left files to it
    return list(Path("/proc/self/fd").iterdir())


def failing(function: Callable[..., Any], number: int, times: int) -> Callable[..., Any]:
    """`function`, which fails the first few times."""
    left = iter(range(times))

    def call(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is not None:
            raise OSError(number, os.strerror(number))
        return function(*arguments, **named)

    return call


def test_short_reads_are_read_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: whole(file, min(size, 7001), offset))
    file = ReadFile(path)
    assert file.read(100_000, 5) == CONTENT[5:100_005]
    assert file.read(1 << 20, 299_990) == CONTENT[299_990:]
    assert file.read(10, 300_000) == b""
    assert read_file(path) == CONTENT
    with open_file(path) as stream:
        assert (stream.read(3), stream.seek(-10, os.SEEK_END), stream.read()) == (CONTENT[:3], 299_990, CONTENT[-10:])


@pytest.mark.parametrize("number", sorted(PASSING))
def test_what_fails_in_passing_is_read_again(
    number: int, path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open", "pread"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, failing(getattr(os, name), number, len(PAUSES_SEC)))
            assert read_file(path) == CONTENT
    assert pauses
    for name in ("open", "pread"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, failing(getattr(os, name), number, 99))
            with pytest.raises(OSError, match=os.strerror(number)) as error:
                read_file(path)
            assert error.value.filename == str(path)


def test_what_is_wrong_for_good_is_told_at_once(path: Path, pauses: list[float]) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(path.with_name("gone"))
    with pytest.raises(ZeroDivisionError):
        retried(lambda: 1 // 0)
    assert pauses == []


def test_a_stale_file_is_opened_anew_behind_the_same_descriptor(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may be reading from it: their descriptor stays good, and no file is left open."""
    file = ReadFile(path)
    descriptor, open_before = file.descriptor, len(open_files())
    path.rename(path.with_name("old"))
    write_file(path, b"new")
    monkeypatch.setattr(os, "pread", failing(os.pread, errno.ESTALE, 1))
    assert file.read(10, 0) == b"new"
    assert file.descriptor == descriptor
    assert not os.get_inheritable(descriptor)
    assert len(open_files()) == open_before


def test_threads_read_on_while_one_opens_the_file_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, pread, counts = ReadFile(path), os.pread, iter(range(10**9))

    def flaky(*arguments: int) -> bytes:
        if next(counts) % 5 == 0:
            raise OSError(errno.EIO, "")
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", flaky)
    wrong = list[int]()

    def read(first: int) -> None:
        for offset in range(first, 290_000, 20_011):
            if file.read(4096, offset) != CONTENT[offset : offset + 4096]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("size", [0, 1, 300_000])
@pytest.mark.parametrize("number", [0, errno.ENODEV, errno.EINVAL, errno.ENOSYS])
def test_files_are_mapped_privately_or_read(
    size: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "file", CONTENT[:size])
    mapped = mmap.mmap

    def private(file: int, length: int, *, flags: int, prot: int) -> mmap.mmap:
        if number or flags & mmap.MAP_SHARED:
            raise OSError(number or errno.ENODEV, "")
        return mapped(file, length, flags=flags, prot=prot)

    monkeypatch.setattr(mmap, "mmap", private)
    content = map_file(tmp_path / "file")
    assert isinstance(content, bytes) == bool(number or not size)
    assert content[:] == CONTENT[:size]


def test_arrays_are_mapped(tmp_path: Path) -> None:
    for array in (np.arange(6).reshape(2, 3), np.asfortranarray(np.eye(3, 2)), np.zeros((2, 0), np.uint8)):
        np.save(tmp_path / "a.npy", array)
        found = map_array(tmp_path / "a.npy")
        assert (found.dtype, found.flags.writeable) == (array.dtype, False)
        np.testing.assert_array_equal(found, array)
    write_file(tmp_path / "a.npy", (tmp_path / "a.npy").read_bytes()[1:])
    with pytest.raises(ValueError, match="magic string"):
        map_array(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EIO, errno.ENOSPC]
)
def test_what_cannot_be_synced_is_written_and_what_fails_to_be_is_not(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = number in (errno.EIO, errno.ENOSPC)
    monkeypatch.setattr(os, "fsync", failing(os.fsync, number, 99))

    def write() -> None:
        with atomic_file(tmp_path / "a") as file:
            file.write(b"new")

    if failed:
        with pytest.raises(OSError, match=os.strerror(number)) as error:
            write()
        assert error.value.filename == str(tmp_path / ".a.partial")
        with pytest.raises(OSError, match=os.strerror(number)) as error:
            sync_folder(tmp_path)
        assert error.value.filename == str(tmp_path)
    else:
        write()
    assert files_below(tmp_path) == ({} if failed else {"a": b"new"})


def test_a_folder_that_may_not_be_read_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", failing(os.open, errno.EACCES, 1))
    sync_folder(tmp_path)


def arrays(file: Any) -> None:
    np.savez(file, a=np.zeros(1 << 20))


def array(file: Any) -> None:
    np.save(file, np.zeros(1 << 20))


def picture(file: Any) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)).save(file, "PNG")


def plain(file: Any) -> None:
    file.write(bytes(3 << 20))


@pytest.mark.parametrize("save", [arrays, array, picture, plain])
@pytest.mark.parametrize("room", [0, 5000, 1_100_000])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_called_that_by_every_library(
    save: Callable[[Any], None], room: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, whole = [room], os.write

    def write(descriptor: int, data: Any) -> int:
        if not left[0]:
            raise OSError(number, os.strerror(number))
        written = whole(descriptor, memoryview(data).cast("B")[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match=os.strerror(number)) as error, atomic_file(tmp_path / "a") as file:
        save(file)
    assert explain(error.value).startswith(f"{os.strerror(number)}: {tmp_path / '.a.partial'}: ")
    assert files_below(tmp_path) == {}


def test_short_writes_are_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda file, data: write(file, memoryview(data).cast("B")[:1000]))
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, data[:1000], offset))
    assert write_file(tmp_path / "a", CONTENT) == len(CONTENT)
    with written_file(tmp_path / "a", append=True) as file:
        file.write(b"more" * 1000)
    assert write_file(tmp_path / "a", b"part" * 1000, 10) == 4000
    assert (tmp_path / "a").read_bytes() == CONTENT[:10] + b"part" * 1000 + CONTENT[4010:] + b"more" * 1000
    monkeypatch.setattr(os, "pwrite", failing(os.pwrite, errno.EDQUOT, 1))
    with pytest.raises(OSError, match="quota") as error:
        write_file(tmp_path / "a", b"x")
    assert error.value.filename == str(tmp_path / "a")


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_the_system_has_a_remedy(number: int) -> None:
    line = explain(OSError(number, os.strerror(number), "a/b"))
    remedy = line.removeprefix(f"{os.strerror(number)}: a/b: ")
    assert 15 < len(remedy) < len(line)
    assert remedy == REMEDIES.get(number, remedy)
    assert explain(OSError(number, os.strerror(number)), Path("c")) == line.replace("a/b", "c")


def test_other_texts_are_passed_on() -> None:
    assert explain(OSError("the library says so")) == "the library says so"
    assert explain(OSError(errno.EINVAL, "a pipe, not a file", "a")) == "a pipe, not a file: a"
    gone = OSError(errno.ENOENT, os.strerror(errno.ENOENT), b"a\xff")
    assert explain(gone).startswith("No such file or directory: a\udcff: ")


def test_a_file_that_cannot_be_read_is_one_bad_picture_but_a_lost_mount_is_not(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {errno.ENOTCONN, errno.ESTALE, errno.EMFILE} <= NOT_OF_ONE_FILE
    for number in (errno.EACCES, errno.EIO, errno.ENOENT, errno.ENOTCONN, errno.ESTALE, errno.EMFILE, errno.ENOMEM):
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", failing(os.open, number, 99))
            with pytest.raises(OSError if number in NOT_OF_ONE_FILE else BadImage, match=os.strerror(number)):
                read_picture(str(path))
    assert isinstance(open_file(path), io.BufferedReader)


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", 1 << 40)
    with pytest.raises(ValueError, match="it has 1,099,511,627,776 bytes"):
        read_file(tmp_path / "a", most_bytes=1 << 30)
