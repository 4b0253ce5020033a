"""Learns documents: reads their topic as far as it goes, cuts, embeds and indexes each, and notes what became of it.

The records are read from the log by the owner of their partition, as the archive's are, and not handled as events: a
file of megabytes and a minute of work must hold up neither a rebalance nor an answer. **What is noted as the progress
is learned**: passages are in the index, and can be found, before the progress moves past their document. It lives in
Elasticsearch beside them, so an index that is lost is learned anew.

To learn a document again changes what changed: a passage's id is made of its text and its place, so those that stay are
not embedded again. Of several records of a document in one batch the last one counts.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NoReturn, Protocol

import structlog

from adapters.document_status import DocumentStatuses
from adapters.embedder import Embedder, Embedders
from adapters.parsers import Parsers
from adapters.passage_index import Index, Learned, PassageIndex, keyed
from config import metrics
from domain.backoff import pause
from domain.errors import BadRecord, EmbedderUnavailable, Rejected, Retriable
from domain.knowledge import DocumentStatus, Passage
from domain.passages import split
from streams.archiving import SetAside
from streams.records import Document, decode

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 10.0
AT_ONCE: Final = 32
BATCH_BYTES: Final = 16 << 20
WRITES_AT_ONCE: Final = 4


class Record(Protocol):
    """A record as it stands in the log."""

    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes: ...  # noqa: D102
    @property
    def value(self) -> bytes: ...  # noqa: D102
    @property
    def at_ms(self) -> int: ...  # noqa: D102


class Reading(Protocol):
    """What is read of Kafka. Methods raise `LogUnavailable`."""

    async def topic_id(self, topic: str) -> str: ...  # noqa: D102
    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]: ...  # noqa: D102
    async def batch(  # noqa: D102
        self, topic: str, partition: int, start: int, stop: int, *, most: int, most_bytes: int
    ) -> Sequence[Record]: ...


@dataclass(frozen=True, slots=True)
class Task:
    """A document that is to be learned (or forgotten: without one), and what was known of it."""

    tenant: str
    document_id: str
    at_ms: int
    document: Document | None = None
    known: DocumentStatus | None = None


class Learner:
    """See the module. ``owned``: the partitions that this worker has now."""

    def __init__(
        self,
        reader: Reading,
        topic: str,
        *,
        index: PassageIndex,
        statuses: DocumentStatuses,
        embedders: Embedders,
        parsers: Parsers,
        model: str,
        owned: Callable[[], set[int]],
        set_aside: SetAside,
    ) -> None:
        self._reader = reader
        self._topic = topic
        self._index = index
        self._statuses = statuses
        self._embedders = embedders
        self._parsers = parsers
        self._model = model
        self._owned = owned
        self._set_aside = set_aside
        self._next: dict[int, int] = {}
        self._log = ""

    async def run(self) -> NoReturn:
        """Learn what comes. Nothing but its cancellation ends it."""
        attempt = 0
        while True:
            try:
                busy = await self.learn()
                attempt = 0
                await asyncio.sleep(0 if busy else LOOK_SECONDS)
                continue
            except Retriable as error:
                log.warning("learning waits", reason=str(error))
            except Exception:
                log.exception("learning met an unforeseen error")
            attempt += 1
            self._next.clear()
            await asyncio.sleep(pause(attempt, first=LOOK_SECONDS, longest=LONGEST_PAUSE_SECONDS))

    async def learn(self) -> bool:
        """Learn a batch of each partition that has something new; return whether one had."""
        owned = sorted(self._owned())
        self._next = {partition: offset for partition, offset in self._next.items() if partition in owned}
        if not owned:
            return False
        self._log = self._log or f"{self._topic}@{await self._reader.topic_id(self._topic)}"
        ends = await self._reader.ends(self._topic, owned)
        busy = False
        for partition, end in ends.items():
            if partition not in self._next:
                # Nothing was ever learned where nothing was ever given: then Elasticsearch need not be there.
                self._next[partition] = await self._statuses.progress(self._log, partition) if end else 0
            if self._next[partition] < end and partition in self._owned():
                await self._bring(partition, self._next[partition], end)
                busy = True
        return busy

    async def _bring(self, partition: int, start: int, end: int) -> None:
        """Learn the next records of a partition, and note that."""
        records = await self._reader.batch(self._topic, partition, start, end, most=AT_ONCE, most_bytes=BATCH_BYTES)
        began = time.monotonic()
        latest: dict[bytes, Task] = {}
        for record in records:
            try:
                latest.pop(record.key, None)
                latest[record.key] = _task(record)
            except (BadRecord, Rejected) as error:
                latest.pop(record.key, None)
                await self._set_aside(
                    topic=self._topic, partition=partition, offset=record.offset, error=error,
                    key=record.key, value=record.value,
                )  # fmt: skip
        if latest:
            await self._learn(list(latest.values()))
            log.info("documents learned", documents=len(latest), took=round(time.monotonic() - began, 3))
        after = records[-1].offset + 1 if records else end
        await self._statuses.advance(self._log, partition, after)
        self._next[partition] = after

    async def _learn(self, tasks: Sequence[Task]) -> None:
        """Bring documents into every index, and say of each what became of it."""
        embedder = self._embedders.of(self._model)
        await embedder.loaded()
        indices = await self._index.prepare(self._model, embedder.dims)
        known = await self._statuses.many([(task.tenant, task.document_id) for task in tasks])
        await self._index.refresh()
        said: list[tuple[DocumentStatus, int, bool]] = []
        places = asyncio.Semaphore(WRITES_AT_ONCE)

        async def learn(task: Task) -> None:
            async with places:
                before = known.get((task.tenant, task.document_id))
                if task.document is None:
                    await self._index.forget(task.tenant, task.document_id)
                    await self._statuses.remove(task.tenant, task.document_id, task.at_ms)
                    return
                status = status_of(task.document, task.at_ms, before)
                try:
                    passages = keyed(task.tenant, await passages_of(task.document, self._parsers))
                    for index in indices:
                        await self._write(index, task, passages)
                except Rejected as error:
                    metrics.documents.labels("failed").inc()
                    log.warning("document not learned", document=task.document_id, reason=str(error))
                    failed = replace(status, status="failed", error=str(error))
                    said.append((failed, task.at_ms, True))
                    return
                title = status.title or next(iter(passages.values())).passage.title
                learned = replace(status, status="learned", title=title, passages=len(passages))
                said.append((learned, task.at_ms, True))
                metrics.documents.labels("learned").inc()

        try:
            async with asyncio.TaskGroup() as group:
                for task in tasks:
                    group.create_task(learn(task))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        await self._index.refresh()
        await self._statuses.write(*said)

    async def _write(self, index: Index, task: Task, passages: Mapping[str, Learned]) -> None:
        """Make one index have a document as it is now."""
        there = await self._index.ids(index.name, task.tenant, task.document_id)
        new = {key: each for key, each in passages.items() if key not in there}
        vectors = await self._vectors(self._embedders.of(index.model), [each.spoken for each in new.values()])
        metrics.passages_embedded.inc(len(new))
        await self._index.write(
            index.name,
            task.tenant,
            {key: (each, vector) for (key, each), vector in zip(new.items(), vectors, strict=True)},
            {key: each for key, each in passages.items() if key in there},
            there - passages.keys(),
            seen=False,
        )

    @staticmethod
    async def _vectors(embedder: Embedder, texts: Sequence[str]) -> list[list[float]]:
        """Return the vectors of passages, however often their model has to be loaded for it."""
        while True:
            await embedder.loaded()
            try:
                return await embedder.documents(texts)
            except EmbedderUnavailable as error:
                log.warning("embedding again", reason=str(error))
                await asyncio.sleep(LOOK_SECONDS)


def _task(record: Record) -> Task:
    """Return what a record asks for. Raises `BadRecord`, and `Rejected` where its key is another document's."""
    tenant, _, document_id = record.key.decode(errors="replace").partition("/")
    if not record.value:
        return Task(tenant, document_id, record.at_ms)
    document = decode(record.value, Document)
    if (document.tenant, document.document_id) != (tenant, document_id) or not document_id:
        raise Rejected(
            f"the key of a document is its tenant, a slash and its document_id, {document.tenant}/"
            f"{document.document_id}, and not {tenant}/{document_id}"
        )
    return Task(tenant, document_id, record.at_ms, document)


