"""Finds passages for a question: its vector, one request for both rankings, and what `domain.retrieval` makes of those.

For an answer it never fails and never takes longer than HEADRACE_RETRIEVAL_SECONDS: documents that are out of reach are
an outcome (`Retrieved`). Without vectors, while their model is being loaded or the index does not fit it, words alone
have to find what there is; without the cross-encoder, the order is that of the rankings.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import structlog

from adapters.embedder import Embedder, Embedders
from adapters.embedding_child import Child, command_for
from adapters.passage_index import Index, PassageIndex, found_in, remedy
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
    in_one,
    keywords,
    queries,
    within,
)

log = structlog.get_logger(__name__)

SPARE: Final = 3
"""Passages that are read for each that is wanted, so that what says the same twice can be left out."""

VECTOR_SECONDS: Final = 1.0
"""How long a search waits for its vectors: a question behind a long document, on a busy machine."""

RERANKED: Final = 16
"""Passages that a cross-encoder looks at, however few are wanted."""

RERANK_SECONDS: Final = 1.5
"""For so many passages: a small cross-encoder takes 0.5 s of a core."""

EMPTY_SECONDS: Final = 5.0
EMPTY_READERS: Final = 1000
LOOK_SECONDS: Final = 5.0


class Ranker(Protocol):
    """Says how well texts answer a question; `adapters.embedding_child.Child` does."""

    @property
    def ready(self) -> bool: ...  # noqa: D102
    async def scores(self, question: str, texts: Sequence[str]) -> list[float]: ...  # noqa: D102


class Retriever:
    """See the module. ``ranker``: the cross-encoder, if there is one."""

    def __init__(
        self, embedders: Embedders, index: PassageIndex, settings: Settings, *, ranker: Ranker | None = None
    ) -> None:
        self._embedders = embedders
        self._index = index
        self._settings = settings
        self._ranker = ranker
        self._empty: OrderedDict[Reader, float] = OrderedDict()
        self._told = ""

    async def find(self, reader: Reader, messages: Messages, *, k: int, tokens: int, threshold: float) -> Retrieved:
        """Return what an answer to the last message can rest on, at most ``k`` passages of ``tokens`` model tokens.

        ``threshold``: how likely it has to be that they answer it.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.retrieval_seconds):
                retrieved = await self._find(reader, messages, k=k, tokens=tokens, threshold=threshold)
        except (Retriable, Rejected, TimeoutError) as error:
            # While Elasticsearch is left alone after a failure, that has been said already.
            say = log.debug if isinstance(error, Retriable) and error.retry_after is not None else log.warning
            say("answering without documents", reason=str(error) or repr(error))
            retrieved = Retrieved("unavailable")
        except Exception:  # an index that somebody else has written to may hold anything
            log.exception("search met an unforeseen error")
            retrieved = Retrieved("unavailable")
        metrics.retrievals.labels(retrieved.outcome).inc()
        metrics.retrieval_duration.observe(time.monotonic() - began)
        return retrieved

    async def search(self, reader: Reader, messages: Messages, *, k: int) -> list[Found]:
        """Return the ``k`` best passages for the last message, of each document one first. Raises `SinkUnavailable`."""
        found, _ = await self.ranked(reader, messages, k)
        return _falling(by_document(found)[:k])

    async def ranked(self, reader: Reader, messages: Messages, k: int) -> tuple[list[Found], Evidence]:
        """Return what was found, best first, and what speaks for it. Raises `SinkUnavailable`."""
        asked = queries(messages)
        if not asked:
            return [], Evidence("", {}, ())
        serving = await self._serving()
        vector = await self._vector(serving, asked) if serving else None
        of = serving.name if serving else ""
        words, near, stamps = await self._index.search(reader, keywords(messages), vector, DEPTH, of=of)
        ranked = fuse(words, near)
        most = max(k * SPARE, RERANKED if self._ranker else 0)
        passages = await self._index.read(reader, [key for key, _ in ranked[:most]], stamps)
        found = await self._reranked(in_one(messages), found_in(passages, ranked))
        return found, Evidence(asked[0].text, near, found)

    async def embedder(self) -> Embedder | None:
        """Return the model of the index that is searched, None while it cannot be asked.

        Raises `SinkUnavailable`, and FileNotFoundError where this worker does not have the model.
        """
        serving = await self._index.serving()
        embedder = serving and self._embedders.of(serving.model)
        return embedder if embedder and embedder.ready else None

    async def look(self) -> None:
        """Find the index that is searched, load its model, and say what is wrong with it; until that was possible."""
        while True:
            with suppress(Retriable):
                await self._serving()
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _find(self, reader: Reader, messages: Messages, *, k: int, tokens: int, threshold: float) -> Retrieved:
        found, evidence = await self.ranked(reader, messages, k)
        if not found:
            return Retrieved("empty" if await self._may_read_nothing(reader) else "weak")
        sure = confidence(evidence)
        if sure < threshold:
            return Retrieved("weak", (), sure)
        return Retrieved("found", tuple(within(distinct(found), count=k, tokens=tokens)), sure)

    async def _serving(self) -> Index | None:
        """Return the index that is searched."""
        indices = await self._index.indices()
        # The others' models are loaded, too: once the alias leads to one of these, the next question needs its vector.
        for each in indices:
            with suppress(FileNotFoundError):
                if each.model:
                    self._embedders.of(each.model)
        serving = next((each for each in indices if each.state == "serving"), None)
        if serving and serving.drift:
            self._say(remedy(serving))
        return serving

    async def _vector(self, index: Index, asked: Sequence[Query]) -> Sequence[float] | None:
        """Return the vector of what is asked, by the model of an index; None if there is none now."""
        if index.drift:
            return None
        try:
            embedder = self._embedders.of(index.model)
            if not embedder.ready:
                return None
            if embedder.dims not in {0, index.dims}:
                self._say(remedy(index, f"{index.model} gives vectors of {embedder.dims} numbers, it has {index.dims}"))
                return None
            async with asyncio.timeout(VECTOR_SECONDS):
                vectors = await embedder.queries([query.text for query in asked])
        except FileNotFoundError as error:
            self._say(remedy(index, f"this worker does not have its model, {error}"))
            return None
        except (EmbedderUnavailable, Rejected, TimeoutError) as error:
            log.warning("searching without vectors", reason=str(error) or repr(error))
            return None
        return combined(vectors, [query.weight for query in asked])

    async def _reranked(self, question: str, found: list[Found]) -> list[Found]:
        """Return what was found with its best passages in the cross-encoder's order."""
        if self._ranker is None or not self._ranker.ready or not found:
            return found
        best, rest = found[:RERANKED], found[RERANKED:]
        try:
            async with asyncio.timeout(RERANK_SECONDS):
                scores = await self._ranker.scores(question, [each.passage.text for each in best])
        except (EmbedderUnavailable, Rejected, TimeoutError) as error:
            log.warning("passages not ranked again", reason=str(error) or repr(error))
            return found
        ordered = sorted(zip(scores, best, strict=True), key=lambda each: -each[0])
        return _falling([replace(each, score=score) for score, each in ordered] + rest)

    async def _may_read_nothing(self, reader: Reader) -> bool:
        """Return whether there is no passage for a reader; for a moment nobody is looked for who has none."""
        now = time.monotonic()
        if now - self._empty.get(reader, float("-inf")) < EMPTY_SECONDS:
            return True
        if await self._index.has_any(reader):
            return False
        self._empty[reader] = now
        self._empty.move_to_end(reader)
        while len(self._empty) > EMPTY_READERS:
            self._empty.popitem(last=False)
        return True

    def _say(self, what: str) -> None:
        """Log what somebody has to do, once and not with every question."""
        if what != self._told:
            self._told = what
            log.error("documents are searched by words alone", reason=what)


def _falling(found: Sequence[Found]) -> list[Found]:
    """Return what is in order with scores that say so: none is above the one before it."""
    falling: list[Found] = []
    for each in found:
        score = min(each.score, falling[-1].score) if falling else each.score
        falling.append(replace(each, score=score))
    return falling


@asynccontextmanager
async def open_retriever(embedders: Embedders, index: PassageIndex, settings: Settings) -> AsyncIterator[Retriever]:
    """Yield the search. What it needs is being looked for, unless retrieval is off."""
    async with AsyncExitStack() as stack:
        ranker = None
        if settings.retrieval == "on" and settings.reranker:
            ranker = Child(command_for(_ranker_folder(settings.reranker), "scores"), settings.reranker)
            ranker.start()
            stack.push_async_callback(ranker.stop)
        retriever = Retriever(embedders, index, settings, ranker=ranker)
        looking = asyncio.create_task(retriever.look()) if settings.retrieval == "on" else None
        try:
            yield retriever
        finally:
            if looking is not None:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)


def _ranker_folder(name: str) -> Path:
    folder = Path(name)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"HEADRACE_RERANKER: {name!r} is not the folder of a sentence-transformers CrossEncoder"
        )
    return folder
