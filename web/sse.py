"""One event stream to one reader: opened at once, pinged in silence, cut off when stuck, closed at shutdown.

Per batch of pieces the cost is one encoding and one write, in the call that brought it from the log. Whatever can be
looked at now and then (silence, a reader that takes nothing, one that has left) is looked at twice a second, by a
single watch for all readers. aiohttp tells a handler neither that its client left nor that it stopped reading.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from config import metrics
from domain.hearing import Hear
from domain.tokens import Token

log = structlog.get_logger(__name__)

T = TypeVar("T")

Follow = Callable[[Hear[Token]], Coroutine[Any, Any, None]]
"""Has somebody hear the pieces of a turn, and returns after its end."""

# With its turn; because the reader left, or took nothing; because this worker shuts down; by an error of ours.
Ending = Literal["complete", "left", "stuck", "shutdown", "error"]
Kind = Literal["events", "completions", "websocket"]

HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
PING: Final = b": ping\n\n"
LOOK_SECONDS: Final = 0.5
# 10,000 looks take 4 ms, and 0.4 s where all of them ping: tokens must be able to come in between.
LOOKS_AT_ONCE: Final = 100
# Bytes that a reader has not taken. Beyond them nothing more is read for it.
MOST_BUFFERED: Final = 1 << 16


class Voice(Protocol):
    """How the pieces of a turn are said to one kind of reader."""

    @property
    def opening(self) -> bytes:
        """Return what is said at once, so that a stream is visibly open before its turn begins."""
        ...

    def say(self, batch: list[Token]) -> bytes:
        """Return the events of a batch."""
        ...

    def farewell(self, ending: Ending) -> bytes:
        """Return what is still said when ``ending`` is not the turn's own."""
        ...


@dataclass(slots=True)
class Attended(Generic[T]):
    """How serving a reader ended, and what it came to if it was completed."""

    ending: Ending
    result: T | None = None
    error: BaseException | None = None


class Reader:
    """A client that waits for a stream, or for an answer in one piece."""

    __slots__ = ("_left", "_spoke_at", "_took_at", "_written", "ending", "kind", "request", "task", "writer")

    def __init__(
        self, request: web.Request, kind: Kind, task: asyncio.Task[Any], writer: AbstractStreamWriter | None, now: float
    ) -> None:
        self.request = request
        self.kind = kind
        self.task = task
        self.writer = writer
        self.ending: Ending = "complete"
        self._spoke_at = self._took_at = now
        self._written = self._left = 0

    def end(self, ending: Ending) -> None:
        """Stop serving this reader."""
        if not self.task.done():
            self.ending = ending
            self.task.cancel()

    def close(self) -> None:
        """End it for our shutdown, which no slow reader may hold up: it will ask again for what it has not taken."""
        self.end("shutdown")
        transport = self.request.transport
        if self.writer is not None and transport is not None and transport.get_write_buffer_size():
            transport.abort()

    async def look(self, now: float, *, ping: float, patience: float) -> None:
        """Ping after silence; end it if it has left, or took no byte for longer than ``patience``."""
        transport = self.request.transport
        if transport is None or transport.is_closing():
            self.end("left")
        elif self.writer is not None:
            self._note(self.writer.output_size, transport.get_write_buffer_size(), now)
            if now - self._took_at > patience:
                metrics.slow_readers.inc()
                self.end("stuck")
                transport.abort()
            elif self.kind != "websocket" and not self._left and now - self._spoke_at >= ping:
                # Nothing waits to be sent, so this write returns at once.
                await self.writer.write(PING)

    def _note(self, written: int, left: int, now: float) -> None:
        if written != self._written:
            self._spoke_at = now
        if not left or left < self._left:
            self._took_at = now
        self._written, self._left = written, left


