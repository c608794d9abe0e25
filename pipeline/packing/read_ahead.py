"""Reading ahead: files that lie behind URLs are asked for by a few threads, before a worker needs them."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

from pipeline.packing.archives import MemberPlace
from pipeline.packing.sources import FileReader, FileSource
from pipeline.storage import Url

THREADS = 8
"""Of a worker; as many requests are under way."""
AHEAD = 16
"""Files that are read ahead at most, so many lie in memory."""
File = tuple[str, MemberPlace | int]
"""Path and place, as for `FileReader.read`."""


@contextmanager
def reading_ahead(sources: tuple[FileSource, ...], files: Iterable[File]) -> Iterator[FileReader]:
    """A reader that will be asked for `files`, in this order; those behind URLs are read ahead."""
    if not any(isinstance(source.path, Url) for source in sources):
        yield FileReader(sources)
        return
    pool = ThreadPoolExecutor(THREADS, "read-ahead")
    try:
        yield _AheadReader(sources, files, pool)
    finally:
        pool.shutdown(cancel_futures=True)


class _AheadReader(FileReader):
    def __init__(self, sources: tuple[FileSource, ...], files: Iterable[File], pool: ThreadPoolExecutor) -> None:
        super().__init__(sources)
        self._files, self._pool = iter(files), pool
        self._ahead = deque[tuple[File, Future[bytes]]]()

    def read(self, path: str, place: MemberPlace | int) -> bytes:
        for file in islice(self._files, AHEAD - len(self._ahead)):
            self._ahead.append((file, self._pool.submit(super().read, *file)))
        if self._ahead and self._ahead[0][0] == (path, place):
            return self._ahead.popleft()[1].result()
        return super().read(path, place)
