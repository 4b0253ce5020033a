"""How the bytes of an answer come from a model server: the openai SDK asks, and we read where they arrive.

The SDK sees a transport of httpx2 and keeps its keys, retries and errors. A stream is read from aiohttp's own
buffer, past the SDK's five layers of generators and without a time-out that is armed anew at each read
(docs/measurements.md has what that brought). One timer a stream looks for silence instead.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import aiohttp
import httpx2

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


class Listening:
    """Reads a stream with ``read``, which returns b"" at its end, and drops the connection after too much silence.

    Silence is what lies between two calls of `heard`, but for the time that begins with `hold`: then it is us
    who do not listen. ``silent`` says whether that was the end of it; the read that waits raises an error.
    """

    __slots__ = ("_drop", "_loop", "_patience", "_since", "_timer", "read", "silent")

    def __init__(self, read: Callable[[], Awaitable[bytes]], drop: Callable[[], None], patience: float) -> None:
        self.read = read
        self.silent = False
        self._drop = drop
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self._since = self._loop.time()
        self._timer = self._loop.call_later(patience, self._look)

    def heard(self) -> None:
        """Note that the server has said something, or that we listen again."""
        self._since = self._loop.time()

    def hold(self) -> None:
        """Note that we do not listen until `heard` is called."""
        self._since = math.inf

    def close(self) -> None:
        """Stop looking."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._since + self._patience - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(min(left, self._patience), self._look)
        else:
            self.silent = True
            self._drop()


@contextmanager
def listening(response: httpx2.Response, patience: float) -> Iterator[Listening]:
    """Listen to a response's stream, bearing so many seconds of silence."""
    arrived: aiohttp.ClientResponse | None = response.extensions.get(AIOHTTP)
    if arrived is not None and "content-encoding" not in response.headers:
        _leave_time_to_us(arrived)
        listener = Listening(arrived.content.readany, arrived.close, patience)
    else:
        drop = arrived.close if arrived is not None else _nothing
        listener = Listening(partial(anext, response.aiter_bytes(), b""), drop, patience)
    try:
        yield listener
    finally:
        listener.close()


def _leave_time_to_us(arrived: aiohttp.ClientResponse) -> None:
    """Switch off aiohttp's time-out for the rest of this response."""
    protocol = arrived.connection.protocol if arrived.connection is not None else None
    if protocol is not None:
        protocol.read_timeout = None
        protocol.start_timeout()


def _nothing() -> None:
    """Drop no connection: there is none."""
