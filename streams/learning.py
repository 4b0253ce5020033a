"""Learns documents: reads their topic as far as it goes, cuts, embeds and indexes each, and notes what became of it.

The records are read from the log by the owner of their partition, as the archive's are, and not handled as events: a
file of megabytes and a minute of work must hold up neither a rebalance nor an answer. **What is noted as the progress
is learned**: passages are in the index, and can be found, before the progress moves past their document. It lives in
Elasticsearch beside them, so an Elasticsearch that is lost is learned anew. (An index of passages that is lost alone is
not: what was learned stays noted. `reindex` fills another one.)

Documents of a batch are embedded and written together, because Elasticsearch costs by request; where one of them is
refused, each is tried for itself.

To learn a document again changes what changed: a passage's id is made of its text and its place, so those that stay are
not embedded again. Of several records of a document in one batch the last one counts.

A worker that has lost the partition writes no more, because its successor may have come to a later record. One that was
paused does not know that it has lost it, so it looks whether the progress is where its batch began before each write,
and moves it only from there. Where it finds the progress elsewhere it may have written all the same, in the moment
after a look: then it brings its documents to what the log says of them last, as the successor did.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, NoReturn, Protocol, TypeVar

import structlog

from adapters.document_status import DocumentStatuses
from adapters.embedder import Embedder, Embedders
from adapters.parsers import Parsers
from adapters.passage_index import Index, Learned, PassageIndex, keyed, with_vectors
from config import metrics
from domain.backoff import pause
from domain.errors import EmbedderUnavailable, NotOwner, Overtaken, Rejected, Retriable
from domain.knowledge import DocumentStatus, Passage
from domain.passages import split
from streams.archiving import SetAside
from streams.records import Document, DocumentOutcome, decode

log = structlog.get_logger(__name__)

R = TypeVar("R")

LOOK_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 10.0
AT_ONCE: Final = 32
BATCH_BYTES: Final = 16 << 20
PARTITIONS_AT_ONCE: Final = 4
PASSAGES_AT_ONCE: Final = 128
"""Passages that are embedded and written together: more would only be held in memory for longer."""

EMPTY: Final[Mapping[str, Any]] = {}

ASIDE: Final = ThreadPoolExecutor(1, "learning")
"""What takes long is done here, one at a time: several threads would in turn keep the interpreter from the loop."""

MOST_PASSAGES: Final = 20_000
LONGEST_NAME: Final = 512
LONGEST_TEXT: Final = 4096
LONGEST_OWN_TITLE: Final = 300
"""Of what a file calls itself. Every passage carries it, so a long one would be written as often."""

MOST_READERS: Final = 1000
LATEST_MS: Final = 253_402_300_799_999
"""The end of the year 9999: no date can be written beyond it."""


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
    """A document that is to be learned, or forgotten: without one."""

    tenant: str
    document_id: str
    at_ms: int
    document: Document | None = None

    @property
    def is_private(self) -> bool:
        """Return whether the document is for some readers only."""
        return self.document is not None and bool(self.document.readers)


class Cut(NamedTuple):
    """A document that is to be learned, its passages by id, and when that began, of a monotonic clock in s."""

    task: Task
    passages: Mapping[str, Learned]
    began: float


Check = Callable[[], Awaitable[None]]
"""Raises where somebody else is to learn what we are learning."""


Tell = Callable[[DocumentOutcome], Awaitable[None]]
"""Publishes what became of a document; raises `LogUnavailable`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents that are learned one after the other, and what becomes of them.

    ``there``: of each index's name and each document, the ids that it has. ``known``: statuses from before.
    """

    check: Check
    indices: Sequence[Index]
    there: Mapping[str, Mapping[tuple[str, str], set[str]]]
    known: Mapping[tuple[str, str], DocumentStatus]
    statuses: list[tuple[DocumentStatus, int, bool]] = field(default_factory=list)
    outcomes: list[DocumentOutcome] = field(default_factory=list)

    def note(self, task: Task, began: float, **became: Any) -> None:
        """Note what became of a document: fields of its status."""
        metrics.learning_duration.observe(time.monotonic() - began)
        assert task.document is not None
        status = replace(status_of(task.document, task.at_ms, self.known.get(_names(task))), **became)
        metrics.documents.labels(status.status).inc()
        self.statuses.append((status, task.at_ms, True))
        self.outcomes.append(_outcome(status, task.at_ms))


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
        tell: Tell,
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
        self._tell = tell
        self._next: dict[int, int] = {}
        self._working: dict[int, asyncio.Task[None]] = {}
        self._failures: dict[int, int] = {}
        self._places = asyncio.Semaphore(PARTITIONS_AT_ONCE)
        # One at a time of what costs Elasticsearch something: where it shares the cores with answers, that leaves one.
        self._writing = asyncio.Lock()
        self._log = ""

    async def run(self) -> NoReturn:
        """Learn what comes. Nothing but its cancellation ends it."""
        attempt = 0
        try:
            while True:
                try:
                    await self.look()
                    attempt = 0
                except Retriable as error:
                    log.warning("learning waits", reason=str(error))
                    attempt += 1
                except Exception:
                    log.exception("learning met an unforeseen error")
                    attempt += 1
                await asyncio.sleep(_pause(attempt) if attempt else LOOK_SECONDS)
        finally:
            for task in self._working.values():
                task.cancel()
            await asyncio.gather(*self._working.values(), return_exceptions=True)

    async def look(self) -> None:
        """Begin with each partition that has something new: a large document holds up no other's partition."""
        owned = sorted(self._owned())
        self._next = {partition: offset for partition, offset in self._next.items() if partition in owned}
        idle = [partition for partition in owned if partition not in self._working]
        if not idle:
            return
        self._log = self._log or f"{self._topic}@{await self._reader.topic_id(self._topic)}"
        for partition, end in (await self._reader.ends(self._topic, idle)).items():
            if partition not in self._next:
                # Nothing was ever learned where nothing was ever given: then Elasticsearch need not be there.
                self._next[partition] = await self._statuses.progress(self._log, partition) if end else 0
            if self._next[partition] < end:
                self._working[partition] = asyncio.create_task(self._follow(partition, end))

    async def _follow(self, partition: int, end: int) -> None:
        """Learn a partition up to an offset. Where that fails it is looked at again, after a while."""
        try:
            async with self._places:
                while (start := self._next.get(partition, end)) < end:
                    await self._bring(partition, start, end)
            self._failures.pop(partition, None)
        except Exception as error:
            if isinstance(error, Retriable):
                log.warning("learning waits", partition=partition, reason=str(error))
            else:
                log.exception("learning met an unforeseen error", partition=partition)
            self._next.pop(partition, None)
            self._failures[partition] = self._failures.get(partition, 0) + 1
            await asyncio.sleep(_pause(self._failures[partition]))
        finally:
            del self._working[partition]

    async def _bring(self, partition: int, start: int, end: int) -> None:
        """Learn the next records of a partition, and note that."""
        records = await self._reader.batch(self._topic, partition, start, end, most=AT_ONCE, most_bytes=BATCH_BYTES)
        began = time.monotonic()
        latest, bad = await _aside(_tasks, records)  # these may be 16 MB
        after = records[-1].offset + 1 if records else end
        check = partial(self._check, partition, start)
        try:
            if latest:
                await self._learn(list(latest.values()), check)
                log.info("documents learned", documents=len(latest), took=round(time.monotonic() - began, 3))
            await check()
            for record, refusal in bad:  # last, or each attempt to learn the others would do it again
                await self._set_aside(
                    topic=self._topic, partition=partition, offset=record.offset, error=refusal,
                    key=record.key, value=record.value,
                )  # fmt: skip
            await self._statuses.advance(self._log, partition, start, after)
        except (NotOwner, Overtaken):
            await self._mend(partition, latest.keys(), after)
            raise
        self._next[partition] = after

    async def _mend(self, partition: int, keys: Collection[bytes], after: int) -> None:
        """Bring documents to what the log says of them last, if that is later than what we may have written."""
        attempt = 0
        while True:
            try:
                later, after = await self._later(partition, keys, after)
                if not later:
                    return
                await self._learn(list(later.values()), _unchecked)
                attempt = 0
            except Retriable as error:
                log.warning("what was learned late is not mended yet", partition=partition, reason=str(error))
                attempt += 1
                await asyncio.sleep(_pause(attempt))

    async def _later(self, partition: int, keys: Collection[bytes], after: int) -> tuple[dict[bytes, Task], int]:
        """Return what our successor may have come to of these documents already, and up to where.

        That is what the progress has passed, and the batch behind it, which may be in work. What follows is learned
        after all that we have written.
        """
        progress = await self._statuses.progress(self._log, partition)
        end = (await self._reader.ends(self._topic, [partition]))[partition]
        later: dict[bytes, Task] = {}
        is_last = False
        while after < end and not is_last:
            is_last = after >= progress
            records = await self._reader.batch(self._topic, partition, after, end, most=AT_ONCE, most_bytes=BATCH_BYTES)
            tasks, _ = await _aside(_tasks, records)
            later |= {key: task for key, task in tasks.items() if key in keys}
            after = records[-1].offset + 1 if records else end
        return later, after

    async def _learn(self, tasks: Sequence[Task], check: Check) -> None:
        """Bring documents into every index, and say of each what became of it."""
        embedder = self._embedders.of(self._model)
        await embedder.loaded()
        indices = await self._index.prepare(self._model, embedder.dims)
        known = await self._statuses.many([_names(task) for task in tasks])
        async with self._writing:
            there = {each.name: await self._index.ids(each.name, map(_names, tasks)) for each in indices}
        batch = Batch(check, indices, there, known)
        waiting: list[Cut] = []
        for task in tasks:
            began = time.monotonic()
            if task.document is None:
                await check()
                await self._index.forget(task.tenant, task.document_id)
                await self._statuses.remove(task.tenant, task.document_id, task.at_ms)
                batch.outcomes.append(_forgotten(task))
                continue
            try:
                waiting.append(Cut(task, await self._passages(task.document), began))
            except Rejected as error:
                await self._refuse(task, began, error, batch)
            if sum(len(each.passages) for each in waiting) >= PASSAGES_AT_ONCE:
                await self._learned(waiting, batch)
                waiting = []
        await self._learned(waiting, batch)
        async with self._writing:
            await self._index.refresh()
        await check()
        await self._statuses.write(*batch.statuses)
        await asyncio.gather(*map(self._tell, batch.outcomes))

    async def _learned(self, documents: Sequence[Cut], batch: Batch) -> None:
        """Bring documents into every index; each for itself where one is refused, since that is its own fault."""
        try:
            for index in batch.indices:
                await self._write(index, documents, batch)
        except Rejected as error:
            if len(documents) == 1:
                await self._refuse(documents[0].task, documents[0].began, error, batch)
            else:
                for each in documents:
                    await self._learned([each], batch)
        else:
            for task, passages, began in documents:
                title = next(iter(passages.values())).passage.title
                batch.note(task, began, status="learned", title=title, passages=len(passages))

    async def _refuse(self, task: Task, began: float, error: Rejected, batch: Batch) -> None:
        """Note that a document cannot be learned."""
        log.warning("document not learned", document=task.document_id, reason=str(error))
        if task.is_private:
            # What it was to replace might be read by somebody who is not to read it any more.
            await batch.check()
            await self._index.forget(task.tenant, task.document_id)
        batch.note(task, began, status="failed", error=str(error))

    async def _passages(self, document: Document) -> dict[str, Learned]:
        """Return a document's passages by id. Raises `Rejected`, whatever it is that they cannot be had for."""
        try:
            return await _aside(keyed, await passages_of(document, self._parsers))
        except (Rejected, Retriable):
            raise
        except Exception as error:
            # Whatever it is about this document, the next ones do not wait for somebody to find out.
            log.exception("document met an unforeseen error", document=document.document_id)
            raise Rejected("The document cannot be read, by a fault of Headrace's own. Its log says more.") from error

    async def _write(self, index: Index, documents: Iterable[Cut], batch: Batch) -> None:
        """Make one index have documents as they are now.

        Old passages go last, so that a document is never found less than before or after; but first where it is not for
        everyone, because it may have been taken from somebody, who is not to find it while the new ones are embedded.
        """
        new: dict[str, Learned] = {}
        kept: dict[str, Learned] = {}
        taken: set[str] = set()
        old: set[str] = set()
        for task, passages, _ in documents:
            there = batch.there[index.name][_names(task)]
            for key, each in passages.items():
                (kept if key in there else new)[key] = each
            (taken if task.is_private else old).update(there - passages.keys())
        await self._put(index, batch.check, kept=kept, gone=taken)
        for share in _shares(new.items()):
            vectors = await self._vectors(self._embedders.of(index.model), [each.spoken for each in share.values()])
            await self._put(index, batch.check, new=with_vectors(share, vectors))
            metrics.passages_embedded.inc(len(share))
        await self._put(index, batch.check, gone=old)

    async def _put(
        self,
        index: Index,
        check: Check,
        *,
        new: Mapping[str, tuple[Learned, Sequence[float]]] = EMPTY,
        kept: Mapping[str, Learned] = EMPTY,
        gone: Collection[str] = (),
    ) -> None:
        """Write, if there is something to write, and unless somebody else is to."""
        if new or kept or gone:
            async with self._writing:
                await check()
                await self._index.write(index.name, new, kept, gone, seen=False)

    async def _check(self, partition: int, start: int) -> None:
        """Raise `NotOwner` where the partition has gone to another worker: what is not noted, that one learns again.

        Raises `Overtaken` where only that worker knows of it yet.
        """
        if partition not in self._owned():
            raise NotOwner(f"partition {partition} has another owner now")
        if (progress := await self._statuses.progress(self._log, partition)) != start:
            raise Overtaken(f"another worker has learned partition {partition} up to {progress}, from {start}")

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


