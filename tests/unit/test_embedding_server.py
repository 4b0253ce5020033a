"""A server's vectors come in either form, in batches; what is wrong with it is told apart from what is with a text."""

import array
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from openai import AsyncOpenAI

from adapters.embedder import Embedder
from adapters.embedding_server import Server
from domain.errors import EmbedderUnavailable, Rejected


class Embeddings:
    """A server. ``statuses``: what the next requests are answered instead; ``knows_base64``; ``loses`` a vector."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.knows_base64 = True
        self.loses = 0

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        if self.statuses:
            return web.json_response({"error": {"message": "told to"}}, status=self.statuses.pop(0))
        data = [
            {"object": "embedding", "index": index, "embedding": self._embedding([float(len(text)), 0.5])}
            for index, text in enumerate(body["input"])
        ]
        return web.json_response({"object": "list", "model": body["model"], "data": data[self.loses :][::-1]})

    def _embedding(self, numbers: list[float]) -> Any:
        return b64encode(array.array("f", numbers).tobytes()).decode() if self.knows_base64 else numbers


class Setup:
    """An embedder and its server. ``now`` is the clock of what is known of the server."""

    def __init__(self, url: str, remote: Embeddings) -> None:
        self.remote = remote
        self.now = 0.0
        self.client = AsyncOpenAI(base_url=url, api_key="none")
        self.embedder = Embedder("m", Server(self.client, "m", clock=lambda: self.now))


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    app, remote = web.Application(), Embeddings()
    app.router.add_post("/v1/embeddings", remote.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    found = Setup(f"http://{host}:{port}/v1", remote)
    yield found
    await found.client.close()
    await runner.cleanup()


@pytest.mark.parametrize("knows_base64", [True, False])
async def test_vectors_come_in_the_order_of_their_texts(setup: Setup, knows_base64: bool) -> None:
    setup.remote.knows_base64 = knows_base64
    texts = ["x" * length for length in range(1, 50)]

    assert await setup.embedder.documents(texts) == [[float(len(text)), 0.5] for text in texts]
    assert [len(each["input"]) for each in setup.remote.requests] == [Server.batch, 49 - Server.batch]
    assert setup.embedder.dims == 2


async def test_a_document_is_tried_again_and_a_question_is_not(setup: Setup) -> None:
    setup.remote.statuses = [500]
    with pytest.raises(EmbedderUnavailable, match="fails"):
        await setup.embedder.query("question")

    setup.remote.statuses = [503]
    assert await setup.embedder.documents(["text"]) == [[4.0, 0.5]]


async def test_a_refused_text_is_no_fault_of_the_server(setup: Setup) -> None:
    setup.remote.statuses = [400] * 10
    for _ in range(10):
        with pytest.raises(Rejected, match="told to"):
            await setup.embedder.documents(["too long"])

    assert setup.embedder.ready


async def test_a_server_that_fails_is_left_alone_for_a_while(setup: Setup) -> None:
    setup.remote.statuses = [500] * 5
    for number in range(5):
        with pytest.raises(EmbedderUnavailable):
            await setup.embedder.query(f"question {number}")
    assert not setup.embedder.ready
    with pytest.raises(EmbedderUnavailable, match="left alone"):
        await setup.embedder.query("question")
    assert len(setup.remote.requests) == 5

    setup.now += 60
    assert await setup.embedder.query("question") == [8.0, 0.5]


async def test_too_few_vectors_are_no_vectors(setup: Setup) -> None:
    setup.remote.loses = 1

    with pytest.raises(EmbedderUnavailable, match="cannot be read"):
        await setup.embedder.documents(["a", "b"])
