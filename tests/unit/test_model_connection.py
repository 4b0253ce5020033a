"""What happens to the connection around an answer: compression, and what the server sends after its end mark."""

import asyncio
import gzip
from collections.abc import AsyncIterator

import httpx2

from adapters.model import Model, open_model
from tests.support.model_bytes import client_hearing, client_over
from tests.support.model_client import asking, read, settings_for, text_of
from tests.support.model_server import ModelServer

ANSWER = b'data: {"choices":[{"index":0,"delta":{"content":"yes"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class LateEnd(httpx2.AsyncByteStream):
    """A body that ends some time after the end mark, or never."""

    def __init__(self, ends: asyncio.Event) -> None:
        self._ends = ends
        self.read_to_the_end = False
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield ANSWER
        await self._ends.wait()
        self.read_to_the_end = True

    async def aclose(self) -> None:
        self.closed = True


def model_hearing(body: LateEnd) -> Model:
    return Model(client_over(lambda _: httpx2.Response(200, stream=body)), stall_seconds=60)


async def test_the_body_is_read_to_its_end_so_that_the_connection_can_serve_the_next_answer() -> None:
    ends = asyncio.Event()
    body = LateEnd(ends)
    asyncio.get_running_loop().call_soon(ends.set)

    assert text_of(await read(model_hearing(body), asking("hi"))) == "yes"
    assert body.read_to_the_end


async def test_a_body_that_does_not_end_holds_up_nobody() -> None:
    body = LateEnd(asyncio.Event())

    assert text_of(await read(model_hearing(body), asking("hi"))) == "yes"
    assert body.closed
    assert not body.read_to_the_end


async def test_a_server_is_asked_not_to_compress_and_understood_if_it_does() -> None:
    async with ModelServer() as server, open_model(settings_for(server.base_url)) as model:
        await read(model, asking("hi [tokens=1]"))
        assert server.headers[-1]["Accept-Encoding"] == "identity"

    packed = gzip.compress(ANSWER)
    compressed = Model(client_hearing([packed[:9], packed[9:]], **{"Content-Encoding": "gzip"}), stall_seconds=60)
    assert text_of(await read(compressed, asking("hi"))) == "yes"
