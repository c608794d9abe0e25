"""What goes wrong: bad input, which ends a command, problems, which are listed and left out, and failing files."""

import errno
import os
from typing import NamedTuple

from pipeline.words import printable


class InputError(Exception):
    """Bad input: data, a folder or a setting that cannot be used.

    The message is one line: what was found, what was expected, what to do. Commands print it and exit with 1. Names in
    it may come from data: as text it is printable, whatever they hold.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class MachineError(InputError):
    """This machine lacks a library, or has a wrong setting: on another one, the same work may be done."""


def is_bad_input(error: BaseException) -> bool:
    """Whether the input has to change before the same work can be done, so that nothing of it is kept."""
    return isinstance(error, InputError) and not isinstance(error, MachineError)


class AlreadyComplete(Exception):  # noqa: N818 - nothing is wrong
    """The same work was completed before, and nothing is left to do. Commands print the one line and exit with 0."""


class Problem(NamedTuple):
    """A file or set that was left out of the data: a row of problems.csv."""

    path: str
    """Below the source."""
    kind: str
    """One word, such as "undecodable"."""
    why: str
    """One line."""


_GONE = "the file server or the disk does not answer as it should: mount it again, then run the same command again"
_UNABLE = "the file system there cannot do that: give a folder on a local disk"
REMEDIES = {
    errno.ENOSPC: "make room there, or give a folder on another disk, then run the same command again",
    errno.EDQUOT: "your quota is used up: remove files of yours, or give a folder elsewhere",
    errno.EFBIG: "no larger file is allowed there: see ulimit -f, or give a folder on another file system",
    errno.EACCES: "get the right to it, or give another place",
    errno.EPERM: "get the right to it, or give another place",
    errno.EROFS: "it can only be read: give a folder that can be written to",
    errno.ENOENT: "check the path; something may have been removed meanwhile",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "check the path: a file was expected",
    errno.EEXIST: "check the path: take away what is there",
    errno.ENOTEMPTY: "another process may be at work there: wait for it, then run the same command again",
    errno.EBUSY: "another process uses it: wait for it, or stop it",
    errno.ELOOP: "its links lead in a circle: give the folder that they stand for",
    errno.ENAMETOOLONG: "give a shorter name, or a folder nearer to the root",
    errno.EILSEQ: "the file system there takes no such name: rename it",
    errno.EMFILE: "allow more open files (ulimit -n 4096), or take fewer --workers",
    errno.ENFILE: "the machine has too many files open: end other programs",
    errno.ENOMEM: "memory is short: take fewer --workers, or end other programs",
    errno.EAGAIN: "the machine is at a limit: end other programs, see ulimit -u, or take fewer --workers",
    errno.EIO: "the disk or the mount fails: look at its log (dmesg), mount it again, or copy the file again",
    errno.ENXIO: "the disk or the mount fails: look at its log (dmesg), mount it again, or copy the file again",
    **dict.fromkeys((errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH), _GONE),
    **dict.fromkeys((errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EREMOTEIO), _GONE),
    **dict.fromkeys((errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENODEV, errno.ENOLCK), _UNABLE),
    errno.EXDEV: _UNABLE,
    errno.EMLINK: _UNABLE,
}
"""What to do about a failed file operation, by its errno."""
NOT_OF_ONE_FILE = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, *(number for number, remedy in REMEDIES.items() if remedy == _GONE)}
)
"""Errors that the next file would give as well."""


def explain(error: OSError, path: str | os.PathLike[str] | None = None) -> str:
    """A failed file operation in one line: what went wrong, where, and what to do.

    `path` is for an error that names none. What is no text of the system's is passed on as it is.
    """
    named = error.filename if error.filename is not None else path
    where = f": {os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else named}" if named else ""
    if error.errno is None:
        return f"{error}{where}"
    if error.strerror != os.strerror(error.errno):
        return f"{error.strerror}{where}"
    remedy = REMEDIES.get(error.errno, "check the path and the disk, then run the same command again")
    return f"{error.strerror}{where}: {remedy}"
