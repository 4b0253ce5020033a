"""Many streams at once against one URL, and how long each token was under way.

The scripted model server writes into each token when it wrote it (``stamp=1``), by the clock that all processes
of a machine share. This side has to be much cheaper than what it measures, so it parses neither HTTP nor JSON:
it looks for the stamps in whatever bytes come.
"""

import asyncio
import json
import re
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import urlsplit

STAMP = re.compile(rb" t=(\d+\.\d{6})")
LONGEST = 24
"""Bytes of an unfinished stamp that are kept for the next read."""


@dataclass(eq=False)
class Reader(asyncio.Protocol):
    """One stream: asks its question, and notes for every token when it was sent and when it came."""

    question: str
    url: str
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
        at = urlsplit(self.url)
        await asyncio.get_running_loop().create_connection(lambda: self, at.hostname or "127.0.0.1", at.port or 80)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        at = urlsplit(self.url)
        messages = [{"role": "user", "content": self.question}]
        body = json.dumps({"model": "scripted", "stream": True, "messages": messages}).encode()
        head = (
            f"POST {at.path}/chat/completions HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.asked_at = monotonic()
        transport.write(head.encode() + body)

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
    """Streams of one pace against one URL, begun one after the other so that their tokens do not come in step."""

    def __init__(self, url: str, streams: int, *, pace: float, seconds: float) -> None:
        self._gap = 1 / pace / 7 if streams < 7 else 1.0 / streams
        tokens = int(pace * (seconds + self._gap * streams))
        self.readers = [
            Reader(f"stream {number} [stamp=1 tokens={tokens} pace={pace:g}]", url) for number in range(streams)
        ]
        self.tokens = tokens * streams

    async def start(self) -> None:
        """Begin all streams; returns when each of them has its first token, or has ended without."""
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
