"""Finds passages for a question: its vector, one request for both rankings, and what `domain.retrieval` makes of those.

For an answer it never fails and never takes longer than HEADRACE_RETRIEVAL_SECONDS: documents that are out of reach are
an outcome (`Retrieved`). Without vectors, while their model is being loaded, words alone have to find what there is.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog

from adapters.embedder import Embedder, Embedders
from adapters.passage_index import Index, PassageIndex, found_in
from config import metrics
from config.settings import Settings
from domain.errors import EmbedderUnavailable, Rejected, Retriable
from domain.knowledge import Found, Reader, Retrieved
from domain.retrieval import (
    DEPTH,
    Evidence,
    Messages,
    Query,
    by_document,
    combined,
    confidence,
    distinct,
    fuse,
    queries,
    within,
)

log = structlog.get_logger(__name__)

SPARE: Final = 3
"""Passages that are read for each that is wanted, so that what says the same twice can be left out."""

VECTOR_SECONDS: Final = 1.0
"""How long a search waits for its vectors: a question behind a long document, on a busy machine."""


class Retriever:
    """See the module."""

    def __init__(self, embedders: Embedders, index: PassageIndex, settings: Settings) -> None:
        self._embedders = embedders
        self._index = index
        self._settings = settings

    async def find(self, reader: Reader, messages: Messages, *, k: int, tokens: int, threshold: float) -> Retrieved:
        """Return what an answer to the last message can rest on, at most ``k`` passages of ``tokens`` model tokens.

        ``threshold``: how likely it has to be that they answer it.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.retrieval_seconds):
                retrieved = await self._find(reader, messages, k=k, tokens=tokens, threshold=threshold)
        except (Retriable, Rejected, TimeoutError) as error:
            log.warning("answering without documents", reason=str(error) or repr(error))
            retrieved = Retrieved("unavailable")
        metrics.retrievals.labels(retrieved.outcome).inc()
        metrics.retrieval_duration.observe(time.monotonic() - began)
        return retrieved

    async def search(self, reader: Reader, messages: Messages, *, k: int) -> list[Found]:
        """Return the ``k`` best passages for the last message, of each document one first. Raises `SinkUnavailable`."""
        found, _ = await self._ranked(reader, messages, k)
        return by_document(found)[:k]

    async def embedder(self) -> Embedder | None:
        """Return the model of the index that is searched, None while it cannot be asked.

        Raises `SinkUnavailable`, and FileNotFoundError where this worker does not have the model.
        """
        serving = await self._index.serving()
        embedder = serving and self._embedders.of(serving.model)
        return embedder if embedder and embedder.ready else None

    async def _find(self, reader: Reader, messages: Messages, *, k: int, tokens: int, threshold: float) -> Retrieved:
        found, evidence = await self._ranked(reader, messages, k)
        if not found:
            return Retrieved("weak" if await self._index.has_any(reader) else "empty")
        sure = confidence(evidence)
        if sure < threshold:
            return Retrieved("weak", (), sure)
        return Retrieved("found", tuple(within(found, count=k, tokens=tokens)), sure)

    async def _ranked(self, reader: Reader, messages: Messages, k: int) -> tuple[list[Found], Evidence]:
        """Return what was found, best first and each thing once, and what speaks for it."""
        asked = queries(messages)
        if not asked:
            return [], Evidence("", {}, {}, ())
        serving = await self._serving()
        vector = await self._vector(serving, asked) if serving else None
        of = serving.name if serving else ""
        words, near = await self._index.search(reader, asked[0].text, vector, DEPTH, of=of)
        ranked = fuse(words, near)
        passages = await self._index.read(reader, [key for key, _ in ranked[: k * SPARE]])
        found = distinct(found_in(passages, ranked))
        return found, Evidence(asked[0].text, words, near, found)

    async def _serving(self) -> Index | None:
        """Return the index that is searched."""
        indices = await self._index.indices()
        # The others' models are loaded, too: once the alias leads to one of these, the next question needs its vector.
        for each in indices:
            with suppress(FileNotFoundError):
                self._embedders.of(each.model)
        return next((each for each in indices if each.state == "serving"), None)

    async def _vector(self, index: Index, asked: Sequence[Query]) -> Sequence[float] | None:
        """Return the vector of what is asked, by the model of an index; None if there is none now."""
        try:
            embedder = self._embedders.of(index.model)
            if not embedder.ready:
                return None
            async with asyncio.timeout(VECTOR_SECONDS):
                vectors = await embedder.queries([query.text for query in asked])
        except (EmbedderUnavailable, Rejected, FileNotFoundError, TimeoutError) as error:
            log.warning("searching without vectors", reason=str(error) or repr(error))
            return None
        return combined(vectors, [query.weight for query in asked])