def _names(task: Task) -> tuple[str, str]:
    return task.tenant, task.document_id


def _outcome(status: DocumentStatus, at_ms: int) -> DocumentOutcome:
    assert status.status != "queued"
    return DocumentOutcome(
        document_id=status.document_id,
        tenant=status.tenant,
        status=status.status,
        at=at_ms,
        revision=2 * at_ms + 1,
        user=status.user,
        title=status.title,
        url=status.url,
        metadata=status.metadata,
        error=status.error,
        passages=status.passages,
    )


def _forgotten(task: Task) -> DocumentOutcome:
    return DocumentOutcome(
        document_id=task.document_id, tenant=task.tenant, status="forgotten", at=task.at_ms, revision=2 * task.at_ms + 1
    )


def _shares(passages: Iterable[tuple[str, Learned]]) -> Iterator[dict[str, Learned]]:
    """Yield passages in shares that are written at once."""
    left = iter(passages)
    while share := dict(islice(left, PASSAGES_AT_ONCE)):
        yield share


def _pause(attempt: int) -> float:
    return pause(attempt, first=LOOK_SECONDS, longest=LONGEST_PAUSE_SECONDS)


async def _unchecked() -> None:
    """Whoever learns what the log says last may."""


def _tasks(records: Iterable[Record]) -> tuple[dict[bytes, Task], list[tuple[Record, Rejected]]]:
    """Return what records ask for, of each document the last, in their order; and those that do not say it."""
    latest: dict[bytes, Task] = {}
    bad: list[tuple[Record, Rejected]] = []
    for record in records:
        try:
            task = task_of(record)
        except Rejected as error:
            bad.append((record, error))
        else:
            latest.pop(record.key, None)
            latest[record.key] = task
    return latest, bad


