"""What the archive has of a user's past: older conversations and turns, read from Postgres.

A page that somebody waits for is worth a second and no more, also where Postgres is there and does not answer: then it
is shown without. Every statement names tenant and user, so nobody reads what is another's.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from psycopg import sql
from psycopg.rows import TupleRow

from adapters.postgres import Postgres, open_postgres
from adapters.schema import statement
from config.settings import Settings
from domain.errors import SinkUnavailable
from domain.generation import Usage
from domain.history import Owner, StoredConversation, StoredFeedback, StoredTurn
from domain.knowledge import Citation
from domain.turns import Failure, Timings

T = TypeVar("T")

WAIT_SECONDS: Final = 1.0
CONNECT_SECONDS: Final = 0.5
ANSWER_SECONDS: Final = 0.9
# The server gives up a little earlier than we do, so that its connection can be used again at once.
_BRIEFLY: Final = sql.SQL("SET LOCAL statement_timeout = '800ms'")
_END_OF_TIME: Final = datetime(9999, 12, 31, tzinfo=UTC)
_LAST_ID: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"

_LIST_CONVERSATIONS: Final = statement("list_conversations")
_FIND_CONVERSATION: Final = statement("find_conversation")
_LIST_TURNS: Final = statement("list_turns")
_FIND_TURN: Final = statement("find_turn")
_FIND_FEEDBACK: Final = statement("find_feedback")


class History:
    """Reads for people who wait. Every method raises `SinkUnavailable`, within a second."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._asking: set[asyncio.Task[Any]] = set()

    async def conversations(
        self, owner: Owner, *, before: tuple[datetime, str] | None = None, known: Iterable[str] = (), limit: int
    ) -> list[StoredConversation]:
        """Return a user's conversations, the latest active first, without those that are known.

        ``before``: the time of the latest activity and the id of the one that they follow.
        """
        at, conversation_id = before or (_END_OF_TIME, _LAST_ID)
        values = {**owner._asdict(), "at": at, "before": conversation_id, "known": list(known), "limit": limit}
        return [_conversation(row) for row in await self._ask(_LIST_CONVERSATIONS, values)]

    async def conversation(self, owner: Owner, conversation_id: str) -> StoredConversation | None:
        """Return a conversation of this user's."""
        rows = await self._ask(_FIND_CONVERSATION, owner._asdict() | {"conversation_id": conversation_id})
        return _conversation(rows[0]) if rows else None

    async def turns(
        self, owner: Owner, conversation_id: str, *, before: str = "", known: Iterable[str] = (), limit: int
    ) -> list[StoredTurn]:
        """Return a conversation's turns that were asked before one, the latest first, without those that are known."""
        where = {"conversation_id": conversation_id, "before": before or _LAST_ID}
        values = {**owner._asdict(), **where, "known": list(known), "limit": limit}
        return [_turn(row) for row in await self._ask(_LIST_TURNS, values)]

    async def turn(self, owner: Owner, turn_id: str) -> StoredTurn | None:
        """Return a turn of this user's."""
        rows = await self._ask(_FIND_TURN, owner._asdict() | {"turn_id": turn_id})
        return _turn(rows[0]) if rows else None

    async def feedback(self, owner: Owner, turn_ids: Sequence[str]) -> list[StoredFeedback]:
        """Return what this user said of turns."""
        rows = await self._ask(_FIND_FEEDBACK, owner._asdict() | {"turn_ids": list(turn_ids)})
        return [_feedback(row) for row in rows]

    async def close(self) -> None:
        """Give up what was asked and is not answered."""
        for task in self._asking:
            task.cancel()
        if self._asking:
            await asyncio.wait(self._asking)

    async def _ask(self, query: sql.SQL, values: dict[str, Any]) -> list[TupleRow]:
        return await self._briefly(self._rows(query, values))

    async def _rows(self, query: sql.SQL, values: dict[str, Any]) -> list[TupleRow]:
        async with self._postgres.connection(connect=CONNECT_SECONDS, answer=ANSWER_SECONDS) as connection:
            await connection.execute(_BRIEFLY)
            return await (await connection.execute(query, values)).fetchall()

    async def _briefly(self, asking: Coroutine[Any, Any, T]) -> T:
        # In a task that is left alone after that: psycopg takes up to 10 s more to cancel a query on a server that has
        # stopped answering, and only then do the next readers hear that they need not try.
        task = asyncio.create_task(asking)
        self._asking.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait([task], timeout=WAIT_SECONDS)
        if not done:
            raise SinkUnavailable(f"Postgres did not answer within {WAIT_SECONDS:.0f} s", retry_after=1)
        return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio complains of those that nobody waited for


@asynccontextmanager
async def open_history(settings: Settings) -> AsyncIterator[History]:
    """Yield the history, with connections of its own: a batch holds up no reader, and a reader's time-out no batch."""
    async with open_postgres(settings, connections=2) as postgres:
        history = History(postgres)
        try:
            yield history
        finally:
            await history.close()


def _conversation(row: TupleRow) -> StoredConversation:
    conversation_id, title, created_at, updated_at, metadata = row
    return StoredConversation(conversation_id, title, _milliseconds(created_at), _milliseconds(updated_at), metadata)


def _turn(row: TupleRow) -> StoredTurn:
    (
        turn_id, conversation_id, parent, input_, answer, model, prompt, outcome, finish, error_code, error_message,
        input_tokens, output_tokens, started_ms, first_token_ms, total_ms, claims, asked_at, ended_at, in_conversation,
        metadata, retrieval, cache, experiment, bare, citations,
    ) = row  # fmt: skip
    return StoredTurn(
        turn_id=turn_id,
        conversation_id=conversation_id,
        parent=parent,
        input=input_,
        answer=answer,
        model=model,
        prompt=prompt,
        outcome=outcome,
        finish=finish,
        error=None if error_code is None else Failure(error_message or "", error_code),
        usage=Usage(input_tokens, output_tokens),
        timings=Timings(started_ms, first_token_ms, total_ms),
        claims=claims,
        asked_at=_milliseconds(asked_at),
        ended_at=_milliseconds(ended_at),
        in_conversation=in_conversation,
        metadata=metadata,
        citations=[Citation(**each) for each in citations],
        retrieval=retrieval,
        cache=cache,
        experiment=experiment,
        bare=bare,
    )


def _feedback(row: TupleRow) -> StoredFeedback:
    turn_id, rating, comment, correction, given_at = row
    return StoredFeedback(turn_id, rating, comment, correction, _milliseconds(given_at))


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)
