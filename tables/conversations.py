"""The session context of every conversation, in RocksDB: its last turns, its title, and the list of a user's.

Two tables, co-partitioned with the conversation topics. `conversations` has a row a conversation;
`listing` has a small row under tenant, user and conversation, so that a user's list is one range read.
Rows are JSON bytes of our own coding: a changelog record of another shape can then not wedge Faust's recovery.

Writers await `write`: the row is in RocksDB at once, and in Kafka's changelog when it returns. An agent
acknowledges what it worked from only after that, and every change is safe to apply twice.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from domain.conversation import last_that_fit, parent_of_next, title_from
from domain.errors import Rejected
from domain.generation import Usage
from domain.history import LEFT
from domain.knowledge import Citation, Retrieval
from domain.summary import Summary, carried_on, summary_of
from domain.turns import Cache, Failure, Outcome, Timings
from streams.app import app
from streams.records import Control, Question, Turn
from tables.row_table import acknowledged, row_table

SEPARATOR = "\x1f"  # sorts below every character of a tenant, a user or an id


class KeptTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A finished turn as its conversation keeps it. Times are Unix ms. The texts of its ``citations`` are left out.

    ``tokens``: what question and answer have by the model's own count, 0 where nobody has counted.
    """

    turn_id: str
    parent: str
    input: str
    answer: str
    outcome: Outcome
    model: str
    asked_at: int
    tokens: int = 0
    usage: Usage = Usage()
    timings: Timings = Timings()
    error: Failure | None = None
    citations: list[Citation] = []
    retrieval: Retrieval | None = None
    cache: Cache | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation. ``erased`` ones keep no content, only that they are gone.

    ``left``: the latest turns that had to leave the row; those before them, and soon they too, are in the archive.
    ``summaries``: of what turns up to some turn said, for prompts that have no room for them.
    ``fingerprint``: of the request that began it, where that had an Idempotency-Key.
    """

    conversation_id: str
    tenant: str
    user: str
    title: str
    created_at: int
    updated_at: int
    metadata: dict[str, Any] = {}
    turns: list[KeptTurn] = []
    left: list[str] = []
    summaries: list[Summary] = []
    erased: bool = False
    fingerprint: str = ""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation in its user's list. That one is ``erased`` stays there too: the archive may not know yet."""

    conversation_id: str
    title: str
    created_at: int
    updated_at: int
    metadata: dict[str, Any] = {}
    erased: bool = False


_conversations = row_table("conversations", check=msgspec.json.Decoder(Conversation).decode)
_listing = row_table("listing", check=msgspec.json.Decoder(Listed).decode)
_closing: dict[str, asyncio.Event] = {}


# -- reading


def read(conversation_id: str) -> Conversation | None:
    """Return a conversation, None if there is none; raises `NotOwner`."""
    found = _read(conversation_id)
    return None if found is None or found.erased else found


def is_erased(conversation_id: str) -> bool:
    """Return whether there was a conversation, and it was erased; raises `NotOwner`."""
    found = _read(conversation_id)
    return found is not None and found.erased


def _read(conversation_id: str) -> Conversation | None:
    row = _conversations.row(app.partition(conversation_id), conversation_id)
    return None if row is None else msgspec.json.decode(row, type=Conversation)


def context(question: Question) -> list[KeptTurn]:
    """Return the turns of a question's conversation.

    Raises `NotOwner`, and `Rejected` if the conversation was erased or is not the asker's.
    """
    found = _read(question.conversation_id)
    if found is None:
        return []
    if found.erased:
        raise Rejected("the conversation was erased")
    if (found.tenant, found.user) != (question.tenant, question.user):
        raise Rejected("the conversation belongs to somebody else")
    return found.turns


def parent_of(question: Question) -> str:
    """Return the turn that a question's turn follows, also when it is in the conversation already."""
    found = _read(question.conversation_id)
    turns = found.turns if found else []
    return next((kept.parent for kept in turns if kept.turn_id == question.turn_id), None) or parent_of_next(
        [kept for kept in turns if kept.turn_id != question.turn_id], question.beside, question.parent
    )


def summary_for(question: Question, path: Sequence[KeptTurn], parent: str) -> str:
    """Return what is to stand in a prompt for the turns before those that fit: "" if nothing.

    ``parent``: the turn that the question follows, where the path ends; it may have left the row, with all before it.
    """
    found = _read(question.conversation_id)
    summary = summary_of(found.summaries, path, parent) if found else None
    return summary.text if summary else ""


def of_user(tenant: str, user: str) -> list[Listed]:
    """Return a user's conversations in this worker's partitions, in no order, and what is left of erased ones."""
    prefix = SEPARATOR.join((tenant, user, ""))
    return [msgspec.json.decode(row, type=Listed) for _, row in _listing.rows(prefix)]


# -- writing, for agents