class Line:
    """The way to one reader, once its response has begun: straight to the connection, past aiohttp's layers."""

    __slots__ = ("_is_chunked", "_say", "_transport", "_writer")

    def __init__(
        self, request: web.Request, response: web.StreamResponse, writer: AbstractStreamWriter, voice: Voice
    ) -> None:
        self._say = voice.say
        self._transport = request.transport
        self._is_chunked = response.headers.get("Transfer-Encoding") == "chunked"  # for HTTP/1.0 it is not
        self._writer = writer

    def hear(self, batch: list[Token]) -> Awaitable[None] | None:
        """Send; return what to wait for where the reader does not take it. Raises `ConnectionError` if it has left."""
        said = self._say(batch)
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the reader has left")
        if not said:
            return None  # in chunks, nothing would be the end
        transport.write(b"%x\r\n%b\r\n" % (len(said), said) if self._is_chunked else said)
        self._writer.output_size += len(said)
        return self._writer.drain() if transport.get_write_buffer_size() > MOST_BUFFERED else None


class Streams:
    """All clients of this worker that are waiting for something."""

    def __init__(self, *, ping: float, patience: float) -> None:
        self._ping = ping
        self._patience = patience
        self._readers: set[Reader] = set()
        self._watch: asyncio.Task[None] | None = None
        self._closing = False

    def __len__(self) -> int:
        return len(self._readers)

    async def serve(
        self,
        request: web.Request,
        follow: Follow,
        voice: Voice,
        *,
        kind: Kind = "events",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[web.StreamResponse, Ending]:
        """Say what a reader follows until that ends, or the reader, or this worker."""
        response = web.StreamResponse(headers=HEADERS | dict(headers or {}))
        writer = await response.prepare(request)
        if writer is None:
            raise RuntimeError("a response was already prepared for this request")
        attended = Attended[None]("left")
        with suppress(ConnectionError):  # the reader has left, which the next byte would tell too
            await writer.write(voice.opening)
            work = follow(Line(request, response, writer, voice).hear)
            attended = await self.attend(request, work, kind=kind, writer=writer)
            if attended.error is not None:
                log.error("stream broke off", path=request.path, exc_info=attended.error)
            if attended.ending in {"shutdown", "error"}:
                await writer.write(voice.farewell(attended.ending))
                response.force_close()
        return response, attended.ending

    async def attend(
        self,
        request: web.Request,
        work: Coroutine[Any, Any, T],
        *,
        kind: Kind,
        writer: AbstractStreamWriter | None = None,
    ) -> Attended[T]:
        """Do some work for a client for as long as the client and this worker stay."""
        task = asyncio.create_task(work)
        reader = Reader(request, kind, task, writer, asyncio.get_running_loop().time())
        self._enter(reader)
        try:
            await asyncio.wait({task})
        finally:
            self._leave(reader)
            task.cancel()
        if task.cancelled():
            return Attended("error" if reader.ending == "complete" else reader.ending)
        error = task.exception()
        if isinstance(error, ConnectionError):
            return Attended("left")
        if error is not None:
            return Attended("error", error=error)
        return Attended("complete", result=task.result())

    def _enter(self, reader: Reader) -> None:
        self._readers.add(reader)
        metrics.open_streams.labels(kind=reader.kind).inc()
        if self._closing:
            reader.close()
        elif self._watch is None:
            self._watch = asyncio.create_task(self._look_after_readers())

    def _leave(self, reader: Reader) -> None:
        self._readers.discard(reader)
        metrics.open_streams.labels(kind=reader.kind).dec()

    async def _look_after_readers(self) -> None:
        clock = asyncio.get_running_loop().time
        pause = min(LOOK_SECONDS, self._ping / 4, self._patience / 4)
        while True:
            await asyncio.sleep(pause)
            for number, reader in enumerate(tuple(self._readers), 1):
                with suppress(ConnectionError):  # it has left between the look and the ping
                    await reader.look(clock(), ping=self._ping, patience=self._patience)
                if number % LOOKS_AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def close(self) -> None:
        """Send everyone away; those who come now are sent away at once."""
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
        for reader in tuple(self._readers):
            reader.close()
