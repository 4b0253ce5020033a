"""A place of one's own in an Elasticsearch that many tests share, a look into it, and one that fails as it is told."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec
from aiohttp import web
from elasticsearch import Elasticsearch, NotFoundError

Answer = tuple[int, dict[str, Any]]


@contextmanager
def own_indices(url: str) -> Iterator[str]:
    """Yield a prefix that nobody else's indices have; they are deleted at the end."""
    prefix = f"test-{uuid4().hex[:12]}-"
    yield prefix
    with Elasticsearch(url) as client:
        for index in client.indices.get(index=f"{prefix}*", ignore_unavailable=True):
            client.indices.delete(index=index)
        client.options(ignore_status=404).indices.delete_index_template(name=f"{prefix}turns")


def documents(url: str, index: str, query: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Return what is found in an index or alias, by id; nothing where there is none."""
    with Elasticsearch(url) as client:
        try:
            client.indices.refresh(index=index)
            hits = client.search(index=index, query=query or {"match_all": {}}, size=10_000)["hits"]["hits"]
        except NotFoundError:
            return {}
    found = {hit["_id"]: hit["_source"] for hit in hits}
    assert len(found) == len(hits), "a document is in two indices"
    return found


class FailingSearch:
    """Passes requests on to an Elasticsearch, and does to them what a healthy one cannot be made to do.

    ``down``: every request is answered 503. ``largest``: a proxy's limit of a body, in bytes. ``refuse`` is shown
    the id of each document of a bulk request, and answers in the server's place with a status and an error.
    ``before_bulk`` runs when a bulk request has come and was not passed on yet.
    """

    def __init__(self, url: str) -> None:
        self._to = url
        self.url = ""
        self.down = False
        self.largest = 1 << 30
        self.refuse: Callable[[str], Answer | None] = lambda _: None
        self.before_bulk: Callable[[], Any] | None = None
        self.bulks: list[list[str]] = []  # the ids that each asked for

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
        async with aiohttp.ClientSession() as self._session:
            try:
                yield
            finally:
                await runner.cleanup()

    async def _pass_on(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.down:
            return self._json({"error": {"type": "unavailable", "reason": "down"}}, 503)
        if len(body) > self.largest:
            return web.Response(status=413, headers={"X-Elastic-Product": "Elasticsearch"})
        if request.path.endswith("/_bulk"):
            return await self._bulk(request, body)
        return await self._forward(request, body)

    async def _bulk(self, request: web.Request, body: bytes) -> web.Response:
        if self.before_bulk is not None:
            await self.before_bulk()
        lines = iter(body.splitlines(keepends=True))
        ids: list[str] = []
        answers: list[Answer | None] = []
        passed = []
        for line in lines:
            ((action, where),) = msgspec.json.decode(line).items()
            ids.append(where["_id"])
            answers.append(self.refuse(where["_id"]))
            document = b"" if action == "delete" else next(lines)
            if answers[-1] is None:
                passed.append(line + document)
        self.bulks.append(ids)
        taken = iter(await self._taken(request, b"".join(passed)))
        items = [next(taken) if each is None else {"index": {"status": each[0], "error": each[1]}} for each in answers]
        return self._json({"errors": any(answers), "items": items}, 200)

    async def _taken(self, request: web.Request, body: bytes) -> list[dict[str, Any]]:
        if not body:
            return []
        answer = await self._forward(request, body)
        assert isinstance(answer.body, bytes)
        items: list[dict[str, Any]] = msgspec.json.decode(answer.body)["items"]
        return items

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        kept = {name: request.headers[name] for name in ("Content-Type", "Accept") if name in request.headers}
        async with self._session.request(request.method, self._to + request.path_qs, data=body, headers=kept) as answer:
            return web.Response(
                status=answer.status,
                body=await answer.read(),
                headers={
                    "Content-Type": answer.headers.get("Content-Type", "application/json"),
                    "X-Elastic-Product": "Elasticsearch",
                },
            )

    @staticmethod
    def _json(value: dict[str, Any], status: int) -> web.Response:
        headers = {"Content-Type": "application/json", "X-Elastic-Product": "Elasticsearch"}
        return web.Response(status=status, body=msgspec.json.encode(value), headers=headers)
