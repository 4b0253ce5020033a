"""Answers in Elasticsearch, to be given again: what they are kept under decides who finds them (`domain.answer_cache`).

Nothing here may cost an answer anything. A look-up takes 0.3 s at most and never raises; an answer is kept after its
turn, by a task of its own, and lost where that fails. Vectors of two models do not compare, so each model has an index.

Erasing is the archive's, which comes round to every conversation that is erased and looks here too
(`adapters.search_index`). It may come before an answer of that conversation is kept; so whoever has kept one asks
afterwards whether its conversation is still there, and takes it back if not: one of the two sees the other.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import blake2b
from time import time
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec
import structlog

from adapters.elastic import Elastic, create_index
from adapters.search_index import Erasure
from config import metrics
from config.settings import Settings
from domain.answer_cache import Asked, Cached, Kept, Place, Source, may_be_kept, place_of, served
from domain.errors import Rejected, Retriable
from domain.generation import Usage
from domain.knowledge import Retrieved
from domain.prices import NANO, Prices

log = structlog.get_logger(__name__)

FIND_SECONDS: Final = 0.3
KEEP_SECONDS: Final = 10.0
AT_ONCE: Final = 32  # answers that wait to be kept; more of them mean that Elasticsearch is slow, and are not kept
SWEEP_SECONDS: Final = 600.0
NEAREST: Final = 5  # kept questions that are looked at: the nearest may be one that means something else
CANDIDATES: Final = 50

_KEYWORD: Final = {"type": "keyword"}
_UNSEARCHED: Final = {"type": "keyword", "index": False, "doc_values": False}
_PROPERTIES: Final = {
    "shelf": _KEYWORD,
    "question": _UNSEARCHED,
    "answer": _UNSEARCHED,
    "passage_ids": _UNSEARCHED,
    "document_ids": _KEYWORD,
    "usage": {"type": "object", "enabled": False},
    # Whose it is: for erasing it, never for finding it.
    "tenant": _KEYWORD,
    "user_id": _KEYWORD,
    "conversation_id": _KEYWORD,
    "turn_id": _KEYWORD,
    "at": {"type": "date", "format": "epoch_millis"},
}
_SETTINGS: Final = {"number_of_shards": 1, "auto_expand_replicas": "0-1"}


class Embedder(Protocol):
    """What makes vectors of questions."""

    model: str

    @property
    def dims(self) -> int:
        """Return how long a vector is, 0 while that is not known."""
        ...

    async def query(self, text: str) -> list[float]:
        """Return a question's vector. Raises `Retriable`."""
        ...


