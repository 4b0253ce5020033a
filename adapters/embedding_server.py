"""A server that turns texts into vectors and speaks OpenAI's API: its requests, its answers, and what its errors mean.

Vectors are asked for as base64, which decodes in a hundredth of the time that as many numbers of JSON take; a server
that does not know it sends numbers all the same. While the server fails it is left alone (`domain/breaker.py`), so that
a question goes without vectors at once instead of after a time-out.
"""

import asyncio
import sys
import time
from array import array
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog
from openai import APIError, APIStatusError, AsyncOpenAI

from domain.backoff import pause
from domain.breaker import Breaker
from domain.errors import EmbedderUnavailable, Rejected

log = structlog.get_logger(__name__)

Vector = list[float]

QUESTION_SECONDS: Final = 2.0
DOCUMENT_SECONDS: Final = 60.0
RETRIES: Final = 2
TEXT_REFUSED: Final = frozenset({400, 413, 422})


class _Embedding(msgspec.Struct):
    index: int
    embedding: str | list[float]


class _Answer(msgspec.Struct):
    data: list[_Embedding]


class Server:
    """See the module. ``dims`` is how long its vectors are, 0 until it answered. ``clock`` is monotonic."""

    batch = 32

    def __init__(self, client: AsyncOpenAI, model: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        # The SDK tries again for documents alone: nobody waits for these.
        self._clients = {
            True: client.with_options(timeout=QUESTION_SECONDS, max_retries=0),
            False: client.with_options(timeout=DOCUMENT_SECONDS, max_retries=RETRIES),
        }
        self._model = model
        self._clock = clock
        self._breaker = Breaker()
        self.dims = 0

    @property
    def ready(self) -> bool:
        """Return whether it may be asked now."""
        return self._breaker.admits(self._clock())

    async def loaded(self) -> None:
        """Return once the length of its vectors is known."""
        attempt = 0
        while not self.dims:
            try:
                await self.vectors(["?"], first=False)
            except (EmbedderUnavailable, Rejected) as error:
                attempt += 1
                log.warning("embedding server not there", reason=str(error))
                await asyncio.sleep(pause(attempt, first=0.5, longest=10.0))

    async def vectors(self, texts: Sequence[str], *, first: bool) -> list[Vector]:
        """Return a vector for each text. Raises `EmbedderUnavailable`, and `Rejected` where a text is refused."""
        if not self._breaker.admits(now := self._clock()):
            wait = self._breaker.wait(now)
            raise EmbedderUnavailable(f"the embedding server is left alone for {wait:.1f} s", retry_after=wait)
        self._breaker.asked(now)
        try:
            answer = await self._clients[first].embeddings.with_raw_response.create(
                model=self._model, input=list(texts), encoding_format="base64"
            )
            vectors = _decoded(answer.content, len(texts))
        except APIStatusError as error:
            if error.status_code in TEXT_REFUSED:
                self._breaker.completed()
                raise Rejected(f"the embedding server refuses a text: {error.message}") from error
            raise self._failed(f"the embedding server fails: {error.message}") from error
        except APIError as error:
            raise self._failed(f"the embedding server is not there: {error.message}") from error
        except (msgspec.DecodeError, ValueError) as error:
            raise self._failed(f"the embedding server's answer cannot be read: {error}") from error
        self._breaker.completed()
        self.dims = len(vectors[0])
        return vectors

    def _failed(self, reason: str) -> EmbedderUnavailable:
        self._breaker.failed(self._clock())
        return EmbedderUnavailable(reason)


def _decoded(body: bytes, count: int) -> list[Vector]:
    """Return the vectors of an answer. Raises ValueError where it does not have as many, of one length."""
    data = sorted(msgspec.json.decode(body, type=_Answer).data, key=lambda each: each.index)
    vectors = [_numbers(each.embedding) for each in data]
    if len(vectors) != count or len({len(vector) for vector in vectors}) != 1 or not vectors[0]:
        raise ValueError(f"it has {len(vectors)} vectors for {count} texts, or they differ in length")
    return vectors


def _numbers(embedding: str | list[float]) -> Vector:
    if isinstance(embedding, list):
        return embedding
    values = array("f")
    values.frombytes(b64decode(embedding))
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
