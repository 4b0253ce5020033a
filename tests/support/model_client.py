"""The model adapter as tests use it: opened on a scripted server, and read to its end."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from adapters.resuming import Server
from config.settings import Settings
from domain.generation import Delta, Generation


def settings_for(base_url: str, *, api_key: str = "none", stall_seconds: float = 10.0) -> Settings:
    """Return settings with this model server."""
    changes = {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": api_key, "model_stall_seconds": stall_seconds}
    return Settings.model_validate(changes)


def asking(question: str, so_far: str = "", options: Mapping[str, object] | None = None) -> Generation:
    """Return a generation with one question, and the text so far if there is any."""
    messages = [{"role": "user", "content": question}]
    if so_far:
        messages.append({"role": "assistant", "content": so_far})
    return Generation("scripted", messages, options or {})


async def read(model: Server, generation: Generation, into: list[Delta] | None = None) -> list[Delta]:
    """Return all deltas; ``into`` keeps those that came before an error."""
    deltas = [] if into is None else into
    await model.stream(generation, deltas.extend)
    return deltas


def text_of(deltas: Iterable[Delta]) -> str:
    """Return what was said."""
    return "".join(delta.text for delta in deltas)


async def until(true: Callable[[], bool], within: float = 20.0) -> None:
    """Return when the condition holds; raises TimeoutError."""
    async with asyncio.timeout(within):
        while not true():
            await asyncio.sleep(0.005)
