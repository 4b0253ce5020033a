"""The bytes of an answer come whole, however they were packed, and silence is the server's only while we listen."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import httpx2
import pytest
from aiohttp import web

from adapters.model_transport import AIOHTTP, AiohttpTransport, listening

TEXT = b"data: one\n\ndata: two\n\n"
MEGABYTES = b"0123456789abcdef" * (1 << 20)


def ignore(_: bytes) -> None:
    """Take a piece."""


@asynccontextmanager
async def served(
    body: bytes,
    *,
    encoding: str = "identity",
    whole: bool = True,
    breaks: bool = False,
    step: int = 7,
    peers: set[object] | None = None,
) -> AsyncIterator[str]:
    """Serve these bytes; unless ``whole`` the body stays open after them, and if it ``breaks`` it lacks its end."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Encoding": encoding} if encoding != "identity" else {})
        await response.prepare(request)
        if peers is not None and request.transport is not None:
            peers.add(request.transport.get_extra_info("peername"))
        await asyncio.sleep(0.01)  # so that the stream is listened to before it begins
        for byte in range(0, len(body), step):
            await response.write(body[byte : byte + step])
        if breaks:
            assert request.transport is not None
            request.transport.close()
        if not whole:
            await asyncio.Event().wait()
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


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_stream_is_heard_to_its_end_as_it_was_meant(encoding: str) -> None:
    body = gzip.compress(TEXT) if encoding == "gzip" else TEXT
    heard = bytearray()

    async with served(body, encoding=encoding) as url, asked(url) as response:
        with listening(response, heard.extend, 10.0) as listener:
            await listener.until_end()

    assert heard == TEXT


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_stream_waits_for_as_long_as_it_is_told_to(encoding: str) -> None:
    body = gzip.compress(TEXT) if encoding == "gzip" else TEXT
    heard, waiting = bytearray(), 0

    async def later(piece: bytes) -> None:
        nonlocal waiting
        waiting += 1
        assert waiting == 1, "the next piece came before the one before it was done with"
        await asyncio.sleep(0.005)
        heard.extend(piece)
        waiting -= 1

    async with served(body, encoding=encoding) as url, asked(url) as response:
        with listening(response, later, 10.0) as listener:
            await listener.until_end()

    assert heard == TEXT


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_whoever_listens_may_stop(encoding: str) -> None:
    body = gzip.compress(TEXT) if encoding == "gzip" else TEXT
    heard: list[bytes] = []

    def first(piece: bytes) -> None:
        heard.append(piece)
        listener.stop()

    async with served(body, encoding=encoding, whole=False) as url, asked(url) as response:
        with listening(response, first, 10.0) as listener:
            await listener.until_end()

    assert len(heard) == 1


async def test_what_goes_wrong_in_taking_a_piece_ends_the_stream() -> None:
    def fail(_: bytes) -> None:
        raise ZeroDivisionError

    async def fail_later(_: bytes) -> None:
        raise ZeroDivisionError

    for take in (fail, fail_later):
        async with served(TEXT, whole=False) as url, asked(url) as response:
            with listening(response, take, 10.0) as listener, pytest.raises(ZeroDivisionError):
                await listener.until_end()


async def test_one_connection_serves_stream_after_stream() -> None:
    peers = set[object]()
    client = httpx2.AsyncClient(transport=AiohttpTransport(connections=10))
    async with served(TEXT, peers=peers) as url, client:
        for _ in range(3):
            heard = bytearray()
            async with client.stream("GET", url) as response:
                with listening(response, heard.extend, 10.0) as listener:
                    await listener.until_end()
            assert heard == TEXT

    assert len(peers) == 1


async def test_a_server_that_breaks_off_is_an_error() -> None:
    heard = bytearray()

    async with served(TEXT, breaks=True) as url, asked(url) as response:
        with listening(response, heard.extend, 10.0) as listener, pytest.raises(aiohttp.ClientError):
            await listener.until_end()

    assert heard == TEXT
    assert not listener.silent


async def test_a_server_that_falls_silent_is_left() -> None:
    async with served(TEXT, whole=False) as url, asked(url) as response:
        with listening(response, ignore, 0.1) as listener, pytest.raises(aiohttp.ClientError, match="closed"):
            await listener.until_end()

    assert listener.silent


async def test_a_body_that_nobody_listens_to_is_bounded_by_its_request() -> None:
    async with served(TEXT, whole=False) as url, asked(url, patience=0.1) as response:
        with pytest.raises(httpx2.TimeoutException):
            await response.aread()


async def test_whoever_listens_bears_more_silence_than_the_request_if_they_say_so() -> None:
    async with served(TEXT, whole=False) as url, asked(url, patience=0.1) as response:
        with listening(response, ignore, 10.0) as listener:
            hearing = asyncio.create_task(listener.until_end())
            await asyncio.wait({hearing}, timeout=0.3)

            assert not hearing.done()
            hearing.cancel()


async def test_the_time_that_we_do_not_listen_is_not_the_servers_silence() -> None:
    let_go = asyncio.Event()

    async def wait(_: bytes) -> None:
        await let_go.wait()

    async with served(TEXT, whole=False) as url, asked(url) as response:
        with listening(response, wait, 0.05) as listener:
            hearing = asyncio.create_task(listener.until_end())
            await asyncio.wait({hearing}, timeout=0.3)
            assert not hearing.done()

            let_go.set()
            with pytest.raises(aiohttp.ClientError, match="closed"):
                await hearing
            assert listener.silent


async def test_nothing_is_dropped_that_was_closed_before() -> None:
    async with served(TEXT, whole=False) as url, asked(url) as response:
        with listening(response, ignore, 0.02) as listener:
            pass
        await asyncio.sleep(0.1)

        assert not listener.silent
        assert not response.extensions[AIOHTTP].closed


async def test_a_listener_reads_at_once_no_more_than_a_buffer_holds_while_it_waits() -> None:
    """The server is held back by TCP, and does not fill our memory."""
    let_go, heard = asyncio.Event(), bytearray()

    async def wait(piece: bytes) -> None:
        await let_go.wait()
        heard.extend(piece)

    async with served(MEGABYTES, step=1 << 16) as url, asked(url) as response:
        with listening(response, wait, 10.0) as listener:
            hearing = asyncio.create_task(listener.until_end())
            await asyncio.wait({hearing}, timeout=0.3)
            assert response.extensions[AIOHTTP].content.total_bytes < len(MEGABYTES) // 4

            let_go.set()
            await hearing

    assert heard == MEGABYTES
