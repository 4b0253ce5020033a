"""A user's past in one piece: what the tables have, and from the archive what only that has.

No page has a gap. Where the archive cannot be asked, a page ends with what the tables have and says so; what has left
the tables and is not in the archive yet is read from Kafka. An erased conversation is in neither: that the tables know
of it hides what the archive still has.
"""

import asyncio
import dataclasses
import re
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from msgspec.structs import replace

from domain.errors import LogUnavailable, SinkUnavailable
from domain.history import LEFT, Owner, is_near, page_of
from domain.ids import place_of
from web.errors import bad_input
from web.feedback import said_of
from web.keys import Identity
from web.progress import place_of_turn
from web.questions import find_turn
from web.shapes import ConversationList, ConversationView, FeedbackView, TurnInConversation, rfc3339
from web.site import Site
from web.views import of_finished, view

CURSOR: Final = re.compile(r"(?P<at>[0-9]{1,14})\.(?P<id>[0-9a-f-]{36})")
KAFKA_SECONDS: Final = 1.0
BEYOND: Final = "g"  # comes after every id

ListPlace = tuple[datetime, str]


def owner(identity: Identity) -> Owner:
    """Return whose past a user may read: their own."""
    return Owner(identity.tenant, identity.user)


# -- the list of conversations


def place(one: ConversationView) -> ListPlace:
    """Return where a conversation stands in its user's list."""
    return one.updated_at, one.id


async def conversations(
    site: Site, identity: Identity, near: Sequence[ConversationView], erased: Collection[str], after: str, limit: int
) -> ConversationList:
    """Return the part of a user's list that follows ``after``; ``near`` is what the tables have of it."""
    history, known = site.chat.services.history, [*erased, *(one.id for one in near)]
    before = await _place_of(site, identity, near, after) if after else None
    try:
        stored = await history.conversations(owner(identity), before=before, known=known, limit=limit + 1)
    except SinkUnavailable:
        stored, unavailable = [], True
    else:
        unavailable = False
    page = page_of(near, map(view, stored), place, before=before, limit=limit)
    return ConversationList(
        data=page.items,
        has_more=page.has_more,
        next=_cursor(page.items[-1]) if page.has_more else None,
        older_unavailable=unavailable,
    )


async def _place_of(site: Site, identity: Identity, near: Sequence[ConversationView], after: str) -> ListPlace:
    """Return the place that ``after`` means: a cursor, or a conversation's id, which may have moved since."""
    if cursor := CURSOR.fullmatch(after):
        return rfc3339(int(cursor["at"])), cursor["id"]
    for one in near:
        if one.id == after:
            return place(one)
    stored = await site.chat.services.history.conversation(owner(identity), after) if place_of(after) else None
    if stored is None:
        raise bad_input("after", "after must be the next of a page, or the id of one of your conversations.")
    return place(view(stored))


def _cursor(last: ConversationView) -> str:
    return f"{round(last.updated_at.timestamp() * 1000)}.{last.id}"


# -- a conversation's turns


class Turns(NamedTuple):
    """A part of a conversation, in the order asked."""

    turns: list[TurnInConversation]
    has_more: bool
    older_unavailable: bool = False


async def turns(
    site: Site,
    identity: Identity,
    conversation_id: str,
    near: Sequence[TurnInConversation],
    left: Sequence[str] | None,
    *,
    before: str | None,
    limit: int,
) -> Turns:
    """Return the latest turns, or the latest that were asked before one.

    ``near``: what the table has and what is in work. ``left``: the latest that have left the table; None where the
    table does not know the conversation. Raises `SinkUnavailable` where nothing could be shown without the archive.
    """
    floor = BEYOND if left is None else max(left, default=None)
    known = {turn.turn_id for turn in near}
    stored: list[TurnInConversation] = []
    unavailable = False
    if not is_near(near, _turn_id, floor=floor, before=before, limit=limit):
        try:
            stored = await _stored(site, identity, conversation_id, known, before, limit + 1)
            if unavailable := _lags(left, stored, before):
                stored = []
            reaches = stored[-1].turn_id if len(stored) > limit else ""
            known |= {turn.turn_id for turn in stored}
            missing = [each for each in left or () if reaches < each < (before or BEYOND) and each not in known]
            stored += await _from_kafka(site, missing[-limit - 1 :])
        except (SinkUnavailable, LogUnavailable, TimeoutError):
            if left is None:
                raise
            stored, unavailable = [], True
    page = page_of(near, stored, _turn_id, before=before, limit=limit)
    said = await said_of(site, identity, [turn.turn_id for turn in page.items if turn.outcome])
    shown = [_as_listed(turn, said.get(turn.turn_id)) for turn in _as_answered(page.items[::-1], near)]
    return Turns(shown, page.has_more, unavailable)


def _lags(left: Sequence[str] | None, stored: Sequence[TurnInConversation], before: str | None) -> bool:
    """Return whether the archive may lack turns that the table does not remember any more.

    It remembers the latest that left, and has forgotten older ones when these are as many as it can remember. If the
    archive, which has turns in their order, has none of these, it may not have come to the forgotten ones either.
    """
    if left is None or len(left) < LEFT or (before or BEYOND) <= min(left):
        return False
    return all(turn.turn_id < min(left) for turn in stored)


def _as_answered(turns: Sequence[TurnInConversation], near: Sequence[TurnInConversation]) -> list[TurnInConversation]:
    """Return turns with those of the table in its order, which is the log's.

    That of ids differs where two questions of one moment came over two workers.
    """
    shown = {turn.turn_id for turn in turns}
    ours = iter([turn for turn in near if turn.turn_id in shown])
    known = {turn.turn_id for turn in near}
    return [next(ours) if turn.turn_id in known else turn for turn in turns]


def _as_listed(turn: TurnInConversation, said: FeedbackView | None) -> TurnInConversation:
    """Return a turn with what was said of it, and the titles of its citations: the table has no more of them."""
    return replace(turn, feedback=said, citations=[dataclasses.replace(each, text="") for each in turn.citations])


def _turn_id(turn: TurnInConversation) -> str:
    return turn.turn_id


async def _stored(
    site: Site, identity: Identity, conversation_id: str, known: Collection[str], before: str | None, limit: int
) -> list[TurnInConversation]:
    found = await site.chat.services.history.turns(
        owner(identity), conversation_id, before=before or "", known=known, limit=limit
    )
    return [of_finished(TurnInConversation, turn, parent=turn.parent or None) for turn in found]


async def _from_kafka(site: Site, turn_ids: Sequence[str]) -> list[TurnInConversation]:
    """Return the turns that the archive does not have yet, where Kafka has them. Raises `TimeoutError` after a second.

    One that is in neither was set aside, as no row takes it.
    """
    async with asyncio.timeout(KAFKA_SECONDS):
        found = await asyncio.gather(*(find_turn(site, each, place_of_turn(each)) for each in turn_ids))
    return [of_finished(TurnInConversation, turn, parent=turn.parent or None) for turn in found if turn is not None]
