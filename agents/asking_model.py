"""A model asked for something of our own, off the path of any answer."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from domain.errors import ModelBusy
from domain.generation import Delta, Generation
from domain.hearing import Enough
from streams.app import app


async def answer_of(model: str, messages: Sequence[Mapping[str, Any]], *, tokens: int, within: float) -> str:
    """Return what a model answers, cut at so many model tokens. Raises `ModelBusy` and `BadRequest`."""
    request = Generation(model, messages, {"max_tokens": tokens, "temperature": 0})
    parts: list[str] = []

    def hear(deltas: list[Delta]) -> None:
        parts.extend(delta.text for delta in deltas)
        if len(parts) > 2 * tokens:  # it knows no limit
            raise Enough

    try:
        async with asyncio.timeout(within):
            await app.services.model.stream(request, hear)
    except TimeoutError as error:
        raise ModelBusy(f"the model took longer than {within:g} s") from error
    except Enough:
        pass
    return "".join(parts)
