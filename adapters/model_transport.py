"""How the bytes of an answer come from a model server: the openai SDK asks, and we read where they arrive.

The SDK sees a transport of httpx2 and keeps its keys, retries and errors. A stream is read past the SDK's five layers
of generators, and without waking a task: whoever listens stands between the socket and aiohttp, and hands on each
piece in the call that brought it (docs/measurements.md has what that saves). One timer a stream looks for silence,
instead of a time-out that is armed anew at each read.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import aiohttp
import httpx2

from adapters.pushed import Pushed

AIOHTTP: Final = "aiohttp"
"""Where a response's extensions have aiohttp's own response."""

KEEP_ALIVE_SECONDS: Final = 5.0
"""Servers close an idle connection after 5 s (uvicorn) or more; one that they just closed costs a retry."""


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends requests through aiohttp, which reads at a fraction of the CPU of httpx2's own transport.

    Proxies are those of the environment, as everywhere. Time-outs come with each request; the one for reading
    holds until somebody listens with `listening`.
    """

    def __init__(self, *, connections: int) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections, keepalive_timeout=KEEP_ALIVE_SECONDS, ssl=httpx2.create_ssl_context()
            ),
            auto_decompress=False,
            trust_env=True,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the response when its head is there. Raises httpx2's errors, which the SDK tries again after."""
        limits = request.extensions.get("timeout", {})
        with _said_in_httpx2():
            response = await self._session.request(
                request.method,
                str(request.url),
                headers=request.headers,
                data=await request.aread() or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    connect=limits.get("pool"), sock_connect=limits.get("connect"), sock_read=limits.get("read")
                ),
            )
        return httpx2.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Body(response),
            extensions={AIOHTTP: response},
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