def task_of(record: Record) -> Task:
    """Return what a record asks for. Raises `Rejected` for one that does not say it, or whose key is another's."""
    tenant, _, document_id = record.key.decode(errors="replace").partition("/")
    # A producer may have said anything, -1 where it said nothing; as a version Elasticsearch refuses that for ever.
    at_ms = min(max(0, record.at_ms), LATEST_MS)
    if not record.value:
        return Task(tenant, document_id, at_ms)
    document = decode(record.value, Document)
    if (document.tenant, document.document_id) != (tenant, document_id) or not document_id:
        raise Rejected(
            f"the key of a document is its tenant, a slash and its document_id, {document.tenant}/"
            f"{document.document_id}, and not {tenant}/{document_id}"
        )
    _check(document)
    return Task(tenant, document_id, at_ms, document)


def _check(document: Document) -> None:
    """Raise `Rejected` for what no index takes: the API lets nothing of it through, other producers may."""
    for name in (document.tenant, document.user, document.document_id, *document.readers):
        if not 0 < len(name) <= LONGEST_NAME:
            raise Rejected(f"tenant, user, document_id and readers of a document have 1 to {LONGEST_NAME} characters")
    if len(document.title) > LONGEST_TEXT or len(document.url) > LONGEST_TEXT:
        raise Rejected(f"title and url of a document have at most {LONGEST_TEXT} characters")
    if len(document.readers) > MOST_READERS:
        raise Rejected(f"a document has at most {MOST_READERS} readers; none are all of its tenant")
    if not 0 <= document.at <= LATEST_MS:
        raise Rejected("at is a time in Unix ms")


