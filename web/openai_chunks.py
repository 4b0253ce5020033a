"""A turn's pieces as OpenAI's chat completion: in chunks, or whole."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from domain.errors import BadRequest, LogUnavailable, ModelBusy, TurnFailed
from domain.generation import Usage
from domain.tokens import Token, text_of
from domain.turns import End, Failure, Start
from streams.records import Question, Turn
from web.errors import ApiError, unavailable
from web.openai_shapes import ChatCompletion, Choice, CompletionMessage, CompletionUsage, FunctionCall, ToolCall
from web.progress import place_of_turn
from web.sse import Ending

PASSING: Final = frozenset({ModelBusy.code, LogUnavailable.code, TurnFailed.code})
DONE: Final = b"data: [DONE]\n\n"

_json = msgspec.json.Encoder().encode


def completion_id(turn_id: str) -> str:
    """Return the id of a turn's completion."""
    return f"chatcmpl-{turn_id}"


def created(turn_id: str) -> int:
    """Return when a turn began, in Unix seconds."""
    return place_of_turn(turn_id).milliseconds // 1000


def usage_of(usage: Usage) -> CompletionUsage:
    """Return usage in OpenAI's terms."""
    return CompletionUsage(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
    )


def finish_reason(end: End) -> str:
    """Return why an answer ended, in OpenAI's terms, which know no stop by the user."""
    return end.finish if end.outcome == "completed" else "stop"


class Chunks:
    """Says a turn's pieces as chat.completion.chunk objects.

    All chunks of an answer are alike but for their delta, so that what is around it is encoded once.
    """

    opening = b": accepted\n\n"

    def __init__(self, question: Question, *, include_usage: bool, describe: Callable[[ApiError], bytes]) -> None:
        self._turn_id = question.turn_id
        self._include_usage = include_usage
        self._describe = describe
        self._frame(question.model)

    def _frame(self, model: str) -> None:
        """Encode what is around a delta."""
        about = {
            "id": completion_id(self._turn_id),
            "object": "chat.completion.chunk",
            "created": created(self._turn_id),
            "model": model,
            "system_fingerprint": None,
        }
        self._head = b"data: " + _json(about)[:-1]
        self._open = self._head + b',"choices":[{"index":0,"delta":'
        usage = b',"usage":null' if self._include_usage else b""
        self._close = b"]" + usage + b"}\n\n"
        self._after_delta = b',"logprobs":null,"finish_reason":null}' + self._close

    def say(self, batch: list[Token]) -> bytes:
        """Return the chunks of a batch."""
        if len(batch) == 1:
            return self._chunk(batch[0])
        return b"".join([self._chunk(token) for token in batch])

    def _chunk(self, token: Token) -> bytes:
        match token.kind:
            case "token":
                return self._open + b'{"content":' + _json(token.text) + b"}" + self._after_delta
            case "tool":
                # Encoded anew: the model server's own JSON may have line breaks, which would end the event.
                calls = _json(msgspec.json.decode(token.text))
                return self._open + b'{"tool_calls":' + calls + b"}" + self._after_delta
            case "claim":
                self._frame(msgspec.json.decode(token.text, type=Start).model)
                return self._open + b'{"role":"assistant","content":"","refusal":null}' + self._after_delta
            case "citations":
                return b""  # OpenAI's chunks have no place for them
            case _:
                return self._end(msgspec.json.decode(token.text, type=End))

    def _end(self, end: End) -> bytes:
        if end.outcome == "failed":
            return self._error(refusal(end))
        reason = _json(finish_reason(end))
        last = self._open + b'{},"logprobs":null,"finish_reason":' + reason + b"}" + self._close
        if self._include_usage:
            last += self._head + b',"choices":[],"usage":' + _json(usage_of(end.usage)) + b"}\n\n"
        return last + DONE

    def farewell(self, ending: Ending) -> bytes:
        """Return the error that breaks the answer off. OpenAI's clients cannot come back for the rest."""
        return self._error(interrupted(ending))

    def _error(self, error: ApiError) -> bytes:
        return b"data: " + self._describe(error) + b"\n\n"


def refusal(end: End) -> ApiError:
    """Return a failed turn as the error that its client gets."""
    failure = end.error or Failure("The answer could not be written.", "turn_failed")
    if failure.code == BadRequest.code:
        return ApiError(400, failure.code, failure.message)
    if failure.code in PASSING:
        return unavailable(failure.message, code=failure.code)
    return ApiError(500, failure.code, failure.message)


def interrupted(ending: Ending) -> ApiError:
    """Return the error for an answer that broke off on our side."""
    if ending == "shutdown":
        return unavailable("This worker is shutting down. Ask again.", code="shutting_down")
    return unavailable("The answer broke off. Ask again.", code="interrupted")


def whole(question: Question, pieces: Sequence[Token]) -> ChatCompletion:
    """Return a finished turn as a chat.completion; raises `ApiError` for one that failed."""
    start = msgspec.json.decode(pieces[0].text, type=Start)
    end = msgspec.json.decode(pieces[-1].text, type=End)
    if end.outcome == "failed":
        raise refusal(end)
    calls = merged_calls(piece.text for piece in pieces if piece.kind == "tool")
    text = text_of(pieces)
    message = CompletionMessage(content=text or None, tool_calls=calls) if calls else CompletionMessage(content=text)
    return ChatCompletion(
        id=completion_id(question.turn_id),
        created=created(question.turn_id),
        model=start.model,
        choices=[Choice(message=message, finish_reason=finish_reason(end))],
        usage=usage_of(end.usage),
    )


def pieces_of(turn: Turn, model: str) -> list[Token]:
    """Return a finished turn that was asked of this model as the pieces that the log has had; without tool calls."""
    start = Start(turn.conversation_id, model or turn.model)
    end = End(turn.outcome, turn.model, turn.finish, turn.usage, turn.timings, turn.error)
    return [
        Token(turn.turn_id, 0, 0, "claim", _json(start).decode()),
        Token(turn.turn_id, 0, 1, "token", turn.answer),
        Token(turn.turn_id, 0, 2, "end", _json(end).decode()),
    ]


def merged_calls(deltas: Iterable[str]) -> list[ToolCall]:
    """Return the tool calls that OpenAI's deltas spell: by index, arguments piece by piece."""
    calls: dict[int, dict[str, str]] = {}
    for text in deltas:
        for delta in msgspec.json.decode(text):
            call = calls.setdefault(delta.get("index", 0), {"id": "", "name": "", "arguments": ""})
            call["id"] = delta.get("id") or call["id"]
            function: dict[str, Any] = delta.get("function") or {}
            call["name"] = function.get("name") or call["name"]
            call["arguments"] += function.get("arguments") or ""
    return [
        ToolCall(id=call["id"], function=FunctionCall(name=call["name"], arguments=call["arguments"]))
        for _, call in sorted(calls.items())
    ]
