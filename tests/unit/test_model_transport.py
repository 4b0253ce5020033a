"""The bytes of an answer come whole, however they were packed, and silence is the server's only while we listen."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import aiohttp
import httpx2
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.model_transport import AIOHTTP, AiohttpTransport, content_of, listening

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


# -- HTTP's framing


def chunked(*contents: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(content), content) for content in contents)


@asynccontextmanager
async def sent(reads: list[bytes]) -> AsyncIterator[str]:
    """Serve a chunked body in just these writes, each of which is a read of its own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for read in reads:
            await asyncio.sleep(0.002)
            writer.write(read)
        await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/"


async def heard_of(reads: list[bytes]) -> bytes:
    heard = bytearray()
    async with sent(reads) as url, asked(url) as response:
        with listening(response, heard.extend, 10.0) as listener:
            await listener.until_end()
    return bytes(heard)


@given(st.lists(st.binary(min_size=1, max_size=40)))
def test_the_content_of_whole_chunks_is_theirs(contents: list[bytes]) -> None:
    assert content_of(chunked(*contents)) == b"".join(contents)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1), st.data())
def test_what_is_cut_has_no_content(contents: list[bytes], data: st.DataObject) -> None:
    whole = chunked(*contents)
    ends = {len(chunked(*contents[:count])) for count in range(len(contents) + 1)}
    cut = data.draw(st.integers(1, len(whole) - 1).filter(lambda at: at not in ends))

    assert content_of(whole[:cut]) == b""


@pytest.mark.parametrize(
    "data", [b"", b"0\r\n\r\n", b"5;ext\r\nhello\r\n", b"-5\r\nhello\r\n", b"data: hello\n\n", b"5\r\nhello!!", b"\r\n"]
)
def test_what_is_no_chunk_has_no_content(data: bytes) -> None:
    assert content_of(data) == b""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([b"data: one\n\n", chunked(b"hello"), b"0\r\n\r\n", b"x"]), min_size=1), st.data())
def test_a_stream_is_whole_however_its_chunks_were_cut(contents: list[bytes], data: st.DataObject) -> None:
    """Also where what a chunk contains looks like chunks itself."""
    body = chunked(*contents) + b"0\r\n\r\n"
    ends = [len(chunked(*contents[:count])) for count in range(1, len(contents) + 1)]
    cuts = data.draw(st.sets(st.sampled_from(ends) | st.integers(1, len(body) - 1), max_size=8))
    at = [0, *sorted(cuts), len(body)]

    assert asyncio.run(heard_of([body[a:b] for a, b in pairwise(at)])) == b"".join(contents)


async def test_text_that_looks_like_a_chunk_is_not_taken_for_one_in_the_middle_of_another() -> None:
    inner = chunked(b"hello")
    large = b"%x\r\n" % (2 * len(inner))

    assert await heard_of([chunked(b"one"), chunked(b"two"), large, inner, inner, b"\r\n0\r\n\r\n"]) == (
        b"onetwo" + inner + inner
    )
