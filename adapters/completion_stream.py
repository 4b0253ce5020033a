"""The bytes of one streamed chat completion, decoded into `Delta`s.

OpenAI's published shape, read as leniently as the servers differ: vLLM, llama.cpp and others add fields, which
are skipped, or leave some out. msgspec builds only what we keep, at a small part of what the SDK's objects cost
(`bench/model_decode.py`); `tests/contract/test_model_differential.py` holds it equal to the SDK.
"""

import json
from typing import Any

import msgspec

from adapters.sse import EventStream
from domain.errors import BadRequest, ChatError, ModelBusy
from domain.generation import Delta, Usage

new = tuple.__new__  # for every token: a NamedTuple's own is a function of Python's, at twice the price
DONE = b"[DONE]"
NOTHING = msgspec.Raw()


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Said(msgspec.Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = NOTHING


class _Choice(msgspec.Struct, gc=False):
    index: int | None = 0
    delta: _Said | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class CompletionStream:
    """Takes the bytes of one answer's stream, in pieces of any size.

    ``done`` once the server's end mark came; ``heard`` if the last piece completed any event, even an empty one;
    ``failure`` is what the stream broke with: deltas that came before it in the same piece still count.
    """

    __slots__ = ("_events", "_finished", "_half", "done", "failure", "heard")

    def __init__(self) -> None:
        self._events = EventStream()
        self._half = ""
        self._finished = False
        self.failure: ChatError | None = None
        self.done = False
        self.heard = False

    def feed(self, piece: bytes) -> list[Delta]:
        """Return what the piece completes, without the steps that say nothing."""
        deltas: list[Delta] = []
        try:
            events = self._events.feed(piece)
            self.heard = bool(events)
            for data in events:
                if data.startswith(DONE):
                    self.done = True
                    break
                if delta := self._delta(data):
                    deltas.append(delta)
        except ChatError as failure:
            self.failure = failure
        return deltas

    def close(self, why: str) -> None:
        """Say that no more bytes will come; raises `ModelBusy` with the reason if the answer is not whole.

        It is whole after the end mark, and also after a finish reason: then only the usage can be missing, and
        asking for the answer's rest would add words to a finished text.
        """
        if self._events.close().startswith(DONE):
            self.done = True
        if not (self.done or self._finished):
            raise ModelBusy(why)

    def _delta(self, data: bytes) -> Delta | None:
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            chunk = self._read_leniently(data, error)
        if chunk.error:
            raise failure_of(chunk.error)
        usage = None
        if chunk.usage:
            usage = Usage(chunk.usage.prompt_tokens or 0, chunk.usage.completion_tokens or 0)
        # One answer is asked for, so there is one choice; a usage chunk at the end has none.
        choices = chunk.choices or ()
        choice = choices[0] if choices else None
        if choice is not None and choice.index:
            choice = next((other for other in choices if not other.index), None)
        if choice is None:
            return Delta(usage=usage) if usage else None
        said = choice.delta or _Said()
        # A refusal is what the person is to read instead of an answer.
        text = said.content or said.refusal or ""
        tools = "" if said.tool_calls is NOTHING else _array(said.tool_calls)
        finish = choice.finish_reason or None
        if finish:
            self._finished = True
        return new(Delta, (text, tools, finish, usage)) if text or tools or finish or usage else None

    def _read_leniently(self, data: bytes, error: Exception) -> _Chunk:
        """Read what JSON's grammar forbids but servers send; raises `ModelBusy` for the rest.

        A server in Python writes NaN, as the logarithm of a probability. One in JavaScript cuts an emoji into the two
        escapes of its halves, in two chunks: the first waits for the second.
        """
        try:
            chunk = json.loads(data, parse_constant=lambda _name: None)
            for choice in chunk.get("choices") or ():
                if not choice.get("index") and isinstance(text := choice["delta"].get("content"), str):
                    choice["delta"]["content"], self._half = whole_characters(self._half + text)
            return _decode(json.dumps(chunk))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, msgspec.DecodeError):
            raise ModelBusy(f"the model server sent a chunk that cannot be read: {error}") from error


def whole_characters(text: str) -> tuple[str, str]:
    """Return the text with halves of characters joined, and the first half of one that it ends with."""
    half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
    joined = text.removesuffix(half).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined, half


def _array(raw: msgspec.Raw) -> str:
    """Return a JSON array as it was written, "" for null, for an empty one, and for none."""
    text = bytes(raw).decode()
    return "" if text.strip("[] \t\n") in {"", "null"} else text


def failure_of(error: object) -> ChatError:
    """Return what an error object in mid-stream means for whoever asked.

    vLLM and llama.cpp put the HTTP status that it would have been into ``code``, OpenAI says it by ``type``.
    """
    fields = error if isinstance(error, dict) else {"message": error}
    message = fields.get("message")
    said = message if isinstance(message, str) and message else "an error without a message"
    code, kind = fields.get("code"), str(fields.get("type"))
    refused = (
        is_refusal(int(code))
        if isinstance(code, int) or (isinstance(code, str) and code.isdecimal())
        else kind in {"invalid_request_error", "BadRequestError"}
    )
    return BadRequest(said) if refused else ModelBusy(f"the model server broke off: {said}")


def is_refusal(status: int) -> bool:
    """Tell whether this HTTP status says that the request itself is at fault, whoever sends it again."""
    return 400 <= status < 500 and status not in {408, 409, 429}
