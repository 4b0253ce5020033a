"""Our decoding of a model's stream against the SDK's own: the same bytes, cut in the same places, say the same.

Known and wanted differences, which no stream here has: the SDK takes a byte order mark for part of the first
field's name, and an event that has an id but no data for broken JSON; the standard skips both, and so do we.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai import APIError
from openai.types.chat import ChatCompletionChunk

from adapters.model import Model
from domain.errors import BadRequest, ModelBusy
from domain.generation import Delta, Generation, Usage
from tests.support.model_bytes import client_hearing, cut

STREAMS = Path(__file__).parents[1] / "data" / "streams"
RECORDED = {path.stem: path.read_bytes() for path in sorted(STREAMS.glob("*.sse"))}

ENDED_EARLY = "the model server's stream ended in the middle of the answer"
UNREADABLE = "the model server sent a chunk that cannot be read"


@dataclass
class Heard:
    """What a listener makes of a stream. ``broke`` is the server's message, or that its JSON was broken."""

    text: str = ""
    tools: list[Any] = field(default_factory=list)
    finishes: list[str] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    broke: str = ""


async def heard_by_the_sdk(pieces: Sequence[bytes]) -> Heard:
    heard = Heard()
    async with client_hearing(pieces) as client:
        try:
            async for chunk in await client.chat.completions.create(model="any", messages=[], stream=True):
                hear_chunk(heard, chunk)
        except APIError as error:
            # Where the error is a bare string, the SDK keeps it out of the message.
            heard.broke = error.body if isinstance(error.body, str) else error.message
        except json.JSONDecodeError:
            heard.broke = UNREADABLE
    return heard


def hear_chunk(heard: Heard, chunk: ChatCompletionChunk) -> None:
    if chunk.usage:
        heard.usages.append(Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens))
    # The SDK leaves null where a server sends it, whatever its types say.
    for choice in chunk.choices or ():
        if choice.index != 0:
            continue
        heard.text += choice.delta.content or choice.delta.refusal or ""
        if choice.delta.tool_calls:
            heard.tools.append([call.model_dump(exclude_unset=True) for call in choice.delta.tool_calls])
        if choice.finish_reason:
            heard.finishes.append(choice.finish_reason)


async def heard_by_us(pieces: Sequence[bytes]) -> Heard:
    heard = Heard()

    def hear(deltas: list[Delta]) -> None:
        assert deltas, "a read that brought nothing is not worth calling anyone"
        for delta in deltas:
            heard.text += delta.text
            heard.tools += [json.loads(delta.tools)] if delta.tools else []
            heard.finishes += [delta.finish] if delta.finish else []
            heard.usages += [delta.usage] if delta.usage else []

    async with client_hearing(pieces) as client:
        try:
            await Model(client, stall_seconds=60).stream(Generation("any", []), hear)
        except (ModelBusy, BadRequest) as error:
            if UNREADABLE in str(error):
                heard.broke = UNREADABLE
            elif ENDED_EARLY not in str(error):  # of which the SDK says nothing
                heard.broke = str(error).removeprefix("the model server broke off: ")
    return heard


# -- recorded streams


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1 << 20])
async def test_a_recorded_stream_says_the_same_to_both(name: str, size: int) -> None:
    pieces = cut(RECORDED[name], range(0, len(RECORDED[name]), size))

    heard = await heard_by_us(pieces)

    assert heard == await heard_by_the_sdk(pieces)
    assert heard.text or heard.tools


@given(
    name=st.sampled_from(list(RECORDED)),
    places=st.lists(st.integers(0, 1 << 16), max_size=30),
    end=st.sampled_from([b"\n", b"\r", b"\r\n"]),
)
@settings(max_examples=100)
async def test_a_recorded_stream_says_the_same_however_it_is_cut(name: str, places: list[int], end: bytes) -> None:
    pieces = cut(RECORDED[name].replace(b"\r\n", b"\n").replace(b"\n", end), places)

    assert await heard_by_us(pieces) == await heard_by_the_sdk(pieces)


def test_there_are_streams_of_several_servers() -> None:
    assert {name.split("-")[0] for name in RECORDED} >= {"llama", "openai", "vllm"}


# -- generated streams

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
counts = st.integers(0, 1 << 40)
usages = st.fixed_dictionaries({"prompt_tokens": counts, "completion_tokens": counts, "total_tokens": counts})
anything = st.recursive(
    st.none() | st.booleans() | counts | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
calls = st.fixed_dictionaries(
    {"index": st.integers(0, 3), "function": st.fixed_dictionaries({"arguments": texts}, optional={"name": texts})},
    optional={"id": texts, "type": st.just("function")},
)
deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": st.none() | st.just("") | texts,
        "refusal": st.none() | texts,
        "tool_calls": st.none() | st.lists(calls, max_size=3),
        "reasoning_content": texts,
        "x_extra": anything,
    },
)
choices = st.fixed_dictionaries(
    {"index": st.sampled_from([0, 0, 0, 1]), "delta": deltas},
    optional={
        "finish_reason": st.sampled_from([None, None, None, "stop", "length", "tool_calls", "content_filter"]),
        "logprobs": st.none(),
        "stop_reason": anything,
    },
)
chunks = st.fixed_dictionaries(
    {"choices": st.lists(choices, max_size=2, unique_by=lambda choice: choice["index"])},
    optional={
        "id": texts,
        "object": st.just("chat.completion.chunk"),
        "created": counts,
        "model": texts,
        "usage": st.none() | usages,
        "error": st.none(),
        "timings": anything,
    },
)
errors = st.fixed_dictionaries(
    {"error": st.fixed_dictionaries({"message": texts.filter(str.strip)}, optional={"type": texts, "code": anything})}
)
broken = st.sampled_from(['{"choices": [', "nonsense", '{"choices": [{"delta": {"content": "\x00"}}]}', "{}}", "["])
line_ends = st.sampled_from(["\n", "\n", "\r\n", "\r"])


@st.composite
def events(draw: st.DrawFn) -> str:
    """One event in any of the ways that the standard allows to write it."""
    if draw(st.integers(0, 19)) == 0:
        data = draw(broken)
    else:
        body = draw(st.one_of(chunks, chunks, chunks, chunks, chunks, chunks, errors))
        data = json.dumps(body, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 1])))
    colon = draw(st.sampled_from(["data: ", "data:"]))
    lines = [colon + line for line in data.split("\n")]
    for extra in draw(
        st.lists(st.sampled_from([": ping", ":", "event: message", "retry: 10", "other", "x: y"]), max_size=2)
    ):
        lines.insert(draw(st.integers(0, len(lines))), extra)
    return "".join(line + draw(line_ends) for line in [*lines, ""])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A whole stream: events, comments between them, and an end with or without the end mark."""
    parts = draw(st.lists(events() | st.sampled_from([": ping\n\n", ": ping\r\n\r\n", ":\n"]), max_size=8))
    end = draw(st.sampled_from(["data: [DONE]\n\n", "data: [DONE]\r\n\r\n", "data: [DONE]", "data:[DONE]\n", ""]))
    return "".join([*parts, end]).encode()


@given(whole=streams(), places=st.lists(st.integers(0, 1 << 12), max_size=12))
@example(
    whole=b'data: {"choices":[{"index":0,"delta":{"content":"\xf0\x9f\x99\x82"}}]}\n\ndata: [DONE]\n\n', places=[53]
)
@settings(max_examples=400)
async def test_any_stream_says_the_same_to_both(whole: bytes, places: list[int]) -> None:
    pieces = cut(whole, places)

    assert await heard_by_us(pieces) == await heard_by_the_sdk(pieces)
