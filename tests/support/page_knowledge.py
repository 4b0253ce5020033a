"""Documents and memories for the page's stand-in server: it keeps what comes, and a test says what becomes of it."""

from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

AT = "2026-11-20T10:00:00Z"


@dataclass
class PageKnowledge:
    """What the server knows. ``received``: the files that came, by name."""

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    memories: dict[str, dict[str, Any]] = field(default_factory=dict)
    received: dict[str, bytes] = field(default_factory=dict)
    enabled: bool = True
    switchable: bool = True

    def add_document(self, title: str, status: str = "learned", **more: Any) -> dict[str, Any]:
        """Know a document."""
        document_id = f"d{len(self.documents) + 1}"
        shown = {"document_id": document_id, "title": title, "status": status, "passages": 3, "error": None}
        self.documents[document_id] = {**shown, "url": None, "created_at": AT, "updated_at": AT, **more}
        return self.documents[document_id]

    def add_memory(self, text: str, *, conversation_id: str = "") -> None:
        """Remember something."""
        memory_id = f"m{len(self.memories) + 1}"
        source = {"conversation_id": conversation_id, "turn_id": "t1"} if conversation_id else None
        self.memories[memory_id] = {"id": memory_id, "text": text, "kind": "note", "created_at": AT, "source": source}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/v1/documents", self._list),
            web.post("/v1/documents", self._give),
            web.get("/v1/documents/{id:.+}", self._read),
            web.delete("/v1/documents/{id:.+}", self._forget),
            web.get("/v1/me/memories", self._memories),
            web.patch("/v1/me/memories", self._switch),
            web.delete("/v1/me/memories", self._forget_all),
            web.patch("/v1/me/memories/{id}", self._change),
            web.delete("/v1/me/memories/{id}", self._forget_one),
        ]

    async def _list(self, _: web.Request) -> web.Response:
        data = list(self.documents.values())[::-1]
        return web.json_response({"object": "list", "data": data, "has_more": False})

    async def _give(self, request: web.Request) -> web.Response:
        part = (await request.post())["file"]
        assert isinstance(part, web.FileField)
        if part.filename.endswith(".exe"):
            error = {"message": f"{part.filename}: files of this kind cannot be read.", "code": "unsupported_file"}
            return web.json_response({"error": error}, status=415)
        self.received[part.filename] = part.file.read()
        return web.json_response(self.add_document(part.filename, "queued", passages=0), status=202)

    async def _read(self, request: web.Request) -> web.Response:
        return web.json_response(self.documents[request.match_info["id"]])

    async def _forget(self, request: web.Request) -> web.Response:
        del self.documents[request.match_info["id"]]
        return web.Response(status=204)

    async def _memories(self, _: web.Request) -> web.Response:
        about = {"enabled": self.enabled, "switchable": self.switchable}
        return web.json_response({"object": "list", "data": list(self.memories.values()), "has_more": False, **about})

    async def _switch(self, request: web.Request) -> web.Response:
        self.enabled = (await request.json())["enabled"]
        return web.json_response({})

    async def _change(self, request: web.Request) -> web.Response:
        memory = self.memories[request.match_info["id"]]
        memory["text"] = (await request.json())["text"]
        return web.json_response(memory)

    async def _forget_one(self, request: web.Request) -> web.Response:
        del self.memories[request.match_info["id"]]
        return web.Response(status=204)

    async def _forget_all(self, _: web.Request) -> web.Response:
        self.memories.clear()
        return web.Response(status=204)
