"""How the worker is, for those who look after it. Open to everyone: nothing here is about a person."""

import asyncio
from typing import Final

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from web.bodies import give
from web.errors import NOT_READY, unavailable
from web.shapes import Health
from web.site import SITE

FRESH_SECONDS: Final = 1.0


async def healthz(_: web.Request) -> web.StreamResponse:
    """Say that the worker is alive: its loop came to this request."""
    return give(Health(status="alive"))


async def readyz(request: web.Request) -> web.StreamResponse:
    """Say whether the worker can take questions: its tables are recovered and its partitions assigned."""
    chat = request.app[SITE].chat
    waits_for = chat.ready()
    if waits_for:
        raise unavailable(f"Not ready: {waits_for}.", code=NOT_READY)
    return give(Health(status="ready", partitions=sorted(chat.owned())))


class Metrics:
    """Prometheus' text. Writing it takes milliseconds of the loop that carries tokens, so it is kept for a second."""

    def __init__(self) -> None:
        self._text = b""
        self._fresh_until = float("-inf")

    async def read(self, _: web.Request) -> web.StreamResponse:
        """Return the metrics of this worker."""
        now = asyncio.get_running_loop().time()
        if now >= self._fresh_until:
            self._text = generate_latest()
            self._fresh_until = now + FRESH_SECONDS
        return web.Response(body=self._text, headers={"Content-Type": CONTENT_TYPE_LATEST})
