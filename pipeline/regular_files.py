"""Open files of folders that came from elsewhere: regular files alone, and through no link that leads out unasked.

A pipe would be waited for, a device read without end, and a link could pass on what lies elsewhere on this machine.
"""

import errno
import os
import re
import stat
from pathlib import Path

from pipeline.errors import InputError

FOLLOW_LINKS = "FGBG_FOLLOW_LINKS"
"""Environment variable: where it is set, links are followed wherever they lead."""
NAMED_BY_CONTENT = re.compile("[0-9a-f]{32}")
"""What is in the names of files in the caches of Hugging Face (`blobs/`) and git-annex: a hash of their content."""
KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class NotRegular(InputError, OSError):  # noqa: N818 - said of the file, as InputError's others
    """What has the name of a file is none that may be read; `strerror` says what it is, and what to do."""

    def __str__(self) -> str:
        return f"{self.filename} is {self.strerror}"


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Open a regular file for reading and return its descriptor; also an `opener` of `open`.

    Raises `NotRegular`, and never waits, where it is something else, or a link that leads out of its folder to a file
    that is not named by a hash of its content; other `OSError` as `os.open`.
    """
    path = Path(path)
    _require_regular(path.stat(), path)  # opening a device can already do something
    if path.is_symlink() and not os.environ.get(FOLLOW_LINKS):
        folder, target = path.parent.resolve(), path.resolve()
        if not target.is_relative_to(folder) and not NAMED_BY_CONTENT.search(target.name):
            how = f"a link that leads out of its folder; put the file there itself (cp -L), or set {FOLLOW_LINKS}=1"
            raise NotRegular(errno.EINVAL, how, str(path))
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(descriptor), path)
    except NotRegular:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "special file")
        raise NotRegular(errno.EINVAL, f"a {kind}, not a regular file", str(path))
