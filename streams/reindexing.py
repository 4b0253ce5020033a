"""Fills an index of passages for another embedding model from the documents' topic, beside the one that is searched.

Every index is written to by whoever learns a document, so only what was learned before has to be brought in here. Of
each document the latest record counts. One that comes while an older one is being written stands further on in the
log and is written again after it; so what the filling leaves behind is never older than the log's end that it reached.
A document of which the index has every passage costs no vectors: a filling that was broken off goes on where it was.
What learning sets aside is left out here, too, and a document that cannot be brought in fails alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import structlog

from adapters.elastic import Elastic
from adapters.embedder import Embedder
from adapters.log_reader import LogReader, Record
from adapters.passage_index import Index, Learned, PassageIndex, keyed, with_vectors
from adapters.retriever import Retriever
from domain.backoff import pause
from domain.errors import EmbedderUnavailable, Rejected, Retriable, SinkUnavailable
from domain.knowledge import Reader
from domain.retrieval import DEPTH, Query
from streams.learning import Task, task_of
from streams.records import Document, document_key

log = structlog.get_logger(__name__)

AT_ONCE: Final = 16
"""Documents whose passages are embedded and written together: enough that the model's batches are full."""

BATCH_BYTES: Final = 16 << 20
QUESTIONS: Final = 300
"""Questions that are made of headings, where there are more: a recall of 300 is known to about 0.03."""

LOADING_SECONDS: Final = 1.0
ATTEMPTS: Final = 5

PassagesOf = Callable[[Document], Awaitable[Sequence[Learned]]]
OnRecords = Callable[[int], None]


class Question(NamedTuple):
    """What somebody asks, and the documents that answer it."""

    query: str
    document_ids: frozenset[str]
    reader: Reader


class Recall(NamedTuple):
    """The share of the documents that answer questions which were found: as answers find them, and by vectors alone.

    Words find the same in every index; so only the second shows what another model is worth where they find enough.
    """

    fused: float
    vectors: float

    def is_worse_than(self, other: "Recall", tolerance: float) -> bool:
        """Return whether either is lower by more than is tolerated."""
        return any(ours < theirs - tolerance for ours, theirs in zip(self, other, strict=True))


@dataclass
class Filled:
    """What came of it. ``refused``: the keys of documents that could not be brought in.

    ``readers``: of each document that could be read, by tenant and id, one who may read it. Those that the new model
    refuses are among them: what it does not find for that counts against it.
    """

    refused: set[bytes] = field(default_factory=set)
    readers: dict[tuple[str, str], Reader] = field(default_factory=dict)
    headings: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # by tenant and heading, the documents

    @property
    def documents(self) -> int:
        """Return how many were brought in."""
        return sum(document_key(*each).encode() not in self.refused for each in self.readers)


class Cut(NamedTuple):
    """A document that is to be brought in, and its passages by id: none of one that is to go."""

    task: Task
    passages: dict[str, Learned]


