"""How fast the archive writes, beside the least that could be done: rows a second of a flush against raw COPY or bulk.

    python -m bench.windows postgres [--rows 1000,10000] [--filled 100000,2000000] [--repeat 9]
    python -m bench.windows elasticsearch [--rows 1000,10000] [--repeat 9] [--warm-up 15]

Needs DATABASE_URL; makes schemas of its own there and drops them at the end. "Raw" is one transaction that copies the
same rows into twins of the tables, with their indexes and partitions: without progress, and without a look at which
conversations are there. Where a conversation goes on, the flush writes its row anew, and raw copies it; its older row
was deleted before, which is not counted. Half of the answers were given passages, which are rows of their own. The two
take turns, so that a busy moment meets both, and the median of the ratios of neighbours counts. Then a flush into
tables that hold so many turns already, against one into its twin that is empty.

Of Elasticsearch, at ELASTICSEARCH_URL, "raw" is the same NDJSON, encoded before, in one request to a twin of the index.
Rounds of the first seconds do not count: a fresh JVM has yet to compile what it does often, on the cores that both use.
"""

import argparse
import asyncio
import io
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, NamedTuple
from urllib.parse import quote
from uuid import UUID, uuid4

import aiohttp
import psycopg
from psycopg import sql

from adapters.elastic import Elastic
from adapters.postgres import Postgres
from adapters.search_index import SearchIndex
from adapters.turn_store import (
    BILLED,
    CITATIONS,
    CONVERSATIONS,
    TURNS,
    USAGE,
    CitationRow,
    TurnRow,
    TurnStore,
    conversations_of,
    copy_rows,
)
from domain.ids import uuid7
from domain.spans import Span

LOG: Final = "bench@1"
ANSWER: Final = "The water wheel turns because the headrace brings it water, and it brings no more than it is let. " * 8
PASSAGE: Final = "What the headrace lets through falls on the wheel and fills its buckets, one after another. " * 6
# Every other answer was given so many passages.
PASSAGES: Final = 3
# An hour ago, so that what was filled in is older and all of it lies in few months.
START_MS: Final = int(time.time() * 1000) - 3_600_000
# Turns in conversations that are there already: most people say more than one thing.
CONTINUED: Final = 0.5


class Window(NamedTuple):
    """Turns, and by their places the passages that their answers were given."""

    turns: Sequence[TurnRow]
    citations: Mapping[int, Sequence[CitationRow]]


@dataclass
class Maker:
    """Makes turns as they come from a log: their ids rise with time. ``known`` conversations may go on."""

    chance: random.Random
    made: int = 0

    def window(self, count: int, known: Sequence[UUID] = ()) -> Window:
        """Return turns that nobody has seen yet."""
        turns = [self._turn(known) for _ in range(count)]
        return Window(turns, {place: _passages(turn) for place, turn in enumerate(turns) if place % 2})

    def _turn(self, known: Sequence[UUID]) -> TurnRow:
        self.made += 1
        milliseconds = START_MS + self.made
        at = datetime.fromtimestamp(milliseconds / 1000, UTC)
        new = UUID(uuid7(milliseconds, self.chance.getrandbits(12), self.chance.getrandbits(62)))
        goes_on = bool(known) and self.chance.random() < CONTINUED
        return TurnRow(
            turn_id=UUID(uuid7(milliseconds, 3, self.chance.getrandbits(62))),
            ended_at=at,
            asked_at=at,
            conversation_id=self.chance.choice(known) if goes_on else new,
            parent=None,
            tenant="acme",
            user_id=f"user-{self.chance.randrange(2000)}",
            in_conversation=True,
            input="Why does the wheel turn, and why does it not turn faster when it rains?",
            answer=ANSWER,
            model="small",
            prompt="assistant.v1",
            outcome="completed",
            finish="stop",
            error_code=None,
            error_message=None,
            input_tokens=312,
            output_tokens=190,
            started_ms=4,
            first_token_ms=210,
            total_ms=3800,
            claims=1,
            metadata={},
            retrieval="found",
            cache=None,
            experiment="",
            bare=False,
            cost=Decimal("0.000161"),
        )


def _passages(turn: TurnRow) -> list[CitationRow]:
    return [
        CitationRow(turn.turn_id, turn.ended_at, n, f"document-{n}", "The miller's manual", None, PASSAGE, n == 1)
        for n in range(1, PASSAGES + 1)
    ]


class Flush:
    """The archive's own way, into one schema or set of indices."""

    def __init__(self, store: TurnStore | SearchIndex) -> None:
        self._store = store
        self._next = 0

    async def __call__(self, window: Window) -> None:
        """Write a window."""
        span = Span(LOG, 0, self._next, self._next + len(window.turns))
        rows = dict(enumerate(window.turns, span.start))
        citations = {span.start + place: given for place, given in window.citations.items()}
        if isinstance(self._store, TurnStore):
            await self._store.keep(span, rows, citations)
        else:
            await self._store.keep(span, rows, {offset: _documents(given) for offset, given in citations.items()})
        self._next = span.stop


