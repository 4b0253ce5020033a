"""A client of the web layer for tests: requests with a key, and event streams read event by event."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
from aiohttp import ClientResponse, ClientSession
from aiohttp.test_utils import TestServer
from aiohttp.web import AppRunner

from tests.support.fakes import ALICE, FakeKafka, FakeWorker, application_of, settings_for_tests


class Event(NamedTuple):
    """One server-sent event."""

    id: str
    name: str
    data: Any


class Server(TestServer):
    """A server like Faust's: one that leaves a handler alone when its client leaves."""

    async def _make_runner(self, **options: Any) -> AppRunner:
        return AppRunner(self.app, **options | {"handler_cancellation": False, "access_log": None})


class Web:
    """A fake worker whose routes are served on a loopback port."""

    def __init__(self, worker: FakeWorker, server: Server, session: ClientSession) -> None:
        self.worker = worker
        self.kafka = worker.kafka
        self.server = server
        self.session = session

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = ALICE,
        headers: dict[str, str] | None = None,
        data: Any = None,
    ) -> ClientResponse:
        """Send a request; the answer's body is read already."""
        response = await self.open(method, path, body, key=key, headers=headers, data=data)
        await response.read()
        return response

    async def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = ALICE,
        headers: dict[str, str] | None = None,
        data: Any = None,
    ) -> ClientResponse:
        """Send a request, and return as soon as the answer's headers are there."""
        headers = dict(headers or {})
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        if body is not None:
            data = msgspec.json.encode(body)
        if isinstance(data, bytes):
            headers.setdefault("Content-Type", "application/json")
        return await self.session.request(method, self.server.make_url(path), headers=headers, data=data)

    async def begin(self, **fields: Any) -> str:
        """Begin a conversation and return its id."""
        response = await self.call("POST", "/v1/conversations", fields)
        assert response.status == 201, await response.text()
        conversation_id: str = (await response.json())["id"]
        return conversation_id

    async def ask(self, text: str = "Why?", conversation_id: str | None = None, **fields: Any) -> str:
        """Ask a question and return its turn's id."""
        conversation_id = conversation_id or await self.begin()
        path = f"/v1/conversations/{conversation_id}/turns"
        response = await self.call("POST", path, {"input": text, **fields})
        assert response.status == 202, await response.text()
        turn_id: str = (await response.json())["turn_id"]
        return turn_id


async def events_of(response: ClientResponse) -> AsyncIterator[Event]:
    """Yield the events of a stream until it ends. Lines other than id, event and data are passed over."""
    fields: dict[str, str] = {}
    async for line in response.content:
        text = line.decode().rstrip("\n")
        if text:
            name, _, value = text.partition(": ")
            fields[name] = value
        else:
            if "data" in fields:
                yield Event(fields.get("id", ""), fields.get("event", ""), msgspec.json.decode(fields["data"]))
            fields = {}


async def all_events(response: ClientResponse) -> list[Event]:
    """Return all events of a stream, which must end within ten seconds."""
    async with asyncio.timeout(10):
        return [event async for event in events_of(response)]


@asynccontextmanager
async def serving(kafka: FakeKafka | None = None, **settings: Any) -> AsyncIterator[Web]:
    """Serve a fake worker."""
    worker = FakeWorker(kafka or FakeKafka(), settings_for_tests(**settings))
    server = Server(application_of(worker))
    async with server, ClientSession() as session:
        yield Web(worker, server, session)
