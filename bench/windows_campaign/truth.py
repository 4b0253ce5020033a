"""What the stores and the metrics topics have to say in the end, worked out from what was written.

By code that shares nothing with the product's: money is `Decimal`, and a duration is itself and in no bin.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from bench.windows_campaign.load import PRICES, PROMPTS, Truth, Vote, Written

Row = Mapping[str, Any]
Rows = Mapping[Any, Row]

# Whose question was refused is in no conversation.
REFUSED: Final = {"conversation_busy"}
MEASURES: Final = {
    "turns": ("turns", "resumed", "duration_ms"),
    "tokens": ("input_tokens", "output_tokens", "cost", "first_token_ms", "token_gap_ms"),
    "quality": ("turns", "cache_hits", "retrieval_hits", "citations", "feedback_up", "feedback_down"),
}


@dataclass(frozen=True, slots=True)
class Durations:
    """All of them in ms, the shortest first."""

    each: tuple[float, ...]


def turns(written: Written) -> Rows:
    """Return the turns that both stores have, by id."""
    return {each.turn_id: _turn(each) for each in written.turns.values()}


def documents(written: Written) -> Rows:
    """Return the turns as Elasticsearch has them, by id: with the documents that their answers were given."""
    return {
        each.turn_id: {**_turn(each), "document_ids": list(dict.fromkeys(one.document_id for one in each.passages))}
        for each in written.turns.values()
    }


def usage(written: Written) -> Rows:
    """Return what was billed, by turn."""
    names = ("ended_at", "tenant", "user_id", "model", "outcome", "input_tokens", "output_tokens", "claims", "cost")
    return {key: {name: row[name] for name in names} for key, row in turns(written).items()}


def citations(written: Written) -> Rows:
    """Return the passages that answers were given, by turn and number."""
    return {
        (each.turn_id, one.n): {
            "ended_at": each.ended_at,
            "document_id": one.document_id,
            "title": one.title,
            "url": one.url or None,
            "text": one.text,
            "named": one.named,
        }
        for each in written.turns.values()
        for one in each.passages
    }


def conversations(written: Written) -> Rows:
    """Return the conversations that turns have begun, by id: each with the title of the first in the log."""
    found: dict[str, dict[str, Any]] = {}
    for each in written.turns.values():
        if not _in_conversation(each):
            continue
        new = {
            "tenant": each.conversation.tenant,
            "user_id": each.conversation.user,
            "title": each.input,
            "created_at": each.asked_at,
            "updated_at": each.ended_at,
        }
        row = found.setdefault(each.conversation.id, new)
        row["created_at"] = min(row["created_at"], each.asked_at)
        row["updated_at"] = max(row["updated_at"], each.ended_at)
    return found


def feedback(written: Written) -> Rows:
    """Return the latest that was said of each turn, by its id."""
    latest: dict[str, Vote] = {}
    for vote in written.votes:
        known = latest.get(vote.turn.turn_id)
        if known is None or known.at <= vote.at:
            latest[vote.turn.turn_id] = vote
    return {
        key: {
            "conversation_id": vote.turn.conversation.id,
            "tenant": vote.turn.conversation.tenant,
            "user_id": vote.turn.conversation.user,
            "rating": vote.rating,
            "comment": vote.comment or None,
            "correction": vote.correction or None,
            "given_at": vote.at,
        }
        for key, vote in latest.items()
    }


def metrics(written: Written, metric: str, width: int) -> Rows:
    """Return the final rows of a metric, by the start of the window (Unix s) and the dimensions. ``width`` in s."""
    sums: defaultdict[Any, Counter[str]] = defaultdict(Counter)
    spans: defaultdict[Any, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    money: defaultdict[Any, Decimal] = defaultdict(Decimal)
    for each in written.turns.values():
        key = (each.ended_at // 1000 // width * width, *_dimensions(each))
        sums[key].update(_counts(each))
        money[key] += _cost(each) or 0
        for name, lengths in _lengths(each).items():
            spans[key][name] += lengths
    if metric == "quality":
        for key, said in _said(written.votes, width).items():
            sums[key].update(said)
    return {
        key: {
            name: Durations(tuple(sorted(spans[key][name])))
            if name.endswith("_ms")
            else float(money[key])
            if name == "cost"
            else sums[key][name]
            for name in MEASURES[metric]
        }
        for key in list(sums)
    }


def _turn(each: Truth) -> dict[str, Any]:
    message, code = each.error or (None, None)
    cost = _cost(each)
    return {
        "conversation_id": each.conversation.id,
        "ended_at": each.ended_at,
        "asked_at": each.asked_at,
        "tenant": each.conversation.tenant,
        "user_id": each.conversation.user,
        "in_conversation": _in_conversation(each),
        "input": each.input,
        "answer": each.answer,
        "model": each.model,
        "prompt": PROMPTS[each.model],
        "outcome": each.outcome,
        "error_code": code,
        "error_message": message,
        "input_tokens": each.input_tokens,
        "output_tokens": each.output_tokens,
        "started_ms": 1,
        "first_token_ms": each.first_token_ms,
        "total_ms": each.total_ms,
        "claims": each.claims,
        "metadata": each.metadata,
        "retrieval": each.retrieval,
        "cache": each.cache,
        "experiment": each.experiment,
        "bare": False,
        "cost": None if cost is None else float(cost),
    }


def _in_conversation(each: Truth) -> bool:
    return not each.stateless and not (each.error and each.error[1] in REFUSED)


def _cost(each: Truth) -> Decimal | None:
    price = PRICES[each.model]
    if price is None:
        return None
    read, written = map(Decimal, price)
    return (read * each.input_tokens + written * each.output_tokens) / 1_000_000


def _dimensions(each: Truth) -> tuple[str, ...]:
    cache = {None: "none", "miss": "miss", "hit": "hit", "exact": "hit"}[each.cache]
    return each.conversation.tenant, each.model, PROMPTS[each.model], each.outcome, cache, each.experiment


def _counts(each: Truth) -> dict[str, int]:
    return {
        "turns": 1,
        "resumed": int(each.claims > 1),
        "input_tokens": each.input_tokens,
        "output_tokens": each.output_tokens,
        "cache_hits": int(each.cache in {"hit", "exact"}),
        "retrieval_hits": int(each.retrieval == "found"),
        "citations": sum(one.named for one in each.passages),
    }


def _lengths(each: Truth) -> dict[str, list[float]]:
    spoke = each.first_token_ms > 0
    gaps = list(each.gaps)
    if not gaps and spoke and each.output_tokens > 1:
        gaps = [(each.total_ms - each.first_token_ms) / (each.output_tokens - 1)]
    return {
        "duration_ms": [each.total_ms],
        "first_token_ms": [each.first_token_ms] if spoke else [],
        "token_gap_ms": gaps,
    }


def _said(votes: Iterable[Vote], width: int) -> dict[Any, Counter[str]]:
    """Return the thumbs that were given in each window; of what was said of one turn in it, the later in the log."""
    last = {(vote.at // 1000 // width * width, vote.turn.turn_id): vote for vote in votes}
    said: defaultdict[Any, Counter[str]] = defaultdict(Counter)
    for (start, _), vote in last.items():
        said[start, *_dimensions(vote.turn)]["feedback_up" if vote.rating > 0 else "feedback_down"] += 1
    return said
