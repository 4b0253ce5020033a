"""The bodies of the OpenAI routes, in OpenAI's published shapes, and what of them is not supported here.

https://platform.openai.com/docs/api-reference/chat
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from web.errors import ApiError, bad_input

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1)]
Stops = Annotated[list[str], Meta(max_length=4)]


# -- requests


class Part(Struct, frozen=True, kw_only=True):
    """A part of a message's content. Only text is taken."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Struct, frozen=True, kw_only=True):
    """Which function a model wants called, with its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True):
    """A call that the model asked for."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of the conversation so far."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionDefinition(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the model may ask for."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, frozen=True, kw_only=True):
    """A tool that the model may ask for."""

    type: str
    function: FunctionDefinition | None = None


class StreamOptions(Struct, frozen=True, kw_only=True):
    """What a stream is to have besides the answer."""

    include_usage: bool = False


class ChatCompletionRequest(Struct, frozen=True, kw_only=True):
    """What `POST /v1/chat/completions` takes. Parameters that are not listed are ignored."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    model: Annotated[str, Meta(max_length=200)] = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: str | Stops | None = None
    seed: int | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None


# Handed to the model server as they are.
PASSED_ON: Final = (
    "temperature",
    "top_p",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
    "user",
)
NOT_HERE: Final = {
    "audio": "Only text is.",
    "functions": "Use tools.",
    "function_call": "Use tool_choice.",
    "web_search_options": "",
}
FORMATS: Final = ("text", "json_object", "json_schema")


def unsupported(param: str, message: str) -> ApiError:
    """Return a 400 for what OpenAI has and this server does not."""
    return bad_input(param, message, "unsupported_parameter")


def check_supported(asked: ChatCompletionRequest) -> None:
    """Raise `ApiError` for what would be misleading to ignore."""
    if asked.n not in {None, 1}:
        raise unsupported("n", "n must be 1: one answer a request.")
    if asked.logprobs or asked.top_logprobs:
        raise unsupported("logprobs", "Log probabilities are not supported.")
    if asked.modalities not in (None, ["text"]):
        raise unsupported("modalities", "Only text is supported.")
    for name, instead in NOT_HERE.items():
        if getattr(asked, name) is not None:
            raise unsupported(name, f"{name} is not supported. {instead}".strip())
    if asked.response_format is not None and asked.response_format.get("type") not in FORMATS:
        raise unsupported("response_format.type", f"response_format.type must be one of {', '.join(FORMATS)}.")
    for number, tool in enumerate(asked.tools or ()):
        if tool.type != "function" or tool.function is None:
            raise unsupported(f"tools[{number}].type", "Only tools of type function are supported.")
    if asked.stream_options is not None and not asked.stream:
        raise bad_input("stream_options", "stream_options is only allowed with stream.")


def options_of(asked: ChatCompletionRequest) -> dict[str, Any]:
    """Return the options for the model server."""
    options: dict[str, Any] = {
        name: msgspec.to_builtins(value) for name in PASSED_ON if (value := getattr(asked, name)) is not None
    }
    # OpenAI deprecated the shorter name, and most other servers know only that.
    limits = [limit for limit in (asked.max_tokens, asked.max_completion_tokens) if limit is not None]
    if limits:
        options["max_tokens"] = min(limits)
    return options


def plain_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages in the form that every server takes: plain text, and the role system for developers."""
    return [_plain(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _plain(message: ChatMessage, where: str) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(message)
    if message.role == "developer":
        plain["role"] = "system"
    if isinstance(message.content, list):
        texts = [_text(part, f"{where}.content[{number}]") for number, part in enumerate(message.content)]
        plain["content"] = "\n".join(texts)
    elif message.content is None:
        if not message.tool_calls:
            raise bad_input(f"{where}.content", f"{where}.content is required.", "missing_required_parameter")
        plain["content"] = None
    if message.role == "tool" and not message.tool_call_id:
        raise bad_input(f"{where}.tool_call_id", f"{where}.tool_call_id is required.", "missing_required_parameter")
    return plain


def _text(part: Part, where: str) -> str:
    if part.type not in {"text", "refusal"}:
        raise unsupported(f"{where}.type", f"Content of type {part.type[:50]!r} is not supported, only text.")
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise bad_input(f"{where}.{part.type}", f"{where}.{part.type} is required.", "missing_required_parameter")
    return text


# -- answers


class CompletionUsage(Struct, frozen=True, kw_only=True):
    """Model tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionMessage(Struct, frozen=True, kw_only=True):
    """The answer."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: str | None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class Choice(Struct, frozen=True, kw_only=True):
    """The one choice."""

    message: CompletionMessage
    finish_reason: str
    index: int = 0
    logprobs: None = None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """An answer in one piece."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None


class ModelObject(Struct, frozen=True, kw_only=True):
    """A model. ``created`` is 0 where nobody says."""

    id: str
    owned_by: str
    created: int = 0
    object: Literal["model"] = "model"


class ModelList(Struct, frozen=True, kw_only=True):
    """The models that can be asked."""

    data: list[ModelObject]
    object: Literal["list"] = "list"
    has_more: bool = False
