"""What the chunks of a stream say, where servers differ from what OpenAI publishes or break off."""

import json
from typing import Any

import pytest

from adapters.completion_stream import CompletionStream
from domain.errors import BadRequest, ModelBusy
from domain.generation import Delta, Usage


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


def failure_of(*pieces: bytes) -> object:
    stream = CompletionStream()
    for piece in pieces:
        stream.feed(piece)
    return stream.failure


def test_only_the_first_choice_is_told() -> None:
    both = [{"index": 1, "delta": {"content": "no"}}, {"index": 0, "delta": {"content": "yes"}}]

    assert CompletionStream().feed(event({"choices": both})) == [Delta("yes")]


def test_what_is_null_or_missing_says_nothing() -> None:
    said = [{}, {"choices": None}, {"choices": []}, {"choices": [{}]}, {"choices": [{"index": None, "delta": None}]}]

    assert CompletionStream().feed(b"".join(map(event, said))) == []
    assert CompletionStream().feed(chunk({"content": None, "tool_calls": None}, "", usage=None, error=None)) == []


def test_a_refusal_is_what_the_person_reads() -> None:
    assert CompletionStream().feed(chunk({"refusal": "I cannot help with that."})) == [
        Delta("I cannot help with that.")
    ]


def test_usage_comes_from_any_chunk_and_may_lack_a_number() -> None:
    stream = CompletionStream()

    assert stream.feed(chunk({"content": "a"}, usage={"prompt_tokens": 3})) == [Delta("a", usage=Usage(3, 0))]
    assert stream.feed(event({"choices": [], "usage": {"completion_tokens": 4}})) == [Delta(usage=Usage(0, 4))]


def test_an_emoji_in_two_chunks_is_one_character() -> None:
    first, second = (
        b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\ude42b"}}]}\n\n',
    )

    assert CompletionStream().feed(first + second) == [Delta("a"), Delta("🙂b")]


def test_half_an_emoji_without_its_other_half_breaks_nothing() -> None:
    lone = b'data: {"choices":[{"delta":{"content":"\\ude42b"}}]}\n\n'

    [delta] = CompletionStream().feed(lone)

    assert delta.text.encode() == "\ufffdb".encode()


@pytest.mark.parametrize(
    "data",
    [b"nonsense", b'{"choices":', b"[]", b"7", b'{"choices":[{"delta":{"content":["a"]}}]}', b"[" * 100_000, b"\xff"],
)
def test_a_chunk_that_cannot_be_read_breaks_the_answer_off(data: bytes) -> None:
    assert isinstance(failure_of(b"data: " + data + b"\n\n"), ModelBusy)


def test_what_came_before_a_break_in_one_piece_counts() -> None:
    stream = CompletionStream()

    assert stream.feed(chunk({"content": "kept"}) + b"data: nonsense\n\n") == [Delta("kept")]
    assert isinstance(stream.failure, ModelBusy)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "too long", "type": "BadRequestError", "code": 400}, BadRequest),
        ({"message": "too long", "code": "422"}, BadRequest),
        ({"message": "no such tool", "type": "invalid_request_error", "code": None}, BadRequest),
        ({"message": "wait", "code": 429}, ModelBusy),
        ({"message": "broken", "type": "server_error", "code": "internal"}, ModelBusy),
        ({"code": 500}, ModelBusy),
        ("overloaded", ModelBusy),
    ],
)
def test_an_error_in_mid_stream_is_sorted_by_who_can_mend_it(error: object, kind: type[Exception]) -> None:
    assert type(failure_of(chunk({"content": "a"}), event({"error": error}))) is kind


def test_an_answer_is_whole_after_its_end_mark() -> None:
    stream = CompletionStream()
    stream.feed(chunk({"content": "a"}) + b"data: [DONE]\n\n")

    assert stream.done
    stream.close("broke")


def test_an_answer_is_whole_after_its_finish_reason() -> None:
    stream = CompletionStream()
    stream.feed(chunk({"content": "a"}) + chunk({}, "stop"))

    assert not stream.done
    stream.close("broke")


def test_an_end_mark_is_believed_without_its_blank_line() -> None:
    stream = CompletionStream()
    stream.feed(chunk({"content": "a"}) + b"data: [DONE]")

    stream.close("broke")
    assert stream.done


def test_an_answer_that_just_ends_is_not_whole() -> None:
    stream = CompletionStream()
    stream.feed(chunk({"content": "a"}))

    with pytest.raises(ModelBusy, match="broke"):
        stream.close("broke")


def test_comments_are_no_sign_that_the_model_goes_on() -> None:
    stream = CompletionStream()

    stream.feed(b": still here\n\n")
    assert not stream.heard
    stream.feed(chunk({"reasoning_content": "hm"}))
    assert stream.heard
