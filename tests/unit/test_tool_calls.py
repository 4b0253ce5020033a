"""Streamed tool calls are put together, so that no half of one is ever logged."""

import json

from hypothesis import given
from hypothesis import strategies as st

from domain.tool_calls import ToolCalls
from tests.support.scripted_answer import tool_calls, tool_deltas


@given(st.text(max_size=20), st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), min_size=1, max_size=3))
def test_the_deltas_of_parallel_calls_become_the_calls(question: str, names: list[str]) -> None:
    expected = tool_calls(question, ",".join(names))
    calls = ToolCalls()
    for deltas in tool_deltas(expected):
        calls.take(json.dumps(deltas))

    assert json.loads(calls.whole()) == [{"index": index, **call} for index, call in enumerate(expected)]


def test_there_is_nothing_to_say_where_no_call_was_made_or_after_it_was_said() -> None:
    calls = ToolCalls()
    assert calls.whole() == ""

    calls.take('[{"index": 0, "id": "c1", "type": "function", "function": {"name": "f"}}]')

    assert json.loads(calls.whole()) == [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    ]
    assert calls.whole() == ""


def test_what_a_server_adds_of_its_own_or_repeats_as_null_does_no_harm() -> None:
    calls = ToolCalls()
    calls.take('[{"index": 0, "id": "c1", "extra": 1, "function": {"name": "f", "arguments": null}}]')
    calls.take('[{"index": 0, "id": null, "function": {"name": null, "arguments": "{}"}}]')

    assert json.loads(calls.whole()) == [
        {"index": 0, "id": "c1", "extra": 1, "function": {"name": "f", "arguments": "{}"}}
    ]