class _Body(httpx2.AsyncByteStream):
    """A body as httpx2 reads it: errors, lists, and streams that a server compressed although asked not to."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._read():
            yield piece

    async def _read(self) -> bytes:
        with _said_in_httpx2():
            return await self._response.content.readany()

    async def aclose(self) -> None:
        # What was read to its end goes back into the pool; any other connection is dropped.
        self._response.release()


@contextmanager
def _said_in_httpx2() -> Iterator[None]:
    """Turn aiohttp's errors into httpx2's."""
    try:
        yield
    except TimeoutError as error:
        raise httpx2.TimeoutException(str(error)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise httpx2.NetworkError(str(error)) from error


Take = Callable[[bytes], Awaitable[object] | None]
"""Takes the next piece of a stream. Where it returns something, no other piece comes before that is done."""


class Listening(Pushed[bytes], asyncio.Protocol):
    """Hands on a stream's pieces as they come, and drops the connection after too much silence.

    Silence is what has passed ``since`` the server said something, but for the time in which ``take`` lets the stream
    wait: then it is us who do not listen. ``silent`` says whether that was the end of it. `listening` makes it.

    HTTP's framing is aiohttp's to take off, in seven calls a chunk. But servers send each event as a chunk of its own,
    and nearly every read is whole chunks. So once aiohttp was seen to find in one just what `content_of` does, which it
    only does where it stands between two chunks, it is spared those that follow, until there is anything else.
    """

    __slots__ = (
        "_agreed",
        "_aiohttp",
        "_arrived",
        "_found",
        "_loop",
        "_patience",
        "_pulled",
        "_response",
        "_timer",
        "_transport",
        "silent",
        "since",
    )

    def __init__(self, response: httpx2.Response, take: Take, patience: float) -> None:
        super().__init__(take)
        self.silent = False
        self._response = response
        self._arrived: aiohttp.ClientResponse | None = response.extensions.get(AIOHTTP)
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self.since = self._loop.time()
        self._timer = self._loop.call_later(patience, self._look_for_silence)
        self._aiohttp: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._pulled: AsyncIterator[bytes] | None = None
        self._found: bytes | None = None
        self._agreed = False

    def stop(self) -> None:
        """Have no other piece handed on."""
        self._ended = True

    async def until_end(self) -> None:
        """Return when the stream has ended, or `stop` was called. Raises what broke it, and what ``take`` raises."""
        if self._arrived is None or "content-encoding" in self._response.headers:
            await self._pull()
        else:
            self._step_between(self._arrived)
            await super().until_end()

    async def drain(self) -> None:
        """Read what is left, so that the connection can serve again; what it says does not matter any more."""
        if self._pulled is not None:
            async for _ in self._pulled:
                pass
        elif self._arrived is not None:
            self._step_back()
            while await self._arrived.content.readany():
                pass

    def close(self) -> None:
        """Listen no more."""
        self._timer.cancel()
        self._step_back()

    # -- between the socket and aiohttp

    def _step_between(self, arrived: aiohttp.ClientResponse) -> None:
        """Have the socket's calls come here first; where the body is there already, none will come."""
        connection = arrived.connection
        if connection is None or connection.protocol is None or connection.transport is None:
            return
        connection.protocol.read_timeout = None  # time is ours from here on
        connection.protocol.start_timeout()
        self._aiohttp, self._transport = connection.protocol, connection.transport
        self._transport.set_protocol(self)

    def _step_back(self) -> None:
        if self._aiohttp is not None and self._transport is not None:
            # Once the body has ended, the connection may serve another answer, and somebody else stand here.
            if self._transport.get_protocol() is self:
                self._transport.set_protocol(self._aiohttp)
            self._transport = None

    def data_received(self, data: bytes) -> None:
        """Take HTTP's framing off, or have aiohttp do it, and hand on what that leaves."""
        content = content_of(data)
        if content and self._agreed and self.look(content):
            return
        assert self._aiohttp is not None
        self._found = None
        self._aiohttp.data_received(data)
        self.look()
        self._agreed = content != b"" and self._found == content

    def eof_received(self) -> bool | None:
        """Pass it on."""
        assert self._aiohttp is not None
        return self._aiohttp.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Have aiohttp say whether the body was whole."""
        assert self._aiohttp is not None
        self._aiohttp.connection_lost(exc)
        self.look()

    def pause_writing(self) -> None:
        """Pass it on."""
        assert self._aiohttp is not None
        self._aiohttp.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        assert self._aiohttp is not None
        self._aiohttp.resume_writing()

    # -- what has come

    def _next(self) -> bytes:
        """Return what aiohttp's buffer has. While nobody takes it, that fills, and aiohttp reads no more."""
        assert self._arrived is not None
        self._found = self._arrived.content.read_nowait()
        self._ended = self._arrived.content.at_eof()
        return self._found

    async def _pull(self) -> None:
        """Read what aiohttp cannot hand on as it is: a body that is compressed, although we asked for a plain one."""
        self._pulled = self._response.aiter_bytes()
        async for piece in self._pulled:
            if (pause := self._hear(piece)) is not None:
                await self._wait_for(pause)
            if self._ended:
                return

    async def _wait_for(self, pause: Awaitable[object]) -> None:
        self.since = math.inf
        try:
            await pause
        finally:
            self.since = self._loop.time()

    def _look_for_silence(self) -> None:
        left = self.since + self._patience - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(min(left, self._patience), self._look_for_silence)
        elif self._arrived is not None:
            self.silent = True
            self._arrived.close()
            self.look()


def content_of(data: bytes) -> bytes:
    """Return the content of data that is nothing but whole chunks (RFC 9112, section 7.1), b"" of any other.

    The last chunk of a body counts as another, and so does one with extensions.
    """
    contents = []
    at, end = 0, len(data)
    try:
        while at < end:
            line = data.index(b"\r\n", at)
            begin, at = line + 2, line + 4 + int(data[at:line], 16)
            if at < begin + 3 or data[at - 2 : at] != b"\r\n":
                return b""
            contents.append(data[begin : at - 2])
    except ValueError:
        return b""
    return b"".join(contents)


@contextmanager
def listening(response: httpx2.Response, take: Take, patience: float) -> Iterator[Listening]:
    """Listen to a response's stream, bearing so many seconds of silence."""
    listener = Listening(response, take, patience)
    try:
        yield listener
    finally:
        listener.close()