async def create(control: Control) -> None:
    """Begin a conversation. One that a first turn has begun keeps its turns, and one begun under a key all it has."""
    found = _read(control.conversation_id)
    if found is None:
        found = Conversation(
            conversation_id=control.conversation_id,
            tenant=control.tenant,
            user=control.user,
            title=control.title or "",
            created_at=control.at,
            updated_at=control.at,
            metadata=control.metadata or {},
            fingerprint=control.fingerprint,
        )
    elif not found.erased and not found.fingerprint:
        found = msgspec.structs.replace(
            found,
            created_at=control.at,
            title=control.title or found.title,
            metadata=control.metadata or found.metadata,
            fingerprint=control.fingerprint,
        )
    await _write(found)


async def rename(control: Control) -> None:
    """Change a conversation's title or metadata, if it is there and the user's own."""
    found = _read(control.conversation_id)
    if found is None or found.erased or (found.tenant, found.user) != (control.tenant, control.user):
        return
    title = found.title if control.title is None else control.title
    metadata = found.metadata if control.metadata is None else control.metadata
    await _write(msgspec.structs.replace(found, title=title, metadata=metadata, updated_at=control.at))


async def erase(control: Control) -> None:
    """Forget a conversation's content. That it is gone stays, so that a turn that ends late cannot bring it back."""
    found = _read(control.conversation_id)
    if found is not None and (found.tenant, found.user) != (control.tenant, control.user):
        return
    await _write(
        Conversation(
            conversation_id=control.conversation_id,
            tenant=control.tenant,
            user=control.user,
            title="",
            created_at=control.at,
            updated_at=control.at,
            erased=True,
        )
    )


async def keep_summary(conversation_id: str, summary: Summary) -> None:
    """Keep a summary, if its turn is still there: nothing of a conversation that was erased meanwhile comes back."""
    found = read(conversation_id)
    if found is not None and any(kept.turn_id == summary.turn_id for kept in found.turns):
        others = [each for each in found.summaries if each.turn_id != summary.turn_id]
        summaries = carried_on([*others, summary], (), found.turns)
        await _write(msgspec.structs.replace(found, summaries=summaries))


async def close(turn: Turn, tokens: int = 0) -> None:
    """Put a finished turn into its conversation, which its first turn begins. The same turn again changes nothing.

    ``tokens``: what its question and answer have, 0 where nobody has counted.
    """
    found = _read(turn.conversation_id) or Conversation(
        conversation_id=turn.conversation_id,
        tenant=turn.tenant,
        user=turn.user,
        title="",
        created_at=turn.asked_at,
        updated_at=turn.asked_at,
        # Nobody began it, so it may be older than this table: whoever reads it looks for turns before this one.
        left=[turn.turn_id],
    )
    if found.erased:
        return
    if all(kept.turn_id != turn.turn_id for kept in found.turns):
        turns = [*found.turns, _keep(turn, tokens)]
        kept = _kept(turns)
        left = turns[: -len(kept)]
        found = msgspec.structs.replace(
            found,
            title=found.title or title_from(turn.input),
            updated_at=max(found.updated_at, turn.ended_at),
            turns=kept,
            left=[*found.left, *(each.turn_id for each in left)][-LEFT:],
            summaries=carried_on(found.summaries, left, kept),
        )
    # Also where the turn is there: after a crash, or a changelog that did not answer, it may be on this disk alone.
    await _write(found)


def _keep(turn: Turn, tokens: int) -> KeptTurn:
    return KeptTurn(
        turn_id=turn.turn_id,
        parent=turn.parent,
        input=turn.input,
        answer=turn.answer,
        outcome=turn.outcome,
        model=turn.model,
        asked_at=turn.asked_at,
        tokens=tokens,
        usage=turn.usage,
        timings=turn.timings,
        error=turn.error,
        citations=[replace(each, text="") for each in turn.citations],
        retrieval=turn.retrieval,
        cache=turn.cache,
    )


def _kept(turns: list[KeptTurn]) -> list[KeptTurn]:
    """Return what fits the row: always the latest turn, so that the next one knows what it follows."""
    return last_that_fit(turns, app.settings.session_tokens) or turns[-1:]


async def _write(conversation: Conversation) -> None:
    """Write a conversation and its entry in the list; return when the changelogs have both."""
    partition = app.partition(conversation.conversation_id)
    entry = Listed(
        conversation_id=conversation.conversation_id,
        title=conversation.title,
        created_at=conversation.created_at,
        updated_at=conversation.updated_at,
        metadata=conversation.metadata,
        erased=conversation.erased,
    )
    listed_under = SEPARATOR.join((conversation.tenant, conversation.user, conversation.conversation_id))
    await acknowledged(
        _conversations.put(partition, conversation.conversation_id, msgspec.json.encode(conversation)),
        _listing.put(partition, listed_under, msgspec.json.encode(entry)),
    )


# -- the turn's last step: answered questions wait until their conversation has them


def expect(turn_id: str) -> asyncio.Event:
    """Return an event that is set when `closed` is told of this turn."""
    return _closing.setdefault(turn_id, asyncio.Event())


def forget(turn_id: str) -> None:
    """Drop what `expect` set up."""
    _closing.pop(turn_id, None)


def closed(turn_id: str) -> None:
    """Tell whoever waits that the turn is in its conversation."""
    if turn_id in _closing:
        _closing[turn_id].set()
