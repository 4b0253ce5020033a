"""What is asked of a language model and what comes back, in no one server's terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

LIMITS: Final = ("max_completion_tokens", "max_tokens")
"""OpenAI's newer models know only the first name, other servers only the second: the client knows which."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Model tokens read and written; about, where the server did not say."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


@dataclass(frozen=True, slots=True)
class Generation:
    """One request to a model: messages in OpenAI's form, and options that go through as they are.

    ``so_far`` is the beginning of the answer, which the model is to continue, and ``written`` how many model tokens
    that took: they count towards the limit in ``options``, which is the whole answer's.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    so_far: str = ""
    written: int = 0

    @property
    def limit(self) -> int | None:
        """How many model tokens the whole answer may have."""
        return next((self.options[name] for name in LIMITS if self.options.get(name) is not None), None)

    def with_room(self, tokens: int) -> dict[str, Any]:
        """Return the options with another limit, under the name that the client used."""
        return {**self.options, **{name: tokens for name in LIMITS if name in self.options}}


class Delta(NamedTuple):
    """One step of a model's stream: some text, or tool-call deltas (their JSON array), or how it ended.

    ``finish`` is OpenAI's finish reason (stop, length, tool_calls, content_filter) on the step that has it.
    """

    text: str = ""
    tools: str = ""
    finish: str | None = None
    usage: Usage | None = None
