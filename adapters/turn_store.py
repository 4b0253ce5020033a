"""Finished turns in Postgres: batches of them, each written in one transaction with the offset that comes after it.

The invariant: **a row of `progress` is the offset below which everything is written, and nothing else is.** A batch
begins by moving its row from the batch's start to its stop. Whoever finds it elsewhere was overtaken (by the
partition's next owner, by itself before a crash) and writes nothing. Whoever finds it there holds the row's lock until
the commit: no other batch of that partition is written meanwhile, and what was asked before a COPY holds after it.

Turns are copied as if none was there, because that is so but for what a crash had published twice; only where Postgres
finds one that is, the batch begins again and deletes first what it brings.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from adapters.postgres import Postgres
from adapters.schema import bring_up_to_date, statement
from domain.conversation import title_from
from domain.errors import Overtaken, Rejected, SinkRefused
from domain.spans import Span

Connection = psycopg.AsyncConnection[Any]

# Between two pauses in which tokens go out. 3 us a row for Postgres's binary form.
ROWS_AT_ONCE: Final = 50
# The calendar ends with the month that would come after it. Its turns go where those of a wrong clock go.
LAST_YEAR: Final = 9999
_MOVE_PROGRESS: Final = statement("move_progress")
_BEGIN_PROGRESS: Final = statement("begin_progress")
_SET_PROGRESS: Final = statement("set_progress")
_KEEP_FEEDBACK: Final = statement("keep_feedback")
_CONTINUE: Final = statement("continue_conversations")
_ORDERS: Final = {
    "create": statement("create_conversation"),
    "rename": statement("rename_conversation"),
    "erase": statement("erase_conversation"),
}

# What a row can have that its table cannot: anything but Postgres being away.
_REFUSED: Final = (psycopg.DataError, psycopg.IntegrityError, ValueError, OverflowError)


class TurnRow(NamedTuple):
    """A row of `turns`, in the order of its columns."""

    turn_id: UUID
    ended_at: datetime
    asked_at: datetime
    conversation_id: UUID
    parent: UUID | None
    tenant: str
    user_id: str
    in_conversation: bool
    input: str
    answer: str
    model: str
    prompt: str
    outcome: str
    finish: str
    error_code: str | None
    error_message: str | None
    input_tokens: int
    output_tokens: int
    started_ms: int
    first_token_ms: int
    total_ms: int
    claims: int
    metadata: dict[str, Any]
    retrieval: str | None
    cache: str | None
    experiment: str
    bare: bool
    cost: Decimal | None


class CitationRow(NamedTuple):
    """A passage that an answer was given as number ``n``, and whether it names it, in the order of its columns."""

    turn_id: UUID
    ended_at: datetime
    n: int
    document_id: str
    title: str
    url: str | None
    text: str
    named: bool


class FeedbackRow(NamedTuple):
    """What somebody said of a turn, in the order of the columns of `feedback`."""

    turn_id: UUID
    conversation_id: UUID
    tenant: str
    user_id: str
    rating: int
    comment: str | None
    correction: str | None
    given_at: datetime


class Order(NamedTuple):
    """What somebody wants of a conversation. ``title`` and ``metadata`` are None where they stay as they are."""

    action: Literal["create", "rename", "erase"]
    conversation_id: UUID
    tenant: str
    user_id: str
    at: datetime
    title: str | None
    metadata: dict[str, Any] | None


class _Conversation(NamedTuple):
    """What a batch's turns say of their conversation, in the order of its columns."""

    conversation_id: UUID
    tenant: str
    user_id: str
    title: str
    created_at: datetime
    updated_at: datetime


class _Table(NamedTuple):
    """Where rows are copied to, and the types of their columns, since binary COPY converts nothing."""

    copy: sql.Composed
    types: tuple[str, ...]


def _table(name: str, **columns: str) -> _Table:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    return _Table(
        sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(sql.Identifier(name), names), tuple(columns.values())
    )


_TYPES: Final[Mapping[Any, str]] = {
    UUID: "uuid",
    UUID | None: "uuid",
    datetime: "timestamptz",
    bool: "bool",
    int: "int4",
    dict[str, Any]: "jsonb",
    Decimal | None: "numeric",
}
TURNS: Final = _table(
    "turns",
    **{name: _TYPES.get(kind, "text") for name, kind in TurnRow.__annotations__.items()},
)
CITATIONS: Final = _table(
    "citations", **{name: _TYPES.get(kind, "text") for name, kind in CitationRow.__annotations__.items()}
)
CONVERSATIONS: Final = _table(
    "conversations", **{name: _TYPES.get(kind, "text") for name, kind in _Conversation.__annotations__.items()}
)
BILLED: Final = (
    "turn_id", "ended_at", "tenant", "user_id", "model", "outcome", "input_tokens", "output_tokens", "claims",
    "cost",
)  # fmt: skip
USAGE: Final = _table("usage", **{name: _TYPES.get(TurnRow.__annotations__[name], "text") for name in BILLED})


