"""Elasticsearch: its client, and what becomes of requests when it is away.

Opening this waits for nothing, and nobody waits long for it: who asks while Elasticsearch is down hears
`SinkUnavailable`, and at once when that has happened a few times in a row (`domain/breaker.py`). A request is made
once: whoever wanted it knows best when to try again. The address that an operator gave may hold a password, so no
message quotes it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from elasticsearch import ApiError, AsyncElasticsearch, BadRequestError, TransportError

from config.settings import Settings
from domain.breaker import Breaker
from domain.errors import SinkUnavailable

# A bulk request takes 0.1 s, and 5 on a busy machine. Beyond this the server or the way to it has stopped.
ANSWER_SECONDS: Final = 60.0
BUSY: Final = 429


class Elastic:
    """One client for all. ``clock`` is monotonic."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._breaker = Breaker()
        self._last = ""
        self._client = AsyncElasticsearch(url, max_retries=0, request_timeout=ANSWER_SECONDS)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncElasticsearch]:
        """Lend the client for one request.

        Raises `SinkUnavailable` for every error of Elasticsearch that the block does not handle.
        """
        if not self._breaker.admits(now := self._clock()):
            wait = self._breaker.wait(now)
            raise SinkUnavailable(f"Elasticsearch is left alone for {wait:.1f} s: {self._last}", retry_after=wait)
        self._breaker.asked(now)
        try:
            yield self._client
        except TransportError as error:
            raise self._down(f"Elasticsearch is not there: {error.message}") from error
        except ApiError as error:
            if error.status_code == BUSY or error.status_code >= 500:
                raise self._down(f"Elasticsearch fails: {said(error)}") from error
            # It is there, and refuses: an index is missing, or a right. Somebody has to look, and then it works.
            self._breaker.completed()
            raise SinkUnavailable(f"Elasticsearch refuses: {said(error)}") from error
        else:
            self._breaker.completed()

    async def greet(self) -> None:
        """Make a first request, whether anybody answers or not."""
        await self._client.ping()

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    def _down(self, reason: str) -> SinkUnavailable:
        self._last = reason
        self._breaker.failed(self._clock())
        return SinkUnavailable(reason)


async def create_index(client: AsyncElasticsearch, name: str, **about: Any) -> None:
    """Make an index with these settings, mappings and aliases; of several workers that do, one is first."""
    try:
        await client.indices.create(index=name, **about)
    except BadRequestError as error:
        if error.error != "resource_already_exists_exception":
            raise


def said(error: ApiError) -> str:
    """Return the status and what stands in the body of an error."""
    cause = error.body.get("error") if isinstance(error.body, dict) else None
    return f"{error.status_code} {reason_of(cause) if isinstance(cause, dict) else error.message}"


def reason_of(cause: dict[str, object]) -> str:
    """Return an error's type and reason, without the value that it quotes: somebody's words."""
    reason = str(cause.get("reason", "")).partition(" Preview of field's value")[0]
    return f"{cause.get('type', 'error')}: {reason}"


@asynccontextmanager
async def open_elastic(settings: Settings) -> AsyncIterator[Elastic]:
    """Yield Elasticsearch, whether it is there or not."""
    # It warns of every request that fails, with a URL; whoever made the request says it once.
    logging.getLogger("elastic_transport.node_pool").setLevel(logging.ERROR)
    elastic = Elastic(settings.elasticsearch_url)
    # The first request keeps the event loop for 20 ms, with all that it makes: not later, when streams wait for that.
    greeting = asyncio.create_task(elastic.greet())
    try:
        yield elastic
    finally:
        greeting.cancel()
        await elastic.close()
