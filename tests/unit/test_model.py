"""The model adapter against a server that works."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from adapters.model import Model, open_model
from domain.generation import Delta, Generation, Usage
from domain.hearing import Enough
from tests.support.model_client import asking, read, settings_for, text_of, until
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import expected_answer


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
async def model(server: ModelServer) -> AsyncIterator[Model]:
    async with open_model(settings_for(server.base_url)) as opened:
        yield opened


async def test_an_answer_comes_whole_with_how_it_ended_and_what_it_cost(model: Model) -> None:
    question = "what is a log? [tokens=30 pace=0]"

    deltas = await read(model, asking(question))

    assert text_of(deltas) == "".join(expected_answer(question))
    assert [delta.finish for delta in deltas if delta.finish] == ["stop"]
    assert [delta.usage for delta in deltas if delta.usage] == [Usage(input_tokens=6, output_tokens=30)]


async def test_steps_that_say_nothing_are_left_out(model: Model) -> None:
    deltas = await read(model, asking("short [tokens=2 pace=0]"))

    # The opening with the role is one such step.
    assert [(bool(delta.text), delta.finish, bool(delta.usage)) for delta in deltas] == [
        (True, None, False),
        (True, None, False),
        (False, "stop", False),
        (False, None, True),
    ]


@pytest.mark.parametrize("how", ["cut=1", "crlf=1"])
async def test_it_does_not_matter_how_the_bytes_come(model: Model, how: str) -> None:
    question = f"bytes [tokens=60 pace=0 {how}]"

    assert text_of(await read(model, asking(question))) == "".join(expected_answer(question))


async def test_a_text_so_far_is_continued(model: Model) -> None:
    question = "again [tokens=20 pace=0]"
    whole = "".join(expected_answer(question))

    assert text_of(await read(model, asking(question, so_far=whole[:47]))) == whole[47:]


async def test_tool_calls_come_as_openai_wrote_their_deltas(model: Model) -> None:
    deltas = await read(model, asking("weather? [tool=weather,news pace=0]"))

    arguments = ["", ""]
    for delta in deltas:
        for part in json.loads(delta.tools or "[]"):
            arguments[part["index"]] += part["function"]["arguments"]
    assert [json.loads(text)["city"] for text in arguments] == ["Zürich", "Zürich"]
    assert [delta.finish for delta in deltas if delta.finish] == ["tool_calls"]


async def test_options_and_messages_reach_the_server_as_they_are(model: Model, server: ModelServer) -> None:
    generation = Generation(
        "some-model",
        [{"role": "user", "content": [{"type": "text", "text": "hi [tokens=1]"}], "cache_control": {"type": "x"}}],
        {"temperature": 0.2, "stop": ["END"], "top_k": 40, "chat_template_kwargs": {"enable_thinking": False}},
    )

    await read(model, generation)

    assert server.requests[-1] == {
        "model": "some-model",
        "messages": list(generation.messages),
        **generation.options,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_an_option_cannot_turn_streaming_or_usage_off(model: Model, server: ModelServer) -> None:
    options = {"stream": False, "stream_options": {"include_usage": False, "include_obfuscation": False}}

    await read(model, asking("hi [tokens=1]", options=options))

    assert server.requests[-1]["stream"] is True
    assert server.requests[-1]["stream_options"] == {"include_usage": True, "include_obfuscation": False}


async def test_the_key_of_the_settings_is_sent(server: ModelServer) -> None:
    async with open_model(settings_for(server.base_url, api_key="sk-of-this-worker")) as model:
        await read(model, asking("hi [tokens=1]"))

    assert server.headers[-1]["Authorization"] == "Bearer sk-of-this-worker"


async def test_deltas_come_as_they_are_written_and_not_when_the_answer_is_whole(
    model: Model, server: ModelServer
) -> None:
    deltas: list[Delta] = []

    reading = asyncio.create_task(read(model, asking("slowly [tokens=1000 pace=20]"), deltas))
    await until(lambda: bool(deltas))

    assert server.tokens_sent < 1000
    reading.cancel()


async def test_whoever_has_heard_enough_ends_the_generation(model: Model, server: ModelServer) -> None:
    def hear(_: list[Delta]) -> None:
        raise Enough

    with pytest.raises(Enough):
        await model.stream(asking("nobody reads this [tokens=5000]"), hear)

    await until(lambda: server.cancelled == 1)
    assert server.stats.active == 0


async def test_cancelling_the_reader_ends_the_generation(model: Model, server: ModelServer) -> None:
    reading = asyncio.create_task(read(model, asking("nobody reads this either [tokens=5000]")))
    await until(lambda: server.tokens_sent > 0)

    reading.cancel()

    await until(lambda: server.cancelled == 1)
    assert server.stats.active == 0


async def test_hundreds_of_answers_run_at_once(model: Model, server: ModelServer) -> None:
    questions = [f"question {number} [tokens=5000 pace=1]" for number in range(300)]

    readers = [asyncio.create_task(read(model, asking(question))) for question in questions]
    await until(lambda: server.stats.active == 300)

    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await until(lambda: server.cancelled == 300)


async def test_one_connection_serves_one_answer_after_the_other(model: Model, server: ModelServer) -> None:
    for number in range(5):
        await read(model, asking(f"question {number} [tokens=2 pace=0]"))

    assert server.connections == 1
