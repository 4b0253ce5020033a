"""Many streams at once from one place, and how long each token was under way.

The scripted model server writes into each token when it wrote it (``stamp=1``), by the clock that all processes
of a machine share. This side has to be much cheaper than what it measures, so it parses neither HTTP nor JSON:
it looks for the stamps in whatever bytes come.
"""

import asyncio
import json
import re
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import urlsplit

import aiohttp

from bench.machine import Place

STAMP = re.compile(rb" t=(\d+\.\d{6})")
LONGEST = 24
"""Bytes of an unfinished stamp that are kept for the next read."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is posted to get one stream."""

    url: str
    body: Mapping[str, object]

    def request(self) -> bytes:
        """Return the HTTP request."""
        at, body = urlsplit(self.url), json.dumps(self.body).encode()
        head = (
            f"POST {at.path} HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: close\r\nAccept: text/event-stream\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def questions_for(place: Place, texts: Sequence[str]) -> list[Question]:
    """Return how these questions are put here; on the native route each in a conversation of its own."""
    if not place.native:
        url = f"{place.url}/chat/completions"
        return [
            Question(url, {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": text}]})
            for text in texts
        ]
    questions = []
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        for text in texts:
            async with session.post(f"{place.url}/conversations", json={}) as answer:
                conversation = (await answer.json())["id"]
            questions.append(Question(f"{place.url}/conversations/{conversation}/turns", {"input": text}))
    return questions


@dataclass(eq=False)
class Reader(asyncio.Protocol):
    """One stream: asks its question, and notes for every token when it was sent and when it came."""

    question: Question
    sent: "array[float]" = field(default_factory=lambda: array("d"))
    came: "array[float]" = field(default_factory=lambda: array("d"))
    asked_at: float = 0.0
    status: bytes = b""
    rest: bytes = b""
    began: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    transport: asyncio.BaseTransport | None = None

    async def start(self) -> None:
        """Connect and ask."""
        at = urlsplit(self.question.url)
        await asyncio.get_running_loop().create_connection(lambda: self, at.hostname or "127.0.0.1", at.port or 80)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.asked_at = monotonic()
        transport.write(self.question.request())

    def data_received(self, data: bytes) -> None:
        """Note the stamps that came."""
        now = monotonic()
        self.status = self.status or data[:64].split(b"\r\n", 1)[0]
        data = self.rest + data
        end = 0
        for match in STAMP.finditer(data):
            self.sent.append(float(match[1]))
            self.came.append(now)
            end = match.end()
        self.rest = data[max(end, len(data) - LONGEST) :]
        if end:
            self.began.set()

    def connection_lost(self, _: Exception | None) -> None:
        """Note the end."""
        self.began.set()
        self.ended.set()

    def close(self) -> None:
        """Leave, if the stream has not ended."""
        if self.transport is not None:
            self.transport.close()


@dataclass(frozen=True, slots=True)
class Heard:
    """What came within a span of time: how many tokens, and for each how long it was under way, in seconds, sorted."""

    added: Sequence[float]

    @property
    def tokens(self) -> int:
        """How many tokens came."""
        return len(self.added)

    def quantile(self, share: float) -> float:
        """Return the time that this share of the tokens stayed below, in ms."""
        return 1000 * self.added[min(int(share * len(self.added)), len(self.added) - 1)] if self.added else float("nan")


class Load:
    """Streams of one pace, begun one after the other so that their tokens do not come in step."""

    def __init__(self, place: Place, streams: int, *, pace: float, seconds: float) -> None:
        self._place = place
        # The golden section of the time between two tokens: however many streams, they lie evenly within it.
        self._gap = 0.618 / pace
        tokens = int(pace * (seconds + self._gap * streams))
        self._texts = [f"stream {number} [stamp=1 tokens={tokens} pace={pace:g}]" for number in range(streams)]
        self.readers: list[Reader] = []
        self.tokens = tokens * streams

    async def start(self) -> None:
        """Begin all streams; returns when each of them has its first token, or has ended without."""
        self.readers = [Reader(question) for question in await questions_for(self._place, self._texts)]
        for reader in self.readers:
            await reader.start()
            await asyncio.sleep(self._gap)
        async with asyncio.timeout(30):
            for reader in self.readers:
                await reader.began.wait()

    async def end(self, within: float = 30.0) -> None:
        """Return when all streams have ended; raises RuntimeError if one was not whole."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                for reader in self.readers:
                    await reader.ended.wait()
        self.close()
        heard = sum(len(reader.came) for reader in self.readers)
        if heard != self.tokens:
            said = {reader.status.decode() for reader in self.readers}
            raise RuntimeError(f"{heard} of {self.tokens} tokens came; the server said {said}")

    def close(self) -> None:
        """Leave the streams that have not ended."""
        for reader in self.readers:
            reader.close()

    def heard(self, since: float, until: float) -> Heard:
        """Return what came between two times of the monotonic clock."""
        times = (pair for reader in self.readers for pair in zip(reader.sent, reader.came, strict=True))
        return Heard(sorted(came - sent for sent, came in times if since <= came < until))
