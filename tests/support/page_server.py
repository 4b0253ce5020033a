"""A small stand-in for a worker, so that the page can be tested and looked at without Kafka.

It keeps the page's part of API.md: conversations, turns, and events with numbers that can be read again from
anywhere. A test decides what an answer says and when, drops connections, and refuses requests on command.
By hand: ``python -m tests.support.page_server 8099``, then open http://127.0.0.1:8099.
"""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from aiohttp import web
from aiohttp.typedefs import Handler

from tests.support.page_knowledge import PageKnowledge
from web import page

FINAL = {"turn.completed", "turn.stopped", "turn.failed"}
# What is there although the archive is down: so many conversations, and so many turns of each.
RECENT = 5
STATUS_OF = {"turn.completed": "completed", "turn.stopped": "stopped", "turn.failed": "failed"}


def pieces_of(text: str) -> list[str]:
    """Cut a text as a model does: words with the white space before them."""
    return re.findall(r"\s*\S+|\s+$", text)


@dataclass
class Turn:
    """A turn and all its events so far: the index is the event's id."""

    turn_id: str
    conversation_id: str
    parent: str
    input: str
    created_at: str
    events: list[tuple[str, Any]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    feedback: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(data["text"] for name, data in self.events if name == "token")

    @property
    def status(self) -> str:
        """As `GET /v1/turns/{id}` says it."""
        if not self.events:
            return "queued"
        return STATUS_OF.get(self.events[-1][0], "running")

    async def beyond(self, number: int) -> None:
        """Wait until there is an event of this number."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.events) > number)

    async def add(self, name: str, **data: object) -> None:
        """Append an event and wake the readers."""
        await self._append(name, data)

    async def _append(self, name: str, data: object) -> None:
        async with self.changed:
            self.events.append((name, data))
            self.changed.notify_all()

    async def cite(self, citations: list[dict[str, Any]]) -> None:
        """Say which passages the answer rests on."""
        await self._append("turn.citations", citations)

    @property
    def citations(self) -> list[dict[str, Any]]:
        """The passages that the answer rests on."""
        return next((data for name, data in self.events if name == "turn.citations"), [])

    async def start(self) -> None:
        """Begin the answer."""
        await self.add("turn.started", turn_id=self.turn_id, conversation_id=self.conversation_id, model="scripted-1")

    async def say(self, text: str) -> None:
        """Add these words to the answer."""
        for piece in pieces_of(text):
            await self.add("token", text=piece)

    async def complete(self, cache: str | None = None) -> None:
        """End the answer well."""
        count = sum(name == "token" for name, _ in self.events)
        usage = {"input_tokens": 12, "output_tokens": count}
        await self.add("turn.completed", outcome="completed", usage=usage, timings={"total_ms": 1840}, cache=cache)

    async def stop(self) -> None:
        """End the answer as the user's stop does."""
        await self.add("turn.stopped", outcome="stopped")

    async def fail(self, message: str) -> None:
        """End the answer badly."""
        await self.add("turn.failed", error={"message": message, "code": "turn_failed"})

    def shown(self) -> dict[str, Any]:
        """The turn as the conversation lists it."""
        last = self.events[-1] if self.events else ("", {})
        return {
            "turn_id": self.turn_id,
            "conversation_id": self.conversation_id,
            "parent": self.parent or None,
            "input": self.input,
            "status": self.status,
            "answer": self.text,
            "model": "scripted-1",
            "created_at": self.created_at,
            "outcome": STATUS_OF.get(last[0]),
            "error": last[1].get("error") if self.status == "failed" else None,
            "feedback": self.feedback,
            # The conversation has the titles, and only the turn itself the texts.
            "citations": [{**each, "text": ""} for each in self.citations],
        }


@dataclass
class Refusal:
    """What the next requests that match get instead of an answer; status 0 breaks the connection."""

    route: str
    status: int
    times: int = 1
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False  # the request is carried out, and only its answer is lost


class PageServer:
    """The server's state, and what a test can do to it."""

    def __init__(self) -> None:
        self.conversations: dict[str, dict[str, Any]] = {}
        self.turns: dict[str, Turn] = {}
        self.by_key: dict[str, Turn] = {}
        self.refusals: list[Refusal] = []
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.connections: list[int] = []
        self.lagging = False
        self.archive_down = False
        self.key = ""
        self.url = ""
        self.script: Sequence[str] | None = None
        self.pace = 0.0
        self.knowledge = PageKnowledge()
        self._streams: set[asyncio.Transport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    # -- what a test does

    def refuse(self, route: str, status: int, **more: Any) -> None:
        """Answer the next requests whose "METHOD /path" matches this pattern with an error."""
        self.refusals.append(Refusal(route, status, **more))

    def drop(self) -> int:
        """Break every open event stream without a goodbye; say how many there were."""
        streams = list(self._streams)
        for transport in streams:
            transport.abort()
            self._streams.discard(transport)
        return len(streams)

    async def until(self, condition: Callable[[], bool], within: float = 10.0) -> None:
        """Wait until a condition on this server holds; raises TimeoutError."""
        async with asyncio.timeout(within), self._changed:
            await self._changed.wait_for(condition)

    async def asked(self, number: int) -> Turn:
        """Wait for the number-th turn (from 1) and return it."""
        await self.until(lambda: len(self.turns) >= number)
        return list(self.turns.values())[number - 1]

    async def followed(self) -> None:
        """Wait until somebody reads an event stream."""
        await self.until(lambda: bool(self._streams))

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def sent(self, route: str) -> list[dict[str, Any]]:
        """Return what came in on a route: bodies, with the idempotency key as ``key``."""
        return [more for method, path, more in self.requests if re.fullmatch(route, f"{method} {path}")]

    def add_conversation(self, title: str, *, days_ago: int = 0) -> dict[str, Any]:
        """Keep a conversation that was last used some days ago."""
        at = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat()
        conversation: dict[str, Any] = {
            "id": f"c{len(self.conversations) + 1}",
            "object": "conversation",
            "title": title,
            "created_at": at,
            "updated_at": at,
            "metadata": {},
        }
        self.conversations[conversation["id"]] = conversation
        return conversation

    async def add_turn(self, conversation_id: str, question: str, *, parent: str | None = None) -> Turn:
        """Accept a question, and answer it from the script if there is one."""
        before = [turn for turn in self.turns.values() if turn.conversation_id == conversation_id]
        at = datetime.now(UTC).isoformat()
        turn = Turn(
            turn_id=f"t{len(self.turns) + 1}",
            conversation_id=conversation_id,
            parent=parent if parent is not None else (before[-1].turn_id if before else ""),
            input=question,
            created_at=at,
        )
        conversation = self.conversations[conversation_id]
        conversation["updated_at"] = at
        conversation["title"] = conversation["title"] or question[:60]
        self.turns[turn.turn_id] = turn
        await self._tell()
        if self.script is not None:
            task = asyncio.create_task(self._answer(turn, self.script[(len(self.turns) - 1) % len(self.script)]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return turn

    async def add_past(self, conversation_id: str, count: int) -> None:
        """Keep so many answered questions, each following the one before."""
        for number in range(1, count + 1):
            turn = await self.add_turn(conversation_id, f"Question {number}?")
            await turn.start()
            await turn.say(f"Answer **{number}**.\n\n" + "- a line of it\n" * 6)
            await turn.complete()

    async def _answer(self, turn: Turn, text: str) -> None:
        await asyncio.sleep(self.pace * 20)
        await turn.start()
        await asyncio.sleep(self.pace * 20)
        for piece in pieces_of(text):
            if turn.status != "running":
                return
            await turn.add("token", text=piece)
            await asyncio.sleep(self.pace)
        await turn.complete()

    # -- what the page asks

    def application(self) -> web.Application:
        """Return the routes that the page uses."""
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/", page.index),
                web.get("/static/{path:.*}", page.static),
                web.get("/v1/me", self._me),
                web.get("/v1/conversations", self._list),
                web.post("/v1/conversations", self._create),
                web.get("/v1/conversations/{id}", self._read),
                web.patch("/v1/conversations/{id}", self._rename),
                web.delete("/v1/conversations/{id}", self._erase),
                web.post("/v1/conversations/{id}/turns", self._ask),
                web.get("/v1/turns/{id}", self._turn),
                web.get("/v1/turns/{id}/events", self._events),
                web.post("/v1/turns/{id}/stop", self._stop),
                web.post("/v1/turns/{id}/feedback", self._rate),
                web.post("/v1/turns/{id}/regenerate", self._beside),
                web.post("/v1/turns/{id}/edit", self._beside),
                *self.knowledge.routes(),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith("/v1/"):
            response = await handler(request)
            response.headers["X-Content-Type-Options"] = "nosniff"
            return response
        is_json = request.content_type == "application/json" and request.body_exists
        body = await request.json() if is_json else {}
        more = {**body, "key": request.headers.get("Idempotency-Key", "")}
        self.requests.append((request.method, request.path, more))
        await self._tell()
        refusal = self._refusal(f"{request.method} {request.path}")
        if refusal and not refusal.after:
            return self._refused(request, refusal)
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return self._refused(request, Refusal("", 401, message="no or bad credentials"))
        answered = await handler(request)
        return self._refused(request, refusal) if refusal else answered

    def _refusal(self, route: str) -> Refusal | None:
        for refusal in self.refusals:
            if refusal.times and re.fullmatch(refusal.route, route):
                refusal.times -= 1
                return refusal
        return None

    def _refused(self, request: web.Request, refusal: Refusal) -> web.Response:
        if refusal.status == 0:
            if request.transport:
                request.transport.abort()
            return web.Response()
        error = {"message": refusal.message, "type": "error", "code": "refused", "request_id": "r1"}
        return web.json_response({"error": error}, status=refusal.status, headers=refusal.headers)

    async def _me(self, _: web.Request) -> web.Response:
        return web.json_response({"user": "dev", "tenant": "dev"})

    async def _list(self, request: web.Request) -> web.Response:
        data = [] if self.lagging else sorted(self.conversations.values(), key=lambda c: str(c["updated_at"]))[::-1]
        if self.archive_down:
            data = data[:RECENT]
        after, limit = request.query.get("after", ""), int(request.query["limit"])
        found = [one for one in data if not after or str(one["updated_at"]) < after]
        more = len(found) > limit
        page = {"data": found[:limit], "has_more": more, "next": found[limit - 1]["updated_at"] if more else None}
        return web.json_response({"object": "list", **page, "older_unavailable": self.archive_down})

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response(self.add_conversation(body.get("title", "")), status=201)

    async def _read(self, request: web.Request) -> web.Response:
        conversation = self.conversations.get(request.match_info["id"])
        if conversation is None or self.lagging:
            return self._refused(request, Refusal("", 404, message="there is no such conversation"))
        turns = [turn.shown() for turn in self.turns.values() if turn.conversation_id == conversation["id"]]
        has_older = len(turns) > RECENT
        if self.archive_down:
            turns = turns[-RECENT:]
        ids = [turn["turn_id"] for turn in turns]
        before, limit = request.query.get("before", ""), int(request.query["limit"])
        found = turns[: ids.index(before)] if before in ids else turns
        part = {"turns": found[-limit:], "has_more": len(found) > limit}
        return web.json_response({**conversation, **part, "older_unavailable": self.archive_down and has_older})

    async def _rename(self, request: web.Request) -> web.Response:
        conversation = self.conversations[request.match_info["id"]]
        conversation["title"] = (await request.json())["title"]
        return web.json_response(conversation)

    async def _erase(self, request: web.Request) -> web.Response:
        self.conversations.pop(request.match_info["id"], None)
        return web.Response(status=204)

    async def _ask(self, request: web.Request) -> web.Response:
        body = await request.json()
        return await self._accept(request, request.match_info["id"], body["input"], None)

    async def _beside(self, request: web.Request) -> web.Response:
        old = self.turns[request.match_info["id"]]
        body = await request.json()
        return await self._accept(request, old.conversation_id, body.get("input", old.input), old.parent)

    async def _accept(self, request: web.Request, conversation: str, question: str, parent: str | None) -> web.Response:
        key = request.headers["Idempotency-Key"]
        if key not in self.by_key:
            self.by_key[key] = await self.add_turn(conversation, question, parent=parent)
        turn = self.by_key[key]
        shown = {"turn_id": turn.turn_id, "conversation_id": conversation, "status": turn.status}
        return web.json_response({**shown, "events_url": f"/v1/turns/{turn.turn_id}/events"}, status=202)

    async def _turn(self, request: web.Request) -> web.Response:
        turn = self.turns[request.match_info["id"]]
        return web.json_response({**turn.shown(), "citations": turn.citations})

    async def _stop(self, request: web.Request) -> web.Response:
        turn = self.turns[request.match_info["id"]]
        if turn.status in {"queued", "running"}:
            await turn.stop()
        return web.json_response({}, status=202)

    async def _rate(self, request: web.Request) -> web.Response:
        turn = self.turns[request.match_info["id"]]
        given = {"turn_id": turn.turn_id, "comment": None, "given_at": datetime.now(UTC).isoformat()}
        given |= await request.json()
        turn.feedback = None if self.archive_down else given
        return web.json_response(given, status=202)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        turn = self.turns[request.match_info["id"]]
        number = int(request.headers.get("Last-Event-ID", "-1")) + 1
        self.connections.append(number)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        transport = cast(asyncio.Transport, request.transport)
        self._streams.add(transport)
        await self._tell()
        try:
            with suppress(ConnectionResetError):
                await self._write_events(turn, number, response)
        finally:
            self._streams.discard(transport)
            await self._tell()
        return response

    async def _write_events(self, turn: Turn, number: int, response: web.StreamResponse) -> None:
        await response.write(b"retry: 20\n\n: hello\n\n")
        while True:
            await turn.beyond(number)
            for name, data in turn.events[number:]:
                await response.write(f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode())
                number += 1
                if name in FINAL:
                    return


@asynccontextmanager
async def serve(server: PageServer, port: int = 0) -> AsyncIterator[PageServer]:
    """Serve on the loopback address until the block is left."""
    runner = web.AppRunner(server.application(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        server.drop()
        await runner.cleanup()


async def _main(port: int) -> None:
    server = PageServer()
    server.pace = 0.03
    server.script = [(Path(__file__).parents[1] / "data" / "answer.md").read_text()]
    async with serve(server, port):
        print(f"The page is at {server.url}")  # noqa: T201 - it talks to the person at the terminal
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 8099))
