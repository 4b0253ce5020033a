"""Builds what the model reads: instructions, the turns that led here, and the question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from domain.conversation import TOKENS_PER_MESSAGE, Spoken, last_that_fit, tokens_in

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A versioned text file with the assistant's instructions. ``name`` goes into every turn's record."""

    name: str
    text: str


def load_prompt(name: str = "assistant.v1") -> Prompt:
    """Return the prompt of this name from `domain/prompts`; raises FileNotFoundError."""
    return Prompt(name, (files("domain") / "prompts" / f"{name}.txt").read_text(encoding="utf-8").strip())


def for_conversation(prompt: Prompt, path: Sequence[Spoken], question: str, *, budget: int) -> list[Message]:
    """Return the messages for a question after these turns, the latest of them that fit ``budget`` model tokens."""
    fixed = tokens_in(prompt.text) + tokens_in(question) + 2 * TOKENS_PER_MESSAGE
    messages: list[Message] = [{"role": "system", "content": prompt.text}]
    for turn in last_that_fit([turn for turn in path if turn.answer], budget - fixed):
        messages.append({"role": "user", "content": turn.input})
        messages.append({"role": "assistant", "content": turn.answer})
    messages.append({"role": "user", "content": question})
    return messages


def for_client(prompt: Prompt, messages: Sequence[Message], *, bare: bool) -> list[Message]:
    """Return a client's own messages, under our instructions unless it has its own or asked for the bare model."""
    if bare or any(message.get("role") in ("system", "developer") for message in messages):
        return list(messages)
    return [{"role": "system", "content": prompt.text}, *messages]
