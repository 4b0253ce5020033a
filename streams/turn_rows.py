"""Our records as the rows that every store keeps of them: a turn is the same in Postgres and in Elasticsearch."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from adapters.document_store import DocumentRow
from adapters.turn_store import CitationRow, FeedbackRow, Order, TurnRow
from domain.errors import SinkRefused
from domain.grounding import cited
from domain.prices import FREE, Prices, money
from domain.turns import is_refusal
from streams.records import Control, DocumentOutcome, Feedback, Turn

R = TypeVar("R", Control, Feedback, Turn)
Row = TypeVar("Row")

INT4: Final = (1 << 31) - 1
NUL: Final = "\x00"
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def row_of(turn: Turn, prices: Prices = FREE) -> TurnRow:
    """Return a turn as a row; raises ValueError, OverflowError, RecursionError."""
    cost = prices.of(turn.model, turn.usage.input_tokens, turn.usage.output_tokens)
    return TurnRow(
        turn_id=UUID(turn.turn_id),
        ended_at=_time(turn.ended_at),
        asked_at=_time(turn.asked_at),
        conversation_id=UUID(turn.conversation_id),
        parent=UUID(turn.parent) if turn.parent else None,
        tenant=storable(turn.tenant),
        user_id=storable(turn.user),
        in_conversation=not turn.stateless and not is_refusal(turn.error),
        input=storable(turn.input),
        answer=storable(turn.answer),
        model=storable(turn.model),
        prompt=storable(turn.prompt),
        outcome=turn.outcome,
        finish=storable(turn.finish),
        error_code=storable(turn.error.code) if turn.error else None,
        error_message=storable(turn.error.message) if turn.error else None,
        input_tokens=_int4(turn.usage.input_tokens),
        output_tokens=_int4(turn.usage.output_tokens),
        started_ms=_int4(turn.timings.started_ms),
        first_token_ms=_int4(turn.timings.first_token_ms),
        total_ms=_int4(turn.timings.total_ms),
        claims=_int4(turn.claims),
        metadata=_clean(turn.metadata),
        retrieval=turn.retrieval,
        cache=turn.cache,
        experiment=storable(turn.experiment),
        bare=turn.bare,
        cost=None if cost is None else money(cost),
    )


def citation_rows(turn: Turn) -> list[CitationRow]:
    """Return the passages that a turn's answer was given as rows."""
    named = {each.n for each in cited(turn.answer, turn.citations)}
    return [
        CitationRow(
            turn_id=UUID(turn.turn_id),
            ended_at=_time(turn.ended_at),
            n=_int4(each.n),
            document_id=storable(each.document_id),
            title=storable(each.title),
            url=storable(each.url) or None,
            text=storable(each.text),
            named=each.n in named,
        )
        for each in turn.citations
    ]


def feedback_row(feedback: Feedback) -> FeedbackRow:
    """Return what was said of a turn as a row; raises ValueError, OverflowError."""
    return FeedbackRow(
        turn_id=UUID(feedback.turn_id),
        conversation_id=UUID(feedback.conversation_id),
        tenant=storable(feedback.tenant),
        user_id=storable(feedback.user),
        rating=feedback.rating,
        comment=storable(feedback.comment) or None,
        correction=storable(feedback.correction) or None,
        given_at=_time(feedback.at),
    )


def document_row(outcome: DocumentOutcome) -> DocumentRow:
    """Return what became of a document as a row; raises ValueError, OverflowError, RecursionError."""
    return DocumentRow(
        tenant=storable(outcome.tenant),
        document_id=storable(outcome.document_id),
        user_id=storable(outcome.user),
        title=storable(outcome.title),
        url=storable(outcome.url) or None,
        status=outcome.status,
        error=storable(outcome.error) or None,
        passages=_int4(outcome.passages),
        metadata=_clean(outcome.metadata),
        updated_at=_time(outcome.at),
        revision=outcome.revision,
    )


def order_of(control: Control) -> Order:
    """Return what a control wants of a conversation; raises ValueError, OverflowError, RecursionError."""
    if control.action == "stop":
        raise ValueError("a stop is for a running answer")
    return Order(
        action=control.action,
        conversation_id=UUID(control.conversation_id),
        tenant=storable(control.tenant),
        user_id=storable(control.user),
        at=_time(control.at),
        title=None if control.title is None else storable(control.title),
        metadata=None if control.metadata is None else _clean(control.metadata),
    )


def converted(records: Mapping[int, R], convert: Callable[[R], Row]) -> dict[int, Row]:
    """Convert records; raises `SinkRefused` for those that can be no row."""
    converted: dict[int, Row] = {}
    reasons: dict[int, str] = {}
    for offset, record in records.items():
        try:
            converted[offset] = convert(record)
        except (ValueError, OverflowError, RecursionError) as error:
            reasons[offset] = f"it can be no row: {error}"
    if reasons:
        raise SinkRefused(reasons)
    return converted


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _int4(number: int) -> int:
    """Return a number as far as a column of Postgres holds it: in binary form a larger one would wrap around."""
    return max(-INT4, min(number, INT4))


def storable(text: str) -> str:
    """Return a text without NUL, the one character that Postgres cannot hold."""
    return text.replace(NUL, REPLACEMENT) if NUL in text else text


def _clean(value: Any) -> Any:
    """Return JSON without NUL in any of its texts."""
    match value:
        case str():
            return storable(value)
        case dict():
            return {storable(key): _clean(each) for key, each in value.items()}
        case list():
            return [_clean(each) for each in value]
        case _:
            return value
