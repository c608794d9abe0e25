"""A proxy before a server of object storage that fails now and then, by a seed."""

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from types import TracebackType

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Faults:
    """What goes wrong, as shares of the requests of `methods`, and how slow the rest is; other requests pass."""

    unavailable: float = 0.0
    """Answered with 503."""
    reset: float = 0.0
    """The connection is reset before an answer."""
    short: float = 0.0
    """The body ends in its middle, and the connection with it."""
    cut: float = 0.0
    """The headers tell of half of the body only, which then is all that comes."""
    stall: float = 0.0
    """Nothing comes after the middle of the body."""
    lost: float = 0.0
    """The request is done, and the connection reset in place of the answer."""
    latency_sec: float = 0.0
    """Before the first byte of each answer."""
    rate_bytes: float = 0.0
    """A second and connection; 0 is no limit."""
    seed: int = 0
    methods: tuple[bytes, ...] = (b"GET",)


class FaultyProxy:
    """A context in which a thread passes on what comes to `port` to a server of this machine.

    `counts` has the number of "requests", of connections and of each fault. `faults` may be replaced meanwhile.
    """

    def __init__(self, upstream: int, faults: Faults) -> None:
        self.faults = faults
        self.counts: Counter[str] = Counter()
        self.port = 0
        self._upstream = upstream
        self._random = random.Random(faults.seed)
        self._ready = Event()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FaultyProxy":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._tasks = set[asyncio.Task[None]]()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self.counts["connections"] += 1
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._upstream, limit=1 << 20)
        try:
            while await self._request(reader, writer, upstream_reader, upstream):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            for one in (writer, upstream):
                one.close()
                with suppress(OSError, asyncio.CancelledError):
                    await one.wait_closed()
            self._tasks.discard(task)

    async def _request(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream_reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> bool:
        """Pass on one request and its answer; whether the connection goes on."""
        head, size = await _head(reader)
        self.counts["requests"] += 1
        fault = self._fault() if head.partition(b" ")[0] in self.faults.methods else ""
        self.counts[fault] += 1
        await asyncio.sleep(self.faults.latency_sec)
        if fault == "unavailable":
            await reader.readexactly(size)
            writer.write(b"HTTP/1.1 503 Slow Down\r\ncontent-length: %d\r\n\r\n%s" % (len(SLOW_DOWN), SLOW_DOWN))
            await writer.drain()
            return True
        if fault == "reset":
            writer.transport.abort()
            return False
        upstream.write(head)
        await self._pass(reader, upstream, size)
        of_head = head.startswith(b"HEAD")
        head, size = await _head(upstream_reader)
        if fault == "lost":
            writer.transport.abort()
            return False
        if b"transfer-encoding: chunked" in head.lower() and not of_head:
            writer.write(head)
            await self._pass_chunks(upstream_reader, writer)
            return True
        size = 0 if of_head else size
        if fault == "cut":
            head = head.lower().replace(b"content-length: %d" % size, b"content-length: %d" % (size // 2))
        writer.write(head)
        if b"transfer-encoding: chunked" in head.lower() and not of_head and fault not in ("short", "cut", "stall"):
            await _pass_chunks(upstream_reader, writer)
        await self._pass(upstream_reader, writer, size // 2 if fault in ("short", "cut", "stall") else size)
        if fault == "stall":
            await asyncio.sleep(3600)
        return fault not in ("short", "cut")

    def _fault(self) -> str:
        chance = self._random.random()
        for fault in ("unavailable", "reset", "short", "cut", "stall", "lost"):
            chance -= getattr(self.faults, fault)
            if chance < 0:
                return fault
        return ""

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> None:
        rest = size
        while rest:
            content = await reader.read(min(rest, CHUNK_BYTES))
            if not content:
                raise ConnectionResetError
            writer.write(content)
            await writer.drain()
            rest -= len(content)
            if self.faults.rate_bytes:
                await asyncio.sleep(len(content) / self.faults.rate_bytes)

    async def _pass_chunks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = -1
        while size:
            line = await reader.readuntil(b"\r\n")
            writer.write(line)
            size = int(line.split(b";")[0], 16)
            await self._pass(reader, writer, size + 2)


async def _pass_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on a body whose size nobody tells (RFC 9112, 7.1)."""
    size = -1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        writer.write(line + await reader.readexactly(size + 2))
        await writer.drain()


async def _head(reader: asyncio.StreamReader) -> tuple[bytes, int]:
    """The head of a request or an answer, and how many bytes follow it."""
    head = await reader.readuntil(b"\r\n\r\n")
    sizes = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head, int(sizes[0]) if sizes else 0
