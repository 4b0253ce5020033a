"""Finished turns in Elasticsearch: an index a month behind one alias, and with them how far they have got.

The invariant: **a document of the progress index is an offset below which everything is written.** A turn's id is its
document's, and its month that of its own end, so to write it twice changes nothing, whoever does and however late. So a
batch is written first, and then moves the progress from its start to its stop, if nobody has moved it meanwhile
(compare and set). Whoever finds it elsewhere was overtaken, and has done no harm.

Elasticsearch has no transactions, so an erasure is a document of its own, written before what it erases is deleted. A
batch asks for erasures before it is written, to leave them out, and afterwards for the mark that each erasure moves: if
it was moved meanwhile, the batch takes back what it should not have written. The mark also has the newest conversation
that was ever erased: those that began later, which are most of a batch, need not be asked for.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

import msgspec
from elasticsearch import ApiError, AsyncElasticsearch, ConflictError

from adapters.elastic import Elastic, create_index, reason_of
from adapters.turn_store import TurnRow
from domain.backoff import pause
from domain.errors import Overtaken, SinkRefused, SinkUnavailable
from domain.spans import Span

# Elasticsearch has each request on its disk before it answers, so few large ones are quicker: 4,000 turns took 0.16 s
# in one and 0.4 s in six. But two at a time use two of its threads: 1,000 turns take 30 ms so, and 44 in one request.
# A proxy that allows less has it in halves.
BULK_BYTES: Final = 5_000_000
SHARED_BYTES: Final = 250_000
REQUESTS_AT_ONCE: Final = 2
# Between two pauses in which tokens go out: 10 us a turn of usual length.
ENCODED_AT_ONCE: Final = 50
ATTEMPTS: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 2.0

# Raised with every change of the mapping: an older worker leaves a newer one's template alone.
VERSION: Final = 2
# Above what an operator's own templates for all indices usually have.
PRIORITY: Final = 300
# A flattened field refuses a document that is nested more deeply than 20.
METADATA_DEPTH: Final = 16

REFUSED: Final = frozenset({400, 413})
# These say 400 as well, of an index or the cluster: there are too many shards, or somebody has closed the index.
NOT_OF_THE_DOCUMENT: Final = frozenset(
    {"cluster_block_exception", "index_closed_exception", "invalid_index_name_exception", "validation_exception"}
)

_KEYWORD: Final = {"type": "keyword"}
# Longer ones are kept and not found: Lucene takes 32,766 bytes and refuses the document otherwise.
_LABEL: Final = {"type": "keyword", "ignore_above": 1024}
_TEXT: Final = {"type": "text", "analyzer": "english"}
_TYPES: Final[Mapping[Any, dict[str, Any]]] = {
    UUID: _KEYWORD,
    UUID | None: _KEYWORD,
    datetime: {"type": "date"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    Decimal | None: {"type": "double"},
    # One field, whatever is in it: nobody's metadata can clash with another's, or use up the fields of an index.
    dict[str, Any]: {"type": "flattened", "ignore_above": 1024},
}
_TURN: Final = {name: _TYPES.get(kind, _LABEL) for name, kind in TurnRow.__annotations__.items()} | {
    "tenant": _KEYWORD,
    "user_id": _KEYWORD,
    "input": _TEXT,
    "answer": _TEXT,
    "error_message": _TEXT,
    "document_ids": _LABEL,
}
_PROGRESS: Final = {"log": _KEYWORD, "partition": {"type": "integer"}, "next": {"type": "long"}}
_ERASED: Final = {"conversation_id": _KEYWORD, "tenant": _KEYWORD, "user_id": _KEYWORD}
_SETTINGS: Final = {"number_of_shards": 1, "auto_expand_replicas": "0-1"}
# The last seconds of it may be lost with the server's power: then they are written once more.
_PROGRESS_SETTINGS: Final = {**_SETTINGS, "translog.durability": "async"}
# The document of the index of erasures that each erasure writes again.
MARK: Final = "latest"
# Ids are in the order of time, and this comes after all of them.
LAST_ID: Final = UUID(int=2**128 - 1)

_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")

Record = TypeVar("Record")
Answer = tuple[int, dict[str, Any]]  # the status of an action, and its error, which is empty where there is none


class Erasure(NamedTuple):
    """A conversation that is gone. Only its own user's turns are."""

    tenant: str
    user_id: str
    conversation_id: UUID

    @property
    def key(self) -> str:
        """Return the id of its document."""
        return blake2b("\0".join(map(str, self)).encode(), digest_size=16).hexdigest()


