"""What is asked of a language model and what comes back, in no one server's terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Usage:
    """Model tokens read and written. Zero where the server did not say."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


@dataclass(frozen=True, slots=True)
class Generation:
    """One request to a model: messages in OpenAI's form, and options that go through as they are.

    A last message of role ``assistant`` is the text so far, which the model is to continue (prefill).
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delta:
    """One step of a model's stream: some text, or tool-call deltas (their JSON array), or how it ended.

    ``finish`` is OpenAI's finish reason (stop, length, tool_calls, content_filter) on the step that has it.
    """

    text: str = ""
    tools: str = ""
    finish: str | None = None
    usage: Usage | None = None
