"""Which models there are is asked for rarely, and known also while the model server is away."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from adapters.model import LIST_PAUSE, LIST_SECONDS, Model, open_model
from domain.errors import KeyRefused, ModelBusy
from tests.support.clock import Clock
from tests.support.model_client import settings_for
from tests.support.model_server import ModelServer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
async def model(server: ModelServer, clock: Clock) -> AsyncIterator[Model]:
    async with open_model(settings_for(server.base_url), clock=clock) as opened:
        yield opened


async def test_many_who_ask_at_once_cause_one_look(model: Model, server: ModelServer) -> None:
    lists = await asyncio.gather(*(model.models() for _ in range(5)))

    assert lists == [["scripted"]] * 5
    assert server.lists_sent == 1


async def test_a_list_holds_for_a_minute(model: Model, server: ModelServer, clock: Clock) -> None:
    await model.models()
    server.models = ["a", "b"]

    clock.now += LIST_SECONDS - 1
    assert await model.models() == ["scripted"]
    clock.now += 1
    assert await model.models() == ["a", "b"]


async def test_what_a_caller_does_to_its_list_is_its_own_affair(model: Model) -> None:
    (await model.models()).clear()

    assert await model.models() == ["scripted"]


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_server_without_a_list_has_an_empty_one(model: Model, server: ModelServer, status: int) -> None:
    server.models_status = status

    assert await model.models() == []


async def test_the_last_list_holds_while_the_server_is_away(model: Model, server: ModelServer, clock: Clock) -> None:
    await model.models()
    clock.now += LIST_SECONDS
    server.models_status = 503

    assert await model.models() == ["scripted"]


async def test_without_any_list_the_reason_is_told_and_the_next_look_waits(
    model: Model, server: ModelServer, clock: Clock
) -> None:
    server.models_status = 503
    for _ in range(3):
        with pytest.raises(ModelBusy, match="scripted 503"):
            await model.models()
    assert server.lists_sent == 1

    server.models_status = 200
    clock.now += LIST_PAUSE
    assert await model.models() == ["scripted"]


async def test_a_server_that_cannot_be_reached_is_busy(server: ModelServer, model: Model) -> None:
    await server.refuse()

    with pytest.raises(ModelBusy, match="did not answer"):
        await model.models()


async def test_the_reason_names_the_key_where_it_is_refused(model: Model, server: ModelServer) -> None:
    server.models_status = 401

    with pytest.raises(KeyRefused, match="OPENAI_API_KEY"):
        await model.models()