class AnswerCache:
    """See the module. ``embedder`` returns that of the documents that are searched now, if there is one.

    ``clock`` is that of Unix time.
    """

    def __init__(
        self,
        elastic: Elastic,
        settings: Settings,
        embedder: Callable[[], Awaitable[Embedder | None]],
        *,
        clock: Callable[[], float] = time,
    ) -> None:
        self._elastic = elastic
        self._sharing = settings.answer_cache
        self._seconds = settings.answer_cache_seconds
        self._similarity = settings.answer_cache_similarity
        self._prices = Prices(*settings.prices)
        self._embedder = embedder
        self._clock = clock
        self._all = f"{settings.index_prefix}answers-*"
        self._name = f"{settings.index_prefix}answers-v1"
        self._erased = f"{settings.index_prefix}erased"
        self._made: set[str] = set()
        self._keeping: set[asyncio.Task[None]] = set()
        self._swept = 0.0

    def place(self, asked: Asked) -> Place | None:
        """Return where a question's answer is looked for and kept; None if it may be neither."""
        return place_of(asked, self._sharing)

    async def find(self, place: Place, retrieved: Retrieved) -> Cached | None:
        """Return an answer that was kept for this question or for one that means the same. Never raises."""
        result, cached = "miss", None
        try:
            # A time-out of ours and not of the client's, which would be held against Elasticsearch.
            async with asyncio.timeout(FIND_SECONDS):
                cached = await self._find(place, retrieved)
        except (Retriable, Rejected, FileNotFoundError, TimeoutError, msgspec.ValidationError) as error:
            log.warning("answer cache not asked", reason=repr(error))
            result = "unavailable"
        if cached is not None:
            result = cached.kind
            self._count(place.model, cached.saved)
        metrics.answer_cache_lookups.labels(result).inc()
        return cached

    def keep(
        self,
        place: Place,
        retrieved: Retrieved,
        source: Source,
        answer: str,
        *,
        outcome: str,
        finish: str,
        usage: Usage,
    ) -> None:
        """Keep an answer, some time later, if it may be kept. Returns at once."""
        if not may_be_kept(retrieved, answer, outcome=outcome, finish=finish) or len(self._keeping) >= AT_ONCE:
            return
        ids = tuple(found.passage_id for found in retrieved.passages)
        documents = sorted({found.passage.document_id for found in retrieved.passages})
        kept = Kept(place.question, answer, ids, usage, source.turn_id)
        task = asyncio.create_task(self._keep(place, kept, source, documents))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def kept(self) -> None:
        """Wait until everything that was to be kept is kept, or was given up."""
        await asyncio.gather(*self._keeping)

    async def forget(
        self,
        tenant: str,
        *,
        user: str | None = None,
        conversation_id: str | None = None,
        document_id: str | None = None,
    ) -> None:
        """Delete what came from a user, from a conversation, or rests on a document. Raises `SinkUnavailable`."""
        wanted = {"tenant": tenant, "user_id": user, "conversation_id": conversation_id, "document_ids": document_id}
        terms = [{"term": {name: value}} for name, value in wanted.items() if value is not None]
        async with self._elastic.client() as client:
            await client.indices.refresh(index=self._all)  # what was written a moment ago is not found yet
            await client.delete_by_query(index=self._all, query={"bool": {"filter": terms}}, refresh=True)

    async def close(self) -> None:
        """Give up what is not kept yet."""
        for task in tuple(self._keeping):
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)

    # -- finding

    async def _find(self, place: Place, retrieved: Retrieved) -> Cached | None:
        embedder = None if place.is_exact else await self._embedder()
        index = self._index(embedder)
        async with self._elastic.client() as client:
            exact = await client.options(ignore_status=404).get(index=index, id=place.key, source_excludes=["vector"])
        if exact.body.get("found"):
            if cached := self._served(exact["_source"], place, retrieved):
                return cached
        elif exact.body.get("error"):
            return None  # no index: nobody has kept an answer yet
        if embedder is None:
            return None
        for source in await self._near(index, place, await embedder.query(place.asked)):
            if cached := self._served(source, place, retrieved):
                return cached
        return None

    async def _near(self, index: str, place: Place, vector: list[float]) -> list[dict[str, Any]]:
        """Return what is kept of the questions that are nearest, of this shelf alone."""
        async with self._elastic.client() as client:
            answer = await client.search(
                index=index,
                knn={
                    "field": "vector",
                    "query_vector": vector,
                    "k": NEAREST,
                    "num_candidates": CANDIDATES,
                    "filter": {"term": {"shelf": place.shelf}},
                },
                size=NEAREST,
                source_excludes=["vector"],
                filter_path=["hits.hits._score", "hits.hits._source"],
            )
        # Elasticsearch's score is (1 + cosine) / 2.
        return [
            hit["_source"]
            for hit in answer.body.get("hits", {}).get("hits", ())
            if 2 * hit["_score"] - 1 >= self._similarity
        ]

    def _served(self, source: dict[str, Any], place: Place, retrieved: Retrieved) -> Cached | None:
        if source["shelf"] != place.shelf or source["at"] <= self._since():
            return None
        return served(msgspec.convert(source, Kept), place, retrieved)

    def _since(self) -> int:
        """Return the time in Unix ms that an answer has to be younger than."""
        return round((self._clock() - self._seconds) * 1000)

    def _count(self, model: str, saved: Usage) -> None:
        metrics.answer_cache_saved_tokens.labels("input").inc(saved.input_tokens)
        metrics.answer_cache_saved_tokens.labels("output").inc(saved.output_tokens)
        cost = self._prices.of(model, saved.input_tokens, saved.output_tokens) or 0
        metrics.answer_cache_saved_cost.inc(cost / NANO)

    # -- keeping

    async def _keep(self, place: Place, kept: Kept, source: Source, documents: list[str]) -> None:
        try:
            async with asyncio.timeout(KEEP_SECONDS):
                await self._write(place, kept, source, documents)
                await self._sweep()
        except (Retriable, Rejected, FileNotFoundError, TimeoutError) as error:
            log.warning("answer not kept", turn_id=source.turn_id, reason=repr(error))

    async def _write(self, place: Place, kept: Kept, source: Source, documents: list[str]) -> None:
        embedder = None if place.is_exact else await self._embedder()
        vector = {} if embedder is None else {"vector": await embedder.query(place.asked)}
        index = await self._made_index(embedder)
        document = msgspec.to_builtins(kept) | {
            "shelf": place.shelf,
            "document_ids": documents,
            **vector,
            "tenant": source.tenant,
            "user_id": source.user,
            "conversation_id": source.conversation_id,
            "at": round(self._clock() * 1000),
        }
        async with self._elastic.client() as client:
            await client.index(index=index, id=place.key, document=document)
        erasure = Erasure(source.tenant, source.user, UUID(source.conversation_id)).key
        async with self._elastic.client() as client:
            erased = await client.options(ignore_status=404).get(index=self._erased, id=erasure)
            if erased.body.get("found"):
                await client.options(ignore_status=404).delete(index=index, id=place.key)

    async def _made_index(self, embedder: Embedder | None) -> str:
        """Return the index of a model; makes it if it is missing. Of several workers that do, one is first."""
        index = self._index(embedder)
        if index not in self._made:
            vector = {} if embedder is None else {"vector": _vector(embedder.dims)}
            async with self._elastic.client() as client:
                if not await client.indices.exists(index=index):
                    mappings = {"dynamic": "strict", "properties": {**_PROPERTIES, **vector}}
                    await create_index(client, index, settings=_SETTINGS, mappings=mappings)
            self._made.add(index)
        return index

    def _index(self, embedder: Embedder | None) -> str:
        """Return the name of a model's index; without one, of that where only the same words are found."""
        if embedder is None:
            return self._name
        return f"{self._name}-{blake2b(embedder.model.encode(), digest_size=4).hexdigest()}"

    async def _sweep(self) -> None:
        """Delete what is too old to be given again, now and then."""
        if self._clock() - self._swept < SWEEP_SECONDS:
            return
        self._swept = self._clock()
        async with self._elastic.client() as client:
            # A conflict is somebody else's sweep, or an answer that was kept anew.
            await client.delete_by_query(
                index=self._all, query={"range": {"at": {"lte": self._since()}}}, conflicts="proceed"
            )


def _vector(dims: int) -> dict[str, Any]:
    return {"type": "dense_vector", "dims": dims, "index": True, "similarity": "cosine"}


@asynccontextmanager
async def open_answer_cache(
    elastic: Elastic, settings: Settings, embedder: Callable[[], Awaitable[Embedder | None]]
) -> AsyncIterator[AnswerCache]:
    """Yield the cache; at the end, what is not kept yet is given up."""
    cache = AnswerCache(elastic, settings, embedder)
    try:
        yield cache
    finally:
        await cache.close()