class TurnStore:
    """Writes what the archive brings. Every method raises `SinkUnavailable`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._months: set[date] = set()

    async def prepare(self) -> None:
        """Bring the schema up to date."""
        await bring_up_to_date(self._postgres)
        self._months.clear()

    async def progress(self, log: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return the next offset of each partition."""
        async with self._postgres.connection() as connection:
            found = await connection.execute("SELECT partition, next FROM progress WHERE log = %s", (log,))
            known = dict(await found.fetchall())
        return {partition: known.get(partition, 0) for partition in partitions}

    async def rewind(self, log: str, offsets: Mapping[int, int]) -> None:
        """Set the progress of these partitions, wherever it was."""
        async with self._postgres.connection() as connection, connection.cursor() as cursor:
            await cursor.executemany(
                _SET_PROGRESS,
                [{"log": log, "partition": partition, "next": offset} for partition, offset in offsets.items()],
            )

    # -- turns

    async def keep(
        self,
        span: Span,
        rows: Mapping[int, TurnRow],
        citations: Mapping[int, Sequence[CitationRow]] | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Write the turns of a span and the passages that they were given, both by offset.

        Raises `Overtaken` and `SinkRefused`, and then wrote nothing. ``again``: they are there, perhaps, and written
        over; the progress is neither compared nor moved.
        """
        citations = citations or {}
        kept = {row.turn_id: offset for offset, row in rows.items()}  # of one that is there twice, the later
        turns = [rows[offset] for offset in kept.values()]
        cited = [row for offset in kept.values() for row in _numbered(citations.get(offset, ()))]
        async with self._postgres.connection() as connection:
            await self._make_months(connection, turns)
            try:
                try:
                    await _keep(connection, span, turns, cited, anew=again, again=again)
                except psycopg.errors.UniqueViolation:
                    await _keep(connection, span, turns, cited, anew=True, again=again)
            except _REFUSED as error:
                reasons = await _reasons(connection, rows, citations)
                if not reasons:
                    raise Rejected(f"Postgres refuses a batch and each of its rows not: {_line(error)}") from error
                raise SinkRefused(reasons) from error

    async def _make_months(self, connection: Connection, turns: Sequence[TurnRow]) -> None:
        """Have partitions for these turns, and for those of the month after the latest: nobody then waits for them."""
        months = {row.ended_at.date().replace(day=1) for row in turns if row.ended_at.year < LAST_YEAR}
        for month in sorted((months | set(map(_after, months))) - self._months):
            # A transaction each, as short as can be: it locks what the partitions are attached to.
            async with connection.transaction():
                await connection.execute("SELECT make_month(%s)", (month,))
            self._months.add(month)

    # -- controls

    async def obey(self, span: Span, orders: Mapping[int, Order], turns_log: str, *, again: bool = False) -> None:
        """Carry out the orders of a span in turn; raises `Overtaken`, and then did nothing. ``again``: see `keep`.

        ``turns_log``: the log of the same conversations' turns. A batch of it is written before an erasure, which then
        deletes its turns, or after, and then sees that they are erased; never beside it.
        """
        async with self._postgres.connection() as connection, _one_of_them(), connection.transaction():
            await _take(connection, span, again=again)
            await connection.execute(_BEGIN_PROGRESS, {"log": turns_log, "partition": span.partition})
            for order in orders.values():
                metadata = None if order.metadata is None else Jsonb(order.metadata)
                await connection.execute(_ORDERS[order.action], order._asdict() | {"metadata": metadata})

    # -- feedback

    async def note(self, span: Span, rows: Mapping[int, FeedbackRow], turns_log: str, *, again: bool = False) -> None:
        """Write what a span says of turns; raises `Overtaken`, and then wrote nothing. ``again``: see `keep`.

        ``turns_log``: as for `obey`, and for the same reason.
        """
        async with self._postgres.connection() as connection, _one_of_them(), connection.transaction():
            await _take(connection, span, again=again)
            await connection.execute(_BEGIN_PROGRESS, {"log": turns_log, "partition": span.partition})
            async with connection.cursor() as cursor:
                await cursor.executemany(_KEEP_FEEDBACK, [row._asdict() for row in rows.values()])


@asynccontextmanager
async def _one_of_them() -> AsyncIterator[None]:
    """Tell a record that Postgres does not take from a Postgres that is away; which one, the archive finds out."""
    try:
        yield
    except _REFUSED as error:
        raise Rejected(f"Postgres does not take one of them: {_line(error)}") from error


def _line(error: Exception) -> str:
    """Return the first line of what Postgres says; the others quote somebody's words."""
    return next(iter(str(error).splitlines()), "")


async def _keep(
    connection: Connection,
    span: Span,
    turns: Sequence[TurnRow],
    cited: Sequence[CitationRow],
    *,
    anew: bool,
    again: bool,
) -> None:
    """Write a batch. ``anew``: turns of it are there, and are written over."""
    async with connection.transaction():
        await _take(connection, span, again=again)
        if anew:
            ids = [row.turn_id for row in turns]
            await connection.execute("DELETE FROM turns WHERE turn_id = ANY(%b)", (ids,))
            await connection.execute("DELETE FROM usage WHERE turn_id = ANY(%b)", (ids,))
            await connection.execute("DELETE FROM citations WHERE turn_id = ANY(%b)", (ids,))
        erased = await _keep_conversations(connection, turns)
        await copy_rows(connection, USAGE, list(map(_billed, turns)))
        if erased:  # seldom; to ask each row takes a twentieth of the flush, as UUIDs are hashed in Python
            turns = [row for row in turns if row.conversation_id not in erased]
            kept = {row.turn_id for row in turns}
            cited = [row for row in cited if row.turn_id in kept]
        await copy_rows(connection, TURNS, turns)
        await copy_rows(connection, CITATIONS, cited)


async def _take(connection: Connection, span: Span, *, again: bool) -> None:
    """Hold the progress until the transaction ends, moved over the span or, ``again``, as it is; raises `Overtaken`."""
    values = {"log": span.log, "partition": span.partition, "start": span.start, "stop": span.stop}
    if again or span.start == 0:
        await connection.execute(_BEGIN_PROGRESS, values)
    if again:
        return
    moved = await connection.execute(_MOVE_PROGRESS, values)
    if moved.rowcount == 0:
        raise Overtaken(f"partition {span.partition} of {span.log} is not at {span.start} any more")


async def _keep_conversations(connection: Connection, turns: Sequence[TurnRow]) -> set[UUID]:
    """Begin the conversations that are new, tell the others of their latest turn; return those that were erased."""
    said = conversations_of(turns)
    if not said:
        return set()
    known = await connection.execute(
        "SELECT conversation_id, erased_at IS NOT NULL FROM conversations WHERE conversation_id = ANY(%b)",
        (list(said),),
    )
    erased = dict(await known.fetchall())
    # Two statements are a third of the cost of INSERT ... ON CONFLICT for those that are new, which are most.
    new = [row for key, row in said.items() if key not in erased] if erased else list(said.values())
    await copy_rows(connection, CONVERSATIONS, new)
    if old := [said[key] for key, is_erased in erased.items() if not is_erased]:
        await connection.execute(
            _CONTINUE,
            {
                "ids": [row.conversation_id for row in old],
                "titles": [row.title for row in old],
                "created": [row.created_at for row in old],
                "updated": [row.updated_at for row in old],
            },
        )
    return {key for key, is_erased in erased.items() if is_erased}


def conversations_of(turns: Sequence[TurnRow]) -> dict[UUID, _Conversation]:
    """Return what the turns say of their conversations, by id."""
    found: dict[UUID, _Conversation] = {}
    for turn in turns:
        if turn.in_conversation:
            key = turn.conversation_id
            known = found.get(key) or _Conversation(
                key, turn.tenant, turn.user_id, title_from(turn.input), turn.asked_at, turn.ended_at
            )
            found[key] = known._replace(
                created_at=min(known.created_at, turn.asked_at), updated_at=max(known.updated_at, turn.ended_at)
            )
    return found


async def copy_rows(connection: Connection, table: _Table, rows: Sequence[Sequence[Any]]) -> None:
    """Copy rows, with a pause now and then for whoever else wants the loop."""
    if not rows:
        return
    async with connection.cursor() as cursor, cursor.copy(table.copy) as copy:
        copy.set_types(table.types)
        for number, row in enumerate(rows, 1):
            await copy.write_row(row)
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)


def _billed(row: TurnRow) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in BILLED)


def _numbered(citations: Iterable[CitationRow]) -> Iterable[CitationRow]:
    """Return a turn's citations, of those with the same number the last."""
    return {row.n: row for row in citations}.values()


async def _reasons(
    connection: Connection, rows: Mapping[int, TurnRow], citations: Mapping[int, Sequence[CitationRow]]
) -> dict[int, str]:
    """Return for each row that one of its tables does not take why, by offset. Writes nothing."""
    reasons = {}
    async with connection.transaction(force_rollback=True):
        for offset, row in rows.items():
            try:
                async with connection.transaction(force_rollback=True):
                    await _keep_conversations(connection, [row])
                    await copy_rows(connection, USAGE, [_billed(row)])
                    await copy_rows(connection, TURNS, [row])
                    await copy_rows(connection, CITATIONS, list(_numbered(citations.get(offset, ()))))
            except psycopg.errors.UniqueViolation:
                continue
            except _REFUSED as error:
                reasons[offset] = f"Postgres does not take it: {_line(error)}"
    return reasons


def _after(month: date) -> date:
    return month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
