"""How many model tokens a text has, by the model's own count where its server offers one, else by what it has charged.

llama.cpp and vLLM count a text on request (`/tokenize`). That is asked only where nobody waits for an answer, and not
again for a while from a server that has no such route, or is slow. For everything else, and everywhere else, a ratio
of characters to tokens is learned for each model from the prompts that it reports the usage of.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from domain.conversation import CHARACTERS_PER_TOKEN, TOKENS_PER_MESSAGE, tokens_in
from domain.errors import ChatError
from domain.generation import Generation

COUNT_SECONDS: Final = 0.2
NOT_OFFERED_SECONDS: Final = 3600.0
PAUSE_SECONDS: Final = 30.0

LEAST_CHARACTERS: Final = 200  # of a prompt to learn from: of a shorter one, the chat template is too large a part
LOWEST, HIGHEST = 0.5, 8.0
# A prompt that is too long is refused, one that is too short is only worse: more tokens than thought count at once.
DOWN, UP = 0.5, 0.1

Tokenize = Callable[[str, str], Awaitable[int | None]]


class TokenCounts:
    """See the module. ``tokenize``: of each server, counts a text for a model, None where it has no such route."""

    def __init__(self, tokenize: Sequence[Tokenize] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokenize = tokenize
        self._clock = clock
        self._ask_at = float("-inf")
        self._ratios: dict[str, float] = {}
        self._latest = CHARACTERS_PER_TOKEN

    async def of(self, model: str, text: str) -> int:
        """Return how many tokens a text has, within a fifth of a second."""
        if self._tokenize and self._clock() >= self._ask_at:
            try:
                async with asyncio.timeout(COUNT_SECONDS):
                    counted = await self._tokenize[0](model, text)
            except (ChatError, TimeoutError):
                self._ask_at = self._clock() + PAUSE_SECONDS
            else:
                if counted is not None:
                    return counted
                self._ask_at = self._clock() + NOT_OFFERED_SECONDS
        return tokens_in(text, self.characters_per_token(model))

    def characters_per_token(self, model: str = "") -> float:
        """Return how many characters of a prompt make a token of a model; without a name, of the one asked last."""
        return self._ratios.get(model, self._latest)

    def about(self, request: Generation) -> int:
        """Return about how many tokens a prompt has."""
        ratio = self.characters_per_token(request.model)
        texts = [message["content"] for message in request.messages if isinstance(message.get("content"), str)]
        return sum(tokens_in(text, ratio) for text in (*texts, request.so_far)) + TOKENS_PER_MESSAGE * len(texts)

    def learn(self, request: Generation, input_tokens: int) -> None:
        """Take note of how many tokens a prompt had."""
        characters = _characters(request.messages)
        tokens = input_tokens - TOKENS_PER_MESSAGE * len(request.messages)
        if request.so_far or request.options.get("tools") or characters < LEAST_CHARACTERS or tokens <= 0:
            return
        known = self._ratios.get(request.model, CHARACTERS_PER_TOKEN)
        seen = min(max(characters / tokens, LOWEST), HIGHEST)
        self._ratios[request.model] = self._latest = known + (seen - known) * (DOWN if seen < known else UP)


def _characters(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return how many characters messages have, 0 where there is more in them than text."""
    texts = [message.get("content") for message in messages]
    return sum(len(text) for text in texts if isinstance(text, str)) if all(isinstance(t, str) for t in texts) else 0
