"""The objects behind a URL as a `Storage`: in S3, Google Cloud Storage and Azure, or on web servers for reading."""

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from errno import EOPNOTSUPP, EREMOTEIO
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pipeline.errors import InputError
from pipeline.object_clients import client_of, obstore
from pipeline.object_errors import PASSING, is_past_end, place_of, read_only, status_of, told
from pipeline.storage import Stat, Storage, Url

Result = TypeVar("Result")

PART_BYTES = 8 << 20
"""Of an upload in parts; larger where an object would have more of them than object storage takes."""
MOST_PARTS = 9_000
UPLOADS = 4
"""Parts that are sent at once."""
PATIENCE_SEC = 120.0
"""For which a request is made again that fails in passing, where the storage has answered before."""
FIRST_SEC = 5.0
"""The same, where it has not: the URL may be wrong."""
PAUSE_SEC = 1.0
READ_SEC = 20.0
"""Without a byte, of an answer that is read: then it is asked for again."""
WRITE_SEC = 300.0
"""From the beginning of a part of an upload to the server's answer."""
RETRIES = 5
"""Of a request by the client, within seconds."""


class ObjectStorage(Storage):
    """The objects below a URL; threads may share it.

    It connects at the first request, and again in a forked process. The client tries failed requests again within
    seconds, so that a wrong URL is told of soon; a storage that has answered before is waited for longer.
    """

    location: Url

    def __init__(self, location: Url) -> None:
        self.location = location
        self._writable = urlsplit(location.text).scheme not in ("http", "https")
        self._clients: dict[tuple[float, int], Any] = {}
        self._process = os.getpid()
        self._connecting = Lock()
        self._answered = False

    def stat(self, name: str) -> Stat:
        """See `Storage.stat`."""
        return self._asked(name, lambda: self._stat(name))

    def _stat(self, name: str) -> Stat:
        try:
            meta = obstore().head(self._reader(), name)
        except Exception as error:
            if not status_of(error):
                raise
            # Some servers refuse HEAD, and those that take it answer without telling why not.
            try:
                meta = obstore().get(self._reader(), name, options={"range": (0, 1)}).meta
            except Exception as refusal:
                if not is_past_end(refusal) and type(refusal).__name__ != "NotSupportedError":
                    raise
                meta = obstore().get(self._reader(), name).meta
        return _stat_of(meta)

    def read(self, name: str, offset: int, size: int) -> bytes | memoryview:
        """See `Storage.read`."""
        return self._asked(name, lambda: self._read(name, offset, size)) if size > 0 else b""

    def _read(self, name: str, offset: int, size: int) -> bytes | memoryview:
        try:
            content = memoryview(obstore().get_range(self._reader(), name, start=offset, length=size))
        except Exception as error:
            unable = type(error).__name__ == "NotSupportedError"
            if is_past_end(error) or (unable and self._stat(name).size <= offset):
                return b""
            if unable:
                why = f"the {place_of(self._url(name))} sends no parts of files: take one that answers range requests"
                raise OSError(EOPNOTSUPP, why, self._url(name)) from None
            raise
        if len(content) < size and offset + len(content) != (total := self._stat(name).size):
            why = f"the {place_of(self._url(name))} sent {len(content):,} bytes of {min(size, total - offset):,}"
            raise ConnectionError(EREMOTEIO, why, self._url(name))
        return content

    def read_all(self, name: str, most_bytes: int | None = None) -> bytes:
        """See `Storage.read_all`."""
        return self._asked(name, lambda: self._read_all(name, most_bytes))

    def _read_all(self, name: str, most_bytes: int | None) -> bytes:
        result = obstore().get(self._reader(), name)
        size = result.meta["size"]
        if most_bytes is not None and size > most_bytes:
            raise _TooLargeError(f"it has {size:,} bytes")
        content: bytes = result.bytes().to_bytes()
        if len(content) != size:
            why = f"the {place_of(self._url(name))} sent {len(content):,} bytes of {size:,}"
            raise ConnectionError(EREMOTEIO, why, self._url(name))
        return content

    def put(self, name: str, content: bytes | Path) -> None:
        """See `Storage.put`."""
        self._check_writable(name)
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))

        def put() -> None:
            obstore().put(self._writer(), name, content, chunk_size=part_bytes, max_concurrency=UPLOADS)

        self._asked(name, put)

    def create(self, name: str, content: bytes) -> bool:
        """See `Storage.create`."""
        self._check_writable(name)
        tries = 0

        def create() -> bool:
            nonlocal tries
            tries += 1
            try:
                obstore().put(self._writer(retries=0), name, content, mode="create")
            except Exception as error:
                if type(error).__name__ not in ("AlreadyExistsError", "PreconditionError"):
                    raise
                # The answer to an earlier try may have been lost.
                return tries > 1 and self._read_all(name, None) == content
            return True

        return self._asked(name, create)

    def remove(self, name: str) -> None:
        """See `Storage.remove`."""
        self._check_writable(name)
        with suppress(FileNotFoundError):
            self._asked(name, lambda: obstore().delete(self._writer(), name))

    def names(self, prefix: str = "") -> list[str]:
        """See `Storage.names`."""
        found = self._listed(prefix, prefix.rpartition("/")[0])
        return sorted(found_name for found_name, _ in found if found_name.startswith(prefix))

    def stats(self) -> dict[str, Stat]:
        """See `Storage.stats`; of one listing."""
        return dict(self._listed("", ""))

    def _listed(self, name: str, folder: str) -> list[tuple[str, Stat]]:
        self._check_writable(name)

        def listed() -> list[tuple[str, Stat]]:
            found = obstore().list(self._reader(), folder or None)
            return [(meta["path"], _stat_of(meta)) for metas in found for meta in metas]

        return self._asked(name, listed)

    def close(self) -> None:
        """See `Storage.close`."""
        with self._connecting:
            self._clients.clear()

    def _url(self, name: str) -> str:
        return f"{self.location.text}/{name}" if name else self.location.text

    def _check_writable(self, name: str) -> None:
        if not self._writable:
            raise read_only(self._url(name))

    def _asked(self, name: str, request: Callable[[], Result]) -> Result:
        """What a request returns; made again for a while where it fails in passing. Raises `OSError`s that name it."""
        begun = time.monotonic()
        while True:
            try:
                result = request()
            except (InputError, _TooLargeError):
                raise
            except Exception as error:
                failure = error if isinstance(error, OSError) and error.filename else told(error, self._url(name))
                self._answered = self._answered or status_of(error) > 0
            else:
                self._answered = True
                return result
            patience_sec = PATIENCE_SEC if self._answered else FIRST_SEC
            if not isinstance(failure, PASSING) or time.monotonic() - begun > patience_sec:
                raise failure from None
            time.sleep(PAUSE_SEC * random.uniform(0.5, 1.5))

    def _reader(self) -> Any:
        return self._client(READ_SEC, RETRIES)

    def _writer(self, retries: int | None = None) -> Any:
        return self._client(WRITE_SEC, RETRIES if retries is None else retries)

    def _client(self, wait_sec: float, retries: int) -> Any:
        """The client with these limits: of this process, for one that was forked must not even free its parent's."""
        if self._process != os.getpid():
            _OF_PARENTS.append(self._clients)
            self._clients, self._connecting, self._process = {}, Lock(), os.getpid()
        with self._connecting:
            client = self._clients.get((wait_sec, retries))
            if client is None:
                client = client_of(self.location.text, wait_sec=wait_sec, retries=retries)
                self._clients[wait_sec, retries] = client
            return client


def _stat_of(meta: Any) -> Stat:
    changed = meta["last_modified"].timestamp()
    return Stat(meta["size"], meta["e_tag"] or (f"{changed:.0f}" if changed > 0 else ""))


class _TooLargeError(ValueError):
    """An object has more bytes than the caller takes."""


_OF_PARENTS: list[Any] = []
