"""The scripted model server keeps the contract of a real one: OpenAI's own client understands all it says.

What the adapter makes of its faults is shown in tests/unit/test_model_faults.py.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from tests.support.model_server import ModelServer
from tests.support.scripted_answer import expected_answer, rest_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
async def client(server: ModelServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as opened:
        yield opened


def messages(question: str, so_far: str = "") -> list[Any]:
    prefill = [{"role": "assistant", "content": so_far}] if so_far else []
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}, *prefill]


async def streamed(client: AsyncOpenAI, question: str, so_far: str = "", **more: Any) -> list[ChatCompletionChunk]:
    stream = await client.chat.completions.create(
        model="scripted", messages=messages(question, so_far), stream=True, **more
    )
    return [chunk async for chunk in stream]


def text_of(chunks: Iterable[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


@pytest.mark.parametrize("how", ["pace=0", "pace=2000", "pace=0 cut=1", "pace=2000 cut=1 crlf=1"])
async def test_the_answer_is_the_expected_one(client: AsyncOpenAI, how: str) -> None:
    question = f"why? [tokens=60 {how}]"

    assert text_of(await streamed(client, question)) == "".join(expected_answer(question))


async def test_streamed_or_whole_it_says_the_same(client: AsyncOpenAI) -> None:
    question = "why? [tokens=30 pace=0]"

    whole = await client.chat.completions.create(model="scripted", messages=messages(question))
    chunks = await streamed(client, question, stream_options={"include_usage": True})

    assert text_of(chunks) == whole.choices[0].message.content
    assert [chunk.usage for chunk in chunks if chunk.usage] == [whole.usage]
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "stop"


async def test_usage_is_told_only_where_it_was_asked_for(client: AsyncOpenAI) -> None:
    assert not [chunk for chunk in await streamed(client, "why? [tokens=3 pace=0]") if chunk.usage]


async def test_a_limit_cuts_the_answer_and_says_so(client: AsyncOpenAI) -> None:
    question = "why? [tokens=30 pace=0]"

    chunks = await streamed(client, question, max_tokens=10)

    assert text_of(chunks) == "".join(expected_answer(question)[:10])
    assert chunks[-1].choices[0].finish_reason == "length"


@given(st.integers(0, 400))
def test_what_follows_a_text_so_far_is_exactly_the_rest(length: int) -> None:
    tokens = expected_answer("why? [tokens=30]")
    whole = "".join(tokens)

    rest = rest_of(tokens, whole[:length])

    assert rest is not None
    assert whole[:length] + "".join(rest) == whole
    assert set(map(len, accumulate(tokens))) >= {len(whole) - len("".join(rest[at:])) for at in range(1, len(rest))}


async def test_a_text_so_far_is_continued(client: AsyncOpenAI, server: ModelServer) -> None:
    question = "why? [tokens=30 pace=0]"
    whole = "".join(expected_answer(question))

    assert text_of(await streamed(client, question, so_far=whole[:55])) == whole[55:]
    assert (server.stats.prefills, server.stats.other_prefills) == (1, 0)


async def test_a_server_without_prefill_begins_anew(client: AsyncOpenAI) -> None:
    question = "why? [tokens=30 pace=0 prefill=no]"
    whole = "".join(expected_answer(question))

    assert text_of(await streamed(client, question, so_far=whole[:55])) == whole


async def test_several_tools_are_called_at_once_and_in_pieces(client: AsyncOpenAI) -> None:
    question = "weather? [tool=weather,news pace=0]"

    whole = await client.chat.completions.create(model="scripted", messages=messages(question))
    chunks = await streamed(client, question)

    parts = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    arguments = [
        "".join((part.function and part.function.arguments) or "" for part in parts if part.index == at)
        for at in (0, 1)
    ]
    called = whole.choices[0].message.tool_calls or []
    assert [call.function.name for call in called if call.type == "function"] == ["weather", "news"]
    assert arguments == [call.function.arguments for call in called if call.type == "function"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_a_fault_comes_as_often_as_it_was_asked_for_and_each_question_counts_alone(client: AsyncOpenAI) -> None:
    question = "why? [fault=429 times=2 tokens=3 pace=0]"
    for _ in range(2):
        with pytest.raises(openai.RateLimitError):
            await streamed(client, question)

    assert text_of(await streamed(client, question)) == "".join(expected_answer(question))
    with pytest.raises(openai.RateLimitError):
        await streamed(client, f"and {question}")


async def test_the_next_requests_can_be_made_to_fail_from_outside(client: AsyncOpenAI, server: ModelServer) -> None:
    async with aiohttp.ClientSession() as http:
        url = server.base_url.replace("/v1", "/admin/fault")
        await http.post(url, json={"fault": "503", "times": 1, "retry_after": "3"})

    with pytest.raises(openai.InternalServerError) as caught:
        await streamed(client, "why? [tokens=1]")
    assert caught.value.response.headers["Retry-After"] == "3"
    assert text_of(await streamed(client, "why? [tokens=1]"))


@pytest.mark.parametrize("wrong", ["[fault=nonsense]", "[color=red]"])
async def test_a_directive_that_does_not_exist_is_told(client: AsyncOpenAI, wrong: str) -> None:
    with pytest.raises(openai.BadRequestError, match="there is no"):
        await streamed(client, wrong)


async def test_refused_connections_are_accepted_again_on_the_same_port(
    client: AsyncOpenAI, server: ModelServer
) -> None:
    await server.refuse()
    with pytest.raises(openai.APIConnectionError):
        await streamed(client, "why? [tokens=1]")

    await server.accept()
    assert text_of(await streamed(client, "why? [tokens=1]"))


async def test_stamps_are_the_times_of_writing(client: AsyncOpenAI) -> None:
    before = time.monotonic()
    chunks = await streamed(client, "[stamp=1 tokens=20 pace=500]")
    after = time.monotonic()

    stamps = [float(part) for part in text_of(chunks).split(" t=")[1:]]
    assert len(stamps) == 20
    assert [before, *stamps, after] == sorted([before, *stamps, after])


async def test_the_models_are_listed(client: AsyncOpenAI) -> None:
    assert [model.id async for model in await client.models.list()] == ["scripted"]


async def test_it_runs_as_a_process_and_counts_what_it_did() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.model_server", "--tokens", "5", "--pace", "0"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        base_url = (await process.stdout.readline()).decode().removeprefix("listening on ").strip()
        async with AsyncOpenAI(base_url=base_url, api_key="none") as client, aiohttp.ClientSession() as http:
            assert text_of(await streamed(client, "why?")) == "".join(expected_answer("why?", 5))
            async with http.get(base_url.replace("/v1", "/stats")) as answer:
                stats = await answer.json()
    finally:
        process.terminate()
        await process.wait()
    assert (stats["requests"], stats["completed"], stats["tokens"]) == (1, 1, 5)
