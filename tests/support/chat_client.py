"""A client of the native routes as a careful program would write it: it reconnects where it left off, and checks.

Every event's number must be the next one, whatever happened to the connection in between.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiohttp

FINAL = {"turn.completed", "turn.stopped", "turn.failed", "turn.handed_over"}


@dataclass(frozen=True, slots=True)
class SeenEvent:
    """One server-sent event."""

    id: int
    name: str
    data: dict[str, Any]


@dataclass
class Seen:
    """What a reader saw of a turn, over all its connections."""

    events: list[SeenEvent] = field(default_factory=list)
    connections: int = 0

    @property
    def text(self) -> str:
        """The answer as it was shown."""
        return "".join(event.data["text"] for event in self.events if event.name == "token")

    @property
    def outcome(self) -> str:
        """The last event's name, without its "turn."."""
        return self.events[-1].name.removeprefix("turn.")


class ChatClient:
    """Talks to any of several workers; ``urls`` may be changed at any time."""

    def __init__(self, session: aiohttp.ClientSession, *urls: str) -> None:
        self.session = session
        self.urls = list(urls)
        self._next = 0

    def url(self) -> str:
        """The next worker's address, in turn."""
        self._next += 1
        return self.urls[self._next % len(self.urls)]

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send one request until a worker takes it; return its JSON, or raise what it answers."""
        async with asyncio.timeout(60):
            while True:
                try:
                    async with self.session.request(method, self.url() + path, json=body, headers=headers) as answer:
                        if answer.status == 503:
                            await asyncio.sleep(0.1)
                            continue
                        assert answer.status < 400, f"{method} {path}: {answer.status} {await answer.text()}"
                        return await answer.json() if answer.status != 204 else None
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)

    async def converse(self) -> str:
        """Begin a conversation; return its id."""
        return str((await self.call("POST", "/v1/conversations", {}))["id"])

    async def ask(self, conversation_id: str, question: str, **more: Any) -> str:
        """Ask; return the turn's id once the question is accepted."""
        path = f"/v1/conversations/{conversation_id}/turns"
        answer = await self.call("POST", path, {"input": question, **more}, **{"Idempotency-Key": uuid4().hex})
        return str(answer["turn_id"])

    async def read(self, turn_id: str, *, drop_after: Sequence[int] = (), within: float = 60) -> Seen:
        """Read a turn to its end, reconnecting as often as needed, and on purpose after these numbers of events."""
        seen, drops = Seen(), list(drop_after)
        async with asyncio.timeout(within):
            while not (seen.events and seen.events[-1].name in FINAL):
                seen.connections += 1
                try:
                    async with aclosing(self.events(turn_id, after=len(seen.events) - 1)) as events:
                        async for event in events:
                            assert event.id == len(seen.events), f"event {event.id} after {len(seen.events)} events"
                            seen.events.append(event)
                            if drops and len(seen.events) >= drops[0]:
                                drops.pop(0)
                                break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)
        return seen

    async def events(self, turn_id: str, *, after: int = -1) -> AsyncGenerator[SeenEvent, None]:
        """Yield the events of one connection."""
        headers = {"Last-Event-ID": str(after)} if after >= 0 else {}
        url = f"{self.url()}/v1/turns/{turn_id}/events"
        async with self.session.get(url, headers=headers, timeout=aiohttp.ClientTimeout(sock_connect=2)) as answer:
            if answer.status == 503:
                await asyncio.sleep(0.1)
                return
            assert answer.status == 200, f"{answer.status} {await answer.text()}"
            fields: dict[str, str] = {}
            async for line in answer.content:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    fields[name] = value
                    continue
                if "event" in fields:
                    yield SeenEvent(int(fields["id"]), fields["event"], json.loads(fields["data"]))
                fields = {}
