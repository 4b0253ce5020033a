"""Counts are the model's own where its server gives them, and else come close to them; nobody waits for them."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from adapters import token_counts
from adapters.model_group import open_model_group
from adapters.token_counts import TokenCounts
from config.settings import Settings
from domain.conversation import CHARACTERS_PER_TOKEN
from domain.errors import ModelBusy
from domain.generation import Generation
from tests.support.model_client import asking, read
from tests.support.model_server import ModelServer

TEXT = "How many tokens is this?"
ESTIMATE = 7


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give servers on a busy machine the time that a user would not give them."""
    monkeypatch.setattr(token_counts, "COUNT_SECONDS", 20.0)


class Server:
    """Counts words, if it is told to; ``asked`` is how often it was asked."""

    def __init__(self, answer: int | Exception | None) -> None:
        self.answer = answer
        self.asked = 0

    async def __call__(self, _model: str, _text: str) -> int | None:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_the_server_s_own_count_is_taken() -> None:
    assert await TokenCounts([Server(5)]).of("m", TEXT) == 5


@pytest.mark.parametrize(("answer", "pause"), [(None, 3600), (ModelBusy("it is away"), 30)])
async def test_a_server_that_does_not_count_is_left_alone_for_a_while(answer: Exception | None, pause: float) -> None:
    now = 100.0
    server = Server(answer)
    counts = TokenCounts([server], clock=lambda: now)

    assert [await counts.of("m", TEXT) for _ in range(3)] == [ESTIMATE] * 3
    assert server.asked == 1
    now += pause
    await counts.of("m", TEXT)
    assert server.asked == 2


async def test_nobody_waits_for_a_server_that_counts_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_counts, "COUNT_SECONDS", 0.01)

    async def never(_model: str, _text: str) -> int | None:
        await asyncio.Event().wait()
        return None

    assert await TokenCounts([never]).of("m", TEXT) == ESTIMATE


def prompt(characters: int, model: str = "m") -> Generation:
    return Generation(model, [{"role": "user", "content": "x" * characters}])


def test_a_ratio_is_learned_for_each_model_from_what_it_reports() -> None:
    counts = TokenCounts()
    assert counts.characters_per_token() == CHARACTERS_PER_TOKEN

    for _ in range(60):
        counts.learn(prompt(2000), 504)
        counts.learn(prompt(2000, "dense"), 1004)

    assert counts.characters_per_token("m") == pytest.approx(4.0, abs=0.01)
    assert counts.characters_per_token("dense") == pytest.approx(2.0, abs=0.01)
    assert counts.characters_per_token() == counts.characters_per_token("dense")


def test_more_tokens_than_thought_count_sooner_than_fewer() -> None:
    more, fewer = TokenCounts(), TokenCounts()
    more.learn(prompt(2000), 1004)
    fewer.learn(prompt(2000), 404)

    assert CHARACTERS_PER_TOKEN - more.characters_per_token() > fewer.characters_per_token() - CHARACTERS_PER_TOKEN > 0


@pytest.mark.parametrize(
    "request_",
    [
        prompt(50),
        Generation("m", [{"role": "user", "content": "x" * 900}], so_far="an answer"),
        Generation("m", [{"role": "user", "content": "x" * 900}], {"tools": [{}]}),
        Generation("m", [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "user", "content": "x" * 900}]),
    ],
)
def test_nothing_is_learned_from_a_prompt_that_is_more_than_its_text(request_: Generation) -> None:
    counts = TokenCounts()
    counts.learn(request_, 7000)

    assert counts.characters_per_token("m") == CHARACTERS_PER_TOKEN


async def test_a_group_learns_from_every_answer() -> None:
    async with ModelServer() as server, open_model_group(Settings(openai_base_url=server.base_url)) as group:
        await read(group, asking(f"[tokens=3] {'x ' * 400}"))

        assert group.counts.characters_per_token("scripted") != CHARACTERS_PER_TOKEN


@pytest.mark.parametrize(
    ("body", "counted"),
    [
        ({"tokens": [1, 2, 3]}, 3),
        ({"count": 4, "tokens": [1, 2, 3, 4]}, 4),
        ({"detail": "no"}, ESTIMATE),
        ([], ESTIMATE),
    ],
    ids=["llama.cpp", "vllm", "another", "no object"],
)
async def test_servers_count_on_a_route_beside_v1(body: object, counted: int) -> None:
    asked = []

    async def tokenize(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response(body)

    app = web.Application()
    app.router.add_post("/tokenize", tokenize)
    async with (
        TestServer(app) as server,
        open_model_group(Settings(openai_base_url=f"{server.make_url('/v1')}")) as group,
    ):
        assert await group.counts.of("m", TEXT) == counted
    assert (asked[0]["content"], asked[0]["prompt"], asked[0]["model"]) == (TEXT, TEXT, "m")
