"""A past for tests: turns and conversations as the archive has them, in numbers that can be told apart."""

from datetime import UTC, datetime
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from domain.generation import Usage
from domain.history import Owner, StoredConversation, StoredTurn
from domain.ids import new_turn_id, uuid7
from domain.knowledge import Citation
from domain.turns import Timings

LONG_AGO = 1_750_000_000_000  # June 2025
MINUTE = 60_000


def old_conversation_id(number: int) -> str:
    return uuid7(LONG_AGO, 1, number)


def old_turn_id(number: int, partition: int = 1) -> str:
    return new_turn_id(LONG_AGO + number * MINUTE, partition, number)


def old_conversation(number: int) -> StoredConversation:
    """Return a conversation; a higher number was active later."""
    at = LONG_AGO + number * MINUTE
    return StoredConversation(old_conversation_id(number), f"Old {number}", at, at, {"number": number})


def old_turn(number: int, conversation_id: str, *, in_conversation: bool = True, partition: int = 1) -> StoredTurn:
    """Return a turn that follows the one before it."""
    at = LONG_AGO + number * MINUTE
    return StoredTurn(
        turn_id=old_turn_id(number, partition),
        conversation_id=conversation_id,
        parent=old_turn_id(number - 1, partition) if number > 1 else "",
        input=f"Question {number}?",
        answer=f"Answer {number}.",
        model="test-model",
        prompt="",
        outcome="completed",
        finish="stop",
        error=None,
        usage=Usage(7, 3),
        timings=Timings(1, 2, 3),
        claims=1,
        asked_at=at,
        ended_at=at + 1000,
        in_conversation=in_conversation,
        metadata={},
        retrieval="found" if number % 3 else "weak",
        cache="miss" if number % 2 else None,
        experiment=f"arm-{number % 2}",
        bare=number % 4 == 0,
        citations=[Citation(n, f"document-{n}", "Manual", "", f"Passage {n}.") for n in range(1, number % 3 + 1)],
    )


def seed(url: str, owner: Owner, *rows: StoredConversation | StoredTurn) -> None:
    """Put rows into the tables of Postgres past our own code."""
    with psycopg.connect(url) as connection:
        for row in rows:
            if isinstance(row, StoredConversation):
                connection.execute(
                    "INSERT INTO conversations VALUES (%s, %s, %s, %s, %s, %s, %s)",
                    (
                        row.conversation_id, *owner, row.title, _time(row.created_at), _time(row.updated_at),
                        Jsonb(row.metadata),
                    ),
                )  # fmt: skip
            else:
                connection.execute(
                    "INSERT INTO turns VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,"
                    " %s, %s, %s, %s, '{}', %s, %s, %s, %s)",
                    (
                        row.turn_id, _time(row.ended_at), _time(row.asked_at), row.conversation_id,
                        UUID(row.parent) if row.parent else None, *owner, row.in_conversation, row.input, row.answer,
                        row.model, row.prompt, row.outcome, row.finish, None, None, row.usage.input_tokens,
                        row.usage.output_tokens, row.timings.started_ms, row.timings.first_token_ms,
                        row.timings.total_ms, row.claims, row.retrieval, row.cache, row.experiment, row.bare,
                    ),
                )  # fmt: skip
                for each in row.citations:
                    connection.execute(
                        "INSERT INTO citations VALUES (%s, %s, %s, %s, %s, %s, %s)",
                        (row.turn_id, _time(row.ended_at), each.n, each.document_id, each.title, None, each.text),
                    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