def _documents(given: Sequence[CitationRow]) -> list[str]:
    return [each.document_id for each in given]


@asynccontextmanager
async def schema(url: str) -> AsyncIterator[tuple[Flush, psycopg.AsyncConnection[object]]]:
    """Yield a flush into tables of our own, and a connection to the same."""
    name = sql.Identifier(f"bench_{uuid4().hex[:12]}")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as admin:
        await admin.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        path = quote(f"-csearch_path={name.as_string()}")
        own = f"{url}{'&' if '?' in url else '?'}options={path}"
        postgres = Postgres(own)
        await postgres.open()
        try:
            store = TurnStore(postgres)
            await store.prepare()
            async with await psycopg.AsyncConnection.connect(own) as connection:
                yield Flush(store), connection
        finally:
            await postgres.close()
            await admin.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(name))


async def make_room(connection: psycopg.AsyncConnection[object], window: Window) -> None:
    """Delete the rows of the conversations that go on, so that raw COPY can write them."""
    async with connection.transaction():
        ids = list(conversations_of(window.turns))
        await connection.execute("DELETE FROM conversations WHERE conversation_id = ANY(%b)", (ids,))


async def copy_raw(connection: psycopg.AsyncConnection[object], window: Window) -> None:
    """Copy the rows of a window in one transaction, and do nothing else."""
    turns = window.turns
    async with connection.transaction():
        await copy_rows(connection, CONVERSATIONS, list(conversations_of(turns).values()))
        await copy_rows(connection, USAGE, [tuple(getattr(row, name) for name in BILLED) for row in turns])
        await copy_rows(connection, TURNS, turns)
        await copy_rows(connection, CITATIONS, [row for given in window.citations.values() for row in given])


async def timed(work: Awaitable[None]) -> float:
    """Return the seconds that something takes."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def against_raw(url: str, rows: int, repeat: int, *, goes_on: bool) -> None:
    """Print a flush's rate and that of raw COPY. ``goes_on``: in conversations of which half is there already."""
    maker = Maker(random.Random(rows))  # noqa: S311
    async with schema(url) as (flush, _), schema(url) as (flush_twin, twin):
        first = maker.window(1000)  # the partitions, and conversations that can go on
        for each in (flush, flush_twin):
            await each(first)
        known = [turn.conversation_id for turn in first.turns] if goes_on else []
        flushed, copied = [], []
        for _ in range(repeat):
            window = maker.window(rows, known)
            await make_room(twin, window)
            copied.append(await timed(copy_raw(twin, window)))
            flushed.append(await timed(flush(window)))
    ratio = statistics.median(raw / ours for raw, ours in zip(copied, flushed, strict=True))
    what = "half of the conversations there" if goes_on else "all conversations new"
    print(
        f"{rows:>7,} rows, {what:<31}: flush {rows / statistics.median(flushed):>8,.0f}/s,"
        f" raw {rows / statistics.median(copied):>8,.0f}/s, ratio {ratio:.2f}"
    )


async def against_empty(url: str, filled: int, repeat: int, rows: int = 1000) -> None:
    """Print the rate of a flush into tables that hold so many turns, and into empty ones."""
    maker = Maker(random.Random(filled))  # noqa: S311
    async with schema(url) as (flush, connection), schema(url) as (flush_empty, _):
        await flush(maker.window(1))  # the partitions
        await fill(connection, filled)
        await flush_empty(maker.window(1))
        full, empty = [], []
        for _ in range(repeat):
            empty.append(await timed(flush_empty(maker.window(rows))))
            full.append(await timed(flush(maker.window(rows))))
    ratio = statistics.median(alone / among for alone, among in zip(empty, full, strict=True))
    print(
        f"{rows:>7,} rows into {filled:>9,}: {rows / statistics.median(full):>8,.0f}/s,"
        f" into an empty twin {rows / statistics.median(empty):>8,.0f}/s, ratio {ratio:.2f}"
    )


