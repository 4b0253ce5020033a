"""Finds what Kafka has of a turn: its id says in which partition, and when it was asked."""

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from domain.errors import BadRecord
from domain.ids import Place
from streams.records import Question, Turn, W, decode
from streams.topics import Topics

T = TypeVar("T")

QUEUED_MS: Final = 600_000  # how long a question waits for those before it, to still be found years later


class Reader(Protocol):
    """What a look-up needs of a log reader."""

    async def find(
        self, topic: str, partition: int, at_ms: int, match: Callable[[bytes], T | None], *, within_ms: int = ...
    ) -> T | None:
        """Return the first match among a partition's records from this time on, for so long."""
        ...


async def find_question(reader: Reader, topics: Topics, turn_id: str, place: Place) -> Question | None:
    """Return a turn's question. Raises `LogUnavailable`."""
    return await reader.find(
        topics.questions.name, place.partition, place.milliseconds, lambda value: _of(turn_id, value, Question)
    )


async def find_turn(reader: Reader, topics: Topics, turn_id: str, place: Place, *, turn_seconds: float) -> Turn | None:
    """Return a finished turn, of which the answer took ``turn_seconds`` at most. Raises `LogUnavailable`."""
    return await reader.find(
        topics.turns.name,
        place.partition,
        place.milliseconds,
        lambda value: _of(turn_id, value, Turn),
        within_ms=int(turn_seconds * 1000) + QUEUED_MS,
    )


def _of(turn_id: str, value: bytes, kind: type[W]) -> W | None:
    # A glance at the bytes first: most records that a search passes are other turns'.
    if turn_id.encode() not in value:
        return None
    try:
        record = decode(value, kind)
    except BadRecord:
        return None
    return record if getattr(record, "turn_id", None) == turn_id else None