class Mark(NamedTuple):
    """How far erasures have got: a ``version`` that each of them raises, and the ``newest`` conversation of all."""

    version: int = -1
    newest: UUID = UUID(int=0)
    place: Mapping[str, Any] = {"op_type": "create"}  # what it has to be still when it moves


class SearchIndex:
    """Writes what the archive brings. ``prefix`` begins the names of all indices. Methods raise `SinkUnavailable`."""

    def __init__(self, elastic: Elastic, prefix: str) -> None:
        self._elastic = elastic
        self.turns = f"{prefix}turns"
        self._months = f"{prefix}turns-*"
        self._progress = f"{prefix}progress"
        self._erased = f"{prefix}erased"
        self._answers = f"{prefix}answers-*"  # what `adapters.answer_cache` keeps of turns

    async def prepare(self) -> None:
        """Make the indices that are missing, and the template of those of the months."""
        async with self._elastic.client() as client:
            found = await client.options(ignore_status=404).indices.get_index_template(name=self.turns)
            known = [each["index_template"].get("version", 0) for each in found.body.get("index_templates", ())]
            if max(known, default=0) < VERSION:
                await self._renew_months(client)
                await client.indices.put_index_template(
                    name=self.turns,
                    index_patterns=[self._months],
                    priority=PRIORITY,
                    version=VERSION,
                    template={
                        # A number or a time that cannot be read is kept and not found, and costs no turn its place.
                        "settings": {**_SETTINGS, "mapping.ignore_malformed": True},
                        "mappings": {"dynamic": False, "properties": _TURN},
                        "aliases": {self.turns: {}},
                    },
                )
            await _create(client, self._progress, _PROGRESS_SETTINGS, _PROGRESS)
            await _create(client, self._erased, _SETTINGS, _ERASED)

    async def _renew_months(self, client: AsyncElasticsearch) -> None:
        """Give the months that are there the fields that are new, but for those that are locked or have other ones."""
        for month in await client.indices.get_mapping(index=self._months):
            await client.options(ignore_status=(400, 403, 404)).indices.put_mapping(index=month, properties=_TURN)

    # -- progress

    async def progress(self, log: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return the next offset of each partition."""
        offsets = dict.fromkeys(partitions, 0)
        if offsets:
            found = await self._get(self._progress, [f"{log}/{partition}" for partition in offsets])
            offsets |= {each["_source"]["partition"]: each["_source"]["next"] for each in found}
        return offsets

    async def rewind(self, log: str, offsets: Mapping[int, int]) -> None:
        """Set the progress of these partitions, wherever it was."""
        for partition, offset in offsets.items():
            async with self._elastic.client() as client:
                await client.index(index=self._progress, **_next(log, partition, offset))

    async def _place(self, span: Span, *, again: bool) -> dict[str, Any] | None:
        """Return what the progress has to be still when it moves, None if it shall not (``again``).

        Raises `Overtaken` where it is not at the span's start now.
        """
        if again:
            return None
        async with self._elastic.client() as client:
            found = await client.options(ignore_status=404).get(index=self._progress, id=f"{span.log}/{span.partition}")
        if "error" in found.body:
            raise SinkUnavailable(f"Elasticsearch has lost the index {self._progress}")
        if (found["_source"]["next"] if found["found"] else 0) != span.start:
            raise _overtaken(span)
        if not found["found"]:
            return {"op_type": "create"}
        return {"if_seq_no": found["_seq_no"], "if_primary_term": found["_primary_term"]}

    async def _advance(self, span: Span, place: Mapping[str, Any] | None) -> None:
        """Move the progress over a span, if it has a place; raises `Overtaken`."""
        if place is None:
            return
        async with self._elastic.client() as client:
            try:
                await client.index(index=self._progress, **_next(span.log, span.partition, span.stop), **place)
                return
            except ConflictError:
                pass
        raise _overtaken(span)

    # -- turns

    async def keep(
        self,
        span: Span,
        rows: Mapping[int, TurnRow],
        documents: Mapping[int, Sequence[str]] | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Write the turns of a span, by offset; raises `Overtaken` and `SinkRefused`.

        ``documents``: the ids of those that their answers were given passages of. ``again``: the progress is neither
        compared nor moved.
        """
        known = documents or {}
        turns = {offset: (row, known.get(offset, ())) for offset, row in rows.items()}
        place, mark, actions = await asyncio.gather(
            self._place(span, again=again), self._mark(), _encoded(turns, lambda turn: self.action(*turn))
        )
        # The mark first: what an erasure writes while this is read has then moved a mark that is older here.
        erased = await self._erased_of(rows, mark)
        wanted = {offset: lines for offset, lines in actions.items() if offset not in erased}
        if refused := await self._bulk(wanted):
            raise SinkRefused(refused)
        if (now := await self._mark()) != mark:
            erased = await self._erased_of({offset: rows[offset] for offset in wanted}, now)
            await self._bulk({offset: self._deletion(rows[offset]) for offset in erased})
        await self._advance(span, place)

    def action(self, row: TurnRow, documents: Sequence[str] = ()) -> bytes:
        """Return the lines of a bulk request that write a turn."""
        document = row._asdict() | {"document_ids": documents}
        if row.metadata:
            document["metadata"] = shallow(row.metadata)
        return _ENCODER.encode_lines(({"index": self._where(row)}, document))

    def _deletion(self, row: TurnRow) -> bytes:
        return _ENCODER.encode_lines(({"delete": self._where(row)},))

    def _where(self, row: TurnRow) -> dict[str, Any]:
        at = row.ended_at
        return {"_index": f"{self.turns}-{at.year}.{at.month:02}", "_id": row.turn_id}

    # -- erasures

    async def erase(self, span: Span, erasures: Sequence[Erasure], *, again: bool = False) -> None:
        """Delete the turns of conversations, and have no later one come back; raises `Overtaken`. See `keep`."""
        place = await self._place(span, again=again)
        if erasures:
            await self._erase(erasures)
        await self._advance(span, place)

    async def _erase(self, erasures: Sequence[Erasure]) -> None:
        if refused := await self._bulk(await _encoded(dict(enumerate(erasures)), self._erasure)):
            raise SinkUnavailable(f"Elasticsearch does not take an erasure: {next(iter(refused.values()))}")
        await self._move_mark(max(each.conversation_id for each in erasures))
        async with self._elastic.client() as client:
            # What was written a moment ago is not found yet.
            await client.indices.refresh(index=[self._months, self._answers])
        for tenant, user in {(each.tenant, each.user_id) for each in erasures}:
            theirs = [str(each.conversation_id) for each in erasures if (each.tenant, each.user_id) == (tenant, user)]
            await self._delete_all(tenant, user, theirs)

    def _erasure(self, each: Erasure) -> bytes:
        return _ENCODER.encode_lines(({"index": {"_index": self._erased, "_id": each.key}}, each._asdict()))

    async def _delete_all(self, tenant: str, user: str, conversations: Sequence[str]) -> None:
        wanted = [
            {"terms": {"conversation_id": conversations}},
            {"term": {"tenant": tenant}},
            {"term": {"user_id": user}},
        ]
        async with self._elastic.client() as client:
            # A document that is written again meanwhile is a conflict, and makes all of it be tried again.
            await client.options(ignore_status=404).delete_by_query(
                index=[self._months, self._answers], query={"bool": {"filter": wanted}}, refresh=True
            )

    async def _erased_of(self, rows: Mapping[int, TurnRow], mark: Mark) -> list[int]:
        """Return the offsets of those rows whose conversation is erased, as far as the mark knows."""
        keys = {
            offset: Erasure(row.tenant, row.user_id, row.conversation_id).key
            for offset, row in rows.items()
            if row.conversation_id <= mark.newest
        }
        if not keys:
            return []
        erased = {Erasure(**each["_source"]).key for each in await self._get(self._erased, {*keys.values()})}
        return [offset for offset, key in keys.items() if key in erased]

    async def _mark(self) -> Mark:
        for each in await self._get(self._erased, [MARK]):
            version, newest = each["_seq_no"], each["_source"].get("newest")
            place = {"if_seq_no": version, "if_primary_term": each["_primary_term"]}
            # A worker from before there was a newest has written it.
            return Mark(version, LAST_ID if newest is None else UUID(newest), place)
        return Mark()

    async def _move_mark(self, erased: UUID) -> None:
        """Raise the mark's version, and its newest conversation to this one at least."""
        while True:
            mark = await self._mark()
            async with self._elastic.client() as client:
                with suppress(ConflictError):  # another worker's erasure has moved it
                    document = {"newest": str(max(mark.newest, erased))}
                    await client.index(index=self._erased, id=MARK, document=document, **mark.place)
                    return

    # -- requests

    async def _get(self, index: str, ids: Iterable[str]) -> list[dict[str, Any]]:
        """Return those documents of an index that are there, each with what it is a version of."""
        async with self._elastic.client() as client:
            found = await client.mget(
                index=index,
                ids=list(ids),
                # Nothing of those that are not there: of a thousand conversations hardly one is erased.
                filter_path=["docs._source", "docs._seq_no", "docs._primary_term", "docs.error.type"],
            )
        there = found.body.get("docs", ())
        if any("error" in each for each in there):
            raise SinkUnavailable(f"Elasticsearch has lost the index {index}")
        return [each for each in there if "_seq_no" in each]

    async def _bulk(self, actions: Mapping[int, bytes]) -> dict[int, str]:
        """Have these carried out; return for each that will never be taken why.

        What cannot be taken now is tried again, and the rest is not.
        """
        refused: dict[int, str] = {}
        left, attempt = actions, 0
        while left:
            failed: dict[int, str] = {}
            for number, (status, error) in (await self._send_all(left)).items():
                if status in REFUSED and error.get("type") not in NOT_OF_THE_DOCUMENT:
                    refused[number] = f"it can be no document: {reason_of(error)}"
                elif error:
                    failed[number] = reason_of(error)
            attempt += 1
            if failed and attempt == ATTEMPTS:
                first = next(iter(failed.values()))
                raise SinkUnavailable(f"Elasticsearch does not take {len(failed)} of {len(actions)} documents: {first}")
            if failed:
                await asyncio.sleep(pause(attempt, first=FIRST_PAUSE_SECONDS, longest=LONGEST_PAUSE_SECONDS))
            left = {number: actions[number] for number in failed}
        return refused

    async def _send_all(self, actions: Mapping[int, bytes]) -> dict[int, Answer]:
        """Make requests of a bounded size; return how each action went."""
        answers: dict[int, Answer] = {}
        places = asyncio.Semaphore(REQUESTS_AT_ONCE)

        async def send(batch: Mapping[int, bytes]) -> None:
            async with places:
                answers.update(zip(batch, await self._send([*batch.values()]), strict=True))

        try:
            async with asyncio.TaskGroup() as requests:
                for batch in _batches(actions):
                    requests.create_task(send(batch))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        return answers

    async def _send(self, lines: Sequence[bytes]) -> list[Answer]:
        """Make one request; return how each action went."""
        async with self._elastic.client() as client:
            try:
                answer = await client.bulk(
                    operations=lines,  # type: ignore[arg-type]  # it also takes what is encoded already
                    filter_path=["items.*.status", "items.*.error"],
                )
            except ApiError as error:
                # A proxy or the server finds it too large. Then only what is too large by itself is refused.
                if error.status_code != 413:
                    raise
                if len(lines) == 1:
                    return [(413, {"type": "too_large", "reason": f"{len(lines[0])} bytes"})]
            else:
                items = [item for each in answer["items"] for item in each.values()]
                return [(item["status"], item.get("error", {})) for item in items]
        half = len(lines) // 2
        return [*await self._send(lines[:half]), *await self._send(lines[half:])]


def shallow(value: Any, depth: int = METADATA_DEPTH) -> Any:
    """Return JSON that a flattened field takes: what is nested too deeply is there as its text."""
    if depth == 0 and isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    if isinstance(value, dict):
        return {key: shallow(each, depth - 1) for key, each in value.items()}
    if isinstance(value, list):
        return [shallow(each, depth - 1) for each in value]
    return value


async def _create(
    client: AsyncElasticsearch, index: str, settings: Mapping[str, Any], properties: Mapping[str, Any]
) -> None:
    """Make an index if it is missing."""
    if not await client.indices.exists(index=index):
        await create_index(client, index, settings=settings, mappings={"dynamic": False, "properties": properties})


def _next(log: str, partition: int, offset: int) -> dict[str, Any]:
    return {"id": f"{log}/{partition}", "document": {"log": log, "partition": partition, "next": offset}}


def _overtaken(span: Span) -> Overtaken:
    return Overtaken(f"partition {span.partition} of {span.log} is not at {span.start} any more")


async def _encoded(records: Mapping[int, Record], action: Callable[[Record], bytes]) -> dict[int, bytes]:
    """Return the lines of each record's action."""
    actions = {}
    for count, (number, record) in enumerate(records.items(), 1):
        actions[number] = action(record)
        if count % ENCODED_AT_ONCE == 0:
            await asyncio.sleep(0)
    return actions


def _batches(actions: Mapping[int, bytes]) -> Iterator[dict[int, bytes]]:
    """Share actions out to requests: as many as are made at once, unless they would be too large or too small."""
    share = max(sum(map(len, actions.values())) / REQUESTS_AT_ONCE, SHARED_BYTES)
    batch: dict[int, bytes] = {}
    size = 0
    for number, lines in actions.items():
        if batch and (size >= share or size + len(lines) > BULK_BYTES):
            yield batch
            batch, size = {}, 0
        batch[number] = lines
        size += len(lines)
    if batch:
        yield batch