class Filling:
    """Brings documents into one index."""

    def __init__(
        self, log: LogReader, topic: str, index: PassageIndex, name: str, embedder: Embedder, cut: PassagesOf
    ) -> None:
        self._log = log
        self._topic = topic
        self._index = index
        self._name = name
        self._embedder = embedder
        self._cut = cut
        self._filled = Filled()

    async def run(self, partitions: Collection[int], on_records: OnRecords) -> Filled:
        """Read the log until its end is reached. Raises `LogUnavailable`, `SinkUnavailable`."""
        reached = await self._log.beginnings(self._topic, partitions)
        while (ends := await self._log.ends(self._topic, partitions)) != reached:
            for partition in partitions:
                await self._read(partition, reached[partition], ends[partition], on_records)
            reached = ends
        return self._filled

    async def _read(self, partition: int, start: int, stop: int, on_records: OnRecords) -> None:
        latest = await self._latest(partition, start, stop)
        while start < stop:
            records = await self._log.batch(self._topic, partition, start, stop, most=AT_ONCE, most_bytes=BATCH_BYTES)
            await self._brought([record for record in records if latest.get(record.key) == record.offset])
            # Compacting leaves gaps; after the last record there may be one, too.
            after = records[-1].offset + 1 if records else stop
            on_records(after - start)
            start = after

    async def _latest(self, partition: int, start: int, stop: int) -> dict[bytes, int]:
        """Return the offset of each document's latest record."""
        latest: dict[bytes, int] = {}

        def visit(message: Any) -> bool:
            latest[message.key() or b""] = message.offset()
            return False

        await self._log.scan(self._topic, partition, start, stop, visit)
        return latest

    async def _brought(self, records: Sequence[Record]) -> None:
        """Bring documents in, and try it a few times: a worker may delete a passage while it is written here, too."""
        for attempt in range(1, ATTEMPTS):
            try:
                return await self._bring(records)
            except SinkUnavailable as error:
                log.warning("writing passages again", reason=str(error))
                await asyncio.sleep(pause(attempt))
        return await self._bring(records)

    async def _bring(self, records: Sequence[Record]) -> None:
        """Bring documents in, each for itself where they cannot be all at once: what one is refused for is its own."""
        cut: list[Cut] = []
        for record in records:
            try:
                task = task_of(record)
            except Rejected as error:
                self._refuse(record.key, error)
                continue
            try:
                cut.append(Cut(task, await self._passages(task)))
            except Rejected as error:
                await self._leave_out(task, error)
        try:
            await self._together(cut)
        except Rejected:
            for each in cut:
                try:
                    await self._together([each])
                except Rejected as error:
                    await self._leave_out(each.task, error)

    async def _passages(self, task: Task) -> dict[str, Learned]:
        """Return a document's passages by id. Raises `Rejected`, whatever it is that they cannot be had for."""
        if task.document is None:
            return {}
        try:
            return keyed(await self._cut(task.document))
        except (Rejected, Retriable):
            raise
        except Exception as error:
            raise Rejected(f"it met an unforeseen error, {error!r}") from error

    async def _together(self, documents: Sequence[Cut]) -> None:
        """Make the index have these documents as their records say, and no others' passages of theirs.

        Raises `Rejected` where it never will have one of them; it may have the others then.
        """
        for each in documents:
            self._note(each)
        of_each = await self._index.ids(self._name, ((task.tenant, task.document_id) for task, _ in documents))
        there = set().union(*of_each.values())
        passages = {key: each for cut in documents for key, each in cut.passages.items()}
        new = {key: each for key, each in passages.items() if key not in there}
        vectors = await self._vectors([each.spoken for each in new.values()])
        kept = {key: each for key, each in passages.items() if key in there}
        await self._index.write(self._name, with_vectors(new, vectors), kept, there - passages.keys(), seen=False)

    async def _leave_out(self, task: Task, error: Rejected) -> None:
        """Count a document as refused, and do with what the index has of it what learning does."""
        if task.is_private:
            # What it was to replace might be read by somebody who is not to read it any more.
            there = await self._index.ids(self._name, [(task.tenant, task.document_id)])
            await self._index.write(self._name, {}, {}, there[task.tenant, task.document_id], seen=False)
        self._refuse(document_key(task.tenant, task.document_id).encode(), error)

    async def _vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the vectors of passages, however often their model has to be loaded for it."""
        while True:
            try:
                return await self._embedder.documents(texts)
            except EmbedderUnavailable as error:
                log.warning("embedding again", reason=str(error))
                await asyncio.sleep(LOADING_SECONDS)

    def _note(self, cut: Cut) -> None:
        """Remember who may find a document, and by which words that are its own."""
        tenant, document_id, document = cut.task.tenant, cut.task.document_id, cut.task.document
        self._filled.refused.discard(document_key(tenant, document_id).encode())
        self._filled.readers.pop((tenant, document_id), None)
        if document is None:
            return
        self._filled.readers[tenant, document_id] = Reader(tenant, document.readers[0] if document.readers else "")
        for each in cut.passages.values():
            heading = each.passage.path.rpartition(" > ")[2] or each.passage.title
            if heading:
                self._filled.headings.setdefault((tenant, heading), set()).add(document_id)

    def _refuse(self, key: bytes, error: Rejected) -> None:
        self._filled.refused.add(key)
        log.warning("document not brought over", document=key.decode(errors="replace"), reason=str(error))


# -- is it any good


class Pinned(PassageIndex):
    """One index, searched as if the alias led to it."""

    def __init__(self, elastic: Elastic, pinned: Index) -> None:
        super().__init__(elastic, "")
        self.alias = pinned.name
        self._pinned = pinned

    async def indices(self) -> tuple[Index, ...]:
        """Return this index alone."""
        return (self._pinned._replace(state="serving"),)


def questions_of(filled: Filled) -> list[Question]:
    """Return questions made of headings that one document alone has; which ones, is the same every time."""
    made = [
        Question(heading, frozenset(documents), filled.readers[tenant, next(iter(documents))])
        for (tenant, heading), documents in filled.headings.items()
        if len(documents) == 1 and (tenant, next(iter(documents))) in filled.readers
    ]
    return sorted(made, key=lambda each: blake2b(each.query.encode()).digest())[:QUESTIONS]


@dataclass(frozen=True, slots=True)
class Side:
    """An index to be measured, and what searches it."""

    index: PassageIndex
    retriever: Retriever
    embedder: Embedder


async def recalls(sides: Sequence[Side], questions: Sequence[Question], k: int) -> list[Recall]:
    """Return how many of the documents that answer questions are among the first ``k``, on each side.

    Each question is asked on all sides at once: what is learned and forgotten meanwhile, is so on all of them.
    """
    sums = [(0.0, 0.0)] * len(sides)
    asked = [question for question in questions if await _can_be_asked(sides, question)]
    if not asked:
        return [Recall(0.0, 0.0) for _ in sides]
    for question in asked:
        shares = await asyncio.gather(*(_shares(side, question, k) for side in sides))
        sums = [(fused + more[0], near + more[1]) for (fused, near), more in zip(sums, shares, strict=True)]
    return [Recall(fused / len(asked), near / len(asked)) for fused, near in sums]


async def _can_be_asked(sides: Sequence[Side], question: Question) -> bool:
    """Return whether every model takes a question. Its vectors are known then, however slow the model."""
    try:
        for side in sides:
            await side.embedder.query(question.query)
    except Rejected as error:
        log.warning("question left out", question=question.query, reason=str(error))
        return False
    return True


async def _shares(side: Side, question: Question, k: int) -> tuple[float, float]:
    found = await side.retriever.search(question.reader, [{"role": "user", "content": question.query}], k=k)
    vector = await side.embedder.query(question.query)
    hits = await side.index.search(question.reader, [Query(question.query, 1.0)], vector, DEPTH)
    best = sorted(hits.near, key=hits.near.__getitem__, reverse=True)
    read = await side.index.read(question.reader, best)
    near = list(dict.fromkeys(read[key][0].document_id for key in best if key in read))[:k]
    return _share(question, (each.passage.document_id for each in found)), _share(question, near)


def _share(question: Question, found: Iterable[str]) -> float:
    return len(question.document_ids & set(found)) / len(question.document_ids)
