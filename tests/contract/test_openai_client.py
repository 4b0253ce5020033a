"""OpenAI's own Python client understands every answer: it lists, completes, streams, and raises its own errors."""

from collections.abc import AsyncIterator

import openai
import pytest

from domain.turns import Failure
from streams.records import Question
from tests.support.fakes import ALICE, FakeKafka, answering
from tests.support.web_client import Web, serving

ANSWER = ["Be", "cause", " of\n", "tea ", "🫖"]


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as found:
        found.worker.script = answering(ANSWER)
        yield found


@pytest.fixture
async def client(web: Web) -> AsyncIterator[openai.AsyncOpenAI]:
    base_url = str(web.server.make_url("/v1"))
    async with openai.AsyncOpenAI(base_url=base_url, api_key=ALICE, max_retries=0) as found:
        yield found


async def test_it_lists_models(client: openai.AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]

    assert listed == ["headrace", "test-model", "other-model"]
    assert (await client.models.retrieve("headrace")).id == "headrace"


async def test_it_completes(client: openai.AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(
        model="headrace", messages=[{"role": "user", "content": "Why?"}], temperature=0.2, max_completion_tokens=5
    )

    assert completion.choices[0].message.content == "".join(ANSWER)
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 10


async def test_it_streams(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="headrace",
        messages=[{"role": "user", "content": "Why?"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]

    assert [chunk.choices[0].delta.content for chunk in chunks[:-2]] == ["", *ANSWER]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_it_streams_by_its_helper(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model="headrace", messages=[{"role": "user", "content": "Why?"}]
    ) as stream:
        async for _ in stream:
            pass
        completion = await stream.get_final_completion()

    assert completion.choices[0].message.content == "".join(ANSWER)


async def test_pings_do_not_disturb_it() -> None:
    async with serving(ping_seconds=0.02) as web:
        client = openai.AsyncOpenAI(base_url=str(web.server.make_url("/v1")), api_key=ALICE, max_retries=0)
        stream = await client.chat.completions.create(
            model="headrace", messages=[{"role": "user", "content": "Why?"}], stream=True
        )
        answering(ANSWER)(web.kafka, web.kafka.questions()[0])

        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        await client.close()

    assert "".join(texts) == "".join(ANSWER)


async def test_it_puts_tool_calls_together(web: Web, client: openai.AsyncOpenAI) -> None:
    def call(kafka: FakeKafka, question: Question) -> None:
        kafka.claim(question.turn_id)
        first = '[{"index":0,"id":"c1","type":"function","function":{"name":"add","arguments":"{\\"a\\""}}]'
        kafka.say(question.turn_id, first, '[{"index":0,"function":{"arguments":":1}"}}]', kind="tool")
        kafka.end(question.turn_id, finish="tool_calls")

    web.worker.script = call
    async with client.chat.completions.stream(
        model="headrace",
        messages=[{"role": "user", "content": "Why?"}],
        tools=[{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
    ) as stream:
        async for _ in stream:
            pass
        (called,) = (await stream.get_final_completion()).choices[0].message.tool_calls or []

    assert (called.id, called.function.name, called.function.arguments) == ("c1", "add", '{"a":1}')


async def test_a_wrong_key_is_its_authentication_error(web: Web) -> None:
    async with openai.AsyncOpenAI(base_url=str(web.server.make_url("/v1")), api_key="x" * 20) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.models.list()

    assert caught.value.code == "invalid_api_key"


async def test_what_is_not_supported_is_its_bad_request_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="headrace", messages=[{"role": "user", "content": "x"}], n=2)

    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "n")


async def test_an_unknown_model_is_its_not_found_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])

    assert caught.value.code == "model_not_found"


async def test_an_answer_that_breaks_off_is_its_api_error(web: Web, client: openai.AsyncOpenAI) -> None:
    def fail(kafka: FakeKafka, question: Question) -> None:
        kafka.claim(question.turn_id)
        kafka.say(question.turn_id, "Be")
        kafka.end(question.turn_id, "failed", error=Failure("the model is away", "model_unavailable"))

    web.worker.script = fail
    stream = await client.chat.completions.create(
        model="headrace", messages=[{"role": "user", "content": "Why?"}], stream=True
    )
    with pytest.raises(openai.APIError, match="the model is away"):
        async for _ in stream:
            pass
