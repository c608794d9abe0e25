"""The page cache: what files have in it, and how to drop that."""

import os
from pathlib import Path


def drop_pages(*folders: Path) -> int:
    """Drop the files below some folders from the page cache, links followed; return how many files that were.

    What another process has mapped into memory stays, and so does everything on a file system that lives in memory.
    """
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)  # a page that is yet to be written is not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return len(files)