def status_of(document: Document, at_ms: int, before: DocumentStatus | None) -> DocumentStatus:
    """Return a document's status while nothing has become of it yet."""
    return DocumentStatus(
        document_id=document.document_id,
        tenant=document.tenant,
        user=document.user,
        title=document.title,
        url=document.url,
        media_type=document.media_type,
        readers=document.readers,
        metadata=document.metadata,
        created_at=before.created_at if before else at_ms,
        updated_at=at_ms,
    )


async def passages_of(document: Document, parsers: Parsers) -> list[Learned]:
    """Return a document's passages. Raises `Rejected` where it has none, saying what to do."""
    text, title = document.text, document.title
    if document.file:
        parsed = await parsers.parse(document.file, document.media_type)
        text, title = parsed.text, title or parsed.title
    pieces = await asyncio.to_thread(split, text)
    if not pieces:
        raise Rejected("The document has no text.")
    title = title or pieces[0].path.partition(" > ")[0] or document.document_id
    return [
        Learned(
            Passage(document.document_id, title, piece.path, piece.text, document.url, position),
            _readers(document),
            document.at,
        )
        for position, piece in enumerate(pieces)
    ]


def _readers(document: Document) -> tuple[str, ...]:
    """Return who may find a document: who gave it may, too."""
    return tuple(dict.fromkeys([document.user, *document.readers])) if document.readers else ()
