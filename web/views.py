"""Turns and conversations as clients see them, each made in one place from whatever has them."""

from typing import TYPE_CHECKING, Any, TypeVar

from domain.history import StoredConversation, StoredTurn
from streams.records import Question, Turn
from web.ask import HEADRACE
from web.progress import Progress, place_of_turn
from web.shapes import ConversationView, ShownTurn, rfc3339

if TYPE_CHECKING:
    from tables.conversations import Conversation, KeptTurn, Listed

V = TypeVar("V", bound=ShownTurn)


def of_log(shape: type[V], question: Question, progress: Progress, **more: Any) -> V:
    """Return a turn as its question and its tokens have it; ``more`` are the fields that only this shape has."""
    end = progress.end
    return shape(
        turn_id=question.turn_id,
        input=question.input,
        model=(end.model if end else "") or question.model or HEADRACE,
        status=progress.status,
        answer=progress.answer,
        created_at=rfc3339(place_of_turn(question.turn_id).milliseconds),
        beside=question.beside or None,
        outcome=end.outcome if end else None,
        usage=end.usage if end else None,
        timings=end.timings if end else None,
        error=end.error if end else None,
        citations=progress.citations,
        retrieval=end.retrieval if end else None,
        cache=end.cache if end else None,
        last_event_id=progress.last_event_id,
        **more,
    )


def of_finished(shape: type[V], turn: "Turn | KeptTurn | StoredTurn", **more: Any) -> V:
    """Return a turn that has ended, without its events; ``more`` are the fields that only this shape has."""
    return shape(
        turn_id=turn.turn_id,
        input=turn.input,
        model=turn.model,
        status=turn.outcome,
        answer=turn.answer,
        created_at=rfc3339(turn.asked_at),
        outcome=turn.outcome,
        usage=turn.usage,
        timings=turn.timings,
        error=turn.error,
        citations=turn.citations,
        retrieval=turn.retrieval,
        cache=turn.cache,
        **more,
    )


def view(row: "Conversation | Listed | StoredConversation") -> ConversationView:
    """Return a conversation, without its turns."""
    return ConversationView(
        id=row.conversation_id,
        title=row.title,
        created_at=rfc3339(row.created_at),
        updated_at=rfc3339(row.updated_at),
        metadata=row.metadata,
    )
