"""Chat completions: OpenAI's shapes, by the path of every turn."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from domain.generation import Usage
from domain.ids import place_of
from domain.turns import Failure, Outcome
from streams.records import Question, Turn, encode
from tests.support.fakes import FakeKafka, Record, answering, finished_turn
from tests.support.web_client import Web, serving

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as found:
        found.worker.script = answering(["Be", 'cause\n"é"'])
        yield found


async def chunks_of(web: Web, **body: Any) -> list[Any]:
    """Return the chunks of a streamed completion, having checked its frame."""
    answer = await web.call("POST", PATH, {"messages": HELLO, "stream": True, **body})
    assert answer.status == 200
    assert answer.content_type == "text/event-stream"
    events = [part for part in (await answer.text()).split("\n\n") if part and not part.startswith(":")]
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events[-1] == "data: [DONE]"
    return [msgspec.json.decode(event.removeprefix("data: ")) for event in events[:-1]]


async def test_a_completion_in_one_piece(web: Web) -> None:
    answer = await web.call("POST", PATH, {"messages": HELLO, "model": "test-model"})

    assert answer.status == 200
    completion = await answer.json()
    question = web.kafka.questions()[0]
    assert completion == {
        "id": f"chatcmpl-{question.turn_id}",
        "object": "chat.completion",
        "created": completion["created"],
        "model": "test-model",
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": 'Because\n"é"', "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


async def test_a_completion_in_chunks(web: Web) -> None:
    chunks = await chunks_of(web)

    question = web.kafka.questions()[0]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Be"},
        {"content": 'cause\n"é"'},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{question.turn_id}"}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["created"] for chunk in chunks}) == 1
    assert all(set(chunk["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"} for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)


async def test_usage_comes_last_when_asked_for(web: Web) -> None:
    chunks = await chunks_of(web, stream_options={"include_usage": True})

    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


async def test_it_runs_as_a_turn_of_its_own(web: Web) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": None, "tool_calls": [tool_call("c1", "f", "{}")]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "user", "content": "And now?", "name": "ann"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    for _ in range(2):
        await web.call(
            "POST",
            PATH,
            {
                "messages": messages,
                "model": "other-model",
                "temperature": 0,
                "top_p": 0.5,
                "max_tokens": 50,
                "max_completion_tokens": 20,
                "stop": ["\n"],
                "seed": 3,
                "presence_penalty": -1,
                "frequency_penalty": 1.5,
                "tools": tools,
                "tool_choice": "auto",
                "response_format": {"type": "json_object"},
                "user": "u-1",
                "metadata": {"a": "b"},
                "n": 1,
                "logprobs": False,
                "store": True,
                "service_tier": "auto",
            },
        )

    question, again = web.kafka.questions()
    assert question.conversation_id != again.conversation_id
    assert (question.input, question.model) == ("And now?", "other-model")
    assert question.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hel\nlo"},
        {"role": "assistant", "content": None, "tool_calls": [tool_call("c1", "f", "{}")]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "user", "content": "And now?", "name": "ann"},
    ]
    assert question.options == {
        "temperature": 0.0,
        "top_p": 0.5,
        "max_tokens": 20,
        "stop": ["\n"],
        "seed": 3,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.5,
        "tools": tools,
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "user": "u-1",
    }
    assert question.metadata == {"a": "b"}
    turn = await (await web.call("GET", f"/v1/turns/{question.turn_id}")).json()
    assert turn["answer"] == 'Because\n"é"'


def tool_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "input_empty"),
        ({"messages": [{"role": "user", "content": "x" * 32_001}]}, "messages", "input_too_long"),
        ({"messages": HELLO, "n": 2}, "n", "unsupported_parameter"),
        ({"messages": HELLO, "logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"messages": HELLO, "top_logprobs": 2}, "logprobs", "unsupported_parameter"),
        ({"messages": HELLO, "modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"messages": HELLO, "audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"messages": HELLO, "functions": []}, "functions", "unsupported_parameter"),
        ({"messages": HELLO, "function_call": "auto"}, "function_call", "unsupported_parameter"),
        ({"messages": HELLO, "web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"messages": HELLO, "tools": [{"type": "custom"}]}, "tools[0].type", "unsupported_parameter"),
        ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type", "unsupported_parameter"),
        ({"messages": HELLO, "temperature": 2.5}, "temperature", "invalid_value"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"messages": HELLO, "stop": list("abcde")}, "stop", "invalid_value"),
        ({"messages": HELLO, "stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ],
)
async def test_what_would_mislead_is_refused_by_name(web: Web, body: Any, param: str, code: str | None) -> None:
    answer = await web.call("POST", PATH, body)

    assert answer.status == 400
    error = (await answer.json())["error"]
    assert error["param"] == param
    assert error["code"] == (code or "missing_required_parameter")
    assert web.kafka.questions() == []


async def test_an_unknown_model_is_404(web: Web) -> None:
    answer = await web.call("POST", PATH, {"messages": HELLO, "model": "gpt-9"})

    assert answer.status == 404
    assert (await answer.json())["error"]["code"] == "model_not_found"


def ending(outcome: Outcome, *, finish: str = "stop", error: Failure | None = None, said: tuple[str, ...] = ()) -> Any:
    """Return a script that ends every turn in this way."""

    def answer(kafka: FakeKafka, question: Question) -> None:
        kafka.claim(question.turn_id)
        kafka.say(question.turn_id, *said)
        kafka.end(question.turn_id, outcome, finish=finish, error=error)

    return answer


@pytest.mark.parametrize(
    ("code", "status"),
    [("model_unavailable", 503), ("turn_failed", 503), ("model_refused", 400), ("internal_error", 500)],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_that_fails_before_its_first_word_is_an_http_error(
    web: Web, code: str, status: int, *, stream: bool
) -> None:
    web.worker.script = ending("failed", error=Failure("no way", code))

    answer = await web.call("POST", PATH, {"messages": HELLO, "stream": stream})

    assert answer.status == status
    error = (await answer.json())["error"]
    assert (error["code"], error["message"]) == (code, "no way")
    assert ("Retry-After" in answer.headers) == (status == 503)


async def test_a_turn_that_fails_later_ends_its_stream_with_the_error(web: Web) -> None:
    web.worker.script = ending("failed", error=Failure("no way", "model_unavailable"), said=("Be",))

    answer = await web.call("POST", PATH, {"messages": HELLO, "stream": True})

    assert answer.status == 200
    events = (await answer.text()).strip().split("\n\n")
    error = msgspec.json.decode(events[-1].removeprefix("data: "))["error"]
    assert (error["code"], error["message"], error["type"]) == ("model_unavailable", "no way", "server_error")


@pytest.mark.parametrize(
    ("outcome", "finish", "expected"),
    [("completed", "length", "length"), ("completed", "content_filter", "content_filter"), ("stopped", "", "stop")],
)
async def test_why_it_ended_is_said_in_openais_terms(web: Web, outcome: Outcome, finish: str, expected: str) -> None:
    web.worker.script = ending(outcome, finish=finish, said=("x",))

    completion = await (await web.call("POST", PATH, {"messages": HELLO})).json()

    assert completion["choices"][0]["finish_reason"] == expected
    assert (await chunks_of(web))[-1]["choices"][0]["finish_reason"] == expected


async def test_tool_calls_are_passed_on_and_put_together(web: Web) -> None:
    deltas = [
        [{"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a":'}}],
        [{"index": 1, "id": "c2", "type": "function", "function": {"name": "sub", "arguments": "{}"}}],
        [{"index": 0, "function": {"arguments": " 1}"}}],
    ]

    def answer(kafka: FakeKafka, question: Question) -> None:
        kafka.claim(question.turn_id)
        kafka.say(question.turn_id, *(msgspec.json.encode(delta).decode() for delta in deltas), kind="tool")
        kafka.end(question.turn_id, finish="tool_calls")

    web.worker.script = answer
    streamed = [chunk["choices"][0]["delta"].get("tool_calls") for chunk in await chunks_of(web)]
    choice = (await (await web.call("POST", PATH, {"messages": HELLO})).json())["choices"][0]

    assert streamed[1:-1] == deltas
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [tool_call("c1", "add", '{"a": 1}'), tool_call("c2", "sub", "{}")],
    }


async def until_stopped(web: Web) -> str:
    """Return the turn that was stopped, once one is."""
    async with asyncio.timeout(10):
        while not (stops := [control.turn_id for control in web.kafka.controls() if control.action == "stop"]):
            await asyncio.sleep(0.01)
    return stops[0]


def beginning(kafka: FakeKafka, question: Question) -> None:
    """Begin an answer, and never end it."""
    kafka.claim(question.turn_id)
    kafka.say(question.turn_id, "Be")


async def test_a_client_that_leaves_its_stream_stops_the_turn(web: Web) -> None:
    web.worker.script = beginning
    answer = await web.open("POST", PATH, {"messages": HELLO, "stream": True})

    answer.close()

    assert await until_stopped(web) == web.kafka.questions()[0].turn_id


async def test_a_client_that_does_not_wait_for_the_whole_stops_the_turn(web: Web) -> None:
    web.worker.script = beginning
    waiting = asyncio.create_task(web.call("POST", PATH, {"messages": HELLO}))
    async with asyncio.timeout(10):
        while not web.kafka.readers:
            await asyncio.sleep(0.01)

    waiting.cancel()

    assert await until_stopped(web) == web.kafka.questions()[0].turn_id


async def test_a_client_with_a_key_can_come_back_so_its_turn_goes_on(web: Web) -> None:
    web.worker.script = beginning
    headers = {"Idempotency-Key": "k"}
    answer = await web.open("POST", PATH, {"messages": HELLO, "stream": True}, headers=headers)
    answer.close()
    async with asyncio.timeout(10):
        while web.kafka.readers:
            await asyncio.sleep(0.01)
    turn_id = web.kafka.questions()[0].turn_id
    web.kafka.say(turn_id, "cause")
    web.kafka.end(turn_id)

    again = await web.call("POST", PATH, {"messages": HELLO, "stream": True}, headers=headers)

    assert [control for control in web.kafka.controls() if control.action == "stop"] == []
    assert '"cause"' in await again.text()
    assert len(web.kafka.questions()) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_shutdown_ends_it_with_an_error_that_says_so(*, stream: bool) -> None:
    async with serving() as web:
        web.worker.script = beginning
        asking = asyncio.create_task(web.call("POST", PATH, {"messages": HELLO, "stream": stream}))
        async with asyncio.timeout(10):
            while not web.kafka.readers:
                await asyncio.sleep(0.01)
            await web.server.close()
            answer = await asking
            text = await answer.text()

        assert answer.status == (200 if stream else 503)
        assert '"code":"shutting_down"' in text
        assert "[DONE]" not in text


async def test_while_nothing_is_said_a_stream_opens_with_a_comment() -> None:
    async with serving(ping_seconds=0.05) as web:
        async with asyncio.timeout(5):
            answer = await web.open("POST", PATH, {"messages": HELLO, "stream": True})

            assert answer.status == 200
            assert (await answer.content.readuntil(b"\n\n")).startswith(b":")


# -- models


async def test_models_are_listed_with_ours_first(web: Web) -> None:
    listed = await (await web.call("GET", "/v1/models")).json()

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["headrace", "test-model", "other-model"]
    assert all(set(model) == {"id", "object", "created", "owned_by"} for model in listed["data"])
    assert {model["object"] for model in listed["data"]} == {"model"}


async def test_one_model_is_read_by_its_id_even_with_slashes(web: Web) -> None:
    web.worker.services.model.names = ["org/model:7b"]

    assert (await (await web.call("GET", "/v1/models/org/model:7b")).json())["id"] == "org/model:7b"
    assert (await web.call("GET", "/v1/models/none")).status == 404


async def test_while_the_model_server_is_down_ours_is_listed(web: Web) -> None:
    web.worker.services.model.down = True

    assert [model["id"] for model in (await (await web.call("GET", "/v1/models")).json())["data"]] == ["headrace"]


async def completed(web: Web, **more: Any) -> Any:
    answer = await web.call("POST", PATH, {"messages": HELLO, **more}, headers={"Idempotency-Key": "k"})
    return answer.status, await answer.text()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeated_completion_is_the_same_also_from_its_finished_record(web: Web, stream: bool) -> None:
    first = await completed(web, stream=stream)
    assert await completed(web, stream=stream) == first
    (question,) = web.kafka.questions()
    keep(web, msgspec.structs.replace(finished_turn(question, 'Because\n"é"'), usage=Usage(7, 3)))

    status, body = await completed(web, stream=stream)

    assert status == first[0] == 200
    if not stream:
        assert body == first[1]
    else:
        assert body.startswith(first[1].split("Be")[0])
        assert '"content":"Because\\n\\"é\\""' in body
        assert body.endswith(b"data: [DONE]\n\n".decode())


async def test_a_repeated_completion_whose_tool_calls_are_gone_is_410(web: Web) -> None:
    await completed(web)
    (question,) = web.kafka.questions()
    keep(web, msgspec.structs.replace(finished_turn(question, ""), finish="tool_calls"))

    assert (await completed(web))[0] == 410


async def test_the_same_key_with_other_messages_is_409(web: Web) -> None:
    await completed(web)

    status, body = await completed(web, temperature=1)

    assert status == 409
    assert "idempotency_key_reused" in body


def keep(web: Web, turn: Turn) -> None:
    """Let Kafka have a turn's finished record, and no tokens of it any more."""
    place = place_of(turn.turn_id)
    assert place is not None
    record = Record(place.partition, place.milliseconds + 900, encode(turn))
    web.kafka.records.setdefault(web.worker.topics_of.turns.name, []).append(record)
    logged = web.kafka.logged(turn.turn_id)
    logged.pieces, logged.expired = [], True
