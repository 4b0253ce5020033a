"""Documents and passages for the web layer, in memory."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from domain.errors import EmbedderUnavailable, SinkUnavailable
from domain.knowledge import DocumentStatus, Found, Reader


class FakeDocuments:
    """What `adapters.document_status` is to the web layer. ``down``: Elasticsearch is away."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], DocumentStatus] = {}
        self.down = False
        self.keeps = False  # what is to be forgotten is not forgotten yet
        self.writes: list[list[str]] = []  # the ids of each
        self.hangs = False  # what is written stays on its way

    async def of(self, reader: Reader, *, limit: int, after: str = "") -> list[DocumentStatus]:
        self._ask()
        found = [each for each in self.known.values() if each.may_be_read_by(reader)]
        found.sort(key=lambda each: (-each.created_at, each.document_id))
        ids = [each.document_id for each in found]
        return found[ids.index(after) + 1 if after else 0 :][:limit]

    async def read(self, tenant: str, document_id: str) -> DocumentStatus | None:
        self._ask()
        return self.known.get((tenant, document_id))

    async def write(self, *each: tuple[DocumentStatus, int, bool], shown: bool = True) -> None:
        assert not shown
        self.writes.append([status.document_id for status, _, _ in each])
        if self.hangs:
            await asyncio.Event().wait()
        self._ask()
        for status, _, _ in each:
            self.known[status.tenant, status.document_id] = status

    def forget(self, tenant: str, document_id: str) -> None:
        if not self.keeps:
            self.known.pop((tenant, document_id), None)

    def _ask(self) -> None:
        if self.down:
            raise SinkUnavailable("Elasticsearch is not there", retry_after=2)


class FakeRetriever:
    """Finds ``found``, whoever asks; ``asked`` is by whom and for what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Reader, list[Mapping[str, Any]]]] = []
        self.found: list[Found] = []
        self.down = False
        self.hangs = False

    async def search(self, reader: Reader, messages: Sequence[Mapping[str, Any]], *, k: int) -> list[Found]:
        if self.down:
            raise SinkUnavailable("Elasticsearch is not there", retry_after=2)
        if self.hangs:
            await asyncio.Event().wait()
        self.asked.append((reader, list(messages)))
        return self.found[:k]


class FakeEmbedder:
    """Embeds a text as its length and 1."""

    def __init__(self) -> None:
        self.down = False

    def of(self, _model: str) -> "FakeEmbedder":
        return self

    async def documents(self, texts: Sequence[str]) -> list[list[float]]:
        if self.down:
            raise EmbedderUnavailable("the embedding model is being loaded", retry_after=5)
        return [[float(len(text)), 1.0] for text in texts]