def status_of(document: Document, at_ms: int, before: DocumentStatus | None) -> DocumentStatus:
    """Return a document's status while nothing has become of it yet."""
    return DocumentStatus(
        document_id=document.document_id,
        tenant=document.tenant,
        user=document.user,
        title=document.title or document.name,
        url=document.url,
        media_type=document.media_type,
        readers=list(_readers(document)),
        metadata=document.metadata,
        created_at=before.created_at if before else at_ms,
        updated_at=at_ms,
    )


async def passages_of(document: Document, parsers: Parsers) -> list[Learned]:
    """Return a document's passages. Raises `Rejected` where it has none, saying what to do."""
    text, title = document.text, document.title
    if document.file:
        parsed = await parsers.parse(document.file, document.media_type)
        text, title = parsed.text, title or " ".join(parsed.title.split())[:LONGEST_OWN_TITLE]
    return await _aside(_cut, document, text, title)  # 8 MB of text take two seconds


async def _aside(work: Callable[..., R], *given: Any) -> R:
    """Return what some work gives, without a stop of the event loop for it."""
    return await asyncio.get_running_loop().run_in_executor(ASIDE, work, *given)


def _cut(document: Document, text: str, title: str) -> list[Learned]:
    pieces = split(text, title)
    if not pieces:
        raise Rejected("The document has no text.")
    if len(pieces) > MOST_PASSAGES:
        raise Rejected(f"The document has {len(pieces)} passages. At most {MOST_PASSAGES} are learned: divide it.")
    title = title or pieces[0].path.partition(" > ")[0] or document.name or document.document_id
    readers = _readers(document)
    return [
        Learned(
            document.tenant,
            Passage(document.document_id, title, piece.path, piece.text, document.url, position),
            readers,
            document.at,
        )
        for position, piece in enumerate(pieces)
    ]


def _readers(document: Document) -> tuple[str, ...]:
    """Return who may find a document: who gave it may, too."""
    return tuple(dict.fromkeys([document.user, *document.readers])) if document.readers else ()
