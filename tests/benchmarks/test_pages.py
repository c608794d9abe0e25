import errno
import os
from pathlib import Path

import pytest

from tools.benchmark.pages import drop_pages


def cached(path: Path) -> bool:
    """Whether the first byte of a file can be read without waiting for storage."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip("this file system does not tell what is cached")
        raise
    finally:
        os.close(descriptor)
    return True


def test_files_leave_the_page_cache_through_links_too(tmp_path: Path) -> None:
    inside, outside = tmp_path / "folder" / "below", tmp_path / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    files = [inside / "a", outside / "b"]
    for file in files:
        file.write_bytes(bytes(1 << 20))  # not on the disk yet
    (tmp_path / "folder" / "link").symlink_to(outside / "b")
    assert all(map(cached, files))
    assert drop_pages(tmp_path / "folder", tmp_path / "missing") == 2
    assert not any(map(cached, files))
    assert all(file.read_bytes() == bytes(1 << 20) for file in files)