async def fill(connection: psycopg.AsyncConnection[object], turns: int) -> None:
    """Put so many turns into the tables, each in a conversation of its own, with ids of the time before ours."""
    await connection.execute(
        """
        CREATE TEMPORARY TABLE filling AS
        SELECT to_timestamp(at / 1000.0) AS at,
            (lpad(to_hex(at), 12, '0') || '7003' || '8' || substr(md5(random()::text), 1, 15))::uuid AS turn_id,
            (lpad(to_hex(at), 12, '0') || '7fff' || '9' || substr(md5(random()::text), 1, 15))::uuid AS conversation_id
        FROM generate_series(%(first)s::bigint, %(first)s + %(turns)s - 1) AS at
        """,
        {"first": START_MS - turns - 1000, "turns": turns},
    )
    for statement in (
        "INSERT INTO conversations SELECT conversation_id, 'acme', 'user', 'Of wheels', at, at FROM filling",
        "INSERT INTO usage SELECT turn_id, at, 'acme', 'user', 'small', 'completed', 1, 1, 1, 0.000001 FROM filling",
        """INSERT INTO turns SELECT turn_id, at, at, conversation_id, NULL, 'acme', 'user', true, 'Why?',
        repeat('x', 300), 'small', 'assistant.v1', 'completed', 'stop', NULL, NULL, 1, 1, 1, 1, 1, 1, '{}',
        'found', NULL, '', false, 0.000001 FROM filling""",
        """INSERT INTO citations SELECT turn_id, at, 1, 'document-1', 'Manual', NULL, repeat('x', 100), true
        FROM filling WHERE random() < 0.5""",
        "DROP TABLE filling",
    ):
        await connection.execute(statement)
    await connection.commit()
    await connection.set_autocommit(True)
    # What a server at rest has done already; during the measurement it would be done by the side.
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
    await connection.set_autocommit(False)


async def postgres(url: str, rows: Sequence[int], filled: Sequence[int], repeat: int) -> None:
    """Measure the sink in Postgres."""
    for count in rows:
        for goes_on in (False, True):
            await against_raw(url, count, repeat, goes_on=goes_on)
    for count in filled:
        await against_empty(url, count, repeat)


@asynccontextmanager
async def indices(url: str) -> AsyncIterator[SearchIndex]:
    """Yield indices of our own."""
    prefix = f"bench-{uuid4().hex[:12]}-"
    elastic = Elastic(url)
    index = SearchIndex(elastic, prefix)
    await index.prepare()
    try:
        yield index
    finally:
        async with elastic.client() as client:
            for name in await client.indices.get(index=f"{prefix}*"):
                await client.indices.delete(index=name)
            await client.indices.delete_index_template(name=index.turns)
        await elastic.close()


async def bulk_raw(session: aiohttp.ClientSession, url: str, lines: bytes) -> None:
    """Send what is encoded, and read the answer."""
    headers = {"Content-Type": "application/x-ndjson"}
    async with session.post(f"{url}/_bulk?filter_path=errors", data=io.BytesIO(lines), headers=headers) as answer:
        if await answer.json() != {"errors": False}:
            raise SystemExit(f"Elasticsearch does not take it: {answer.status} {await answer.text()}")


async def against_raw_bulk(url: str, rows: int, repeat: int, warm_up: float) -> None:
    """Print a flush's rate and that of the same documents sent raw."""
    maker = Maker(random.Random(rows))  # noqa: S311
    async with indices(url) as ours, indices(url) as twin, aiohttp.ClientSession() as session:
        flush = Flush(ours)
        flushed: list[float] = []
        sent: list[float] = []
        warm = time.perf_counter() + warm_up
        while len(sent) < repeat:
            if time.perf_counter() < warm:
                sent.clear()
                flushed.clear()
            window = maker.window(rows)
            lines = b"".join(
                twin.action(turn, _documents(window.citations.get(place, ())))
                for place, turn in enumerate(window.turns)
            )
            first = len(sent) % 2
            if first:
                flushed.append(await timed(flush(window)))
            sent.append(await timed(bulk_raw(session, url, lines)))
            if not first:
                flushed.append(await timed(flush(window)))
    ratio = statistics.median(raw / ours for raw, ours in zip(sent, flushed, strict=True))
    print(
        f"{rows:>7,} documents: flush {rows / statistics.median(flushed):>8,.0f}/s,"
        f" raw {rows / statistics.median(sent):>8,.0f}/s, ratio {ratio:.2f}"
    )


async def elasticsearch(url: str, rows: Sequence[int], repeat: int, warm_up: float) -> None:
    """Measure the sink in Elasticsearch."""
    for count in rows:
        await against_raw_bulk(url, count, repeat, warm_up)


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("sink", choices=["postgres", "elasticsearch"])
    parser.add_argument("--rows", type=_numbers, default=[1000, 10_000])
    parser.add_argument("--filled", type=_numbers, default=[100_000, 2_000_000])
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--warm-up", type=float, default=15)
    asked = parser.parse_args()
    if asked.sink == "postgres":
        asyncio.run(postgres(os.environ["DATABASE_URL"], asked.rows, asked.filled, asked.repeat))
    else:
        asyncio.run(elasticsearch(os.environ["ELASTICSEARCH_URL"].rstrip("/"), asked.rows, asked.repeat, asked.warm_up))


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each]


if __name__ == "__main__":
    main()
