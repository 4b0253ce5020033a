"""The bytes of an answer come whole, however they were packed, and silence is the server's only while we listen."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import httpx2
import pytest
from aiohttp import web

from adapters.model_transport import AiohttpTransport, Listening, listening
from tests.support.model_client import until

TEXT = b"data: one\n\ndata: two\n\n"


async def never() -> bytes:
    await asyncio.Event().wait()
    return b""


@asynccontextmanager
async def served(body: bytes, *, encoding: str = "identity", whole: bool = True) -> AsyncIterator[str]:
    """Serve these bytes; unless ``whole`` the body stays open after them."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Encoding": encoding} if encoding != "identity" else {})
        await response.prepare(request)
        for byte in range(0, len(body), 7):
            await response.write(body[byte : byte + 7])
        if not whole:
            await never()
        return response

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def asked(url: str, *, patience: float = 10.0) -> AsyncIterator[httpx2.Response]:
    async with (
        httpx2.AsyncClient(transport=AiohttpTransport(connections=10), timeout=patience) as client,
        client.stream("GET", url) as response,
    ):
        yield response


async def heard_by(listener: Listening) -> bytes:
    heard = b""
    while piece := await listener.read():
        heard += piece
    return heard


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_stream_is_read_to_its_end_as_it_was_meant(encoding: str) -> None:
    body = gzip.compress(TEXT) if encoding == "gzip" else TEXT

    async with served(body, encoding=encoding) as url, asked(url) as response:
        with listening(response, 10.0) as listener:
            assert await heard_by(listener) == TEXT


async def test_a_server_that_falls_silent_is_left() -> None:
    async with served(TEXT, whole=False) as url, asked(url) as response:
        with listening(response, 0.1) as listener, pytest.raises(aiohttp.ClientError, match="closed"):
            await heard_by(listener)

    assert listener.silent


async def test_a_body_that_nobody_listens_to_is_bounded_by_its_request() -> None:
    async with served(TEXT, whole=False) as url, asked(url, patience=0.1) as response:
        with pytest.raises(httpx2.TimeoutException):
            await response.aread()


async def test_whoever_listens_bears_more_silence_than_the_request_if_they_say_so() -> None:
    async with served(TEXT, whole=False) as url, asked(url, patience=0.1) as response:
        with listening(response, 10.0) as listener:
            hearing = asyncio.create_task(heard_by(listener))
            await asyncio.wait({hearing}, timeout=0.3)

            assert not hearing.done()
            hearing.cancel()


async def test_the_time_that_we_do_not_listen_is_not_the_servers_silence() -> None:
    left: list[bool] = []
    listener = Listening(never, lambda: left.append(True), patience=0.02)

    listener.hold()
    await asyncio.sleep(0.1)
    assert not left

    listener.heard()
    await until(lambda: bool(left))
    assert listener.silent


async def test_nothing_is_dropped_that_was_closed_before() -> None:
    left: list[bool] = []
    listener = Listening(never, lambda: left.append(True), patience=0.02)

    listener.close()
    await asyncio.sleep(0.1)

    assert not left
